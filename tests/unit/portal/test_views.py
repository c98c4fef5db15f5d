import csv
import io
import json
import math
from datetime import UTC, datetime

import numpy as np
import pytest

from gateway.components.draw_pad import parse_grid
from gateway.i18n import Messages
from gateway.values import (
    Answer,
    Change,
    ClassProbability,
    ClassScore,
    Counts,
    Decision,
    EpochEnded,
    Evaluation,
    EvaluationView,
    FileAnswers,
    Gate,
    HealthNote,
    ImportPreview,
    InOtherClass,
    Interval,
    JobState,
    JobStateChanged,
    Level,
    ModelPublished,
    Problem,
    PublishFailed,
    Realism,
    SkippedEntry,
    StageStarted,
)
from gateway.views.evaluation import class_sentence, matrix_rows, score_rows, summary_sentences
from gateway.views.generation import realism_sentences
from gateway.views.models import python_snippet
from gateway.views.predictions import by_doubt, decision_advice, decision_chip, summarise, to_csv, to_json
from gateway.views.projects import change_text, counts_text, gate_text, health_text, problem_text
from gateway.views.training import TrainingProgress, curve_options
from gateway.views.uploads import preview_lines
from services.common.errors import InvalidArgumentError
from services.common.wafer_map import WaferIdentity, WaferMap

NOW = datetime(2026, 11, 24, tzinfo=UTC)
EN, KO = Messages("en"), Messages("ko")


def test_counts_name_only_what_there_is():
    assert counts_text(EN, Counts(wafers=24, lots=3, generated=6)) == "24 wafers · 3 lots · 6 generated"
    assert counts_text(EN, Counts(wafers=1)) == "1 wafer"
    assert counts_text(KO, Counts(wafers=24, lots=3)) == "웨이퍼 24장 · 랏 3개"


@pytest.mark.parametrize(
    ("key", "params"),
    [
        ("no_wafers", {"needed": 5}),
        ("few_wafers", {"wafers": 3, "needed": 5}),
        ("below_advised", {"wafers": 9, "advised": 20}),
        ("one_lot", {"wafers": 7, "lots": 1}),
        ("no_lots", {"wafers": 7}),
        ("imbalance", {"wafers": 7, "ratio": 25, "largest": "none"}),
        ("only_generated", {"wafers": 7}),
        ("disabled", {}),
        ("good", {"wafers": 60}),
    ],
)
@pytest.mark.parametrize("t", [EN, KO], ids=["en", "ko"])
def test_every_note_about_a_class_can_be_said(t, key, params):
    text = health_text(t, HealthNote(key, Level.AMBER, params))
    assert "{" not in text
    if "wafers" in params and key in ("few_wafers", "below_advised", "one_lot"):
        assert str(params["wafers"]) in text


def test_a_grey_button_says_why():
    assert gate_text(EN, Gate(True)) == ""
    assert "So far: 1" in gate_text(EN, Gate(False, "few_classes", {"needed": 2, "classes": 1}))


def test_changes_are_said_with_names_and_numbers():
    change = Change("1", "p", "move_wafers", {"count": 2, "into": "Scratch"}, NOW)
    assert change_text(EN, change) == "2 wafers moved to Scratch."
    assert change_text(KO, change) == "웨이퍼 2장을 Scratch로 옮겼습니다."


def test_a_change_without_a_text_of_its_own_still_has_one():
    assert change_text(EN, Change("1", "p", "never_heard_of", {}, NOW)) == "Done."
    assert change_text(EN, Change("1", "p", "merge_class", {}, NOW)) == "Done."


def test_problems_use_the_text_of_their_reason_or_the_servers_words():
    assert problem_text(EN, Problem("NO_FILES", "x")) == "There is no file."
    assert problem_text(EN, Problem("ODD", "Disk 7 burns.", {}, "DATA_LOSS")).endswith("Disk 7 burns.")


def epoch(sequence, number, seconds=2.0):
    return EpochEnded(sequence, NOW, number, 10, 1 / number, 0.5, 2 / number, 0.4, 0.4, seconds, True)


