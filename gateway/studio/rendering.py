"""Drawing of wafers: pass in a green family, fail in orange to dark red, places without a die transparent."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.common.errors import InvalidArgumentError
from services.common.wafer_map import FAIL, NO_DIE, Notch, WaferMap

Grid = NDArray[np.uint8]
Pixels = NDArray[np.uint8]

MAX_SPRITE_COLUMNS: Final = 20
"""Most thumbnails side by side."""

_PASS: Final = np.array((134, 193, 140), np.float32)
_FEW_FAIL: Final = np.array((240, 160, 90), np.float32)
_FAIL: Final = np.array((150, 20, 10), np.float32)
_NOTCH: Final = (90, 96, 105, 255)
_HEAT: Final = np.array((70, 20, 160), np.float32)
_MIN_GAP_CELL: Final = 6
"""Cells of at least this many pixels get a gap of one pixel between them."""


def sprite_png(grids: Sequence[Grid], tile: int) -> tuple[bytes, int]:
    """Draws thumbnails side by side.

    Args:
        grids: uint8 (rows, columns) each.
        tile: Side of a thumbnail, 8 to 256 pixels.

    Returns:
        PNG, and thumbnails in a row of it; a transparent pixel when there is no grid.

    Raises:
        InvalidArgumentError: The side is out of range.
    """
    _check_side(tile, 8, 256, "tile")
    columns = max(1, min(len(grids), MAX_SPRITE_COLUMNS))
    lines = max(1, -(-len(grids) // columns))
    sheet = np.zeros((lines * tile, columns * tile, 4), np.uint8)
    for index, grid in enumerate(grids):
        top, left = index // columns * tile, index % columns * tile
        sheet[top + 1 : top + tile - 1, left + 1 : left + tile - 1] = thumbnail(grid, tile - 2)
    return _png(sheet), columns


def thumbnail(grid: Grid, side: int) -> Pixels:
    """Draws a wafer into a square.

    The bounding box of the dies fills the square, because a wafer is round however many rows and columns it has. Where
    several dies share a pixel, the pixel shows the share that failed.

    Args:
        grid: uint8 (rows, columns) with at least one die.
        side: Side of the square, pixels.

    Returns:
        uint8 (side, side, 4) RGBA.
    """
    rows, columns = np.nonzero(grid)
    box = grid[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] if len(rows) else grid
    valid = _resample((box != NO_DIE).astype(np.float32), side)
    failed = _resample((box == FAIL).astype(np.float32), side)
    return _coloured(valid, failed)


def wafer_png(wafer: WaferMap, size: int, heat: Grid | None = None) -> bytes:
    """Draws a wafer with whole dies, gaps between them and a mark at the notch.

    Args:
        wafer: The wafer.
        size: Longer side, about, 8 to 4,096 pixels.
        heat: uint8 (rows, columns) laid over it, 255 the hottest.

    Raises:
        InvalidArgumentError: The size is out of range, or the heat has another shape.
    """
    _check_side(size, 8, 4096, "size")
    if heat is not None and heat.shape != wafer.dies.shape:
        raise InvalidArgumentError(
            f"Expected heat of {wafer.rows} x {wafer.columns} dies. Received: shape {heat.shape}.",
            "heat",
        )
    dies = wafer.dies
    cells = _coloured((dies != NO_DIE).astype(np.float32), (dies == FAIL).astype(np.float32))
    if heat is not None:
        cells = _heated(cells, heat)
    # A wafer is round: rows and columns fill the same length.
    height, width = max(1, size // wafer.rows), max(1, size // wafer.columns)
    picture = cells.repeat(height, axis=0).repeat(width, axis=1)
    if min(height, width) >= _MIN_GAP_CELL:
        picture[height - 1 :: height] = 0
        picture[:, width - 1 :: width] = 0
    return _png(_notched(picture, wafer.geometry.notch))


def _coloured(valid: NDArray[np.float32], failed: NDArray[np.float32]) -> Pixels:
    """Colours cells by the share of their dies that failed; cells less than a third covered stay transparent."""
    share = (failed / np.maximum(valid, 1e-6))[..., None].clip(0, 1)
    colour = np.where(share > 0, _FEW_FAIL + (_FAIL - _FEW_FAIL) * share, _PASS)
    alpha = np.where(valid >= 1 / 3, 255, 0)[..., None]
    return np.concatenate([np.where(alpha > 0, colour, 0), alpha], axis=-1).astype(np.uint8)


def _heated(cells: Pixels, heat: Grid) -> Pixels:
    """Lays heat over cells: the hottest become violet, the cold ones pale, so that the pattern stays readable."""
    warmth = (heat.astype(np.float32) / 255)[..., None]
    pale = cells[..., :3] * 0.45 + 255 * 0.55
    mixed = pale * (1 - warmth) + (cells[..., :3] * 0.35 + _HEAT * 0.65) * warmth
    return np.concatenate([mixed, cells[..., 3:].astype(np.float32)], axis=-1).astype(np.uint8)


def _notched(picture: Pixels, notch: Notch) -> Pixels:
    """Adds a margin and, where it is known on which side the notch lies, a mark there."""
    height, width = picture.shape[:2]
    margin = max(3, min(height, width) // 32)
    framed = np.zeros((height + 2 * margin, width + 2 * margin, 4), np.uint8)
    framed[margin:-margin, margin:-margin] = picture
    if notch is Notch.UNSPECIFIED:
        return framed
    turns = {Notch.UP: 0, Notch.RIGHT: 1, Notch.DOWN: 2, Notch.LEFT: 3}[notch]
    turned = np.rot90(framed, turns)
    middle = turned.shape[1] // 2
    for line in range(margin):
        half = margin - line
        turned[line, middle - half : middle + half] = _NOTCH
    return framed


def _resample(plane: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Stretches a plane to a square: nearest neighbours where it grows, means where it shrinks."""
    square = _resample_rows(_resample_rows(plane, side).T, side)
    return np.asarray(square.T, np.float32)


def _resample_rows(plane: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    count = plane.shape[0]
    edges = np.arange(side) * count // side
    if count <= side:
        return np.asarray(plane[edges], np.float32)
    sums = np.add.reduceat(plane, edges, axis=0)
    lengths = np.diff(np.append(edges, count)).astype(np.float32)
    return np.asarray(sums / lengths[:, None], np.float32)


def _png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels), "RGBA").save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _check_side(value: int, low: int, high: int, field: str) -> None:
    if not low <= value <= high:
        raise InvalidArgumentError(f"Expected {low} to {high} pixels. Received: {value}.", field)
