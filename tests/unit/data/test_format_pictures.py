import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from services.common.formats import ReadLimits, read_wafers

Grid = NDArray[np.uint8]

PALETTES = {
    "grey levels": [(0, 0, 0), (127, 127, 127), (255, 255, 255)],
    "viridis": [(68, 1, 84), (33, 145, 140), (253, 231, 37)],
    "green and red on white": [(255, 255, 255), (0, 160, 0), (220, 20, 20)],
    "green and red on black": [(0, 0, 0), (0, 200, 0), (255, 0, 0)],
    "black on grey on white": [(255, 255, 255), (170, 170, 170), (0, 0, 0)],
    "blue and red on white": [(255, 255, 255), (40, 80, 220), (230, 30, 30)],
}


def wafer(side: int = 26, seed: int = 0, fails: float = 0.15) -> Grid:
    """A round wafer with scattered and clustered fails."""
    random = np.random.default_rng(seed)
    y, x = (np.mgrid[:side, :side] * 2 + 1 - side) / side
    grid = (x * x + y * y <= 1.02).astype(np.uint8)
    bad = (random.random((side, side)) < fails) | ((x - 0.3) ** 2 + y**2 < 0.06)
    grid[(grid == 1) & bad] = 2
    return grid


def picture(
    grid: Grid, palette: str, block: int = 1, margin: int = 0, gap: int = 0, side: int = 0, file_format: str = "PNG"
) -> bytes:
    colours = np.array(PALETTES[palette], np.uint8)
    pixels = colours[grid].repeat(block, 0).repeat(block, 1)
    for line in range(gap):
        pixels[line::block] = colours[0]
        pixels[:, line::block] = colours[0]
    canvas = np.tile(colours[0], (pixels.shape[0] + 2 * margin, pixels.shape[1] + 2 * margin, 1))
    canvas[margin : margin + pixels.shape[0], margin : margin + pixels.shape[1]] = pixels
    image = Image.fromarray(canvas)
    if side:
        image = image.resize((side, side), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, file_format, quality=90)
    return buffer.getvalue()


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize(
    "form",
    [
        {"block": 1},
        {"block": 3},
        {"block": 8, "margin": 5},
        {"block": 8, "gap": 1, "margin": 3},
        {"block": 6, "gap": 2},
        {"side": 120},
        {"side": 224},
        {"block": 8, "file_format": "JPEG"},
    ],
    ids=str,
)
def test_a_picture_gives_back_its_dies(palette: str, form: dict) -> None:
    for seed in range(3):
        grid = wafer(26, seed)
        report = read_wafers("w.png", picture(grid, palette, **form))
        assert report.skipped == []
        assert np.array_equal(report.wafers[0].map.dies, grid)


@settings(max_examples=25, deadline=None)
@given(st.integers(12, 60), st.integers(0, 1000), st.integers(1, 9), st.integers(0, 12))
def test_any_size_of_wafer_die_and_margin(side: int, seed: int, block: int, margin: int) -> None:
    grid = wafer(side, seed)
    report = read_wafers("w.png", picture(grid, "grey levels", block=block, margin=margin))
    assert np.array_equal(report.wafers[0].map.dies, grid)
    assert report.warnings == []


def test_palette_images_and_transparent_backgrounds() -> None:
    grid = wafer()
    image = Image.fromarray(grid).convert("P")
    image.putpalette([0, 0, 0, 0, 200, 0, 255, 0, 0] + [0] * 759)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert np.array_equal(read_wafers("w", buffer.getvalue()).wafers[0].map.dies, grid)
    rgba = np.array([(0, 0, 0, 0), (0, 200, 0, 255), (255, 0, 0, 255)], np.uint8)[grid].repeat(4, 0).repeat(4, 1)
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG")
    assert np.array_equal(read_wafers("w", buffer.getvalue()).wafers[0].map.dies, grid)


@pytest.mark.parametrize("scale", [1, 100, 32767])
def test_levels_of_16_bits(scale: int) -> None:
    grid = wafer()
    buffer = io.BytesIO()
    Image.fromarray(grid.astype(np.uint16) * scale).save(buffer, "PNG")
    assert np.array_equal(read_wafers("w", buffer.getvalue()).wafers[0].map.dies, grid)


def test_wafer_without_fails_is_no_wafer_of_fails() -> None:
    grid = np.minimum(wafer(), 1)
    for palette in ("grey levels", "green and red on white"):
        dies = read_wafers("w", picture(grid, palette, block=4)).wafers[0].map.dies
        assert np.array_equal(dies, grid)


def test_two_levels_are_fails_on_a_round_wafer_and_said_to_be_guessed() -> None:
    grid = wafer(30)
    pixels = np.where(grid == 2, 255, 0).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    report = read_wafers("w", buffer.getvalue())
    dies = report.wafers[0].map.dies
    assert np.array_equal(dies == 2, grid == 2)
    assert (dies > 0).sum() == pytest.approx((grid > 0).sum(), rel=0.05)
    assert any("geometry guessed" in warning for warning in report.warnings)


def test_a_photograph_is_read_with_a_warning_or_refused() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    report = read_wafers("photo.jpg", buffer.getvalue())
    assert report.skipped or any("guessed" in warning for warning in report.warnings)


def test_one_colour_only() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (50, 50), "white").save(buffer, "PNG")
    assert "No dies" in read_wafers("w", buffer.getvalue()).skipped[0].reason


def _claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(5000, 5000), (12_000, 12_000), (60_000, 60_000), (0, 10), (3, 100)])
def test_sizes_are_checked_before_unpacking(size: tuple[int, int]) -> None:
    report = read_wafers("bomb.png", _claiming(*size))
    assert report.wafers == []
    assert "pixels" in report.skipped[0].reason or "damaged" in report.skipped[0].reason


def test_pixel_limit_and_truncation() -> None:
    data = picture(wafer(), "grey levels", block=8)
    assert "at most 1,000 pixels" in read_wafers("w", data, ReadLimits(max_pixels=1000)).skipped[0].reason
    assert "damaged" in read_wafers("w", data[: len(data) // 2]).skipped[0].reason
