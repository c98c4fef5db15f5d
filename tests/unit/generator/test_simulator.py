import math

import numpy as np
import pytest
from numpy.typing import NDArray

from services.common.wafer_map import FAIL, NO_DIE
from services.common.wafer_set import read_wafer_set, write_wafer_set
from services.generator.simulator import PATTERNS, Product, SimulatedBatch, SimulatedClass, lay_over, simulate
from services.generator.simulator.__main__ import main
from services.generator.simulator.draws import Draws
from services.generator.simulator.geometry import product_of, random_product


def made(pattern: str, count: int = 60, **arguments: int) -> list[SimulatedBatch]:
    return list(simulate([SimulatedClass((pattern,), count)], **{"seed": 5, **arguments}))


def kill_rates(pattern: str, wafers: int = 400, seed: int = 1) -> tuple[Product, NDArray[np.floating]]:
    """Mean kill probability of each die position, over wafers of one 45 x 45 product."""
    product = random_product(np.random.default_rng(seed), 45, 45)
    draws = Draws(np.random.default_rng(seed), wafers, 1)
    return product, np.asarray(PATTERNS[pattern](draws, product))


def fail_shares(batches: list[SimulatedBatch]) -> NDArray[np.float64]:
    return np.array([np.mean(dies[dies != NO_DIE] == FAIL) for batch in batches for dies in batch.dies])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_gives_probabilities_and_legal_wafers(pattern: str) -> None:
    _, rates = kill_rates(pattern, 40)
    assert rates.min() >= 0
    assert rates.max() <= 1
    for batch in made(pattern, 20):
        assert batch.dies.dtype == np.uint8
        assert batch.dies.shape[1:] == batch.product.mask.shape
        assert ((batch.dies != NO_DIE) == batch.product.mask).all()
        assert batch.dies.max() <= FAIL


def test_the_same_seed_gives_the_same_wafers_and_another_seed_others() -> None:
    one, same, other = (made("Loc", 30, seed=seed) for seed in (3, 3, 4))
    assert all(np.array_equal(a.dies, b.dies) and a.lots == b.lots for a, b in zip(one, same, strict=True))
    assert not np.array_equal(one[0].dies, other[0].dies)


def test_all_classes_run_through_the_same_products() -> None:
    batches = list(simulate([SimulatedClass(("Center",), 90), SimulatedClass(("none",), 90)], seed=2))
    sizes = [[batch.product.name for batch in batches if batch.class_index == index] for index in (0, 1)]
    assert sizes[0] == sizes[1]


def test_what_is_left_out_at_the_beginning_changes_nothing_of_the_rest() -> None:
    classes = [SimulatedClass(("Center",), 90), SimulatedClass(("none",), 90)]
    whole = list(simulate(classes, seed=2))
    # In the first class, and at the end of it.
    first = sum(batch.class_index == 0 for batch in whole)
    for skip in (1, first, len(whole)):
        rest = list(simulate(classes, seed=2, skip=skip))
        assert [batch.lots for batch in rest] == [batch.lots for batch in whole[skip:]]
        assert all(np.array_equal(a.dies, b.dies) for a, b in zip(rest, whole[skip:], strict=True))


def test_lots_have_the_size_asked_for_and_slots_from_one() -> None:
    batches = made("none", 40, wafers_per_lot=4)
    lots = [lot for batch in batches for lot in batch.lots]
    assert all(lots.count(lot) == 4 for lot in set(lots))
    assert {slot for batch in batches for slot in batch.slots} == {1, 2, 3, 4}


def test_wafers_of_one_lot_are_more_alike_than_wafers_of_different_lots() -> None:
    draws = Draws(np.random.default_rng(0), 400, 5)
    values = draws.unit().reshape(400, 5)
    assert values.std(axis=1).mean() < 0.8 * values.std()


def test_draws_keep_their_law() -> None:
    draws = Draws(np.random.default_rng(0), 4000, 5)
    shares = np.histogram(draws.unit(), bins=10, range=(0, 1))[0] / 20_000
    assert shares == pytest.approx(0.1, abs=0.01)
    assert draws.strength(0.4).min() >= 0.4
    assert set(np.unique(draws.choice((2, 5))).tolist()) == {2, 5}


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (9, 31), (52, 52), (300, 290)])
def test_a_size_asked_for_is_met_exactly(rows: int, columns: int) -> None:
    batch = made("none", 2, rows=rows, columns=columns)[0]
    assert batch.dies.shape[1:] == (rows, columns)
    mask = batch.product.mask
    assert mask.any(axis=0).all()
    assert mask.any(axis=1).all()
    assert not mask[0, 0]


def test_products_differ_in_size_and_stay_in_range() -> None:
    products = [random_product(np.random.default_rng(seed)) for seed in range(200)]
    sides = np.array([product.mask.shape for product in products])
    assert sides.min() >= 22
    assert sides.max() <= 200
    assert len({product.mask.shape for product in products}) > 100
    for product in products:
        assert product.r.max() <= 1.001
        width, height = (side * pitch for side, pitch in zip(product.mask.shape[::-1], pitches(product), strict=True))
        assert max(width, height) < 300


