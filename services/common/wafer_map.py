"""The wafer map: one wafer as a grid of dies, with what is known about the wafer.

Everything in the project that is about a single wafer speaks of :class:`WaferMap`; only
:mod:`services.common.wafer_map_converter` knows how it looks on the wire.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgumentError

NO_DIE = 0
"""Value of a place that holds no die, or a die that was not tested."""
PASS = 1
"""Value of a die that passed."""
FAIL = 2
"""Value of a die that failed."""
MAX_SIDE = 1024
"""Largest number of rows or columns of a grid."""
MAX_TEXT = 256
"""Largest number of characters of a text in a wafer's identity."""
MAX_SLOT = 25
"""Highest slot of a carrier."""


class Notch(Enum):
    """Side of the grid on which the wafer's notch or flat lies."""

    UNSPECIFIED = 0
    DOWN = 1
    LEFT = 2
    UP = 3
    RIGHT = 4


@dataclass(frozen=True, slots=True)
class WaferIdentity:
    """Where a wafer comes from; empty means unknown.

    Attributes:
        lot: lot the wafer was processed in; wafers of one lot never stand on both sides of a split.
        wafer: identifier of the wafer inside its lot or of the whole fab.
        slot: slot in the carrier, 1 to 25, or 0.
        product: product or device name.
        step: process or test step at which the map was measured.
        tool: tool or tester that measured it.
        measure_time: when it was measured, with a time zone.

    Raises:
        InvalidArgumentError: a text is too long, the slot is out of range or the time has no time zone.
    """

    lot: str = ""
    wafer: str = ""
    slot: int = 0
    product: str = ""
    step: str = ""
    tool: str = ""
    measure_time: datetime | None = None

    def __post_init__(self) -> None:
        for name in ("lot", "wafer", "product", "step", "tool"):
            text: str = getattr(self, name)
            if len(text) > MAX_TEXT:
                raise InvalidArgumentError(
                    f"Expected at most {MAX_TEXT} characters. Received: {len(text)}.", field=f"identity.{name}"
                )
        if not 0 <= self.slot <= MAX_SLOT:
            raise InvalidArgumentError(
                f"Expected a slot from 1 to {MAX_SLOT}, or 0 when unknown. Received: {self.slot}.",
                field="identity.slot",
            )
        if self.measure_time is not None and self.measure_time.tzinfo is None:
            raise InvalidArgumentError(
                f"Expected a time with a time zone. Received: {self.measure_time.isoformat()}.",
                field="identity.measure_time",
            )


@dataclass(frozen=True, slots=True)
class WaferGeometry:
    """How the die grid lies on the wafer.

    Attributes:
        notch: side of the grid with the notch or flat.
        die_pitch_x_mm: distance of neighbouring dies along a row in millimetres, 0 when unknown.
        die_pitch_y_mm: distance of neighbouring dies along a column in millimetres, 0 when unknown.

    Raises:
        InvalidArgumentError: a pitch is negative or not finite.
    """

    notch: Notch = Notch.UNSPECIFIED
    die_pitch_x_mm: float = 0.0
    die_pitch_y_mm: float = 0.0

    def __post_init__(self) -> None:
        for name in ("die_pitch_x_mm", "die_pitch_y_mm"):
            pitch: float = getattr(self, name)
            if not (np.isfinite(pitch) and pitch >= 0):
                raise InvalidArgumentError(
                    f"Expected a distance in millimetres >= 0, 0 when unknown. Received: {pitch}.",
                    field=f"geometry.{name}",
                )


@dataclass(frozen=True, slots=True, eq=False)
class WaferMap:
    """One wafer: a grid of dies seen from the front, row 0 at the top, column 0 at the left.

    The arrays are copied and made read-only, so that a map can be shared between threads and kept in caches.

    Attributes:
        dies: uint8 (rows, columns), C-contiguous: 0 no die, 1 passed, 2 failed; at least one die.
        identity: which wafer it is.
        geometry: how the grid lies on the wafer.
        bins: int32 (rows, columns) test bin of each die, 0 where there is no die; None when unknown.

    Raises:
        InvalidArgumentError: shape, dtype or a value is out of range.
    """

    dies: NDArray[np.uint8]
    identity: WaferIdentity = field(default_factory=WaferIdentity)
    geometry: WaferGeometry = field(default_factory=WaferGeometry)
    bins: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        dies = checked_dies(self.dies)
        object.__setattr__(self, "dies", dies)
        if self.bins is not None:
            object.__setattr__(self, "bins", _checked_bins(self.bins, dies.shape))

    @property
    def rows(self) -> int:
        """Number of die rows."""
        return int(self.dies.shape[0])

    @property
    def columns(self) -> int:
        """Number of die columns."""
        return int(self.dies.shape[1])

    def sha256(self) -> str:
        """Return the content address of the grid, 64 hexadecimal digits over its shape and its dies.

        Equal for exact duplicates whatever their identity, geometry or bins.
        """
        return dies_sha256(self.dies)


def dies_sha256(dies: NDArray[np.uint8]) -> str:
    """Return the content address of a uint8 (rows, columns) grid; see :meth:`WaferMap.sha256`."""
    digest = hashlib.sha256(f"{dies.shape[0]}x{dies.shape[1]}\n".encode())
    digest.update(np.ascontiguousarray(dies).data)
    return digest.hexdigest()


def checked_dies(dies: Any, name: str = "dies") -> NDArray[np.uint8]:
    """Return `dies` as a read-only, C-contiguous grid that shares no memory with a writable array.

    Args:
        dies: uint8 (rows, columns) of 0, 1 and 2 with at least one die.
        name: field named in the error.

    Raises:
        InvalidArgumentError: it is not such a grid.
    """
    check_dies(dies, name)
    frozen = np.array(dies, dtype=np.uint8, order="C", copy=True)
    frozen.flags.writeable = False
    return frozen


def check_dies(dies: Any, name: str = "dies") -> None:
    """Raise InvalidArgumentError unless `dies` is a grid as `checked_dies` takes it."""
    if not isinstance(dies, np.ndarray) or dies.dtype != np.uint8 or dies.ndim != 2:
        received = f"{dies.dtype} {dies.shape}" if isinstance(dies, np.ndarray) else type(dies).__name__
        raise InvalidArgumentError(f"Expected a uint8 (rows, columns) array. Received: {received}.", field=name)
    rows, columns = dies.shape
    if not (1 <= rows <= MAX_SIDE and 1 <= columns <= MAX_SIDE):
        raise InvalidArgumentError(
            f"Expected 1 to {MAX_SIDE} rows and columns. Received: {rows} x {columns}.", field=name
        )
    highest = int(dies.max())
    if highest > FAIL:
        raise InvalidArgumentError(f"Expected only 0 (no die), 1 (pass) and 2 (fail). Received: {highest}.", field=name)
    if highest == NO_DIE:
        raise InvalidArgumentError(
            f"Expected at least one die. Received: {rows} x {columns} places without a die.", field=name
        )


def _checked_bins(bins: Any, shape: tuple[int, ...]) -> NDArray[np.int32]:
    if not isinstance(bins, np.ndarray) or bins.dtype != np.int32 or bins.shape != shape:
        received = f"{bins.dtype} {bins.shape}" if isinstance(bins, np.ndarray) else type(bins).__name__
        raise InvalidArgumentError(f"Expected an int32 array of shape {shape}. Received: {received}.", field="bins")
    frozen = np.array(bins, dtype=np.int32, order="C", copy=True)
    frozen.flags.writeable = False
    return frozen
