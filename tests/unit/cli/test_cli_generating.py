"""Writing what was generated."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gateway.cli.generated import write_folders
from gateway.cli.wafers import read_taught
from services.common.dataset import Dataset, DatasetClass, DatasetWafer, DatasetWriter, Origin, open_dataset
from services.common.store import open_store

NAMES = {"a": "Ring", "b": "Scratch"}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    store = open_store(str(tmp_path / "store"))
    with DatasetWriter(store, "d", [DatasetClass(key, name) for key, name in NAMES.items()]) as writer:
        for key, count in (("a", 5), ("b", 2)):
            for number in range(count):
                dies = np.random.default_rng(number).integers(1, 3, (9, 8)).astype(np.uint8)
                writer.add([DatasetWafer(f"{key}{number}", dies, key, f"L{number}", Origin.VARIATION)])
        writer.finish()
    return open_dataset(store, "d")


def test_many_wafers_go_into_several_sets(tmp_path: Path, dataset: Dataset) -> None:
    assert write_folders(dataset, NAMES, tmp_path / "made", "npz", per_file=2) == {"Ring": 5, "Scratch": 2}
    files = sorted(str(path.relative_to(tmp_path / "made")) for path in (tmp_path / "made").rglob("*.npz"))
    ring = ["Ring/generated-0001.npz", "Ring/generated-0002.npz", "Ring/generated.npz"]
    assert files == [*ring, "Scratch/generated.npz"]
    taught = read_taught(tmp_path / "made")
    assert Counter(taught.labels) == {"Ring": 5, "Scratch": 2}
    assert Counter(taught.lots) == {"L0": 2, "L1": 2, "L2": 1, "L3": 1, "L4": 1}
    assert {grid.tobytes() for grid in taught.grids} == {grid.tobytes() for grid in dataset.grids()}


def test_pictures_are_numbered_through(tmp_path: Path, dataset: Dataset) -> None:
    write_folders(dataset, NAMES, tmp_path / "made", "png", per_file=2)
    names = sorted(path.name for path in (tmp_path / "made" / "Ring").iterdir())
    assert names == [f"generated-{index:06d}.png" for index in range(5)]
