"""NumPy archives (.npz): wafer sets, and the layouts in which WM-811K and MixedWM38 go round, without pickles.

Layouts: a wafer set (`dies` flat, `shapes`, `labels`, `group`, `source`, see `services.common.wafer_set`); one array
of maps (n, rows, columns), named `arr_0`, `x`, `maps` or the like, zero-padded or with `shapes`, and labels as text,
numbers or one column a pattern; one two-dimensional array a wafer.
"""

from collections.abc import Callable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgumentError
from services.common.formats.reading import Format, Reading
from services.common.npz import ArrayArchive
from services.common.wafer_map import FAIL, WaferIdentity, WaferMap
from services.common.wafer_set import is_wafer_set, read_wafer_set

_LABELS = ("labels", "label", "y", "arr_1", "failuretype", "failure_type", "targets", "classes", "class")
_LOTS = ("group", "groups", "lot", "lots", "lotname", "lot_name")
_NAMES = ("class_names", "classes", "label_names", "names", "categories")
_MIXED_WM38 = ("Center", "Donut", "Edge-Loc", "Edge-Ring", "Loc", "Near-full", "Scratch", "Random")
"""Patterns of the label columns of MixedWM38, in its order."""


def _sniff(name: str, head: bytes) -> bool:
    # A zip whose first entry is an array; the entry's name begins at byte 30 of the archive.
    length = int.from_bytes(head[26:28], "little")
    return head.startswith(b"PK\x03\x04") and head[30 : 30 + length].endswith(b".npy")


def _read(name: str, file: IO[bytes], reading: Reading) -> None:
    with ArrayArchive(file, reading.limits.max_unpacked_bytes) as archive:
        wafer_set = is_wafer_set(archive)
        if not wafer_set:
            _read_arrays(name, archive, reading)
    if wafer_set:
        file.seek(0)
        _read_wafer_set(name, file, reading)


def _read_wafer_set(name: str, file: IO[bytes], reading: Reading) -> None:
    if reading.depth == 0:
        reading.format_name = "wafer set"
    wafers = read_wafer_set(file, reading.limits.max_unpacked_bytes)
    for index, grid in enumerate(wafers.grids):
        label = wafers.labels[index] if wafers.labels else None
        lot = wafers.groups[index] if wafers.groups else ""
        _add(reading, f"{name}#{index}", grid, label, lot)


def _read_arrays(name: str, archive: ArrayArchive, reading: Reading) -> None:
    headers = archive.headers
    stacks = [key for key, header in headers.items() if len(header.shape) in (3, 4) and header.dtype.kind in "buif"]
    if len(stacks) > 1:
        raise InvalidArgumentError(
            f"Expected one array of maps (wafers, rows, columns). Received: {', '.join(stacks)}. Save one a file."
        )
    if stacks:
        _read_stack(name, archive, stacks[0], reading)
        return
    flat = [key for key, header in headers.items() if len(header.shape) == 2 and header.dtype.kind in "buif"]
    if not flat:
        found = ", ".join(f"{key} {header.dtype} {header.shape}" for key, header in headers.items()) or "no arrays"
        raise InvalidArgumentError(
            f"Expected a wafer set, or an array of maps (wafers, rows, columns). Received: {found[:300]}."
        )
    for key in flat:
        _add(reading, f"{name}#{key}", archive.read(key), None, "")


def _read_stack(name: str, archive: ArrayArchive, key: str, reading: Reading) -> None:
    maps = archive.read(key)
    if maps.ndim == 4:
        if maps.shape[3] not in (1, 3):
            raise InvalidArgumentError(
                f"Expected maps of 1 channel, or of 3 (no die, pass, fail). Received: {maps.shape}."
            )
        maps = maps[..., 0] if maps.shape[3] == 1 else maps.argmax(axis=3).astype(np.uint8)
    count = len(maps)
    label_of = _labels(archive, count, reading)
    lots = _texts(archive, _LOTS, count)
    shapes = _shapes(archive, count)
    for index, grid in enumerate(maps):
        cropped = grid if shapes is None else grid[: shapes[index, 0], : shapes[index, 1]]
        _add(reading, f"{name}#{index}", cropped, label_of(index), lots[index] if lots else "")


