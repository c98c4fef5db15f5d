"""The network of the learned generator, its shipped prior, and the pretraining that makes it."""

from pathlib import Path

import numpy as np
import pytest

from services.common.errors import FailedPreconditionError
from services.common.splitting import Split, split_by_lot
from services.common.wafer_set import WaferSet
from services.generator.canvas import Canvas, planes
from services.generator.network import (
    PRIOR_FOLDER,
    PRIOR_NAME,
    SHOWN,
    die_network,
    load_prior,
    save_prior,
    shown_patterns,
)
from services.generator.pretrain import Recipe, Wafers, pretrain, training_rows
from services.generator.simulator import SimulatedClass, simulate


def wafers(pattern: str, count: int, side: int, seed: int = 3) -> list[np.ndarray]:
    batches = simulate([SimulatedClass((pattern,), count)], seed=seed, rows=side, columns=side)
    return [dies for batch in batches for dies in batch.dies]


def test_a_network_that_learned_nothing_answers_the_share_that_is_asked_for() -> None:
    grids = wafers("Loc", 2, 24)
    drawn = Canvas(grids).draw(grids)
    seen = planes(drawn, np.zeros(drawn.shape, bool), np.array([0.2, 0.7]))
    logits = die_network()([seen, np.zeros((2, len(SHOWN)), np.float32)]).numpy()[..., 0]
    assert 1 / (1 + np.exp(-logits)) == pytest.approx(np.broadcast_to([[[0.2]], [[0.7]]], logits.shape), abs=1e-5)


@pytest.mark.parametrize("side", [24, 40])
def test_the_prior_knows_what_a_class_looks_like_on_a_canvas_of_any_size(side: int) -> None:
    grids = wafers("Center", 20, side, seed=77)
    drawn = Canvas(grids).draw(grids)
    nothing = planes(drawn, np.zeros(drawn.shape, bool), np.full(len(drawn), 0.2))
    r = np.hypot(nothing[0, ..., 3], nothing[0, ..., 4])
    contrast = {}
    for name in ("Center", "Edge-Ring"):
        shown = np.tile(shown_patterns([name]), (len(drawn), 1))
        logits = load_prior()([nothing, shown]).numpy()[..., 0].mean(axis=0)
        contrast[name] = logits[r < 0.3].mean() - logits[(r > 0.85) & (r < 1)].mean()
    assert contrast["Center"] > 0.5
    assert contrast["Edge-Ring"] < -0.5


def test_the_prior_is_small_and_missing_or_damaged_ones_are_refused(tmp_path: Path) -> None:
    assert (PRIOR_FOLDER / PRIOR_NAME).stat().st_size < 2_000_000
    with pytest.raises(FailedPreconditionError, match="pretrain-generator"):
        load_prior(tmp_path)
    save_prior(die_network(), tmp_path)
    assert load_prior(tmp_path).count_params() == load_prior().count_params()
    (tmp_path / PRIOR_NAME).write_bytes(b"no")
    with pytest.raises(FailedPreconditionError, match="damaged"):
        load_prior(tmp_path)


def test_patterns_without_a_canonical_name_are_none_of_those_that_are_shown() -> None:
    assert not shown_patterns(["", "Fingerprint"]).any()
    assert shown_patterns(["Loc", "Scratch"]).sum() == 2


def test_pretraining_reads_training_lots_alone() -> None:
    labels, groups = ["Loc", "none"] * 60, [f"lot{row // 4}" for row in range(120)]
    grids = [np.ones((4, 4), np.uint8)] * 119 + [np.zeros((4, 4), np.uint8)]
    rows = training_rows(WaferSet(grids, labels, groups, ["WM-811K"] * 120), "WM-811K")
    sides = split_by_lot(labels, groups, seed=0)
    assert rows == [row for row in range(119) if sides[row] == Split.TRAIN.value]
    assert 0 < len(rows) < 119


def test_pretraining_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    grids = wafers("Donut", 12, 24)
    some = [Wafers(Canvas(grids).draw(grids), np.tile(shown_patterns(["Donut"]), (12, 1)), np.full(12, 1 / 12))]
    at_once = pretrain(some, Recipe(steps=4, batch=4), tmp_path / "at once")
    pretrain(some, Recipe(steps=2, batch=4), tmp_path / "in two")
    in_two = pretrain(some, Recipe(steps=4, batch=4), tmp_path / "in two")
    for one, other in zip(at_once.get_weights(), in_two.get_weights(), strict=True):
        assert np.allclose(one, other, atol=1e-6)
