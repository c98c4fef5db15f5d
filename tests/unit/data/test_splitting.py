import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidArgumentError
from services.common.splitting import MIN_CLASS_WAFERS, Split, split_by_lot, split_report

wafers = st.lists(
    st.tuples(st.sampled_from(["Center", "Donut", "Scratch", "none"]), st.sampled_from([f"lot{n}" for n in range(12)])),
    min_size=1,
    max_size=120,
)


def _real_like(lots: int = 60, seed: int = 0) -> tuple[list[str], list[str]]:
    """Wafers of lots that favour a class each, as in a fab."""
    random = np.random.default_rng(seed)
    labels, names = [], []
    classes = ["none", "none", "none", "Center", "Donut", "Scratch"]
    for lot in range(lots):
        favourite = classes[lot % len(classes)]
        for _ in range(int(random.integers(5, 26))):
            labels.append(favourite if random.random() < 0.7 else str(random.choice(classes)))
            names.append(f"lot{lot}")
    return labels, names


@settings(deadline=None)
@given(wafers, st.integers(0, 3))
def test_no_lot_on_two_sides_and_order_does_not_matter(pairs: list[tuple[str, str]], seed: int) -> None:
    labels, lots = [label for label, _ in pairs], [lot for _, lot in pairs]
    sides = split_by_lot(labels, lots, seed=seed)
    side_of_lot = dict(zip(lots, sides, strict=True))
    assert all(side_of_lot[lot] == side for lot, side in zip(lots, sides, strict=True))
    order = np.random.default_rng(0).permutation(len(pairs))
    again = split_by_lot([labels[i] for i in order], [lots[i] for i in order], seed=seed)
    assert (again == sides[order]).all()


@settings(deadline=None)
@given(wafers)
def test_every_class_can_be_taught(pairs: list[tuple[str, str]]) -> None:
    report = split_report([label for label, _ in pairs], [lot for _, lot in pairs])
    for name, sides in report.counts.items():
        if sides[Split.TRAIN] == 0:
            assert any(name in warning and "train" in warning for warning in report.warnings)
    assert sum(sum(sides.values()) for sides in report.counts.values()) == len(pairs)


def test_each_class_gets_its_share() -> None:
    labels, lots = _real_like()
    report = split_report(labels, lots)
    assert report.warnings == ()
    for sides in report.counts.values():
        total = sum(sides.values())
        assert abs(sides[Split.TEST] / total - 0.15) < 0.04
        assert abs(sides[Split.TUNE] / total - 0.15) < 0.04


def test_same_input_same_answer_and_another_seed_another() -> None:
    labels, lots = _real_like()
    first = split_by_lot(labels, lots, seed=1)
    assert (first == split_by_lot(labels, lots, seed=1)).all()
    assert (first != split_by_lot(labels, lots, seed=2)).any()


def test_sides_compare_with_split() -> None:
    sides = split_by_lot(["a"] * 40, [f"{n}" for n in range(40)])
    assert (sides == Split.TEST).sum() == 6
    assert (sides == Split.TUNE).sum() == 6
    assert {Split(side) for side in sides} == set(Split)


def test_class_of_one_lot_stays_in_training_and_is_reported() -> None:
    labels, lots = _real_like()
    report = split_report([*labels, *["New"] * 30], [*lots, *["new-lot"] * 30])
    assert report.counts["New"] == {Split.TRAIN: 30, Split.TUNE: 0, Split.TEST: 0}
    (warning,) = report.warnings
    assert "'New' has 30 wafers in 1 lots" in warning


def test_small_class_stays_in_training() -> None:
    labels, lots = _real_like()
    few = MIN_CLASS_WAFERS - 1
    report = split_report([*labels, *["Few"] * few], [*lots, *[f"few{n}" for n in range(few)]])
    assert report.counts["Few"][Split.TRAIN] == few
    assert len(report.warnings) == 1


def test_class_of_two_lots_is_taught_and_tested() -> None:
    report = split_report(["a"] * 20, ["one"] * 10 + ["two"] * 10)
    assert report.counts["a"] == {Split.TRAIN: 10, Split.TUNE: 0, Split.TEST: 10}
    assert "tune" in report.warnings[0]


def test_wafers_without_lot_stand_alone_but_equal_ones_together() -> None:
    digests = [f"{n % 20}" for n in range(100)]
    sides = split_by_lot(["a"] * 100, [""] * 100, digests=digests)
    side_of = dict(zip(digests, sides, strict=True))
    assert all(side_of[digest] == side for digest, side in zip(digests, sides, strict=True))
    assert set(side_of.values()) == set(Split)
    alone = split_by_lot(["a"] * 100, [""] * 100)
    assert (alone == Split.TEST).sum() == 15


def test_a_closed_side_stays_empty() -> None:
    labels, lots = _real_like()
    assert Split.TUNE not in set(split_by_lot(labels, lots, tune=0))
    assert set(split_by_lot(labels, lots, tune=0, test=0)) == {"train"}


def test_no_wafers() -> None:
    assert len(split_by_lot([], [])) == 0


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"lots": ["a", "b"]}, "lots"),
        ({"digests": []}, "digests"),
        ({"tune": 0.5, "test": 0.5}, "tune"),
        ({"tune": -0.1}, "tune"),
    ],
)
def test_refused(values: dict, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        split_by_lot(**{"labels": ["a"], "lots": ["l"], **values})
    assert caught.value.field == field
