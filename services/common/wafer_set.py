"""Wafer sets: many labelled wafers in one `.npz` of plain arrays.

Arrays: `dies` (all grids flattened one after the other, uint8: 0 no die, 1 pass, 2 fail), `shapes` (n, 2) rows and
columns, and optionally, one text a wafer, `labels`, `group` (lot) and `source`.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgumentError
from services.common.npz import MAX_UNPACKED_BYTES, ArrayArchive
from services.common.wafer_map import FAIL, MAX_SIDE, checked_dies


class GridSequence(Sequence[NDArray[np.uint8]]):
    """Grids that share one flat array; each is a view, made when asked for.

    Args:
        dies: uint8, all grids flattened.
        shapes: int64 (n, 2) rows and columns whose areas sum up to `len(dies)`.
    """

    def __init__(self, dies: NDArray[np.uint8], shapes: NDArray[np.int64]) -> None:
        self._dies = dies
        self._shapes = shapes
        self._ends = np.cumsum(shapes.prod(axis=1))

    def __len__(self) -> int:
        return len(self._shapes)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...
    @overload
    def __getitem__(self, index: slice) -> list[NDArray[np.uint8]]: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        rows, columns = self._shapes[position]
        end = self._ends[position]
        return self._dies[end - rows * columns : end].reshape(rows, columns)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (self[position] for position in range(len(self)))

    @classmethod
    def of(cls, grids: Sequence[NDArray[np.uint8]]) -> Self:
        """Return grids as they share one array; those that do already are returned as they are."""
        if isinstance(grids, cls):
            return grids
        flat = np.concatenate([grid.ravel() for grid in grids]) if len(grids) else np.zeros(0, np.uint8)
        return cls(flat, np.array([grid.shape for grid in grids], np.int64).reshape(-1, 2))

    @property
    def dies(self) -> NDArray[np.uint8]:
        """All grids, flattened one after the other."""
        return self._dies

    @property
    def shapes(self) -> NDArray[np.int64]:
        """Rows and columns of each grid, int64 (n, 2)."""
        return self._shapes

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each grid begins in `dies`, and the end of the last, int64 (n + 1,)."""
        return np.concatenate([[0], self._ends])

    def runs(self) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
        """Yield the positions of neighbouring grids of one shape, and a (k, rows, columns) view of them."""
        changes = np.flatnonzero((np.diff(self._shapes, axis=0) != 0).any(axis=1)) + 1
        offsets = self.offsets
        for start, stop in pairwise([0, *changes.tolist(), len(self)] if len(self) else []):
            rows, columns = self._shapes[start]
            yield slice(start, stop), self._dies[offsets[start] : offsets[stop]].reshape(-1, rows, columns)


@dataclass(frozen=True, slots=True)
class WaferSet:
    """What a wafer set holds; every list has one entry a wafer.

    Attributes:
        grids: uint8 (rows, columns) each, read-only: 0 no die, 1 pass, 2 fail. A grid may be without dies.
        labels: pattern names, or None when the file has none.
        groups: lots, or None.
        sources: where each wafer comes from, or None.
    """

    grids: Sequence[NDArray[np.uint8]]
    labels: list[str] | None = None
    groups: list[str] | None = None
    sources: list[str] | None = None

    def __len__(self) -> int:
        return len(self.grids)


def read_wafer_set(source: str | Path | bytes | IO[bytes], max_unpacked_bytes: int = MAX_UNPACKED_BYTES) -> WaferSet:
    """Read a wafer set; sizes are checked before anything is unpacked, and pickles are refused.

    Args:
        source: path, bytes or an open, seekable binary file.
        max_unpacked_bytes: most bytes that its arrays may unpack to.

    Raises:
        NotFoundError: there is no such file.
        InvalidArgumentError: it is no wafer set, is damaged or too large.
    """
    with ArrayArchive(Path(source) if isinstance(source, str) else source, max_unpacked_bytes) as archive:
        _check_headers(archive)
        shapes = archive.read("shapes").astype(np.int64)
        dies = archive.read("dies")
        texts = {name: _texts(archive, name, len(shapes)) for name in ("labels", "group", "source")}
    _check_content(dies, shapes)
    dies.flags.writeable = False
    return WaferSet(
        grids=GridSequence(dies, shapes), labels=texts["labels"], groups=texts["group"], sources=texts["source"]
    )


