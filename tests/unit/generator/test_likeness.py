import numpy as np
import pytest

from services.generator.likeness import frechet_distance, precision_and_recall


def points(count: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(shift, scale, (count, 6))).astype(np.float32)


def test_frechet_distance_of_many_points_is_that_of_their_distributions() -> None:
    # Between N(0, I) and N(m, s^2 I) it is d m^2 + d (s - 1)^2.
    distance = frechet_distance(points(20_000, 1), points(20_000, 2, scale=2.0, shift=0.5))
    assert distance == pytest.approx(6 * 0.25 + 6 * 1.0, rel=0.05)


def test_frechet_distance_of_few_points_does_not_depend_on_how_many_others_there_are() -> None:
    few = points(20, 1)
    one, many = frechet_distance(few, points(200, 2)), frechet_distance(few, points(5000, 2))
    assert one == pytest.approx(many, rel=0.3)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)


def test_precision_is_lost_by_odd_points_and_recall_by_missing_ones() -> None:
    real = np.concatenate([points(200, 1), points(200, 2, shift=20)])
    half = points(200, 3)
    precision, recall = precision_and_recall(real, half)
    assert precision > 0.8
    assert 0.3 < recall <= 0.5
    precision, recall = precision_and_recall(half, real)
    assert precision <= 0.5
    assert recall > 0.8
