"""From die grids to what a network sees: the one implementation that teaching, export and serving share.

A wafer is the bounding box of its dies, stretched to `size` x `size` cells by area averaging. With a box of h x w dies
cell (i, j) covers the rows [i h / size, (i + 1) h / size) and the columns [j w / size, (j + 1) w / size) of the box,
and its value is the area of that rectangle that valid (failed) dies cover, divided by the rectangle's area.

Exact arithmetic: with lengths counted in units of 1/size die, die r of the box is the interval [r size, (r + 1) size)
and cell i is [i h, (i + 1) h), so that every overlap is a whole number of at most min(size, h). The sum over a row of
overlaps is h, the sum of an overlap-weighted plane is at most h w <= 2**20. Both matrix products therefore add whole
numbers below 2**24, which float32 holds exactly: the sum does not depend on its order, on zero padding, on the batch,
on the library or on TF32. One division by h w at the end gives the correctly rounded share. NumPy, TensorFlow and
onnxruntime return the same bits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgumentError
from services.common.wafer_map import FAIL, MAX_SIDE

PLANES = 2
"""Number of planes: valid dies, failed dies."""

_CHUNK_PLACES = 8_000_000
"""Places of grids and cells of planes worked on at once by `planes_of`: about 150 MB of float32."""


def pad_grids(grids: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Batch grids of different sizes by zero padding at the bottom and at the right.

    Args:
        grids: uint8 (rows, columns) each.

    Returns:
        uint8 (len(grids), most rows, most columns); (0, 1, 1) for no grids.
    """
    rows = max((grid.shape[0] for grid in grids), default=1)
    columns = max((grid.shape[1] for grid in grids), default=1)
    batch = np.zeros((len(grids), rows, columns), np.uint8)
    for target, grid in zip(batch, grids, strict=True):
        target[: grid.shape[0], : grid.shape[1]] = grid
    return batch


def planes(dies: Any, size: int, xp: Any = np) -> Any:
    """Return the two planes that a network sees.

    Args:
        dies: (N, rows, columns), any integer dtype: 0 no die, 2 failed die, anything else a die that did not fail;
            padded with zeros at will on any side. At most 1,024 rows and columns. Dimensions may be unknown when a
            graph is traced.
        size: number of cells along each side, 1 to 1,024.
        xp: `numpy` or `keras.ops`.

    Returns:
        float32 (N, size, size, 2) in 0..1: [..., 0] share of the cell covered by dies, [..., 1] share covered by
        failed dies. All 0 for a wafer without dies.

    Raises:
        InvalidArgumentError: `size` is out of range.
    """
    if not 1 <= size <= MAX_SIDE:
        raise InvalidArgumentError(f"Expected a size of 1 to {MAX_SIDE} cells. Received: {size}.", field="size")
    valid = _float32(dies != 0, xp)
    failed = _float32(dies == FAIL, xp)
    row_overlaps, height = _overlaps(xp.max(valid, axis=2), size, xp)
    column_overlaps, width = _overlaps(xp.max(valid, axis=1), size, xp)
    column_overlaps = xp.transpose(column_overlaps, (0, 2, 1))
    area = xp.maximum(height * width, 1.0)

    def share(plane: Any) -> Any:
        return xp.matmul(xp.matmul(row_overlaps, plane), column_overlaps) / area

    return xp.stack([share(valid), share(failed)], axis=-1)


def planes_of(grids: Sequence[NDArray[np.uint8]], size: int) -> NDArray[np.float32]:
    """Return the planes of grids of any sizes, in order, in chunks of flat memory.

    Args:
        grids: uint8 (rows, columns) each.
        size: number of cells along each side.

    Returns:
        float32 (len(grids), size, size, 2); see `planes`.
    """
    result = np.zeros((len(grids), size, size, PLANES), np.float32)
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, grid in enumerate(grids):
        by_shape.setdefault(grid.shape, []).append(index)
    for (rows, columns), indices in by_shape.items():
        step = max(1, _CHUNK_PLACES // (2 * rows * columns + 3 * size * max(size, columns)))
        for start in range(0, len(indices), step):
            chunk = indices[start : start + step]
            result[chunk] = planes(np.stack([grids[index] for index in chunk]), size)
    return result


def _overlaps(occupied: Any, size: int, xp: Any) -> tuple[Any, Any]:
    """Return how far each cell reaches over each row (or column), in units of 1/size die, and the box's extent.

    Args:
        occupied: float32 (N, length), 1 where the row holds a die.
        size: number of cells.
        xp: `numpy` or `keras.ops`.

    Returns:
        Overlaps, float32 (N, size, length) of whole numbers, and the number of rows of the box, float32 (N, 1, 1).
    """
    positions = _float32(xp.arange(xp.shape(occupied)[1]), xp)
    # Reductions over float32 instead of `argmax` over booleans: every exporter and every backend has them.
    first = xp.min(xp.where(occupied > 0, positions, float(MAX_SIDE)), axis=1)[:, None, None]
    last = xp.max(xp.where(occupied > 0, positions, -1.0), axis=1)[:, None, None]
    extent = xp.maximum(last - first + 1.0, 0.0)
    start_of_row = (positions[None, None, :] - first) * float(size)
    cells = _float32(xp.arange(size), xp)[None, :, None]
    ends = xp.minimum(start_of_row + float(size), (cells + 1.0) * extent)
    starts = xp.maximum(start_of_row, cells * extent)
    return xp.maximum(ends - starts, 0.0), extent


def _float32(values: Any, xp: Any) -> Any:
    return values.astype(np.float32) if xp is np else xp.cast(values, "float32")