def test_a_training_is_followed_from_the_queue_to_its_version():
    progress = TrainingProgress(JobState.QUEUED, queue_position=2, epochs=10)
    assert progress.headline(EN) == "In the queue, place 2"
    progress.see(JobStateChanged(1, NOW, JobState.RUNNING))
    progress.see(StageStarted(2, NOW, "features", 0.1, "CPU"))
    assert progress.headline(EN) == "Looking at the wafers"
    assert progress.share == 0.1
    progress.see(StageStarted(3, NOW, "training", 0.2))
    for number in (1, 2, 3):
        progress.see(epoch(3 + number, number))
    assert progress.headline(EN) == "3 / 10 epochs"
    assert progress.detail(EN) == "About 14 s left"
    assert progress.share == pytest.approx(0.3)
    assert progress.device == "CPU"
    progress.see(JobStateChanged(9, NOW, JobState.SUCCEEDED))
    assert not progress.resting
    progress.see(ModelPublished(9, NOW, "m", 4))
    assert progress.resting
    assert (progress.version, progress.sequence) == (4, 9)


def test_epochs_that_come_again_after_a_restart_replace_the_old_ones():
    progress = TrainingProgress(JobState.RUNNING, epochs=10)
    for sequence, number in enumerate((1, 2, 3, 2, 3), start=1):
        progress.see(epoch(sequence, number))
    taught, _ = progress.series("loss")
    assert [point[0] for point in taught] == [1, 2, 3]


def test_a_model_that_cannot_be_published_says_why():
    progress = TrainingProgress(JobState.SUCCEEDED)
    progress.see(PublishFailed(9, NOW, Problem("UNAVAILABLE", "", {}, "UNAVAILABLE")))
    assert progress.resting
    assert "not reachable" in progress.detail(EN)


def test_curves_hold_one_point_an_epoch():
    progress = TrainingProgress(JobState.RUNNING, epochs=10)
    progress.see(epoch(1, 1))
    progress.see(epoch(2, 2))
    options = curve_options(KO, "loss", progress)
    assert [each["data"] for each in options["series"]] == [[[1, 1.0], [2, 0.5]], [[1, 2.0], [2, 1.0]]]
    assert options["series"][0]["name"] == "학습한 웨이퍼"


def score(class_id, wafers, found, alarms):
    recall = found / wafers if wafers else 0.0
    precision = found / (found + alarms) if found + alarms else 0.0
    return ClassScore(class_id, class_id, wafers, 3, found, alarms, recall, Interval(0.70, 0.97), precision, 0.9)


@pytest.fixture
def scores():
    classes = (score("a", 20, 18, 3), score("b", 10, 7, 2), score("c", 0, 0, 0))
    confusion = ((18, 2, 0), (3, 7, 0), (0, 0, 0))
    evaluation = Evaluation(30, 9, 0.8, Interval(0.7, 0.9), 25 / 30, classes, confusion, 0.9, 0.02, 0.05)
    return EvaluationView("r", "test", evaluation, {"a": "#111111"}, {"a": "Scratch"}, True, "a", "b")


def test_words_come_before_numbers(scores):
    sentences = summary_sentences(EN, scores)
    assert sentences[0] == "25 of 30 wafers were named right."
    assert sentences[1] == "Best: Scratch, 18 of 20 found."
    assert sentences[2] == "Weakest: b, 7 of 10 found."
    first = scores.evaluation.classes[0]
    assert class_sentence(EN, first, "Scratch") == "Found 18 of 20 Scratch; called 3 other wafers Scratch."


def test_rows_use_present_names_and_say_when_there_are_few_wafers(scores):
    first, second, third = score_rows(EN, scores)
    assert (first.name, first.colour, first.missed, first.interval) == ("Scratch", "#111111", "2", "0.70–0.97")
    assert (first.few, second.few) == (False, True)
    assert (third.recall, third.precision, third.f1) == ("–", "–", "–")


def test_matrix_cells_say_what_they_hold(scores):
    name, cells = matrix_rows(EN, scores)[0]
    assert name == "Scratch"
    assert [each.count for each in cells] == [18, 2, 0]
    assert cells[1].label == "2 wafers of Scratch answered b"
    assert cells[2].style == ""


def answer(decision, probability=0.5, novelty=0.5, name="a", source="w.png", lot="", problem=None):
    wafer = WaferMap(np.ones((4, 4), np.uint8), WaferIdentity(lot=lot))
    shares = (ClassProbability(name, name, "#111111", probability),)
    return Answer(wafer, source, decision, name, name, probability, shares, novelty, problem=problem)


