"""Wafer sets: many labelled wafers in one `.npz` of plain arrays.

Arrays: `dies` (all grids flattened one after the other, uint8: 0 no die, 1 pass, 2 fail), `shapes` (n, 2) rows and
columns, and optionally, one text a wafer, `labels`, `group` (lot) and `source`.
"""

import contextlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgumentError
from services.common.npz import MAX_UNPACKED_BYTES, ArrayArchive
from services.common.wafer_map import FAIL, MAX_SIDE, checked_dies

_PIECE, _TEXTS_AT_ONCE = 1 << 20, 4096


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
    with WaferSetWriter(path) as writer:
        writer.add(grids, labels, groups, sources)
        writer.finish()


class WaferSetWriter:
    """Writes a wafer set in flat memory, however many wafers there are; a context manager.

    What is added waits in nameless files beside the wafer set, because an archive says of each array first how large it
    is. The wafer set appears complete with `finish`, and not at all without.

    Args:
        path: file to write or replace.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open = contextlib.ExitStack()
        self._dies, self._shapes = self._spool(), self._spool()
        self._texts: dict[str, _Texts] | None = None
        self.wafers = 0
        """Wafers added."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def add(
        self,
        grids: Sequence[NDArray[np.uint8]],
        labels: Sequence[str] | None = None,
        groups: Sequence[str] | None = None,
        sources: Sequence[str] | None = None,
    ) -> None:
        """Append wafers.

        Args:
            grids: uint8 (rows, columns) of 0, 1 and 2 with at least one die each.
            labels: pattern of each wafer; for all wafers of the set or for none, like the two that follow.
            groups: lot of each wafer.
            sources: where each wafer comes from.

        Raises:
            InvalidArgumentError: a grid is invalid, a list differs in length, or one is there that was not before.
        """
        checked = [checked_dies(grid, name=f"grids[{self.wafers + index}]") for index, grid in enumerate(grids)]
        given = {"labels": labels, "group": groups, "source": sources}
        texts = {name: list(each) for name, each in given.items() if each is not None}
        for name, each in texts.items():
            if len(each) != len(checked):
                raise InvalidArgumentError(
                    f"Expected {len(checked)} texts, one a wafer. Received: {len(each)}.", field=name
                )
            if any(text.endswith("\0") for text in each):
                raise InvalidArgumentError("Expected texts that do not end with a NUL character.", field=name)
        if self._texts is None:
            self._texts = {name: _Texts(self._spool()) for name in texts}
        if self._texts.keys() != texts.keys():
            raise InvalidArgumentError(
                f"Expected the same lists for all wafers: {', '.join(self._texts) or 'none'}. "
                f"Received: {', '.join(texts) or 'none'}.",
                field="wafers",
            )
        for grid in checked:
            self._dies.write(grid.tobytes())
        self._shapes.write(np.array([grid.shape for grid in checked], np.int16).tobytes())
        for name, each in texts.items():
            self._texts[name].add(each)
        self.wafers += len(checked)

    def finish(self) -> int:
        """Make the wafer set visible; return how many bytes its arrays unpack to."""
        with tempfile.NamedTemporaryFile(dir=self._path.parent, prefix=f".{self._path.name}.", delete=False) as file:
            try:
                with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                    size = self._write_arrays(archive)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(self._path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        return size

    def _write_arrays(self, archive: zipfile.ZipFile) -> int:
        size = self._dies.tell()
        _write_array(archive, "dies", (size,), np.dtype(np.uint8), _pieces(self._dies))
        shapes = np.dtype(np.int16)
        _write_array(archive, "shapes", (self.wafers, 2), shapes, _pieces(self._shapes))
        size += self.wafers * 2 * shapes.itemsize
        for name, texts in (self._texts or {}).items():
            _write_array(archive, name, (self.wafers,), texts.dtype, texts.pieces())
            size += self.wafers * texts.dtype.itemsize
        return size

    def _spool(self) -> IO[bytes]:
        return self._open.enter_context(tempfile.TemporaryFile(dir=self._path.parent))


class _Texts:
    """Texts that wait in a file until the longest of them is known."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._longest = 1

    def add(self, texts: Sequence[str]) -> None:
        """Appends texts."""
        self._longest = max([self._longest, *map(len, texts)])
        self._file.writelines(json.dumps(text).encode() + b"\n" for text in texts)

    @property
    def dtype(self) -> np.dtype[np.str_]:
        """Of an array that holds them all."""
        return np.dtype(f"<U{self._longest}")

    def pieces(self) -> Iterator[bytes]:
        """Yields the content of that array."""
        self._file.seek(0)
        texts = map(json.loads, self._file)
        while some := list(islice(texts, _TEXTS_AT_ONCE)):
            yield np.array(some, self.dtype).tobytes()


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    while piece := file.read(_PIECE):
        yield piece


def _write_array(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], pieces: Iterator[bytes]
) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    # How large the packed array will be is not known here.
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for piece in pieces:
            member.write(piece)


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