def pitches(product: Product) -> tuple[float, float]:
    return product.pitch_x_mm, product.pitch_y_mm


def test_center_fails_in_the_middle() -> None:
    product, rates = kill_rates("Center")
    assert rates[:, product.r < 0.1].mean() > 0.4
    assert rates[:, product.r > 0.85].mean() < 0.03


def test_donut_has_a_clean_centre_and_rim() -> None:
    product, rates = kill_rates("Donut")
    ring = rates[:, (product.r > 0.35) & (product.r < 0.5)].mean()
    assert ring > 0.3
    assert rates[:, product.r < 0.08].mean() < 0.2 * ring
    assert rates[:, product.r > 0.95].mean() < 0.2 * ring


def test_edge_ring_fails_at_the_rim_all_around() -> None:
    product, rates = kill_rates("Edge-Ring")
    outermost = product.depth < product.die
    sectors = ((product.theta + math.pi) / (2 * math.pi) * 8).astype(int) % 8
    around = [rates[:, outermost & (sectors == sector)].mean() for sector in range(8)]
    assert min(around) > 0.45
    assert rates[:, product.r < 0.6].mean() < 0.02


def test_edge_loc_fails_at_one_place_of_the_rim() -> None:
    product, rates = kill_rates("Edge-Loc")
    rim = np.flatnonzero(product.depth < 2 * product.die)
    share = (rates[:, rim] > 0.25).mean(axis=1)
    assert np.median(share) < 0.4
    assert (rates[:, rim].max(axis=1) > 0.25).mean() > 0.9
    assert rates[:, product.r < 0.3].mean() < 0.05


def test_loc_is_one_blob_anywhere_inside() -> None:
    _product, rates = kill_rates("Loc")
    assert (rates.max(axis=1) > 0.3).mean() > 0.95
    assert np.median((rates > 0.2).mean(axis=1)) < 0.1
    # The places spread over the wafer: no die is hit by many of the wafers.
    assert (rates > 0.2).mean(axis=0).max() < 0.25


def test_scratch_is_thin_and_long() -> None:
    product, rates = kill_rates("Scratch")
    grids = np.zeros((len(rates), product.mask.size), bool)
    grids[:, product.cells] = rates > 0
    grids = grids.reshape(-1, *product.mask.shape)
    assert (grids.sum(axis=(1, 2)) >= 4).mean() > 0.97
    # Thin: hardly any die whose eight neighbours are all marked as well.
    inner = grids[:, 1:-1, 1:-1].copy()
    for down in (0, 1, 2):
        for right in (0, 1, 2):
            inner &= grids[:, down : down + 43, right : right + 43]
    assert inner.sum() < 0.02 * grids.sum()
    extent = [np.ptp(np.argwhere(grid), axis=0).max() + 1 for grid in grids if grid.any()]
    assert np.median(extent) > 8


def test_near_full_random_and_none_order_by_fail_share() -> None:
    none, random, near_full = (fail_shares(made(name)) for name in ("none", "Random", "Near-full"))
    assert np.median(none) < 0.2
    assert 0.3 < np.median(random) < 0.65
    assert np.median(near_full) > 0.8


def test_checker_alternates_and_half_wafer_takes_one_side() -> None:
    product, rates = kill_rates("Checker", 60)
    assert (np.median(rates, axis=1) >= 0).all()
    assert 0.1 < rates.mean() < 0.6
    product, rates = kill_rates("Half-Wafer", 60)
    weights = rates - rates.mean(axis=1, keepdims=True)
    lean = np.hypot(weights @ product.x, weights @ product.y) / len(product.x)
    assert np.median(lean) > 0.05


def test_mixtures_hold_what_each_pattern_adds() -> None:
    batches = list(simulate([SimulatedClass(("Center", "Edge-Ring"), 60)], seed=1))
    assert SimulatedClass(("Edge-Ring", "Center"), 1).label == "Center+Edge-Ring"
    middle, rim = [], []
    for batch in batches:
        fails = (batch.dies == FAIL).reshape(len(batch.dies), -1)[:, batch.product.cells]
        middle.append(fails[:, batch.product.r < 0.1].mean())
        rim.append(fails[:, batch.product.depth < batch.product.die].mean())
    assert np.mean(middle) > 0.4
    assert np.mean(rim) > 0.4


def test_the_command_writes_a_wafer_set(tmp_path, capsys) -> None:
    path = tmp_path / "set.npz"
    arguments = ["--out", str(path), "--wafers-per-class", "6", "--patterns", "Center", "none", "--mixed", "29"]
    assert main(arguments) == 0
    wafers = read_wafer_set(path)
    assert len(wafers) == 41
    assert wafers.labels is not None
    assert wafers.labels.count("Center") == 6
    assert sum("+" in label for label in wafers.labels) == 29
    assert wafers.groups is not None
    assert set(wafers.sources or []) == {"simulated"}
    assert "41 wafers" in capsys.readouterr().out


