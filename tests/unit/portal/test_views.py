import csv
import io
import json
import math
from dataclasses import fields, replace
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
    Proof,
    PublishFailed,
    QuantisedVariant,
    Realism,
    SkippedEntry,
    SplitCaution,
    SplitCautionKind,
    StageStarted,
    Task,
    TrainingResult,
    VariationOptions,
    WaferInfo,
)
from gateway.views.evaluation import (
    caution_sentences,
    class_sentence,
    figures,
    known_classes,
    matrix_rows,
    score_rows,
    summary_sentences,
)
from gateway.views.generation import VARIATION_STEPS, proof_sentence, realism_sentences, variation_options
from gateway.views.models import python_snippet, variant_rows
from gateway.views.predictions import (
    answer_name,
    by_doubt,
    decision_advice,
    decision_chips,
    decision_text,
    summarise,
    to_csv,
    to_json,
)
from gateway.views.projects import (
    change_text,
    counts_text,
    further_names,
    gate_text,
    health_text,
    problem_text,
    wafer_badge,
    wafer_label,
)
from gateway.views.training import TrainingProgress, curve_options
from gateway.views.uploads import preview_lines
from services.common.dataset import Origin
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
        ("optional", {"wafers": 0}),
        ("only_measures", {"wafers": 7}),
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
    few = Gate(False, "few_normal", {"name": "none", "wafers": 3, "needed": 20})
    assert gate_text(EN, few) == "none has 3 of the 20 normal wafers that are needed."


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


@pytest.mark.parametrize("t", [EN, KO])
def test_the_quantised_variant_stands_beside_the_model(t):
    judged = Evaluation(30, 9, 0.912, Interval(0.7, 0.9), 25 / 30, (), (), 0.9, 0.02, 0.05)
    small = replace(judged, macro_f1=0.905, accepted_share=0.885, accepted_error=0.021)
    variant = QuantisedVariant(small, small, 1_200_000, 60, 0.99, 0.98)
    result = TrainingResult(1, 2, small, judged, 2_600_000, 0.0, 60, "wafer-fast", 90, 1.0, 0, quantised=variant)
    rows = variant_rows(t, result, variant)
    assert [(model, other) for _, model, other in rows] == [
        ("0.912", "0.905"),
        ("90.0%", "88.5%"),
        ("2.0%", "2.1%"),
        (t.size(2_600_000), t.size(1_200_000)),
    ]
    assert len({name for name, _, _ in rows}) == 4
    assert variant.publishable
    assert not replace(variant, same_answers=0.9799).publishable
    # Of only normal the AUROC is what there is to compare.
    normal = replace(result, test=replace(judged, task=Task.NORMAL, auroc=0.97))
    told = variant_rows(t, normal, replace(variant, test=replace(small, task=Task.NORMAL, auroc=0.96)))
    assert told[0][1:] == ("0.970", "0.960")


@pytest.fixture
def scores():
    classes = (score("a", 20, 18, 3), score("b", 10, 7, 2), score("c", 0, 0, 0))
    confusion = ((18, 2, 0), (3, 7, 0), (0, 0, 0))
    evaluation = Evaluation(30, 9, 0.8, Interval(0.7, 0.9), 25 / 30, classes, confusion, 0.9, 0.02, 0.05)
    return EvaluationView("r", "test", evaluation, {"a": "#111111"}, {"a": "Scratch"}, True, "a", "b", "c")


@pytest.fixture
def several():
    classes = (score("a", 60, 55, 3), score("b", 40, 30, 2), score("none", 50, 48, 4))
    evaluation = Evaluation(200, 9, 0.8, Interval(0.7, 0.9), 0.9, classes, (), 0.9, 0.02, 0.05, task=Task.SEVERAL)
    return EvaluationView("r", "test", evaluation, {}, {"a": "Scratch"}, True, "a", "b", "none")


@pytest.fixture
def normal():
    classes = (score("none", 200, 198, 5), score("a", 40, 38, 0), score("b", 10, 7, 0))
    evaluation = Evaluation(
        250, 9, 0.8, Interval(0.7, 0.9), 0.97, classes, (), 0.9, 0.02, 0.05, task=Task.NORMAL, auroc=0.987
    )
    return EvaluationView("r", "test", evaluation, {}, {"b": "Scratch"}, True, "a", "b", "none")


@pytest.fixture
def result(scores):
    return TrainingResult(1, 2, scores.evaluation, None, 1, 0.0, 1, "wafer-fast", 3, 1.0, 1)


def test_classes_known_before_are_named_and_so_is_their_pattern_where_it_is_called_otherwise(scores, result):
    result = replace(result, known_patterns={"a": "scratch", "gone": "Loc"})
    assert known_classes(scores, result) == ["Scratch"]
    assert known_classes(scores, replace(result, known_patterns={"a": "Loc"})) == ["Scratch → Loc"]
    assert known_classes(scores, None) == []