def _labels(archive: ArrayArchive, count: int, reading: Reading) -> Callable[[int], str | None]:
    key = _find(archive, _LABELS, lambda shape: shape[:1] == (count,) and len(shape) <= 2)
    if key is None:
        return lambda index: None
    values = archive.read(key)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim == 1 and values.dtype.kind in "US":
        texts = _decoded(values)
        return lambda index: texts[index].strip()
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InvalidArgumentError(f"Expected labels that are numbers or texts. Received: NaN or infinity in {key!r}.")
    names = _class_names(archive, key, values, reading)

    def name_of(number: int) -> str:
        return names[number] if 0 <= number < len(names) else f"class {number}"

    if values.ndim == 1:
        return lambda index: name_of(int(values[index]))
    return lambda index: "+".join(name_of(int(each)) for each in np.flatnonzero(values[index])) or "none"


def _class_names(archive: ArrayArchive, key: str, values: NDArray[Any], reading: Reading) -> tuple[str, ...]:
    for found, header in archive.headers.items():
        if found.lower() in _NAMES and found != key and header.dtype.kind in "US" and len(header.shape) == 1:
            return tuple(_decoded(archive.read(found)))
    if values.ndim == 2 and values.shape[1] == len(_MIXED_WM38):
        reading.warn(f"Label columns have no names: taken as those of MixedWM38 ({', '.join(_MIXED_WM38)}).")
        return _MIXED_WM38
    reading.warn("Labels are numbers without names: classes are called 'class 0', 'class 1' and so on.")
    return ()


def _shapes(archive: ArrayArchive, count: int) -> NDArray[np.int64] | None:
    header = archive.headers.get("shapes")
    if header is None or header.shape != (count, 2) or header.dtype.kind not in "iu":
        return None
    return archive.read("shapes").astype(np.int64).clip(0)


def _texts(archive: ArrayArchive, names: tuple[str, ...], count: int) -> list[str] | None:
    key = _find(archive, names, lambda shape: shape == (count,))
    if key is None:
        return None
    values = archive.read(key)
    return _decoded(values) if values.dtype.kind in "US" else [str(value) for value in values.tolist()]


def _find(archive: ArrayArchive, names: tuple[str, ...], fits: Callable[[tuple[int, ...]], bool]) -> str | None:
    by_name = {key.lower(): key for key, header in archive.headers.items() if fits(header.shape)}
    return next((by_name[name] for name in names if name in by_name), None)


def _decoded(values: NDArray[Any]) -> list[str]:
    try:
        return [value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()]
    except (UnicodeDecodeError, ValueError) as error:
        raise InvalidArgumentError(f"Expected UTF-8 text. Received bytes that are none ({error}).") from error


def _add(reading: Reading, name: str, grid: NDArray[Any], label: str | None, lot: str) -> None:
    try:
        reading.add(WaferMap(_as_dies(grid), identity=WaferIdentity(lot=lot)), label, name)
    except InvalidArgumentError as error:
        if error.reason == "TOO_MANY_WAFERS":
            raise
        reading.skip(name, error.message)


def _as_dies(grid: NDArray[Any]) -> NDArray[np.uint8]:
    if grid.dtype == np.uint8 or not grid.size:
        return grid.astype(np.uint8)
    low, high = grid.min(), grid.max()
    whole = np.isfinite(low) and np.isfinite(high) and (grid.dtype.kind != "f" or bool((grid == np.round(grid)).all()))
    if not whole or low < 0 or high > FAIL:
        raise InvalidArgumentError(f"Expected only 0 (no die), 1 (pass) and 2 (fail). Received: {low} to {high}.")
    return grid.astype(np.uint8)


FORMAT = Format(name="NumPy archive", extensions=(".npz",), sniff=_sniff, read=_read, order=10)
