"""Augmentation, head, calibration and checkpoints against plain oracles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from services.common.checkpoint import read_checkpoint, write_checkpoint
from services.common.head import (
    LOGIT_SCALE,
    NORMAL_ODDS,
    RATE,
    Head,
    HeadState,
    class_weights,
    log_softmax,
    mean_loss,
    normal_offset,
    prototype_head,
    smooth_targets,
    step_sizes,
    train_epoch,
)
from services.trainer.augmentation import augment, orient
from services.trainer.calibration import (
    BANK_WAFERS,
    accept_threshold,
    bank_rows,
    best_temperature,
    doubtful_lots,
    neighbour_distance,
    upper_quantile,
)


def test_the_eight_orientations_are_the_symmetries_of_the_square():
    plane = np.random.default_rng(0).random((5, 5, 2), np.float32)
    found = {orient(plane, each).tobytes() for each in range(8)}
    expected = {
        np.ascontiguousarray(np.rot90(side, turns)).tobytes() for side in (plane, plane[::-1]) for turns in range(4)
    }
    assert found == expected
    assert np.array_equal(orient(plane, 0), plane)


def test_augmentation_keeps_failures_on_the_wafer_and_does_nothing_at_strength_zero():
    random = np.random.default_rng(0)
    valid = (random.random((20, 12, 12, 1)) < 0.8).astype(np.float32)
    planes = np.concatenate([valid, valid * (random.random((20, 12, 12, 1)) < 0.3)], axis=-1).astype(np.float32)
    before = planes.copy()
    varied = augment(planes, 1.0, random)
    assert (varied[..., 1] <= varied[..., 0]).all()
    assert not np.array_equal(varied, planes)
    assert np.array_equal(planes, before)
    assert np.array_equal(augment(planes, 0.0, random), planes)


def test_one_step_of_the_head_follows_the_gradient_of_its_loss():
    random = np.random.default_rng(1)
    embeddings = random.normal(size=(12, 5)).astype(np.float32)
    labels = random.integers(0, 3, 12)
    weights = class_weights(labels, 3)
    start = Head(random.normal(size=(5, 3)).astype(np.float32) * 0.1, np.zeros(3, np.float32))

    def loss_at(kernel):
        logs = log_softmax(LOGIT_SCALE * (embeddings @ kernel))
        return float(-(weights[labels][:, None] * smooth_targets(labels, 3) * logs).sum(axis=1).mean())

    gradient = np.zeros((5, 3))
    for row, column in itertools.product(range(5), range(3)):
        step = np.zeros((5, 3), np.float32)
        step[row, column] = 1e-2
        gradient[row, column] = (loss_at(start.kernel + step) - loss_at(start.kernel - step)) / 2e-2
    state = HeadState.at(start)
    loss, _ = train_epoch(state, embeddings, labels, weights, 12, itertools.repeat(1e-3))
    assert loss == pytest.approx(loss_at(start.kernel), rel=1e-4)
    # The first step of Adam goes by the sign of the gradient, one step size far.
    assert np.allclose(state.weights[:-1] - start.kernel, -1e-3 * np.sign(gradient), atol=2e-4)
    assert state.steps == 1


def test_few_wafers_hold_the_head_at_the_class_means_and_many_let_it_go():
    random = np.random.default_rng(6)
    moved = []
    for count in (10, 1000):
        embeddings = random.normal(size=(count, 8)).astype(np.float32)
        labels = (embeddings[:, 0] > 0).astype(np.int64)
        state = HeadState.at(Head(np.zeros((8, 2), np.float32), np.zeros(2, np.float32)))
        for _ in range(40):
            train_epoch(state, embeddings, labels, np.ones(2, np.float32), count, itertools.repeat(2e-2))
        moved.append(np.abs(state.weights[:-1]).max())
    assert moved[0] < 0.5 * moved[1]


def test_many_steps_are_shorter_and_go_as_far_as_few():
    few, many = (list(itertools.islice(step_sizes(1e-3, 0, steps), steps)) for steps in (300, 3000))
    assert few[0] == pytest.approx(RATE * 1e-3)
    assert sum(many) == pytest.approx(sum(few), rel=0.01)
    assert next(step_sizes(1e-3, 0, 10**6)) == pytest.approx(1e-3)
    assert next(step_sizes(1e-3, 300, 300)) == pytest.approx(RATE * 1e-5)


def test_normal_wafers_are_expected_at_their_odds_and_never_less_than_they_are():
    offset = normal_offset(np.repeat([0, 1, 2], 10), 3, normal=2)
    assert np.allclose(offset, [0, 0, np.log(NORMAL_ODDS)])
    # Weighted by 1 / sqrt(wafers), 40 wafers weigh twice as much as 10.
    assert np.allclose(normal_offset(np.repeat([0, 1, 2], [10, 10, 40]), 3, 2), [0, 0, np.log(NORMAL_ODDS / 2)])
    assert not normal_offset(np.repeat([0, 1, 2], [10, 10, 1000]), 3, 2).any()
    assert not normal_offset(np.repeat([0, 1, 2], 10), 3, None).any()
    head = Head(np.ones((2, 3), np.float32), np.zeros(3, np.float32)).shifted(offset)
    assert np.allclose(head.logits(np.zeros((1, 2), np.float32)), [offset])


def test_prototypes_tell_separate_classes_apart_at_once():
    random = np.random.default_rng(2)
    centres = random.normal(size=(3, 16))
    labels = np.repeat(np.arange(3), 5)
    embeddings = centres[labels] + 0.1 * random.normal(size=(15, 16))
    embeddings = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)
    assert (prototype_head(embeddings, labels, 3).logits(embeddings).argmax(axis=1) == labels).all()


def test_class_weights_have_mean_one_and_favour_rare_classes_by_the_square_root():
    labels = np.repeat([0, 1], [400, 100])
    weights = class_weights(labels, 3)
    assert weights[labels].mean() == pytest.approx(1)
    assert weights[1] / weights[0] == pytest.approx(2)
    assert weights[2] == 0


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_temperature_finds_the_one_that_the_labels_were_drawn_with(true_temperature):
    random = np.random.default_rng(3)
    logits = random.normal(size=(6000, 4)).astype(np.float32) * 3
    chances = np.exp(log_softmax(logits / np.float32(true_temperature)))
    labels = np.array([random.choice(4, p=row / row.sum()) for row in chances.astype(np.float64)])
    assert best_temperature(logits, labels) == pytest.approx(true_temperature, rel=0.12)


def test_temperature_of_few_wafers_that_are_all_right_stays_moderate():
    logits = np.array([[4.0, 0, 0], [0, 4.0, 0], [0, 0, 4.0]], np.float32)
    assert best_temperature(logits, np.arange(3)) > 0.3
    assert mean_loss(logits, np.arange(3)) < 0.1


def test_accept_threshold_keeps_the_error_with_a_margin_where_wafers_are_many():
    random = np.random.default_rng(4)
    confidence = random.random(20_000).astype(np.float32)
    right = random.random(20_000) < confidence**0.2
    threshold = accept_threshold(confidence, right)
    error = (~right[confidence >= threshold]).mean()
    assert 0.002 < error <= 0.006
    assert (~right[confidence >= threshold - 0.02]).mean() > error


def test_accept_threshold_of_few_wafers_is_surer_than_every_wrong_one():
    confidence = np.array([0.99, 0.95, 0.93, 0.7], np.float32)
    threshold = accept_threshold(confidence, np.array([True, True, False, True]))
    assert 0.93 < threshold < 0.9301
    assert accept_threshold(confidence, np.ones(4, bool)) == pytest.approx(0.9)


def lots_with_wrong(*wrong: int, wafers: int = 200) -> tuple[list[str], np.ndarray]:
    """Lots of equally many wafers and whether each wafer's label agrees with the answer."""
    lots = [f"lot-{number:02d}" for number in range(len(wrong)) for _ in range(wafers)]
    right = np.concatenate([np.arange(wafers) >= count for count in wrong])
    return lots, right


