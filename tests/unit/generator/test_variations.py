from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.common.wafer_map import FAIL, NO_DIE, PASS
from services.generator.domain import EDGE_PATTERNS, VariationOptions
from services.generator.simulator import SimulatedClass, simulate
from services.generator.variations import VariationMaker, VariationSettings, settings_for

STILL = VariationSettings(0.0, 0.0, False, False, 0.0, 0.0, strength=0.0)


def wafers(pattern: str = "Loc", count: int = 10, **size: int) -> list[NDArray[np.uint8]]:
    return [dies for batch in simulate([SimulatedClass((pattern,), count)], seed=1, **size) for dies in batch.dies]


@st.composite
def grids(draw: st.DrawFn) -> NDArray[np.uint8]:
    """Any grid with a die: ragged masks, holes, empty rows, a single die."""
    rows, columns = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    grid = np.array(draw(st.lists(st.integers(0, 2), min_size=rows * columns, max_size=rows * columns)), np.uint8)
    grid[draw(st.integers(0, rows * columns - 1))] = draw(st.sampled_from([PASS, FAIL]))
    return grid.reshape(rows, columns)


any_settings = st.builds(
    VariationSettings,
    rotation_degrees=st.floats(0, 180),
    shear=st.floats(0, 0.3),
    horizontal_mirror=st.booleans(),
    vertical_mirror=st.booleans(),
    shift=st.floats(0, 0.2),
    die_noise=st.floats(0, 0.2),
    right_angles=st.booleans(),
    strength=st.floats(0, 0.5),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(grids(), min_size=1, max_size=4), any_settings, st.integers(0, 2**32 - 1))
def test_what_comes_out_is_legal_whatever_goes_in(
    parents: list[NDArray[np.uint8]], chosen: VariationSettings, seed: int
) -> None:
    order = np.arange(9) % len(parents)
    made = VariationMaker(parents, chosen).make(order, np.random.default_rng(seed))
    again = VariationMaker(parents, chosen).make(order, np.random.default_rng(seed))
    for index, dies, same in zip(order, made, again, strict=True):
        parent = parents[index]
        assert dies.shape == parent.shape
        assert dies.dtype == np.uint8
        assert ((dies == NO_DIE) == (parent == NO_DIE)).all()
        assert dies.max() <= FAIL
        assert np.array_equal(dies, same)


def test_without_any_motion_the_parent_comes_out() -> None:
    parents = wafers()
    made = VariationMaker(parents, STILL).make(np.arange(len(parents)), np.random.default_rng(0))
    assert all(np.array_equal(dies, parent) for dies, parent in zip(made, parents, strict=True))


@pytest.mark.parametrize(("horizontal", "vertical"), [(True, False), (False, True), (True, True)])
def test_only_the_mirrors_asked_for_are_made(horizontal: bool, vertical: bool) -> None:
    parent = wafers(count=1, rows=31, columns=27)[0]
    parent = np.where(parent[::-1] * parent[:, ::-1] * parent[::-1, ::-1] == NO_DIE, 0, parent).astype(np.uint8)
    chosen = replace(STILL, horizontal_mirror=horizontal, vertical_mirror=vertical)
    made = VariationMaker([parent], chosen).make(np.zeros(64, np.intp), np.random.default_rng(0))
    legal = {parent.tobytes()}
    if horizontal:
        legal |= {np.ascontiguousarray(parent[:, ::-1]).tobytes()}
    if vertical:
        legal |= {np.ascontiguousarray(parent[::-1]).tobytes()}
    if horizontal and vertical:
        legal |= {np.ascontiguousarray(parent[::-1, ::-1]).tobytes()}
    assert {dies.tobytes() for dies in made} == legal


def test_right_angles_turn_square_grids_exactly_and_oblong_ones_by_half_turns() -> None:
    chosen = replace(STILL, rotation_degrees=180.0, right_angles=True)
    for (rows, columns), turns in (((30, 30), (0, 1, 2, 3)), ((40, 25), (0, 2))):
        parent = wafers("Checker", 1, rows=rows, columns=columns)[0]
        for turn in (1, 2, 3) if rows == columns else (2,):
            parent = np.where(np.rot90(parent, turn) == NO_DIE, 0, parent).astype(np.uint8)
        made = VariationMaker([parent], chosen).make(np.zeros(64, np.intp), np.random.default_rng(0))
        assert {dies.tobytes() for dies in made} <= {np.rot90(parent, turn).tobytes() for turn in range(4)}
        legal = {np.ascontiguousarray(np.rot90(parent, turn)).tobytes() for turn in turns}
        assert {dies.tobytes() for dies in made} == legal


@pytest.mark.parametrize("pattern", EDGE_PATTERNS)
def test_edge_patterns_stay_at_the_edge(pattern: str) -> None:
    assert settings_for(VariationOptions(), pattern).shift == 0
    assert settings_for(VariationOptions(shift=0.2), pattern).shift == 0
    assert settings_for(VariationOptions(), "Loc").shift > 0
    parents = wafers("Edge-Ring", 40, rows=40, columns=40)
    chosen = settings_for(VariationOptions(shear=0.0), pattern)
    made = VariationMaker(parents, chosen).make(np.arange(len(parents)), np.random.default_rng(0))
    assert rim_share(made) == pytest.approx(rim_share(parents), rel=0.12)


