"""The network: answers against NumPy, ONNX against Keras, weights that must be whole."""

from __future__ import annotations

import json

import keras
import numpy as np
import onnx
import pytest

from services.common.errors import FailedPreconditionError, InternalError
from services.common.head import LOGIT_SCALE, Head, log_softmax
from services.common.preprocessing import pad_grids, planes_of
from services.common.shipped import INDEX_NAME
from services.trainer.backbones import BACKBONES, OUTLIERS_NAME, Backbone, BackboneLibrary
from services.trainer.calibration import neighbour_distance
from services.trainer.embedding import whitening_of
from services.trainer.export.onnx import OUTPUTS, Answers, answers_of, export_onnx, open_session, prove_parity
from services.trainer.known_patterns import KnownPatterns
from services.trainer.network import Calibration, embedding_model, taught_model
from services.trainer.trunks import build_trunk, load_known_patterns, load_trunk, multiplications, save_weights
from tests.unit.trainer.tiny_trunk import SIZE, WIDTH, tiny_trunk
from tests.unit.trainer.wafers import simulated

# Keras 3.15 reads TensorFlow's variables in a way that NumPy 2 frowns at.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def grids():
    return [grid for pattern in ("Center", "Scratch", "none") for grid in simulated(pattern, 12)[0]]


@pytest.fixture(scope="module")
def trunk():
    return tiny_trunk()


KNOWN = KnownPatterns(
    ("Ring", "Spot"),
    Head(np.full((WIDTH, 2), 0.5, np.float32), np.array([0.1, 0], np.float32)),
    np.eye(WIDTH, 2, dtype=np.float32),
)


def taught(trunk, orientations):
    random = np.random.default_rng(0)
    bank = np.abs(random.normal(size=(7, WIDTH))).astype(np.float32)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    head = Head(random.normal(size=(WIDTH, 3)).astype(np.float32), np.array([0.1, 0, -0.1], np.float32))
    sentry = Head(random.normal(size=(WIDTH, 5)).astype(np.float32), np.zeros(5, np.float32))
    return head, Calibration(1.7, 0.9, 0.2, 0.3, 2.5, bank, sentry)


@pytest.fixture(scope="module", params=[1, 8], ids=["once", "eight orientations"])
def exported(request, trunk, tmp_path_factory):
    head, calibration = taught(trunk, request.param)
    model = taught_model(trunk, request.param, SIZE, head, calibration)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, path)
    return model, path, head, calibration, request.param


def test_answers_equal_numpy_on_the_embedding(exported, trunk, grids):
    _, path, head, calibration, orientations = exported
    planes = planes_of(grids, SIZE)
    embeddings = np.asarray(embedding_model(trunk, orientations)(planes))
    probabilities = np.exp(log_softmax(head.logits(embeddings) / calibration.temperature))
    known = np.exp(log_softmax(calibration.sentry.logits(embeddings)))[:, :3].max(axis=1)
    novelty = neighbour_distance(embeddings, calibration.bank) / 0.2 + (1 - known) / 0.3
    found = dict(zip(OUTPUTS, open_session(path).run(list(OUTPUTS), {"dies": pad_grids(grids)}), strict=True))
    assert np.allclose(found["embedding"], embeddings, atol=1e-5)
    assert np.allclose(np.linalg.norm(found["embedding"], axis=1), 1, atol=1e-4)
    assert np.allclose(found["probabilities"], probabilities, atol=1e-5)
    assert np.allclose(found["novelty"], novelty / 2.5, atol=1e-4)
    assert found["heat"].shape == (len(grids), 3, 4, 4)
    assert (found["heat"] >= 0).all()


@pytest.mark.parametrize("orientations", [1, 8])
def test_the_heat_map_adds_up_to_the_logit(trunk, grids, orientations):
    head, calibration = taught(trunk, orientations)
    model = taught_model(trunk, orientations, SIZE, head, calibration)
    opposite = taught_model(trunk, orientations, SIZE, Head(-head.kernel, head.bias), calibration)
    dies = pad_grids(grids)
    answers = {name: np.asarray(value) for name, value in model(dies).items()}
    # The map shows what speaks for a class; with the classifier turned round, what speaks against it.
    heat = answers["heat"] - np.asarray(opposite(dies)["heat"])
    assert np.allclose(heat.mean(axis=(2, 3)), LOGIT_SCALE * answers["embedding"] @ head.kernel, rtol=1e-3, atol=1e-3)


def test_eight_orientations_give_the_same_answer_to_a_turned_wafer(exported, grids):
    _, path, *_, orientations = exported
    session = open_session(path)
    straight = session.run(["probabilities"], {"dies": pad_grids(grids)})[0]
    turned = session.run(["probabilities"], {"dies": pad_grids([np.rot90(grid) for grid in grids])})[0]
    same = np.abs(straight - turned).max() < 1e-5
    assert same == (orientations == 8)


