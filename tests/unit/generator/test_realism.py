import numpy as np
import pytest

from services.common.wafer_map import FAIL
from services.common.wafer_set import GridSequence
from services.generator.embedding import WaferEmbedding
from services.generator.realism import Judges, RealismMeter, fail_fractions, hamming_distances, maps_and_profile
from services.generator.recognition import Recogniser
from services.generator.simulator import SimulatedClass, simulate


def wafers(pattern: str, count: int, seed: int) -> list[np.ndarray]:
    return [dies for batch in simulate([SimulatedClass((pattern,), count)], seed=seed) for dies in batch.dies]


def test_copies_are_seen_as_copies() -> None:
    real = wafers("Center", 20, 1)
    meter = RealismMeter(real, 20)
    meter.add(real)
    figures = meter.result()
    assert figures.copied_share == 1
    assert figures.nearest_distance == 0
    assert figures.coverage == 1
    assert figures.radial_profile_difference == pytest.approx(0, abs=1e-9)
    assert figures.fail_fraction == pytest.approx(figures.fail_fraction_real)
    assert meter.is_copy(real[3].copy())


def test_copies_are_found_among_grids_of_any_shape() -> None:
    real = wafers("Center", 20, 1)
    others = wafers("Center", 20, 2)
    # The same fails on one more passed die, and the same dies in another shape, are no copies.
    more = real[4].copy()
    more.reshape(-1)[np.flatnonzero(more == 0)[0]] = 1
    odd = real[5].reshape(1, -1)
    mixed = GridSequence.of([others[0], real[3], others[1], more, real[7], odd, real[3]])
    assert RealismMeter(real, 1).copies(mixed).tolist() == [1, 4, 6]


def test_the_sample_meets_every_parent_whatever_their_number() -> None:
    """Wafers come parent after parent: with 50 parents, every tenth one would meet five of them alone."""
    real = wafers("Random", 50, 1)
    meter = RealismMeter(real, 20_000)
    for _ in range(400):
        meter.add(real)
    assert meter.result().coverage == 1


def test_fail_fractions_agree_with_a_plain_count() -> None:
    shared = GridSequence.of(wafers("Loc", 30, 1))
    expected = [np.sum(grid == 2) / np.sum(grid != 0) for grid in shared]
    assert np.concatenate([fail_fractions(dies) for _, dies in shared.runs()]) == pytest.approx(np.array(expected))


def test_another_class_is_farther_away_than_the_same_class() -> None:
    real, same, other = wafers("Edge-Ring", 60, 1), wafers("Edge-Ring", 60, 2), wafers("Donut", 60, 2)
    figures = []
    for made in (same, other):
        meter = RealismMeter(real, len(made))
        meter.add(made[:30])
        meter.add(made[30:])
        figures.append(meter.result())
    assert figures[0].copied_share == figures[1].copied_share == 0
    assert figures[0].nearest_distance < figures[1].nearest_distance
    assert figures[0].radial_profile_difference < figures[1].radial_profile_difference
    assert 0 < figures[0].coverage <= 1


def test_distances_agree_with_a_plain_count() -> None:
    maps, _ = maps_and_profile(wafers("Random", 6, 1))
    expected = [[np.mean(one != other) for other in maps] for one in maps]
    assert hamming_distances(maps, maps) == pytest.approx(np.array(expected), abs=1e-6)


def test_one_real_wafer_is_enough() -> None:
    meter = RealismMeter(wafers("Loc", 1, 1), 1)
    meter.add(wafers("Loc", 1, 2))
    assert meter.result().nearest_distance_real == 0


@pytest.fixture(scope="module")
def judges() -> Judges:
    """Of centres; number 0 is Center, 1 Edge-Ring, 2 Donut."""
    embedding = WaferEmbedding()
    grids, labels = [], []
    for number, pattern in enumerate(("Center", "Edge-Ring", "Donut")):
        grids += wafers(pattern, 40, 1)
        labels += [number] * 40
    lots = [str(place // 5) for place in range(len(grids))]
    return Judges(embedding, Recogniser(embedding.embed(grids), np.array(labels), lots, 3, seed=0), 0)


def test_the_judges_tell_the_same_class_from_another(judges: Judges) -> None:
    real, same, other = wafers("Center", 40, 1), wafers("Center", 40, 2), wafers("Edge-Ring", 40, 2)
    figures = []
    for made in (real, same, other):
        meter = RealismMeter(real, len(made), judges)
        meter.add(made)
        figures.append(meter.result())
    copies, alike, unlike = figures
    assert (copies.precision, copies.recall) == (1, 1)
    assert copies.frechet_distance == pytest.approx(0, abs=1e-4)
    assert alike.precision > unlike.precision
    assert alike.recall > unlike.recall
    assert copies.frechet_distance < alike.frechet_distance < unlike.frechet_distance
    assert alike.recognised_share > 0.8 > 0.2 > unlike.recognised_share
    assert alike.recognised_share_real > 0.8
    assert alike.frechet_distance_real > 0


def test_wafers_that_fail_a_check_are_found(judges: Judges) -> None:
    real = wafers("Center", 40, 1)
    dead = real[0].copy()
    dead[dead != 0] = FAIL
    meter = RealismMeter(real, 4, judges)
    made = [real[5].copy(), dead, *wafers("Center", 6, 2), *wafers("Edge-Ring", 6, 2)]
    by_eye = meter.failing(made, recognise=False).tolist()
    assert by_eye[:2] == [0, 1]
    assert not set(by_eye) & set(range(2, 8))
    seen = meter.failing(made, recognise=True).tolist()
    assert set(by_eye) < set(seen)
    assert set(range(8, 14)) <= set(seen)


def test_of_real_wafers_few_fail_the_checks(judges: Judges) -> None:
    meter = RealismMeter(wafers("Center", 40, 1), 4, judges)
    assert len(meter.failing(wafers("Center", 100, 9), recognise=True)) < 20
