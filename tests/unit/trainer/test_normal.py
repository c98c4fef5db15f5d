"""Only normal wafers: distances, probabilities and graph against plain oracles."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from services.common.preprocessing import pad_grids, planes_of
from services.common.task import Task
from services.trainer.calibration import neighbour_distance
from services.trainer.export.onnx import OUTPUTS, answers_of, export_onnx, open_session, prove_parity
from services.trainer.network import averaged, embedding_model, turned_back
from services.trainer.normal import (
    LEAST_DISTANCE,
    bank_of_normal,
    calibrate_normal,
    distances_across_lots,
    normal_model,
    normal_probability,
)
from tests.unit.trainer.tiny_trunk import SIZE, tiny_trunk
from tests.unit.trainer.wafers import simulated

# Keras 3.15 reads TensorFlow's variables in a way that NumPy 2 frowns at.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def embeddings(count, seed, width=6):
    return unit(1 + 0.3 * np.random.default_rng(seed).normal(size=(count, width)))


def test_distances_across_lots_equal_leaving_each_lot_out():
    bank = embeddings(12, 0)
    lots = ["a", "a", "b", "b", "b", "", "", "c", "d", "d", "e", "f"]
    expected = []
    for index, lot in enumerate(lots):
        others = [other for other in range(12) if other != index and (lot == "" or lots[other] != lot)]
        expected.append(neighbour_distance(bank[index : index + 1], bank[others])[0])
    assert np.allclose(distances_across_lots(bank, lots), expected, atol=1e-6)


def test_wafers_of_a_single_lot_or_a_single_wafer_tell_no_distance():
    assert len(distances_across_lots(embeddings(9, 0), ["a"] * 9)) == 0
    assert len(distances_across_lots(embeddings(1, 0), [""])) == 0
    alone = calibrate_normal(embeddings(1, 0), [""], embeddings(0, 0))
    assert alone.threshold == LEAST_DISTANCE
    assert normal_probability(np.array([0.5], np.float32), alone).tolist() == [1.0]


def test_the_probability_of_few_wafers_by_hand():
    bank = np.array([[1, 0]], np.float32)
    angles = np.array([0.2, 0.4, 0.6, 0.8])
    tune = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    distances = 1 - np.cos(angles)
    found = calibrate_normal(bank, ["a"], tune)
    # At the k-th smallest of four: five minus k as far out or farther, and the wafer itself, of five.
    assert np.allclose(normal_probability(distances.astype(np.float32), found), [5 / 5, 4 / 5, 3 / 5, 2 / 5], atol=1e-4)
    assert normal_probability(np.array([0.0, 1.0], np.float32), found).tolist() == pytest.approx([1.0, 1 / 5])
    between = np.array([(distances[1] + distances[2]) / 2], np.float32)
    assert normal_probability(between, found)[0] == pytest.approx(0.7, abs=1e-4)
    assert found.threshold > distances[3]


def test_of_new_normal_wafers_no_more_than_a_share_p_gets_a_probability_of_p_or_less():
    bank = embeddings(300, 1, width=24)
    shares = []
    for seed in range(2, 12):
        found = calibrate_normal(bank, [""] * 300, embeddings(150, seed, width=24))
        new = neighbour_distance(embeddings(2000, 100 + seed, width=24), bank)
        probabilities = normal_probability(new, found)
        assert (np.diff(probabilities[np.argsort(new)]) <= 1e-7).all()
        shares.append(
            [(probabilities <= level).mean() for level in (0.05, 0.2, 0.5, 0.8)] + [(new > found.threshold).mean()]
        )
    *at_levels, unknown = np.mean(shares, axis=0)
    assert np.allclose(at_levels, (0.05, 0.2, 0.5, 0.8), atol=0.04)
    assert 0.02 < unknown <= 0.06


def test_few_tune_wafers_are_joined_by_the_bank_and_many_are_not():
    bank = embeddings(80, 1)
    few = calibrate_normal(bank, [""] * 80, embeddings(3, 2))
    assert few.shares.min() == pytest.approx(1 / 84)
    many = calibrate_normal(bank, [""] * 80, embeddings(200, 2))
    assert many.shares.min() == pytest.approx(1 / 201)


def test_equal_wafers_leave_room_for_a_few_dies():
    same = np.repeat(embeddings(1, 0), 200, axis=0)
    found = calibrate_normal(same[:50], [""] * 50, same)
    assert found.threshold == LEAST_DISTANCE
    assert (np.diff(found.distances) > 0).all()


def test_the_bank_is_a_choice_of_the_normal_wafers_that_a_seed_repeats():
    rows = np.arange(5, 3005)
    chosen = bank_of_normal(rows, 1)
    assert len(set(chosen.tolist())) == 1000
    assert set(chosen.tolist()) <= set(rows.tolist())
    assert (bank_of_normal(rows, 1) == chosen).all()
    assert (bank_of_normal(rows[:7], 1) == rows[:7]).all()


@pytest.fixture(scope="module")
def grids():
    return [grid for pattern in ("none", "Center", "Scratch") for grid in simulated(pattern, 12)[0]]


@pytest.fixture(scope="module", params=[1, 8], ids=["once", "eight orientations"])
def exported(request, grids, tmp_path_factory):
    trunk = tiny_trunk()
    known = np.asarray(embedding_model(trunk, request.param)(planes_of(grids[:12], SIZE)))
    calibration = calibrate_normal(known[:8], [""] * 8, known[8:])
    model = normal_model(trunk, request.param, SIZE, calibration)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, path)
    return trunk, model, path, calibration, request.param


def test_answers_equal_numpy_on_the_embedding(exported, grids):
    trunk, _, path, calibration, orientations = exported
    expected = np.asarray(embedding_model(trunk, orientations)(planes_of(grids, SIZE)))
    distance = neighbour_distance(expected, calibration.bank)
    found = dict(zip(OUTPUTS, open_session(path).run(list(OUTPUTS), {"dies": pad_grids(grids)}), strict=True))
    assert np.allclose(found["embedding"], expected, atol=1e-5)
    assert np.allclose(found["novelty"], distance / calibration.threshold, atol=1e-3)
    assert found["probabilities"].shape == (len(grids), 1)
    assert np.allclose(found["probabilities"][:, 0], normal_probability(distance, calibration), atol=1e-3)
    assert found["heat"].shape == (len(grids), 1, 4, 4)
    assert (found["heat"] >= 0).all()


def test_what_the_places_add_sums_up_to_the_distance(exported, grids):
    _, model, _, calibration, orientations = exported
    layer = model.get_layer("answers")
    *maps, turned = keras.Model(model.input, layer.input)(pad_grids(grids))
    _, length = averaged(turned, orientations)
    answers = {name: np.asarray(value) for name, value in model(pad_grids(grids)).items()}
    similarities = answers["embedding"] @ calibration.bank.T
    nearest = np.argsort(-similarities, axis=1)[:, :3]
    away = answers["embedding"] - calibration.bank[nearest].mean(axis=1)
    places = np.asarray(turned_back(layer.contributions_of(maps, away), length, orientations))[..., 0]
    assert np.allclose(places.mean(axis=(1, 2)), answers["novelty"] * calibration.threshold, atol=1e-4)
    assert np.allclose(np.maximum(places, 0), answers["heat"][:, 0], atol=1e-4)


def test_onnx_equals_keras(exported, grids):
    _, model, path, *_ = exported
    session = open_session(path)
    answers = answers_of(session, grids, lambda: None)
    assert prove_parity(model, session, grids, answers, lambda: None, Task.NORMAL).max_difference <= 1e-4


def test_the_keras_file_answers_alike(exported, grids, tmp_path):
    _, model, *_ = exported
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    dies = pad_grids(grids)
    assert np.allclose(again(dies)["probabilities"], model(dies)["probabilities"], atol=1e-6)