def test_a_background_that_would_hide_a_pattern_is_thinned() -> None:
    shares = {}
    for pattern in ("none", "Loc"):
        batches = [each for each in made(pattern, 600, seed=8) if each.product.cells.size < 600]
        shares[pattern] = np.median(fail_shares(batches))
    # A blob adds fails of its own; on small grids the thinner background takes more away.
    assert shares["Loc"] < shares["none"]


def test_patterns_laid_over_wafers_keep_their_geometry_and_their_thinned_background() -> None:
    backgrounds = [dies for batch in made("none", 60) for dies in batch.dies]
    laid = lay_over(backgrounds, ("Center",), seed=[1, 2])
    assert len(laid) == len(backgrounds)
    added = []
    for before, after in zip(backgrounds, laid, strict=True):
        assert after.dtype == np.uint8
        assert np.array_equal(after == NO_DIE, before == NO_DIE)
        row, column = (np.indices(before.shape) + 0.5) / np.array(before.shape)[:, None, None] * 2 - 1
        middle = np.hypot(row, column) < 0.4
        on = (before != NO_DIE) & middle
        added.append(np.mean(after[on] == FAIL) - np.mean(before[on] == FAIL))
    assert np.mean(added) > 0.15
    again = lay_over(backgrounds, ("Center",), seed=[1, 2])
    assert all(np.array_equal(one, same) for one, same in zip(laid, again, strict=True))
    other = lay_over(backgrounds, ("Center",), seed=[1, 3])
    assert not all(np.array_equal(one, same) for one, same in zip(laid, other, strict=True))


def test_nothing_laid_over_leaves_a_wafer_as_it_is() -> None:
    backgrounds = [dies for batch in made("none", 20) for dies in batch.dies]
    for before, after in zip(backgrounds, lay_over(backgrounds, ("none",), seed=[0]), strict=True):
        assert np.array_equal(before, after)


def test_the_product_of_a_mask_has_all_its_dies_inside_the_usable_radius() -> None:
    for seed in range(20):
        real = random_product(np.random.default_rng(seed))
        product = product_of(real.mask)
        assert np.array_equal(product.cells, real.cells)
        assert product.r.max() < 1
        assert product.r.max() + product.die > 0.97
        assert product.radius == pytest.approx(real.radius, rel=0.35)


def test_the_command_lays_patterns_over_normal_wafers_and_keeps_their_lots(tmp_path, capsys) -> None:
    onto, out = tmp_path / "onto.npz", tmp_path / "out.npz"
    grids = [np.full((9, 9), 1, np.uint8), np.full((7, 7), 1, np.uint8)]
    write_wafer_set(onto, grids, labels=["none", "Scratch"], groups=["A", "B"])
    command = ["--onto", str(onto), "--out", str(out), "--wafers-per-class", "4", "--patterns", "Center", "Loc"]
    assert main([*command, "--mixed", "29"]) == 0
    wafers = read_wafer_set(out)
    assert {grid.shape for grid in wafers.grids} == {(9, 9)}
    assert set(wafers.groups or ()) == {"A"}
    assert (wafers.labels or []).count("Center") == 4
    assert sum("+" in label for label in wafers.labels or ()) == 29
    write_wafer_set(onto, grids, labels=["Loc", "Scratch"])
    with pytest.raises(SystemExit, match="Expected wafers labelled 'none'"):
        main(command)


def test_background_and_strength_come_out_as_asked_for() -> None:
    for rate in (0.0, 0.02, 0.2):
        shares = fail_shares(list(simulate([SimulatedClass(("none",), 200)], seed=3, background=(rate, rate))))
        # Probing drags some neighbours along.
        assert shares.mean() == pytest.approx(rate, rel=0.15)
    faint, strong = (
        fail_shares(
            list(simulate([SimulatedClass(("Near-full",), 100, (factor, factor))], seed=3, background=(0.0, 0.0)))
        )
        for factor in (0.5, 1.0)
    )
    assert faint.mean() == pytest.approx(strong.mean() / 2, rel=0.05)
    assert faint.max() < 0.6


def test_products_have_the_sizes_and_aspects_asked_for() -> None:
    batches = list(simulate([SimulatedClass(("none",), 900)], seed=1, sides=(10, 40), aspect=(1.5, 2.0)))
    rows, columns = np.array([batch.product.mask.shape for batch in batches], float).T
    assert len(batches) > 10
    assert ((rows * columns) ** 0.5 > 9).all()
    assert ((rows * columns) ** 0.5 < 41).all()
    assert np.ptp((rows * columns) ** 0.5) > 10
    assert (rows / columns > 1.3).all()
    assert (rows / columns < 2.3).all()
    assert all(batch.product.mask.any() for batch in batches)
