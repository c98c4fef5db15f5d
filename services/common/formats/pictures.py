"""Pictures of wafer maps (PNG, JPEG): from coloured cells back to dies."""

from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from services.common.errors import InvalidArgumentError
from services.common.formats.picture_colours import read_codes
from services.common.formats.picture_lattice import find_cells
from services.common.formats.reading import Format, Reading
from services.common.wafer_map import FAIL, MAX_SIDE, NO_DIE, PASS, WaferMap

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_MIN_SIDE = 4
_MAX_MIXED = 0.08
"""Largest share of pixels that may differ from their cell's value before the picture is called doubtful."""


def _sniff(name: str, head: bytes) -> bool:
    return head.startswith((_PNG, _JPEG))


def _read(name: str, file: IO[bytes], reading: Reading) -> None:
    pixels = _pixels(file, reading.limits.max_pixels)
    read = read_codes(pixels)
    if read.warning:
        reading.warn(f"{name}: {read.warning}")
    dies, sure = _dies(read.codes, read.clean)
    if not sure:
        reading.warn(f"{name}: geometry guessed, its dies are no regular cells. Check the map before you use it.")
    reading.add(WaferMap(dies), None, name)


def _pixels(file: IO[bytes], max_pixels: int) -> NDArray[np.uint8]:
    """Return the picture as uint8 (height, width, 3) with transparent pixels white; its size is checked first."""
    try:
        with Image.open(file, formats=["PNG", "JPEG"]) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise InvalidArgumentError(
                    f"Expected a picture of at most {max_pixels:,} pixels. Received: {width} x {height}."
                )
            if min(width, height) < _MIN_SIDE:
                raise InvalidArgumentError(
                    f"Expected a picture of at least {_MIN_SIDE} x {_MIN_SIDE} pixels. Received: {width} x {height}."
                )
            if image.mode in ("I", "I;16", "I;16B", "F"):
                return _scaled_levels(np.asarray(image))
            if image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                return np.asarray(Image.alpha_composite(white, image.convert("RGBA")).convert("RGB"))
            return np.asarray(image.convert("RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidArgumentError(
            f"Expected a picture of at most {max_pixels:,} pixels. Received far more."
        ) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, TypeError, IndexError) as error:
        raise InvalidArgumentError(f"The picture is damaged or cut off ({str(error)[:200]}).") from error


def _scaled_levels(levels: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Return a picture of more than 8 bits as grey of 8 bits between its darkest and its brightest level."""
    values = levels.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    grey = np.round((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
    return np.stack([grey] * 3, axis=-1)


def _dies(codes: NDArray[np.uint8], clean: bool) -> tuple[NDArray[np.uint8], bool]:
    """Return the die grid of a picture and whether its cells were found for sure.

    Args:
        codes: uint8 (height, width) value of each pixel: 0 no die, 1 pass, 2 fail.
        clean: whether no pixel is a blend of two colours.
    """
    if not codes.any():
        raise InvalidArgumentError("No dies found: the picture has one colour only.")
    columns, columns_sure = find_cells(codes, axis=1, clean=clean)
    rows, rows_sure = find_cells(codes, axis=0, clean=clean)
    if len(rows) > MAX_SIDE or len(columns) > MAX_SIDE:
        raise InvalidArgumentError(f"Expected at most {MAX_SIDE} dies a side. Received: {len(rows)} x {len(columns)}.")
    # Votes by sums over cells: one pass a value instead of one a cell.
    votes = np.stack([_cell_sums(codes == value, rows, columns) for value in (NO_DIE, PASS, FAIL)])
    dies = votes.argmax(axis=0).astype(np.uint8)
    total = int(votes.sum())
    mixed = total - int(votes.max(axis=0).sum())
    return dies, rows_sure and columns_sure and mixed <= _MAX_MIXED * total


def _cell_sums(
    mask: NDArray[np.bool_], rows: list[tuple[int, int]], columns: list[tuple[int, int]]
) -> NDArray[np.int64]:
    """Return how many pixels of each cell are set, int64 (rows, columns)."""
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
    sums[1:, 1:] = mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    top, bottom = np.array(rows).T
    left, right = np.array(columns).T
    return sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)] - sums[np.ix_(bottom, left)] + sums[np.ix_(top, left)]


FORMAT = Format(name="picture", extensions=(".png", ".jpg", ".jpeg"), sniff=_sniff, read=_read, order=5)
