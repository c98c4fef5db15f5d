"""What an answer is worth, where the heat lies, and which wafers run together."""

from dataclasses import replace

import numpy as np
import pytest

from services.common.model_manifest import ModelClass, ModelManifest
from services.common.task import Task
from services.predictor.batching import MAX_BATCH_PLACES, MAX_BATCH_WAFERS
from services.predictor.domain import Decision, confidence_of, decide, heat_on_dies, patterns_of, rank
from services.predictor.inference import chunks_of

MANIFEST = ModelManifest(
    classes=tuple(ModelClass(name, name.upper()) for name in ("a", "b", "c")),
    size=8,
    temperature=1.0,
    accept_threshold=0.6,
    novelty_threshold=1.0,
    dataset_version="datasetVersions/x",
    backbone="none",
)


@pytest.mark.parametrize(
    ("probability", "novelty", "decision"),
    [
        (0.6, 1.0, Decision.ACCEPTED),
        (0.59, 1.0, Decision.NOT_SURE),
        (0.99, 1.01, Decision.UNKNOWN),
        (0.1, 1.01, Decision.UNKNOWN),
    ],
)
def test_decisions(probability: float, novelty: float, decision: Decision) -> None:
    assert decide(MANIFEST, probability, novelty) is decision


def test_classes_are_ranked_and_equals_keep_the_order_of_the_model() -> None:
    probabilities = np.array([0.25, 0.5, 0.25], np.float32)
    assert [each.class_id for each, _ in rank(MANIFEST, probabilities[None], 0)[0]] == ["b", "a", "c"]
    assert [(each.display_name, value) for each, value in rank(MANIFEST, probabilities[None], 1)[0]] == [("B", 0.5)]


def of_task(task: Task, normal: str = "") -> ModelManifest:
    classes = tuple(replace(each, normal=each.class_id == normal) for each in MANIFEST.classes)
    return replace(MANIFEST, task=task, classes=classes)


@pytest.mark.parametrize(
    ("manifest", "probabilities", "patterns", "confidence"),
    [
        (of_task(Task.SINGLE), (0.2, 0.7, 0.1), ["b"], 0.7),
        (of_task(Task.SINGLE, "c"), (0.2, 0.7, 0.1), ["b"], 0.7),
        (of_task(Task.SINGLE, "b"), (0.2, 0.7, 0.1), [], 0.7),
        (of_task(Task.SEVERAL), (0.6, 0.9, 0.2), ["b", "a"], 0.6 * 0.9 * 0.8),
        (of_task(Task.SEVERAL), (0.1, 0.4, 0.2), [], 0.9 * 0.6 * 0.8),
        (of_task(Task.SEVERAL, "c"), (0.5, 0.9, 0.05), ["b", "a"], 0.5 * 0.9),
        (of_task(Task.SEVERAL, "c"), (0.1, 0.2, 0.72), [], 0.9 * 0.8),
    ],
)
def test_patterns_and_how_sure_their_whole_set_is(
    manifest: ModelManifest, probabilities: tuple[float, ...], patterns: list[str], confidence: float
) -> None:
    row = np.array(probabilities, np.float32)
    assert [each.class_id for each, _ in patterns_of(manifest, row[None])[0]] == patterns
    assert confidence_of(manifest, row[None]) == pytest.approx([confidence])


def test_an_only_normal_model_knows_no_patterns_and_leaves_the_decision_to_the_novelty() -> None:
    manifest = replace(MANIFEST, task=Task.NORMAL, classes=(ModelClass("n", "N", True),), accept_threshold=0.0)
    row = np.array([0.01], np.float32)
    assert patterns_of(manifest, row[None]) == [()]
    assert decide(manifest, confidence_of(manifest, row[None])[0], 0.99) is Decision.ACCEPTED
    assert decide(manifest, confidence_of(manifest, row[None])[0], 1.01) is Decision.UNKNOWN


def test_heat_lies_on_the_box_of_the_dies() -> None:
    dies = np.zeros((12, 9), np.uint8)
    dies[2:10, 1:5] = 1
    dies[9, 4] = 0
    heat = heat_on_dies(np.array([[0, 0], [4, 0]], np.float32), dies)  # hot at the bottom left
    assert heat.shape == dies.shape
    assert not heat[dies == 0].any()
    assert heat[9, 1] == 255
    assert heat[2, 4] == 0
    assert heat[2:10, 1].tolist() == sorted(heat[2:10, 1].tolist())
    assert heat[8, 1:5].tolist() == sorted(heat[8, 1:5].tolist(), reverse=True)


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_no_heat_is_shown_where_the_model_shows_none(value: float) -> None:
    assert not heat_on_dies(np.full((2, 2), value, np.float32), np.ones((4, 4), np.uint8)).any()


def test_chunks_hold_each_wafer_once_and_stay_small() -> None:
    random = np.random.default_rng(1)
    shapes = [tuple(int(side) for side in random.integers(1, 1025, 2)) for _ in range(300)] + [(26, 26)] * 300
    chunks = chunks_of(shapes)
    assert sorted(index for chunk in chunks for index in chunk) == list(range(600))
    for chunk in chunks:
        rows, columns = (max(shapes[index][axis] for index in chunk) for axis in (0, 1))
        padded, own = rows * columns * len(chunk), sum(shapes[index][0] * shapes[index][1] for index in chunk)
        assert len(chunk) <= MAX_BATCH_WAFERS
        assert padded <= MAX_BATCH_PLACES
        assert padded <= 2 * own
    assert len(chunks_of([(26, 26)] * 128)) == 2
    assert chunks_of([]) == []
