"""Pretraining: which wafers it may see, and what whitening it leaves in the trunk."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from services.common.splitting import Split, split_by_lot
from services.common.wafer_set import WaferSet
from services.trainer.embedding import is_whitened
from services.trainer.pretrain import PATTERNS, known_patterns, rebalanced, tasks_of, whiten
from services.trainer.trunks import wafer_cnn
from tests.unit.trainer.wafers import simulated

# Keras 3.15 reads TensorFlow's variables in a way that NumPy 2 frowns at.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = 16
LABELS = ("Center", "Donut", "none")


@pytest.fixture(scope="module")
def real():
    """Lots of five wafers of one label; every tenth lot is of MixedWM38 and shows two patterns."""
    grids, labels, groups, sources = [], [], [], []
    for index, label in enumerate(LABELS):
        for place, grid in enumerate(simulated(label, 100)[0]):
            mixed = place >= 70 and label != "none"
            grids.append(grid)
            labels.append(f"{label}+Scratch" if mixed else label)
            groups.append(f"{index}-{place // 5}")
            sources.append("MixedWM38" if mixed else "WM-811K")
    return WaferSet(grids, labels, groups, sources)


@pytest.fixture(scope="module")
def made():
    grids = [grid for label in ("Loc", "none", "Checker") for grid in simulated(label, 8)[0]]
    labels = ["Loc"] * 8 + ["none"] * 8 + ["Checker"] * 8
    return WaferSet([*grids, *grids[:4]], [*labels, *["Loc+Scratch"] * 4])


def training_rows(real, source):
    rows = [row for row, each in enumerate(real.sources) if each == source]
    sides = split_by_lot([real.labels[row] for row in rows], [real.groups[row] for row in rows], seed=0)
    return [row for row, side in zip(rows, sides, strict=True) if side == Split.TRAIN.value]


def test_only_training_lots_teach_and_patterns_left_out_are_not_read(real, made):
    tasks = {task.name: task for task in tasks_of(real, [made, made], SIZE)}
    rows = training_rows(real, "WM-811K")
    assert 0 < len(rows) < sum(each == "WM-811K" for each in real.sources)
    assert len(tasks["real"].planes) == len(rows)
    assert tasks["real"].targets.sum(axis=0).tolist() == [
        sum(real.labels[row] == label for row in rows) for label in LABELS
    ]
    assert tasks["simulated"].targets.sum(axis=0).tolist() == [16, 16, 16]
    left = {task.name: task for task in tasks_of(real, [made], SIZE, frozenset({"Donut"}))}
    assert left["real"].targets.shape[1] == 2
    assert left["mixed"].targets[:, PATTERNS.index("Donut")].sum() == 0
    assert left["mixed"].targets[:, PATTERNS.index("Loc")].sum() == 8 + 4
    # The checkerboard is none of the eight patterns of the multi-label head.
    mixed = training_rows(real, "MixedWM38")
    assert len(tasks["mixed"].planes) == len(mixed) + 2 * (8 + 8 + 4)
    for task in tasks.values():
        assert task.weights.sum() == pytest.approx(1)
    assert sum(task.share for task in rebalanced([tasks["real"], tasks["mixed"]])) == pytest.approx(1)


def test_a_trunk_is_whitened_by_wafers_of_all_exclusive_classes(real, made):
    keras.utils.set_random_seed(0)
    trunk = wafer_cnn(SIZE, (4, 6, 8), "tiny")
    assert not is_whitened(trunk)
    tasks = tasks_of(real, [made], SIZE)
    whiten(trunk, tasks, seed=0)
    assert is_whitened(trunk)
    matrix = np.array(trunk.get_layer("embedding").matrix)
    assert np.allclose(matrix, matrix.T, atol=1e-5)
    assert np.linalg.eigvalsh(matrix).min() > 0
    again = wafer_cnn(SIZE, (4, 6, 8), "tiny")
    again.set_weights(trunk.get_weights())
    whiten(again, tasks, seed=0)
    assert np.allclose(np.array(again.get_layer("embedding").matrix), matrix, atol=1e-4)


def test_known_patterns_are_those_of_the_real_wafers(real, made):
    keras.utils.set_random_seed(0)
    trunk = wafer_cnn(SIZE, (4, 6, 8), "tiny")
    tasks = tasks_of(real, [made], SIZE)
    whiten(trunk, tasks, seed=0)
    known = known_patterns(trunk, tasks[0], seed=0)
    assert known.names == LABELS
    assert known.head.kernel.shape == known.means.shape == (trunk.outputs[-1].shape[-1], len(LABELS))
    assert np.allclose(np.linalg.norm(known.means, axis=0), 1, atol=1e-5)