def test_what_makes_scores_less_sure_is_said_in_both_languages(scores, result):
    cautions = tuple(SplitCaution(kind, ("a", "gone")) for kind in SplitCautionKind)
    result = replace(result, cautions=cautions)
    for t in (EN, KO):
        sentences = caution_sentences(t, scores, result)
        assert len(set(sentences)) == len(SplitCautionKind)
        assert all("Scratch, gone" in each for each in sentences[1:])
    assert caution_sentences(EN, scores, None) == []


def test_words_come_before_numbers(scores):
    sentences = summary_sentences(EN, scores)
    assert sentences[0] == "25 of 30 wafers were named right."
    assert sentences[1] == "Best: Scratch, 18 of 20 found."
    assert sentences[2] == "Weakest: b, 7 of 10 found."
    first = scores.evaluation.classes[0]
    assert class_sentence(EN, scores, first, "Scratch") == "Found 18 of 20 Scratch; called 3 other wafers Scratch."


def test_several_patterns_are_judged_as_a_whole_and_one_by_one(several):
    sentences = summary_sentences(EN, several)
    assert sentences[0] == "All patterns right on 180 of 200 wafers."
    assert sentences[1] == "Best: Scratch, 55 of 60 found."
    assert summary_sentences(KO, several)[0] == "웨이퍼 200장 중 180장에서 패턴을 모두 맞혔습니다."
    assert figures(EN, several)[0][:2] == ("accuracy_several", "90.0%")
    assert matrix_rows(EN, several) == []


def test_only_normal_says_what_passes_and_what_is_noticed(normal):
    sentences = summary_sentences(EN, normal)
    assert sentences == [
        "198 of 200 normal wafers pass; 45 of 50 other wafers were noticed.",
        "Noticed least: Scratch, 7 of 10.",
    ]
    assert "정상 웨이퍼 200장 중 198장이 통과" in summary_sentences(KO, normal)[0]
    assert [each[:2] for each in figures(EN, normal)] == [
        ("normal_pass", "99.0%"),
        ("noticed", "90.0%"),
        ("auroc", "0.99"),
    ]
    first, second, _ = normal.evaluation.classes
    assert class_sentence(EN, normal, first, "none") == "198 of 200 normal wafers pass."
    assert class_sentence(EN, normal, second, "a") == "38 of 40 wafers of a were noticed."


def test_without_other_wafers_nothing_is_said_about_noticing(normal):
    alone = replace(normal, evaluation=replace(normal.evaluation, classes=normal.evaluation.classes[:1], auroc=0.0))
    alone = replace(alone, best_found="", worst_found="")
    assert summary_sentences(EN, alone) == [
        "198 of 200 normal wafers pass. There are no other wafers to see what it notices."
    ]
    assert [each[0] for each in figures(EN, alone)] == ["normal_pass"]


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
    summary = summarise(EN, [answer(Decision.ACCEPTED), answer(Decision.NOT_SURE), answer(Decision.ACCEPTED, name="b")])
    assert (summary.total, summary.accepted, summary.look) == (3, 2, 1)
    assert summary.per_class == (("a", 2), ("b", 1))


def test_a_class_is_named_only_where_the_model_is_sure():
    assert decision_chips(EN, answer(Decision.ACCEPTED)) == [("a", "good", "#111111")]
    assert decision_chips(EN, answer(Decision.NOT_SURE)) == [("Not sure", "warn", "")]
    assert decision_chips(EN, answer(Decision.UNKNOWN)) == [("Unlike anything taught", "warn", "")]
    assert "probably a" in decision_advice(EN, answer(Decision.NOT_SURE))
    failed = answer(Decision.FAILED, problem=Problem("UNREADABLE", ""))
    assert decision_advice(EN, failed) == "damaged or not a wafer"


def mixed(decision, *patterns, task=Task.SEVERAL):
    shown = tuple(ClassProbability(name, name, "#222222", 0.97) for name in patterns)
    return replace(answer(decision, name="Center"), task=task, patterns=shown)


def test_each_of_several_patterns_has_a_chip():
    both = mixed(Decision.ACCEPTED, "Center", "Scratch")
    assert decision_chips(EN, both) == [("Center 97%", "good", "#222222"), ("Scratch 97%", "good", "#222222")]
    assert answer_name(EN, both) == "Center + Scratch"
    doubtful = mixed(Decision.NOT_SURE, "Scratch")
    assert decision_chips(EN, doubtful) == [("Not sure", "warn", ""), ("Scratch 97%", "", "#222222")]
    assert decision_advice(EN, doubtful) == "Have a look: probably Scratch."
    clean = mixed(Decision.ACCEPTED)
    assert decision_chips(EN, clean) == [("No pattern", "good", "")]
    assert answer_name(KO, clean) == "패턴 없음"
    summary = summarise(EN, [both, doubtful, clean, mixed(Decision.FAILED)])
    assert summary.per_class == (("Scratch", 2), ("Center", 1), ("No pattern", 1))


