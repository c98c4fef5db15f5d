"""Wafers from and to their rows."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Row

from gateway.catalogue.catalogue import new_id
from gateway.catalogue.names import cleaned
from gateway.values import WaferInfo
from services.common.dataset import GENERATED, Origin
from services.common.wafer_map import FAIL, NO_DIE, Notch, WaferGeometry, WaferIdentity, WaferMap

# Three times as fast as the default and hardly larger on grids of three values.
_LEVEL: Final = 1


@dataclass(frozen=True, slots=True, eq=False)
class NewWafer:
    """A wafer to be added.

    Attributes:
        map: The die grid.
        class_id: Its class.
        origin: How it came into being.
        wafer_id: Its id; "" makes one.
        parent_id: For generated wafers, the wafer it was made from.
        base_dataset: For generated wafers, the data set version that they were made from.
        source_name: File or entry it was read from.
        source_sha256: Content address of the original file.
        also: Ids of further classes that it shows.
    """

    map: WaferMap
    class_id: str
    origin: Origin
    wafer_id: str = ""
    parent_id: str = ""
    base_dataset: str = ""
    source_name: str = ""
    source_sha256: str = ""
    also: tuple[str, ...] = ()


def to_row(wafer: NewWafer, project_id: str, number: int) -> dict[str, Any]:
    """Returns the columns of a new wafer, without the time.

    Args:
        wafer: The wafer.
        project_id: Its project.
        number: Number of the change that adds it.
    """
    dies, identity, geometry = wafer.map.dies, wafer.map.identity, wafer.map.geometry
    bins = wafer.map.bins
    return {
        "id": wafer.wafer_id or new_id(),
        "project_id": project_id,
        "class_id": wafer.class_id,
        "sha256": wafer.map.sha256(),
        "rows": wafer.map.rows,
        "columns": wafer.map.columns,
        "dies": zlib.compress(dies.tobytes(), _LEVEL),
        "bins": None if bins is None else zlib.compress(bins.astype("<i4").tobytes(), _LEVEL),
        "die_count": int(np.count_nonzero(dies != NO_DIE)),
        "fail_count": int(np.count_nonzero(dies == FAIL)),
        "lot": cleaned(identity.lot),
        "wafer": cleaned(identity.wafer),
        "slot": identity.slot,
        "product": cleaned(identity.product),
        "step": cleaned(identity.step),
        "tool": cleaned(identity.tool),
        "measured_at": identity.measure_time,
        "notch": geometry.notch.value,
        "die_pitch_x_mm": geometry.die_pitch_x_mm,
        "die_pitch_y_mm": geometry.die_pitch_y_mm,
        "origin": wafer.origin.value,
        "generated": wafer.origin in GENERATED,
        "parent_id": cleaned(wafer.parent_id, 64),
        "base_dataset": wafer.base_dataset,
        "source_name": cleaned(wafer.source_name, 512),
        "source_sha256": wafer.source_sha256,
        "added_change": number,
    }


def to_info(row: Row[Any], duplicates: int, also: tuple[str, ...]) -> WaferInfo:
    """Returns a wafer without its dies from a row with or without them.

    Args:
        row: The row.
        duplicates: Other wafers of the project with the same dies.
        also: Ids of the further classes that it shows.
    """
    return WaferInfo(
        wafer_id=row.id,
        project_id=row.project_id,
        class_id=row.class_id,
        lot=row.lot,
        wafer=row.wafer,
        slot=row.slot,
        rows=row.rows,
        columns=row.columns,
        dies=row.die_count,
        failed=row.fail_count,
        origin=Origin(row.origin),
        parent_id=row.parent_id,
        source_name=row.source_name,
        created_at=row.created_at,
        duplicates=duplicates,
        also=also,
    )


def to_map(row: Row[Any]) -> WaferMap:
    """Returns the wafer map of a whole row."""
    shape = (row.rows, row.columns)
    return WaferMap(
        dies=grid_of(row),
        identity=WaferIdentity(row.lot, row.wafer, row.slot, row.product, row.step, row.tool, row.measured_at),
        geometry=WaferGeometry(Notch(row.notch), row.die_pitch_x_mm, row.die_pitch_y_mm),
        bins=None
        if row.bins is None
        else np.frombuffer(zlib.decompress(row.bins), "<i4").astype(np.int32).reshape(shape),
    )


def grid_of(row: Row[Any]) -> NDArray[np.uint8]:
    """Returns the die grid of a whole row, uint8 (rows, columns)."""
    return np.frombuffer(zlib.decompress(row.dies), np.uint8).reshape(row.rows, row.columns)
