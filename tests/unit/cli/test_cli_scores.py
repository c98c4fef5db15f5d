"""Answers become scores: by class, with what was not taught and what failed beside them."""

import numpy as np
import pytest

from gateway.cli.asking import measure
from gateway.cli.output import Output, evaluation_json, show_evaluation
from gateway.cli.wafers import TaughtWafers
from gateway.values import Decision, PredictorAnswer
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
