"""Answers become scores: by class, with what was not taught and what failed beside them."""

import numpy as np
import pytest

from gateway.cli.asking import measure
from gateway.cli.output import Output, evaluation_json, show_evaluation
from gateway.cli.wafers import TaughtWafers
from gateway.values import Decision, PredictorAnswer, Task
from services.common.errors import InvalidArgumentError

NAMES = {"c-none": "none", "c-center": "Center"}


def answer(class_id, probability=0.9, decision=Decision.ACCEPTED):
    other = next(each for each in NAMES if each != class_id)
    probabilities = ((class_id, NAMES[class_id], probability), (other, NAMES[other], 1 - probability))
    return PredictorAnswer(decision, class_id, NAMES[class_id], probability, probabilities)


def taught(*labels):
    made = TaughtWafers()
    for index, label in enumerate(labels):
        made.add(np.ones((3, 3), np.uint8), label, f"lot{index}")
    return made


def test_scores_follow_names_ids_and_spelling():
    answers = [answer("c-none"), answer("c-center"), answer("c-center", 0.6, Decision.NOT_SURE), answer("c-none")]
    evaluation, extra = measure(taught("none", "Center", "center", "c-center"), answers)
    assert evaluation.accuracy == 0.75
    assert [(each.name, each.wafers, each.found) for each in evaluation.classes] == [("Center", 3, 2), ("none", 1, 1)]
    assert evaluation.confusion == ((2, 1), (0, 1))
    assert evaluation.accepted_share == 0.75
    assert evaluation.accepted_error == pytest.approx(1 / 3)
    assert extra == {"failed": 0, "not_taught": {}}


def test_wafers_of_other_classes_and_failures_are_told_and_not_scored():
    answers = [
        answer("c-none"),
        answer("c-center", decision=Decision.UNKNOWN),
        answer("c-center"),
        PredictorAnswer(Decision.FAILED),
    ]
    evaluation, extra = measure(taught("none", "Donut", "Donut", "none"), answers)
    assert evaluation.wafers == 1
    assert extra == {"failed": 1, "not_taught": {"Donut": {"wafers": 2, "unknown": 1}}}


def patterns(probabilities, decision=Decision.ACCEPTED):
    """An answer of a model of several patterns; `none` follows from the others."""
    clean = float(np.prod([1 - each for each in probabilities.values()]))
    told = tuple((f"c-{name}", name, chance) for name, chance in {**probabilities, "none": clean}.items())
    shown = tuple(each for each in told if each[1] != "none" and each[2] >= 0.5)
    return PredictorAnswer(decision, *told[0], told, shown)


def test_several_patterns_are_scored_one_by_one_and_as_a_whole(capsys):
    answers = [
        patterns({"Center": 0.9, "Scratch": 0.8}),
        patterns({"Center": 0.9, "Scratch": 0.1}),
        patterns({"Center": 0.1, "Scratch": 0.2}),
        patterns({"Center": 0.1, "Scratch": 0.9}, Decision.UNKNOWN),
    ]
    labels = ("Center+Scratch", "scratch+Center", "none", "Donut+Scratch")
    evaluation, extra = measure(taught(*labels), answers, Task.SEVERAL)
    assert (evaluation.task, evaluation.wafers, evaluation.right) == (Task.SEVERAL, 3, 2)
    rows = {each.name: (each.wafers, each.found, each.false_alarms) for each in evaluation.classes}
    assert rows == {"Center": (2, 2, 0), "Scratch": (2, 1, 0), "none": (1, 1, 0)}
    assert extra["not_taught"] == {"Donut": {"wafers": 1, "unknown": 1}}
    show_evaluation(Output(False), "Test", evaluation)
    out = capsys.readouterr().out
    assert "All patterns right on 2 of 3 wafers." in out
    assert "Confusion" not in out
    assert evaluation_json(evaluation)["task"] == "several"


def test_only_normal_is_scored_by_what_passes_and_what_is_noticed(capsys):
    novelties = {"none": (0.2, 0.4, 1.3), "Scratch": (2.0, 0.9), "Donut": (3.0,)}
    labels = [name for name, each in novelties.items() for _ in each]
    told = (("c-none", "none", 0.5),)
    answers = [
        PredictorAnswer(Decision.ACCEPTED if each <= 1 else Decision.UNKNOWN, "c-none", "none", 0.5, told, novelty=each)
        for several in novelties.values()
        for each in several
    ]
    evaluation, extra = measure(taught(*labels), answers, Task.NORMAL)
    assert evaluation.normal_figures("none") == (2, 3, 2, 3)
    assert evaluation.auroc == pytest.approx(8 / 9)
    assert extra == {"failed": 0, "not_taught": {}}
    show_evaluation(Output(False), "Test", evaluation, "none")
    out = capsys.readouterr().out
    assert "2 of 3 normal wafers pass." in out
    assert "2 of 3 other wafers were noticed." in out


def test_nothing_to_score_is_an_error_that_names_the_classes():
    with pytest.raises(InvalidArgumentError, match=r"\(Center, none\)"):
        measure(taught("Donut"), [answer("c-none")])


def test_the_json_has_the_promised_fields():
    evaluation, _ = measure(taught("none", "Center"), [answer("c-none"), answer("c-center")])
    told = evaluation_json(evaluation)
    assert told.keys() >= {"wafers", "macro_f1", "accuracy", "per_class", "accepted_share", "accepted_error", "ece"}
    assert told["per_class"]["Center"].keys() >= {"recall", "precision", "f1", "wafers"}
    assert (told["wafers"], told["macro_f1"], told["accuracy"]) == (2, 1.0, 1.0)


def test_tables_go_to_standard_error_with_json_and_class_names_are_no_markup(capsys):
    evaluation, _ = measure(taught("none", "Center"), [answer("c-none"), answer("c-center")])
    show_evaluation(Output(True), "[red]Title", evaluation)
    Output(True).table("", ("class",), [("[bold]odd",)])
    out, err = capsys.readouterr()
    assert out == ""
    assert "macro-F1 1.0000" in err
    assert "[bold]odd" in err
    Output(False).result({"a": 1})
    Output(True).result({"a": 1})
    assert capsys.readouterr().out == '{"a": 1}\n'
