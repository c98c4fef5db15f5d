"""Small wafers for tests, each different from all others."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.common.wafer_map import WaferIdentity, WaferMap


def grid(seed: int, rows: int = 12, columns: int = 10) -> NDArray[np.uint8]:
    """A wafer of `rows` x `columns` with random failing dies."""
    dies = np.random.default_rng(seed).choice(np.array([1, 1, 1, 2], np.uint8), (rows, columns))
    dies[0, 0] = dies[-1, -1] = 0
    return dies


def wafers(count: int, first: int = 0, lots: int = 3) -> list[WaferMap]:
    """Wafers in lots L0, L1, ..."""
    return [WaferMap(grid(first + i), WaferIdentity(lot=f"L{(first + i) % lots}", wafer=str(i))) for i in range(count)]


def die_list(maps: Sequence[NDArray[np.uint8]], lot: str = "A1") -> bytes:
    """A CSV die list with several wafers."""
    lines = ["lot,wafer,x,y,bin"]
    for index, dies in enumerate(maps):
        for row, column in np.argwhere(dies > 0):
            lines.append(f"{lot},{index + 1},{column},{row},{dies[row, column]}")
    return "\n".join(lines).encode()


def zipped(entries: dict[str, bytes]) -> bytes:
    """A .zip of these entries, names as they are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()
