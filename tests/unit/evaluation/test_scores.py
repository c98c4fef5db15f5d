"""Scores against slow, plain oracles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidArgumentError
from services.common.evaluation import (
    auroc,
    bootstrap_macro_f1,
    class_f1,
    confusion_matrix,
    evaluate,
    evaluate_normal,
    evaluate_several,
    expected_calibration_error,
    macro_f1,
    number_lots,
    pattern_counts,
    pattern_f1,
    wilson_interval,
)
from services.common.task import Task


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_confusion_and_f1_equal_counting_one_by_one(pairs):
    labels, predicted = (np.array(column) for column in zip(*pairs, strict=True))
    matrix = confusion_matrix(labels, predicted, 4)
    scores = []
    for each in range(4):
        hits = sum(1 for true, called in pairs if true == called == each)
        missed = sum(1 for true, called in pairs if true == each != called)
        false = sum(1 for true, called in pairs if called == each != true)
        assert matrix[each].sum() == hits + missed
        expected = 2 * hits / (2 * hits + missed + false) if hits else 0.0
        assert class_f1(matrix)[each] == pytest.approx(expected)
        if hits + missed:
            scores.append(expected)
    assert macro_f1(matrix) == pytest.approx(np.mean(scores))


def test_wilson_interval_of_a_textbook_example():
    # 81 of 263: 0.2553 to 0.3662 (Newcombe, Statistics in Medicine 17, 1998, method 3).
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(20, 20).high == pytest.approx(1.0)


def test_lots_without_a_name_are_lots_of_their_own():
    assert len(set(number_lots(["a", "", "", "a"]))) == 3


def test_bootstrap_draws_lots_and_not_wafers():
    # Two lots of 50 wafers, one all right and one all wrong: whole lots come and go together.
    labels = np.zeros(100, np.int64)
    predicted = np.repeat([0, 1], 50)
    by_lot = bootstrap_macro_f1(labels, predicted, np.repeat([0, 1], 50), 2)
    by_wafer = bootstrap_macro_f1(labels, predicted, np.arange(100), 2)
    assert by_lot == (0.0, 1.0)
    assert by_wafer.high - by_wafer.low < 0.3


def test_bootstrap_equals_an_oracle_that_repeats_wafers():
    random = np.random.default_rng(3)
    labels, predicted, lots = random.integers(0, 3, 80), random.integers(0, 3, 80), random.integers(0, 9, 80)
    lots = np.unique(lots, return_inverse=True)[1]
    draws, count = np.random.default_rng(0), lots.max() + 1
    scores = []
    for _ in range(40):
        rows = np.concatenate([np.flatnonzero(lots == lot) for lot in draws.integers(0, count, count)])
        scores.append(macro_f1(confusion_matrix(labels[rows], predicted[rows], 3)))
    assert bootstrap_macro_f1(labels, predicted, lots, 3, draws=40) == pytest.approx(np.percentile(scores, (2.5, 97.5)))


def test_calibration_error_equals_an_oracle_over_bins():
    random = np.random.default_rng(1)
    probabilities = random.dirichlet(np.ones(4), 500).astype(np.float32)
    labels = random.integers(0, 4, 500)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(confidence, right) == pytest.approx(expected, abs=1e-6)


def test_auroc_equals_comparing_all_pairs_with_ties_as_half():
    random = np.random.default_rng(2)
    known, unknown = random.integers(0, 10, 40).astype(float), random.integers(3, 13, 30).astype(float)
    pairs = [(0.5 if a == b else float(b > a)) for a in known for b in unknown]
    assert auroc(known, unknown) == pytest.approx(np.mean(pairs))


def test_evaluation_of_a_small_set():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]], np.float32)
    result = evaluate(
        probabilities, np.array([0, 0, 1, 1]), ["a", "a", "b", ""], np.array([True, False, True, True]), draws=20
    )
    assert result.confusion == ((2, 0), (1, 1))
    assert (result.wafers, result.lots, result.accuracy) == (4, 3, 0.75)
    assert (result.classes[1].found, result.classes[0].false_alarms, result.classes[1].lots) == (1, 1, 2)
    assert result.accepted_share == 0.75
    assert result.accepted_error == pytest.approx(1 / 3)
    assert result.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)


# Classes a, normal, b; what five wafers show, and what they are said to show.
SHOWN = np.array([[1, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]], bool)
SAID = np.array([[0.9, 0.0, 0.8], [0.7, 0.0, 0.6], [0.1, 0.8, 0.2], [0.4, 0.5, 0.1], [0.1, 0.9, 0.0]], np.float32)
NORMAL = [False, True, False]


def test_sets_of_patterns_are_scored_as_questions_and_as_wholes():
    accepted = np.array([True, True, True, False, True])
    result = evaluate_several(SAID, SHOWN, NORMAL, ["x", "x", "y", "", "z"], accepted, draws=20)
    assert (result.task, result.wafers, result.lots, result.confusion) == (Task.SEVERAL, 5, 4, ())
    # The second wafer has a pattern too many; the fourth is called normal.
    assert result.accuracy == pytest.approx(3 / 5)
    a, normal, b = result.classes
    assert (a.wafers, a.found, a.false_alarms, a.f1, a.lots) == (2, 2, 0, 1.0, 1)
    assert (b.wafers, b.found, b.false_alarms, b.f1, b.lots) == (2, 1, 1, 0.5, 2)
    assert (normal.wafers, normal.found, normal.false_alarms) == (2, 2, 1)
    assert result.macro_f1 == 0.75
    assert (result.accepted_share, result.accepted_error) == (0.8, 0.25)
    confidence = np.array([0.72, 0.42, 0.72, 0.54, 0.9])
    right = np.array([1, 0, 1, 0, 1])
    expected = (abs(2 - 2 * 0.72) + 0.42 + 0.54 + 0.1) / 5
    assert expected_calibration_error(confidence, right > 0) == pytest.approx(expected)
    assert result.expected_calibration_error == pytest.approx(expected, abs=1e-6)


def test_patterns_that_no_wafer_shows_are_left_out_of_the_mean():
    shown = np.array([[1, 0, 0], [0, 1, 0]], bool)
    said = np.array([[0.9, 0.0, 0.9], [0.1, 0.8, 0.1]], np.float32)
    assert evaluate_several(said, shown, NORMAL, ["", ""], np.ones(2, bool), draws=0).macro_f1 == 1.0


def test_bootstrap_of_patterns_equals_an_oracle_that_repeats_wafers():
    random = np.random.default_rng(5)
    shown, said = random.random((60, 2)) < 0.4, random.random((60, 2)).astype(np.float32)
    lots = [f"{number}" for number in random.integers(0, 9, 60)]
    numbers = number_lots(lots)
    draws, count = np.random.default_rng(0), numbers.max() + 1
    scores = []
    for _ in range(40):
        rows = np.concatenate([np.flatnonzero(numbers == lot) for lot in draws.integers(0, count, count)])
        scores.append(pattern_f1(pattern_counts(shown[rows], said[rows] >= 0.5)))
    found = evaluate_several(said, shown, [False, False], lots, np.ones(60, bool), draws=40).macro_f1_interval
    assert found == pytest.approx(np.percentile(scores, (2.5, 97.5)))


def test_normal_wafers_are_told_from_others():
    # Three normal wafers, one of them far out; two rings, one of them not noticed; one scratch.
    novelty = np.array([0.2, 0.5, 1.2, 0.9, 3.0, 2.0], np.float32)
    labels = np.array([1, 1, 1, 0, 0, 2])
    result = evaluate_normal(novelty, labels, NORMAL, ["x", "x", "y", "z", "z", ""], draws=20)
    assert (result.task, result.wafers, result.lots, result.confusion) == (Task.NORMAL, 6, 4, ())
    ring, normal, scratch = result.classes
    assert (normal.wafers, normal.found, normal.false_alarms) == (3, 2, 1)
    assert (ring.wafers, ring.found, ring.recall, ring.false_alarms) == (2, 1, 0.5, 0)
    assert (scratch.wafers, scratch.found) == (1, 1)
    assert result.accuracy == pytest.approx(4 / 6)
    assert result.macro_f1 == pytest.approx(2 / 3)
    assert result.accepted_share == 0.5
    assert result.accepted_error == pytest.approx(1 / 3)
    # Of nine pairs only the far normal wafer and the ring that was not noticed are in the wrong order.
    assert result.auroc == pytest.approx(8 / 9)


def test_normal_wafers_alone_have_no_area_under_a_curve():
    result = evaluate_normal(np.array([0.5, 1.5], np.float32), np.array([0, 0]), [True], ["", ""], draws=0)
    assert (result.auroc, result.accuracy, result.accepted_error) == (0.0, 0.5, 0.0)
    assert result.macro_f1 == pytest.approx(2 / 3)


def test_classes_without_wafers_are_left_out_of_the_mean():
    result = evaluate(np.array([[0.9, 0.1, 0.0]], np.float32), np.array([0]), [""], np.array([True]), draws=0)
    assert result.macro_f1 == 1.0
    assert result.classes[2].recall_interval == (0.0, 1.0)


def test_no_wafers_or_lists_of_different_lengths_are_refused():
    with pytest.raises(InvalidArgumentError, match="at least one wafer"):
        evaluate(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), [], np.zeros(0, bool))
    with pytest.raises(InvalidArgumentError, match="2 labels"):
        evaluate(np.ones((1, 2), np.float32), np.zeros(2, np.int64), ["a"], np.zeros(1, bool))