def check_grids(grids: GridSequence) -> None:
    """Check many grids at once as `checked_dies` checks each.

    Raises:
        InvalidArgumentError: a side is out of range, a value is none of 0, 1 and 2, or a grid is without dies.
    """
    _check_content(grids.dies, grids.shapes)
    for places, run in grids.runs():
        empty = np.flatnonzero(~run.reshape(len(run), -1).any(axis=1))
        if empty.size:
            raise InvalidArgumentError(
                f"Expected at least one die. Received: none in grid {places.start + int(empty[0])}.", field="dies"
            )


def write_wafer_set(
    path: Path,
    grids: Sequence[NDArray[np.uint8]],
    labels: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
) -> None:
    """Write a wafer set; the file appears complete or not at all.

    Args:
        path: file to write or replace.
        grids: uint8 (rows, columns) of 0, 1 and 2 with at least one die each.
        labels: pattern of each wafer.
        groups: lot of each wafer.
        sources: where each wafer comes from.

    Raises:
        InvalidArgumentError: a grid is invalid or a list differs in length.
    """
    checked = [checked_dies(grid, name=f"grids[{index}]") for index, grid in enumerate(grids)]
    arrays: dict[str, NDArray[Any]] = {
        "dies": np.concatenate([grid.ravel() for grid in checked]) if checked else np.zeros(0, np.uint8),
        "shapes": np.array([grid.shape for grid in checked], np.int16).reshape(-1, 2),
    }
    for name, texts in (("labels", labels), ("group", groups), ("source", sources)):
        if texts is None:
            continue
        if len(texts) != len(checked):
            raise InvalidArgumentError(
                f"Expected {len(checked)} texts, one a wafer. Received: {len(texts)}.", field=name
            )
        if any(text.endswith("\0") for text in texts):
            raise InvalidArgumentError("Expected texts that do not end with a NUL character.", field=name)
        arrays[name] = np.array(texts, np.str_) if texts else np.zeros(0, "<U1")
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def is_wafer_set(archive: ArrayArchive) -> bool:
    """Say whether an archive has the arrays of a wafer set."""
    headers = archive.headers
    return (
        "dies" in headers
        and "shapes" in headers
        and len(headers["dies"].shape) == 1
        and headers["dies"].dtype == np.uint8
    )


def _check_headers(archive: ArrayArchive) -> None:
    headers = archive.headers
    if not is_wafer_set(archive):
        found = ", ".join(f"{name} {header.dtype} {header.shape}" for name, header in headers.items()) or "nothing"
        raise InvalidArgumentError(
            f"Expected a wafer set: arrays dies (flat uint8) and shapes (n, 2). Received: {found[:300]}.", field="file"
        )
    shapes = headers["shapes"]
    if len(shapes.shape) != 2 or shapes.shape[1] != 2 or shapes.dtype.kind not in "iu":
        raise InvalidArgumentError(
            f"Expected whole numbers of shape (n, 2). Received: {shapes.dtype} {shapes.shape}.", field="shapes"
        )


def _check_content(dies: NDArray[np.uint8], shapes: NDArray[np.int64]) -> None:
    if len(shapes) and not (shapes.min() >= 1 and shapes.max() <= MAX_SIDE):
        wrong = int(np.flatnonzero(((shapes < 1) | (shapes > MAX_SIDE)).any(axis=1))[0])
        raise InvalidArgumentError(
            f"Expected 1 to {MAX_SIDE} rows and columns. Received: {shapes[wrong].tolist()} for wafer {wrong}.",
            field="shapes",
        )
    places = int(shapes.prod(axis=1).sum())
    if places != len(dies):
        raise InvalidArgumentError(
            f"Expected {places} dies, the sum of rows x columns. Received: {len(dies)}.", field="dies"
        )
    if len(dies) and dies.max() > FAIL:
        raise InvalidArgumentError(
            f"Expected only 0 (no die), 1 (pass) and 2 (fail). Received: {int(dies.max())}.", field="dies"
        )


def _texts(archive: ArrayArchive, name: str, count: int) -> list[str] | None:
    if name not in archive.headers:
        return None
    header = archive.headers[name]
    if header.shape != (count,) or header.dtype.kind not in "US":
        raise InvalidArgumentError(
            f"Expected {count} texts, one a wafer. Received: {header.dtype} {header.shape}.", field=name
        )
    values = archive.read(name)
    try:
        return [str(value) for value in (np.char.decode(values, "utf-8") if header.dtype.kind == "S" else values)]
    except (UnicodeDecodeError, ValueError) as error:
        raise InvalidArgumentError(
            f"Expected UTF-8 text. Received bytes that are none ({error}).", field=name
        ) from error