def test_a_wafer_is_normal_or_unlike_the_normal_ones():
    passes, stands_out = (mixed(each, task=Task.NORMAL) for each in (Decision.ACCEPTED, Decision.UNKNOWN))
    assert decision_chips(EN, passes) == [("Normal", "good", "")]
    assert decision_chips(EN, stands_out) == [("Unlike the normal wafers", "warn", "")]
    assert [decision_text(EN, each) for each in (passes, stands_out)] == ["Accepted", "Have a look"]
    assert decision_advice(KO, stands_out) == "확인이 필요합니다. 가르친 정상 웨이퍼와 다릅니다."
    assert summarise(EN, [passes, stands_out, passes]).per_class == (("Normal", 2), ("Unlike the normal wafers", 1))


def test_files_carry_the_patterns():
    answers = (
        mixed(Decision.ACCEPTED, "Center", "Scratch"),
        mixed(Decision.ACCEPTED),
        mixed(Decision.UNKNOWN, task=Task.NORMAL),
    )
    result = FileAnswers("m", 3, answers, (), 1.0)
    rows = list(csv.DictReader(io.StringIO(to_csv(result).decode("utf-8-sig"))))
    assert [(row["answer"], row["patterns"]) for row in rows] == [
        ("Center+Scratch", "Center+Scratch"),
        ("none", ""),
        ("unlike_normal", ""),
    ]
    first = json.loads(to_json(result))["wafers"][0]
    assert [each["name"] for each in first["patterns"]] == ["Center", "Scratch"]


def test_a_badge_counts_the_further_classes_and_a_label_names_them():
    info = WaferInfo("w", "p", "c", "L1", "", 0, 4, 4, 16, 2, Origin.VARIATION, "", "", NOW, also=("s", "d"))
    names = {"c": "Center", "s": "Scratch", "d": "Donut"}
    on_center, on_scratch = further_names(info, "c", names), further_names(info, "s", names)
    assert (on_center, on_scratch) == (["Scratch", "Donut"], ["Center", "Donut"])
    assert wafer_badge(info, on_center) == "G +2"
    assert wafer_badge(info, []) == "G"
    assert wafer_label(EN, info, 3, on_center).endswith("L1, also shows Scratch, Donut")


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


def test_settings_left_alone_are_left_to_the_generator():
    assert variation_options({"shear": None, "handedness": "", "strength": 0}) == VariationOptions(strength=0)
    answers = {"rotation_degrees": 90, "vertical_mirror": "no", "handedness": "yes"}
    expected = VariationOptions(rotation_degrees=90.0, vertical_mirror=False, handedness=True)
    assert variation_options(answers) == expected
    numbers = {each.name for each in fields(VariationOptions) if each.name in VARIATION_STEPS}
    assert numbers == set(VARIATION_STEPS)


def test_realism_is_said_in_words():
    near = Realism(0.01, 0.10, 0.0, 0.5, 0.1, 0.1, 0.0)
    assert (EN("generate.too_close"), "") in realism_sentences(EN, near)
    far = Realism(0.30, 0.10, 0.25, 0.5, 0.1, 0.1, 0.0)
    texts = [text for text, _ in realism_sentences(EN, far)]
    assert EN("generate.too_far") in texts
    assert any("25%" in text for text in texts)
    assert len(texts) == 4, "what was not measured is not told"


@pytest.mark.parametrize("t", [EN, KO])
def test_what_trained_networks_see_in_generated_wafers_is_said(t):
    realism = Realism(0.1, 0.1, 0.0, 0.5, 0.1, 0.1, 0.0, 0.81, 0.72, 0.0123, None, 0.63, 0.94)
    told = dict(realism_sentences(t, realism))
    for told_together in (("81%", "72%"), ("0.012",), ("63%", "94%")):
        assert any(all(figure in text for figure in told_together) for text in told)
    assert next(tone for text, tone in told.items() if "63%" in text) == "warn"
    both = [text for text, _ in realism_sentences(t, replace(realism, frechet_distance_real=0.045))]
    assert any("0.012" in text and "0.045" in text for text in both)


@pytest.mark.parametrize("t", [EN, KO])
def test_whether_generated_wafers_help_is_said_plainly(t):
    helps = Proof(0.801, 0.852, 0.051, 0.013, 0.092, 240, 31)
    texts = []
    for proof, tone in (
        (helps, "good"),
        (replace(helps, low=-0.02), ""),
        (replace(helps, low=-0.2, high=-0.1), "warn"),
    ):
        text, told = proof_sentence(t, proof)
        assert told == tone
        assert all(figure in text for figure in ("0.801", "0.852", "+0.051", "240", "31"))
        texts.append(text.partition("0.8")[0])
    assert len(set(texts)) == 3


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


@pytest.mark.parametrize("task", Task)
def test_the_snippet_is_a_program_with_the_models_name(task):
    code = python_snippet("sample-7", "host:1", task)
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
