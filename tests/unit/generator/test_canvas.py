import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.wafer_map import NO_DIE
from services.generator.canvas import ORIENTATIONS, PLANES, Canvas, oriented, planes


def random_grid(rows: int, columns: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    grid = rng.integers(0, 3, (rows, columns)).astype(np.uint8)
    grid[rows // 2, columns // 2] = 1
    return grid


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 1000))
def test_unchanged_cells_leave_a_grid_as_it_is(rows: int, columns: int, seed: int) -> None:
    grid = random_grid(rows, columns, seed)
    canvas = Canvas([grid])
    drawn = canvas.draw([grid])[0]
    assert drawn.shape == (canvas.side, canvas.side)
    assert np.array_equal(canvas.transfer(drawn, drawn, grid), grid)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 1000))
def test_changed_cells_change_dies_and_nothing_else(rows: int, columns: int, seed: int) -> None:
    grid = random_grid(rows, columns, seed)
    canvas = Canvas([grid])
    drawn = canvas.draw([grid])[0]
    other = np.where(drawn == NO_DIE, NO_DIE, 3 - drawn).astype(np.uint8)
    result = canvas.transfer(drawn, other, grid)
    assert ((result == NO_DIE) == (grid == NO_DIE)).all()
    assert result.max() <= 2
    if max(grid.shape) <= canvas.side:
        assert np.array_equal(result, np.where(grid == NO_DIE, NO_DIE, 3 - grid))


def test_of_dies_that_share_a_cell_only_the_one_that_is_seen_changes() -> None:
    grid = random_grid(100, 80, 3)
    grid[grid == NO_DIE] = 1
    canvas = Canvas([grid])
    drawn = canvas.draw([grid])[0]
    result = canvas.transfer(drawn, (3 - drawn).astype(np.uint8), grid)
    assert (result != grid).sum() == canvas.side**2 < grid.size


def test_the_canvas_fits_the_usual_product() -> None:
    assert Canvas([np.ones((25, 27), np.uint8)]).side == 32
    assert Canvas([np.ones((52, 52), np.uint8)]).side == 56
    assert Canvas([np.ones((200, 180), np.uint8)]).side == 56
    assert Canvas([np.ones((5, 5), np.uint8)]).side == 24


def test_there_are_eight_different_orientations() -> None:
    drawn = np.repeat(random_grid(24, 24, 1)[None], ORIENTATIONS, axis=0)
    turned = oriented(drawn, np.arange(ORIENTATIONS))
    assert len({each.tobytes() for each in turned}) == ORIENTATIONS
    assert np.array_equal(turned[0], drawn[0])


def test_planes_hide_what_is_unknown() -> None:
    drawn = random_grid(24, 24, 2)[None]
    known = np.zeros(drawn.shape, bool)
    known[:, :12] = True
    seen = planes(drawn, known, np.array([0.5]))
    assert seen.shape == (1, 24, 24, PLANES)
    assert seen[0, 12:, :, :2].sum() == 0
    assert np.array_equal(seen[0, :12, :, 0], drawn[0, :12] == 2)
    assert np.array_equal(seen[0, ..., 2], drawn[0] != NO_DIE)
    assert not seen[..., 6].any(), "the logit of a half"


def test_planes_tell_places_in_the_wafer_and_not_on_the_canvas() -> None:
    grid = np.ones((10, 20), np.uint8)
    canvas = Canvas([grid])
    seen = planes(canvas.draw([grid]), np.zeros((1, canvas.side, canvas.side), bool), np.array([0.1]))
    dies = seen[0, ..., 2] == 1
    for plane, length in ((3, 20), (4, 10)):
        places = np.unique(seen[0, ..., plane][dies])
        assert places == pytest.approx((np.arange(length) + 0.5) / length * 2 - 1, abs=1e-6)
    assert np.allclose(seen[0, ..., 5], seen[0, ..., 3] ** 2 + seen[0, ..., 4] ** 2)