def test_a_lot_that_contradicts_sure_answers_far_more_often_than_others_is_doubted():
    lots, right = lots_with_wrong(1, 0, 2, 1, 27, 0, 1, 0, 3, 1, 0, 2)
    sure = np.full(len(lots), 0.97, np.float32)
    assert doubtful_lots(sure, right, lots) == ["lot-04"]
    # The same answers, none of them sure: nothing contradicts.
    assert doubtful_lots(np.full(len(lots), 0.6, np.float32), right, lots) == []


def test_no_lot_is_doubted_by_chance_or_among_few_or_where_many_differ():
    random = np.random.default_rng(0)
    doubted = 0
    for _ in range(200):
        lots, right = lots_with_wrong(*random.poisson(2, 30))
        doubted += len(doubtful_lots(np.ones(len(lots), np.float32), right, lots))
    assert doubted <= 2
    lots, right = lots_with_wrong(0, 0, 0, 60)
    assert doubtful_lots(np.ones(len(lots), np.float32), right, lots) == []
    lots, right = lots_with_wrong(*[0] * 15, *[60] * 5)
    assert doubtful_lots(np.ones(len(lots), np.float32), right, lots) == []


def test_wafers_without_a_lot_are_never_doubted():
    lots, right = lots_with_wrong(*[0] * 12, 60)
    lots = [lot if lot != "lot-12" else "" for lot in lots]
    assert doubtful_lots(np.ones(len(lots), np.float32), right, lots) == []


def test_upper_quantile_is_conformal_and_beyond_all_of_few_values():
    values = np.arange(1, 1000, dtype=np.float32)
    assert upper_quantile(values, 0.99) == 990
    assert upper_quantile(values[:20], 0.99) > 20


def test_neighbour_distance_equals_sorting_all_distances():
    random = np.random.default_rng(5)
    bank, queries = random.normal(size=(40, 6)), random.normal(size=(9, 6))
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries))
    expected = np.sort(1 - queries @ bank.T, axis=1)[:, :3].mean(axis=1)
    assert np.allclose(neighbour_distance(queries.astype(np.float32), bank.astype(np.float32)), expected, atol=1e-6)


def test_bank_takes_rare_classes_whole_and_real_wafers_first():
    labels = np.repeat([0, 1, 2], [5000, 60, 3000])
    generated = np.zeros(len(labels), bool)
    generated[:4800] = True
    rows = bank_rows(labels, generated, 3, seed=0)
    counts = np.bincount(labels[rows])
    assert len(rows) == BANK_WAFERS
    assert counts[1] == 60
    assert abs(int(counts[0]) - int(counts[2])) <= 1
    assert (~generated[rows[labels[rows] == 0]]).sum() == 200


def test_checkpoints_come_back_and_damaged_ones_are_none(tmp_path):
    path = tmp_path / "c.npz"
    write_checkpoint(path, {"epoch": 3, "score": [0.5, -1.0]}, {"w": np.eye(3)})
    found = read_checkpoint(path)
    assert found is not None
    assert found.facts == {"epoch": 3, "score": [0.5, -1.0]}
    assert np.array_equal(found.arrays["w"], np.eye(3))
    path.write_bytes(path.read_bytes()[:100])
    assert read_checkpoint(path) is None
    assert read_checkpoint(tmp_path / "none.npz") is None
    assert list(tmp_path.iterdir()) == [path]
