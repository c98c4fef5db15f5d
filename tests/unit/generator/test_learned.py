from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from services.common.wafer_map import FAIL, NO_DIE
from services.generator.learned import LearnedGenerator, Taught
from services.generator.simulator import SimulatedClass, simulate

SIDE = 24
PARENTS = np.arange(24)


def wafers(pattern: str, count: int = 24) -> list[NDArray[np.uint8]]:
    batches = simulate([SimulatedClass((pattern,), count)], seed=3, rows=SIDE, columns=SIDE)
    return [dies for batch in batches for dies in batch.dies]


def taught(pattern: str, steps: int, checkpoint: Path | None = None, seed: int = 1) -> LearnedGenerator:
    generator = LearnedGenerator(wafers(pattern), seed, pattern)
    generator.teach(steps, lambda _: None, checkpoint)
    return generator


def profile(grids: list[NDArray[np.uint8]]) -> tuple[float, float]:
    """Mean fail share inside 0.3 and outside 0.85 of the radius."""
    axis = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    r = np.hypot(axis[:, None], axis)
    dies = np.stack(grids)
    return (
        float((dies[:, r < 0.3] == FAIL).mean()),
        float((dies[:, r > 0.85] == FAIL).sum() / (dies[:, r > 0.85] != NO_DIE).sum()),
    )


@pytest.fixture(scope="module")
def centre() -> LearnedGenerator:
    return taught("Center", 60)


def test_it_makes_what_it_was_taught(centre: LearnedGenerator) -> None:
    inside, outside = profile(centre.make(0, PARENTS))
    ring_inside, ring_outside = profile(taught("Edge-Ring", 60).make(0, PARENTS))
    assert inside > 2 * ring_inside
    assert ring_outside > 2 * outside


def test_what_it_makes_comes_from_what_it_learned_and_not_from_the_parents_or_the_prior_alone() -> None:
    axis = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    r = np.hypot(axis[:, None], axis)
    target = np.floor(r / 0.18) % 2 == 0  # no pattern that the prior knows
    random = np.random.default_rng(5)
    parents = []
    for blank in wafers("none"):
        failed = random.random((SIDE, SIDE)) < np.where(target, 0.85, 0.08)
        parents.append(np.where(blank == NO_DIE, NO_DIE, np.where(failed, FAIL, 1)).astype(np.uint8))
    contrasts = []
    for steps in (0, 60):
        generator = LearnedGenerator(parents, 1)
        generator.teach(steps, lambda _: None)
        made = np.stack(generator.make(0, PARENTS)) == FAIL
        contrasts.append(made[:, target & (r < 0.9)].mean() - made[:, ~target & (r < 0.9)].mean())
    assert contrasts[1] > contrasts[0] + 0.05


def test_wafers_are_legal_and_no_copies(centre: LearnedGenerator) -> None:
    parents = wafers("Center")
    made = centre.make(0, PARENTS)
    for dies, parent in zip(made, parents, strict=True):
        assert dies.dtype == np.uint8
        assert ((dies == NO_DIE) == (parent == NO_DIE)).all()
        assert dies.max() <= FAIL
    assert not {dies.tobytes() for dies in made} & {dies.tobytes() for dies in parents}
    shares = [np.mean([np.mean(dies[dies != NO_DIE] == FAIL) for dies in grids]) for grids in (made, parents)]
    assert shares[0] == pytest.approx(shares[1], rel=0.25)


def test_teaching_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(
    tmp_path: Path, centre: LearnedGenerator
) -> None:
    class Stopped(Exception):
        pass

    def stop(at: Taught) -> None:
        if at.step == 55:
            raise Stopped

    checkpoint = tmp_path / "learned.npz"
    interrupted = LearnedGenerator(wafers("Center"), 1, "Center")
    with pytest.raises(Stopped):
        interrupted.teach(60, stop, checkpoint)
    steps: list[int] = []
    resumed = LearnedGenerator(wafers("Center"), 1, "Center")
    resumed.teach(60, lambda at: steps.append(at.step), checkpoint)
    assert steps == [55, 60]
    for one, other in zip(resumed.make(7, PARENTS), centre.make(7, PARENTS), strict=True):
        assert np.array_equal(one, other)


def test_wafer_numbers_and_attempts_give_different_wafers(centre: LearnedGenerator) -> None:
    made = [centre.make(first, PARENTS[:4], attempt)[0].tobytes() for first, attempt in ((0, 0), (4, 0), (0, 1))]
    assert len(set(made)) == 3