def test_onnx_equals_keras_on_mixed_sizes_and_is_a_checked_graph(exported, grids):
    model, path, *_ = exported
    session = open_session(path)
    answers = answers_of(session, grids, lambda: None)
    parity = prove_parity(model, session, grids, answers, lambda: None)
    assert parity.wafers == len(grids)
    assert parity.max_difference <= 1e-5
    graph = onnx.load(path)
    assert [each.version for each in graph.opset_import if not each.domain] == [17]
    assert [each.name for each in graph.graph.output] == list(OUTPUTS)
    assert np.isfinite(session.run(["probabilities"], {"dies": np.zeros((2, 3, 3), np.uint8)})[0]).all()


def test_other_answers_are_not_called_equal(exported, grids):
    model, path, *_ = exported
    session = open_session(path)
    wrong = Answers(np.roll(answers_of(session, grids, lambda: None).probabilities, 1, axis=1), np.zeros(len(grids)))
    with pytest.raises(InternalError, match="apart"):
        prove_parity(model, session, grids, wrong, lambda: None)


def test_the_same_model_gives_the_same_bytes(exported, tmp_path):
    model, path, *_ = exported
    export_onnx(model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_the_keras_file_answers_alike(exported, grids, tmp_path):
    model, *_ = exported
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    dies = pad_grids(grids)
    assert np.allclose(again(dies)["probabilities"], model(dies)["probabilities"], atol=1e-6)


def test_the_figures_of_the_list_are_those_of_the_networks():
    for backbone in BACKBONES.values():
        trunk = build_trunk(backbone)
        assert backbone.parameters == trunk.count_params()
        assert backbone.mflops == pytest.approx(backbone.orientations * multiplications(trunk) / 1e6, abs=1e-3)


TINY = Backbone("wafer-fast", "Tiny", 48, "wafer-fast.npz", 0, 0.0)


def test_whitened_wafers_of_a_class_differ_alike_in_every_direction():
    random = np.random.default_rng(2)
    mixing, labels = random.normal(size=(4, 4)), np.repeat([0, 1, 2], 3000)
    features = (random.normal(size=(9000, 4)) @ mixing + random.normal(size=(3, 4))[labels]).astype(np.float32)
    mean, matrix = whitening_of(features, labels)
    whitened = (features - mean) @ matrix
    assert np.allclose(np.mean([whitened[labels == each].mean(axis=0) for each in range(3)], axis=0), 0, atol=1e-4)
    before, after = (np.linalg.eigvalsh(np.cov(each[labels == 1].T)) for each in (features, whitened))
    assert after[-1] / after[0] < 0.2 * before[-1] / before[0]
    assert after[-1] < 1.1 * np.trace(np.cov(features[labels == 1].T)) / 4


def test_saved_weights_come_back_and_damage_is_found(tmp_path):
    trunk = build_trunk(TINY)
    save_weights(trunk, KNOWN, tmp_path, TINY.weights)
    loaded = load_trunk(TINY, BackboneLibrary(tmp_path))
    known = load_known_patterns(TINY, BackboneLibrary(tmp_path))
    assert known is not None
    assert known.names == KNOWN.names
    assert np.allclose(known.head.kernel, KNOWN.head.kernel, atol=1e-3)
    assert np.allclose(known.means, KNOWN.means, atol=1e-3)
    assert np.allclose(loaded.get_weights()[0], trunk.get_weights()[0], atol=1e-3)
    path = tmp_path / TINY.weights
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(FailedPreconditionError, match=r"damaged.*make pretrain"):
        load_trunk(TINY, BackboneLibrary(tmp_path))
    path.unlink()
    with pytest.raises(FailedPreconditionError, match="missing"):
        load_trunk(TINY, BackboneLibrary(tmp_path))


def test_weights_of_another_network_are_refused(tmp_path):
    save_weights(build_trunk(BACKBONES["wafer-balanced"]), KNOWN, tmp_path, "wafer-fast.npz")
    with pytest.raises(FailedPreconditionError, match="another network"):
        load_trunk(TINY, BackboneLibrary(tmp_path))


def test_mobilenet_takes_its_weights_from_the_setting(tmp_path):
    mobilenet = BACKBONES["mobilenet-v2"]
    with pytest.raises(FailedPreconditionError, match="TEACHWAFER_TRAINER_MOBILENET_V2_WEIGHTS"):
        load_trunk(mobilenet, BackboneLibrary())
    path = tmp_path / "m.weights.h5"
    network = keras.applications.MobileNetV2(input_shape=(96, 96, 3), include_top=False, weights=None)
    network.save_weights(path)
    loaded = load_trunk(mobilenet, BackboneLibrary(mobilenet_v2_weights=path))
    assert np.allclose(loaded.get_weights()[0], network.get_weights()[0])


def test_shipped_weights_are_whole():
    library = BackboneLibrary()
    for backbone in BACKBONES.values():
        if backbone.weights:
            library.check(backbone)
    library.check_outliers()
    names = {each.weights for each in BACKBONES.values()} - {""} | {OUTLIERS_NAME}
    assert set(json.loads((library.folder / INDEX_NAME).read_text())) == names
