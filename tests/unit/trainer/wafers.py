"""Simulated wafers for the tests of the trainer, and a job context without a service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.dataset import DatasetClass, DatasetManifest, DatasetWafer, DatasetWriter, Origin, Split
from services.common.jobs.worker import JobStopped
from services.common.store import BlobStore
from services.generator.simulator import SimulatedClass, simulate

PATTERNS = ("Center", "Edge-Ring", "none")


def simulated(pattern: str, count: int, seed: int = 1) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Returns wafers of one pattern and their lots."""
    grids: list[NDArray[np.uint8]] = []
    lots: list[str] = []
    for batch in simulate([SimulatedClass((pattern,), count)], seed=seed, wafers_per_lot=2):
        grids.extend(batch.dies)
        lots.extend(f"{pattern}-{lot}" for lot in batch.lots)
    return grids, lots


def freeze(
    store: BlobStore,
    dataset_id: str,
    counts: Sequence[int] = (16, 6, 6),
    patterns: Sequence[str] = PATTERNS,
    lot: Callable[[str], str] = lambda lot: lot,
) -> DatasetManifest:
    """Freezes a data set with `counts` wafers of each pattern for training, tuning and testing."""
    classes = [DatasetClass(f"c{index}", pattern, pattern) for index, pattern in enumerate(patterns)]
    with DatasetWriter(store, dataset_id, classes) as writer:
        for each in classes:
            grids, lots = simulated(each.pattern, sum(counts))
            sides = np.repeat([0, 1, 2], counts)
            # Lots of two: an odd count would put one on two sides.
            writer.add(
                DatasetWafer(
                    f"{each.class_id}-{number}",
                    grid,
                    each.class_id,
                    lot(f"{name}-{side}"),
                    Origin.SIMULATED,
                    "",
                    tuple(Split)[side],
                )
                for number, (grid, name, side) in enumerate(zip(grids, lots, sides, strict=True))
            )
        return writer.finish()


MIXED_PATTERNS = ("Center", "Edge-Ring", "Scratch", "none")
_MIXTURES = (*((name,) for name in MIXED_PATTERNS), ("Center", "Edge-Ring"), ("Center", "Scratch"))


def freeze_mixed(store: BlobStore, dataset_id: str, counts: Sequence[int] = (8, 4, 2)) -> DatasetManifest:
    """Freezes a data set with `counts` wafers of each of six sets of patterns, two of which show two."""
    classes = [DatasetClass(f"c{index}", name, name) for index, name in enumerate(MIXED_PATTERNS)]
    ids = {each.pattern: each.class_id for each in classes}
    sides = np.repeat([0, 1, 2], counts)
    wanted = [SimulatedClass(names, sum(counts)) for names in _MIXTURES]
    with DatasetWriter(store, dataset_id, classes) as writer:
        made = [0] * len(wanted)
        for batch in simulate(wanted, seed=1, wafers_per_lot=2):
            first, *others = wanted[batch.class_index].patterns
            for grid, lot in zip(batch.dies, batch.lots, strict=True):
                number = made[batch.class_index]
                made[batch.class_index] += 1
                writer.add(
                    [
                        DatasetWafer(
                            f"{batch.class_index}-{number}",
                            grid,
                            ids[first],
                            f"{lot}-{sides[number]}",
                            Origin.SIMULATED,
                            "",
                            tuple(Split)[sides[number]],
                            tuple(ids[each] for each in others),
                        )
                    ]
                )
        return writer.finish()


class RecordingListener:
    """Keeps what teaching reports; stops it after a number of checks."""

    def __init__(self, checkpoints: Path, stop_at: Callable[[RecordingListener], bool] = lambda _: False) -> None:
        self.checkpoints = checkpoints
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._stop_at = stop_at

    def report(self, kind: str, progress: float | None = None, device: str | None = None, **data: Any) -> None:
        """Keeps an event."""
        self.events.append((kind, {**data, "progress": progress}))

    def check_cancelled(self) -> None:
        """Raises JobStopped when it is time."""
        if self._stop_at(self):
            raise JobStopped

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Returns the data of the events of a kind."""
        return [data for each, data in self.events if each == kind]
