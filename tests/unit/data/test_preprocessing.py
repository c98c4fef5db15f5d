from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.common.errors import InvalidArgumentError
from services.common.preprocessing import pad_grids, planes, planes_of
from tests.unit.data.strategies import grids

Array = NDArray[np.float32]


def oracle(grid: NDArray[np.uint8], size: int) -> Array:
    """Area averages by the definition: exact fractions, one die and one cell after the other."""
    result = np.zeros((size, size, 2), np.float32)
    if not grid.any():
        return result
    rows, columns = np.flatnonzero(grid.any(axis=1)), np.flatnonzero(grid.any(axis=0))
    box = grid[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = box.shape

    def overlap(die: int, cell: int, length: int) -> Fraction:
        low, high = Fraction(cell * length, size), Fraction((cell + 1) * length, size)
        return max(Fraction(0), min(Fraction(die + 1), high) - max(Fraction(die), low))

    area = Fraction(height * width, size * size)
    for i in range(size):
        for j in range(size):
            shares = [Fraction(0), Fraction(0)]
            for (row, column), die in np.ndenumerate(box):
                covered = overlap(row, i, height) * overlap(column, j, width)
                shares[0] += covered * bool(die)
                shares[1] += covered * bool(die == 2)
            result[i, j] = [np.float32(share / area) for share in shares]
    return result


def random_grid(rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 3, (rows, columns)).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(grids(max_side=9), st.integers(1, 8))
def test_planes_are_the_exact_area_averages(grid: NDArray[np.uint8], size: int) -> None:
    assert np.array_equal(planes(grid[None], size)[0], oracle(grid, size))


@pytest.mark.parametrize("shape", [(8, 8), (26, 26), (27, 15), (52, 52), (107, 150), (200, 199), (1024, 9)])
def test_equal_grids_give_equal_bits_however_they_are_padded(shape: tuple[int, int]) -> None:
    grid = random_grid(*shape)
    alone = planes(grid[None], 48)
    padded = np.pad(grid, ((3, 1024 - 3 - shape[0] if shape[0] < 1000 else 0), (5, 11)))[:1024]
    if shape[0] < 1000:
        assert np.array_equal(planes(padded[None], 48), alone)
    neighbour = random_grid(min(shape[0] + 9, 1024), shape[1] + 4, seed=1)
    assert np.array_equal(planes(pad_grids([grid, neighbour]), 48)[:1], alone)


@settings(deadline=None)
@given(grids(max_side=60), st.integers(1, 52))
def test_turning_and_mirroring_the_wafer_turns_and_mirrors_its_planes(grid: NDArray[np.uint8], size: int) -> None:
    result = planes(grid[None], size)[0]
    assert np.array_equal(planes(grid.T[None], size)[0], result.transpose(1, 0, 2))
    assert np.array_equal(planes(grid[None, ::-1], size)[0], result[::-1])
    assert np.array_equal(planes(grid[None, :, ::-1], size)[0], result[:, ::-1])
    assert np.array_equal(planes(np.rot90(grid)[None], size)[0], np.rot90(result))


@settings(deadline=None)
@given(grids(max_side=60), st.integers(1, 52))
def test_the_mean_is_the_share_of_dies_in_the_box(grid: NDArray[np.uint8], size: int) -> None:
    rows, columns = np.flatnonzero(grid.any(axis=1)), np.flatnonzero(grid.any(axis=0))
    box = grid[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    result = planes(grid[None], size)[0]
    assert result.dtype == np.float32
    assert result[..., 1].min() >= 0
    assert (result[..., 1] <= result[..., 0]).all()
    assert result.max() <= 1
    assert result[..., 0].mean() == pytest.approx((box != 0).mean(), abs=1e-5)
    assert result[..., 1].mean() == pytest.approx((box == 2).mean(), abs=1e-5)


def test_a_wafer_at_its_own_size_is_itself() -> None:
    grid = random_grid(30, 30)
    grid[[0, -1]] = grid[:, [0, -1]] = 1
    result = planes(grid[None], 30)[0]
    assert np.array_equal(result[..., 0], grid != 0)
    assert np.array_equal(result[..., 1], grid == 2)


def test_a_wafer_without_dies_is_all_zero_and_spoils_no_neighbour() -> None:
    batch = np.stack([np.zeros((20, 20), np.uint8), random_grid(20, 20)])
    result = planes(batch, 16)
    assert not result[0].any()
    assert np.array_equal(result[1:], planes(batch[1:], 16))
    assert planes(batch[:0], 16).shape == (0, 16, 16, 2)


def test_planes_of_keeps_the_order_of_mixed_sizes() -> None:
    mixed = [
        random_grid(rows, columns, seed) for seed, (rows, columns) in enumerate([(9, 7), (20, 30), (9, 7), (1, 1)])
    ]
    mixed[3][:] = 1
    result = planes_of(mixed, 12)
    for index, grid in enumerate(mixed):
        assert np.array_equal(result[index], planes(grid[None], 12)[0])
    assert planes_of([], 12).shape == (0, 12, 12, 2)


@pytest.mark.parametrize("size", [0, -1, 1025])
def test_sizes_out_of_range_are_refused(size: int) -> None:
    with pytest.raises(InvalidArgumentError):
        planes(random_grid(3, 3)[None], size)


def test_pad_grids() -> None:
    padded = pad_grids([np.ones((2, 1), np.uint8), np.full((1, 3), 2, np.uint8)])
    assert padded.tolist() == [[[1, 0, 0], [1, 0, 0]], [[2, 2, 2], [0, 0, 0]]]
    assert pad_grids([]).shape == (0, 1, 1)