def test_the_most_doubtful_answers_come_first():
    sure, surer = answer(Decision.ACCEPTED, 0.8), answer(Decision.ACCEPTED, 0.99)
    unsure, strange = answer(Decision.NOT_SURE, 0.6), answer(Decision.UNKNOWN, 0.9, 1.4)
    stranger, failed = answer(Decision.UNKNOWN, 0.9, 2.0), answer(Decision.FAILED)
    order = by_doubt([surer, sure, unsure, strange, stranger, failed])
    assert order == [failed, stranger, strange, unsure, sure, surer]


def test_a_summary_counts_what_needs_a_look():
    summary = summarise([answer(Decision.ACCEPTED), answer(Decision.NOT_SURE), answer(Decision.ACCEPTED, name="b")])
    assert (summary.total, summary.accepted, summary.look) == (3, 2, 1)
    assert summary.per_class == (("a", 2), ("b", 1))


def test_a_class_is_named_only_where_the_model_is_sure():
    assert decision_chip(EN, answer(Decision.ACCEPTED)) == ("a", "good")
    assert decision_chip(EN, answer(Decision.NOT_SURE)) == ("Not sure", "warn")
    assert decision_chip(EN, answer(Decision.UNKNOWN)) == ("Unlike anything taught", "warn")
    assert "probably a" in decision_advice(EN, answer(Decision.NOT_SURE))
    failed = answer(Decision.FAILED, problem=Problem("UNREADABLE", ""))
    assert decision_advice(EN, failed) == "damaged or not a wafer"


def test_csv_is_read_back_and_starts_no_formula():
    answers = (answer(Decision.ACCEPTED, 0.75, lot="=1+1", source="웨이퍼.png"),)
    content = to_csv(FileAnswers("m", 3, answers, (), 1.0))
    assert content.startswith(b"\xef\xbb\xbf")
    (row,) = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
    assert row["lot"] == "'=1+1"
    assert row["file"] == "웨이퍼.png"
    assert float(row["p(a)"]) == pytest.approx(0.75)
    assert (row["decision"], row["version"]) == ("accepted", "3")


def test_json_holds_the_same():
    content = json.loads(to_json(FileAnswers("m", 3, (answer(Decision.UNKNOWN, 0.4),), (), 1.0)))
    assert content["model"] == "m"
    assert content["wafers"][0]["decision"] == "unknown"
    assert math.isclose(content["wafers"][0]["probabilities"]["a"], 0.4)


def test_realism_is_said_in_words():
    near = Realism(0.01, 0.10, 0.0, 0.5, 0.1, 0.1, 0.0)
    assert (EN("generate.too_close"), "") in realism_sentences(EN, near)
    far = Realism(0.30, 0.10, 0.25, 0.5, 0.1, 0.1, 0.0)
    texts = [text for text, _ in realism_sentences(EN, far)]
    assert EN("generate.too_far") in texts
    assert any("25%" in text for text in texts)


def test_an_upload_says_what_was_left_out():
    skipped = tuple(SkippedEntry(f"{index}.txt", "UNKNOWN_FORMAT", "") for index in range(5))
    preview = ImportPreview(
        "i", "p", 1, ("zip",), 10, 6, 2, (InOtherClass("c", "Scratch", 2),), 3, 4, skipped, 5, (), ()
    )
    lines = preview_lines(EN, preview)
    assert lines[0] == ("10 wafers read", "")
    tones = dict(lines)
    assert tones[EN("upload.guessed")] == "bad"
    assert any("0.txt" in text and "and 2 more" in text for text in tones)


def test_the_snippet_is_a_program_with_the_models_name():
    code = python_snippet("sample-7", "host:1")
    compile(code, "snippet", "exec")
    assert 'model="sample-7"' in code
    assert '"host:1"' in code


def test_a_drawn_wafer_is_read():
    grid = parse_grid({"across": 10, "dies": "012" + "1" * 97})
    assert grid.shape == (10, 10)
    assert grid.dtype == np.uint8
    assert grid[0, :3].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "sent",
    [None, {}, {"across": 10, "dies": "1" * 99}, {"across": 10, "dies": "3" * 100}, {"across": 5000, "dies": "1"}],
)
def test_anything_else_than_a_drawn_wafer_is_refused(sent):
    with pytest.raises(InvalidArgumentError):
        parse_grid(sent)