def rim_share(dies: list[NDArray[np.uint8]]) -> float:
    axis = (np.arange(40) + 0.5) / 20 - 1
    rim = np.hypot(axis[:, None], axis) > 0.88
    return float(np.mean([np.mean(grid[rim & (grid != NO_DIE)] == FAIL) for grid in dies]))


def test_rotation_moves_a_pattern_along_its_circle() -> None:
    grid = np.full((41, 41), PASS, np.uint8)
    axis = np.arange(41) - 20
    grid[np.hypot(axis[:, None], axis) > 20.4] = NO_DIE
    grid[18:23, 31:36] = FAIL
    chosen = replace(STILL, rotation_degrees=180.0)
    made = VariationMaker([grid], chosen).make(np.zeros(100, np.intp), np.random.default_rng(0))
    places = np.array([np.argwhere(dies == FAIL).mean(axis=0) - 20 for dies in made])
    assert np.hypot(*places.T) == pytest.approx(13, abs=0.6)
    assert np.ptp(np.arctan2(*places.T)) > 5
    assert np.mean([(dies == FAIL).sum() for dies in made]) == pytest.approx(25, rel=0.1)


def test_die_noise_flips_the_share_asked_for() -> None:
    parents = wafers(count=20, rows=50, columns=50)
    made = VariationMaker(parents, replace(STILL, die_noise=0.1)).make(
        np.arange(len(parents)), np.random.default_rng(0)
    )
    flipped = [np.mean((dies != parent)[parent != NO_DIE]) for dies, parent in zip(made, parents, strict=True)]
    # Some dies are drawn twice and flipped once.
    assert np.mean(flipped) == pytest.approx(0.095, abs=0.01)


def test_strength_thins_or_thickens_the_pattern_and_leaves_the_rest() -> None:
    grid = np.full((40, 40), PASS, np.uint8)
    grid[5:20, 5:20] = FAIL
    grid[6:19:2, 6:19:2] = PASS
    grid[30, 30] = FAIL
    chosen = replace(STILL, strength=0.4)
    made = np.stack(list(VariationMaker([grid], chosen).make(np.zeros(400, np.intp), np.random.default_rng(0))))
    inside, fails = made[:, 5:20, 5:20], int((grid[5:20, 5:20] == FAIL).sum())
    passes = 225 - fails
    assert (made[:, 25:] == grid[25:]).all()
    counts = (inside == FAIL).sum(axis=(1, 2))
    thinned, thickened = counts < fails, counts > fails
    assert 150 < thinned.sum() < 250 < thinned.sum() + thickened.sum()
    # Each wafer has its own strength, evenly from 0 to the largest.
    assert np.mean(1 - counts[thinned] / fails) == pytest.approx(0.2, abs=0.03)
    assert np.mean((counts[thickened] - fails) / passes) == pytest.approx(0.2, abs=0.03)
    # One wafer is either thinned or thickened, never both.
    assert ((inside[thinned] == PASS) | (grid[5:20, 5:20] == FAIL)).all()
    assert ((inside[thickened] == FAIL) | (grid[5:20, 5:20] == PASS)).all()


def test_a_scratch_is_a_pattern_and_scattered_fails_are_none() -> None:
    line = np.full((30, 30), PASS, np.uint8)
    line[15, 3:27] = FAIL
    scattered = np.full((30, 30), PASS, np.uint8)
    scattered[1::4, 1::4] = FAIL
    maker = VariationMaker([line, scattered], replace(STILL, strength=0.5))
    made = maker.make(np.repeat([0, 1], 50), np.random.default_rng(0))
    assert sum(not np.array_equal(dies, line) for dies in made[:50]) > 45
    assert all(np.array_equal(dies, scattered) for dies in made[50:])


def test_wafers_of_many_grids_come_in_the_order_asked_for() -> None:
    parents = [grid for count in range(8, 14) for grid in wafers("Center", 3, rows=count + 15, columns=20)]
    order = np.random.default_rng(0).permutation(np.arange(60) % len(parents))
    maker = VariationMaker(parents, STILL)
    for chosen in (order, maker.arranged(order)):
        made = maker.make(chosen, np.random.default_rng(1))
        assert sorted(chosen) == sorted(order)
        assert all(np.array_equal(dies, parents[parent]) for dies, parent in zip(made, chosen, strict=True))


def test_grids_of_many_dies_move_as_small_ones() -> None:
    parent = wafers(count=1, rows=280, columns=300)[0]
    parent = np.where(parent[:, ::-1] == NO_DIE, 0, parent).astype(np.uint8)
    made = VariationMaker([parent], replace(STILL, horizontal_mirror=True)).make(
        np.zeros(16, np.intp), np.random.default_rng(0)
    )
    assert {dies.tobytes() for dies in made} == {parent.tobytes(), np.ascontiguousarray(parent[:, ::-1]).tobytes()}


def test_patterns_on_the_die_rows_turn_by_right_angles_only() -> None:
    chosen = settings_for(VariationOptions(), "Shot-Grid")
    assert chosen.right_angles
    assert chosen.shear == chosen.shift == 0
    handed = settings_for(VariationOptions(handedness=True, shear=0.1), "")
    assert not handed.horizontal_mirror
    assert not handed.vertical_mirror
    assert settings_for(VariationOptions(rotation_degrees=10, horizontal_mirror=False), "") == VariationSettings(
        rotation_degrees=10, horizontal_mirror=False
    )
