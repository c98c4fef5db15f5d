"""Who teaches and who judges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from services.common.dataset import DatasetWafer, DatasetWriter, Origin, open_dataset
from services.common.errors import DataLossError
from services.common.store import open_store
from services.common.task import Task
from services.trainer.domain import SplitCautionKind
from services.trainer.teaching import sets_of
from services.trainer.teaching_set import Side, check_sides, read_teaching_set
from tests.unit.trainer.wafers import freeze, freeze_mixed


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path / "store"))


def test_sides_are_read_in_order_with_planes_and_labels(store):
    freeze(store, "d", (6, 2, 2))
    wafers = read_teaching_set(open_dataset(store, "d"), [], size=16, seed=0)
    assert (len(wafers.train), len(wafers.tune), len(wafers.test)) == (18, 6, 6)
    assert wafers.train.planes.shape == (18, 16, 16, 2)
    assert wafers.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert wafers.train.ids[7] == "c1-1"
    assert wafers.cautions == ()


def test_without_tune_wafers_some_lots_are_kept_aside_and_it_is_said(store):
    freeze(store, "d", (10, 0, 0))
    wafers = read_teaching_set(open_dataset(store, "d"), [], size=8, seed=0)
    assert set(wafers.tune.labels.tolist()) == {0, 1, 2}
    assert not set(wafers.tune.lots) & set(wafers.train.lots)
    assert len(wafers.tune) + len(wafers.train) == 30
    assert [each.kind for each in wafers.cautions] == [SplitCautionKind.TUNE_FROM_TRAINING]


def test_a_class_of_a_single_lot_is_cut_and_the_promise_is_put_right(store):
    freeze(store, "d", (6, 0, 0), lot=lambda lot: lot.split("-")[0])
    wafers = read_teaching_set(open_dataset(store, "d"), [], size=8, seed=0)
    assert set(wafers.tune.labels.tolist()) == set(wafers.train.labels.tolist()) == {0, 1, 2}
    caution = wafers.cautions[1]
    assert (caution.kind, caution.class_ids) == (SplitCautionKind.LOT_ON_BOTH_SIDES, ("c0", "c1", "c2"))
    assert "promise too much" in caution.sentence


def test_generated_wafers_only_add_to_training_and_children_of_judges_stay_out(store):
    manifest = freeze(store, "d", (6, 0, 0))
    real = list(open_dataset(store, "d").iter_wafers())
    with DatasetWriter(store, "g", manifest.classes, parent="d") as writer:
        writer.add(
            DatasetWafer(f"child-{each.wafer_id}", each.dies, each.class_id, each.lot, Origin.VARIATION, each.wafer_id)
            for each in real
        )
        writer.finish()
    wafers = read_teaching_set(open_dataset(store, "d"), [open_dataset(store, "g")], size=8, seed=0)
    assert not wafers.tune.generated.any()
    assert wafers.train.generated.sum() == 18 - len(wafers.tune)
    assert not set(wafers.train.parents) & set(wafers.tune.ids)


def test_wafers_that_show_several_classes_are_read_as_such(store):
    freeze_mixed(store, "d", (4, 2, 2))
    train = read_teaching_set(open_dataset(store, "d"), [], size=8, seed=0, task=Task.SEVERAL).train
    assert train.shown.sum(axis=0).tolist() == [12, 8, 8, 4]
    assert train.shown[np.arange(24), train.labels].all()
    assert sorted(train.shown.sum(axis=1).tolist()) == [1] * 16 + [2] * 8
    assert (train.chosen(np.array([23])).shown == train.shown[23:]).all()
    # One for each set of classes; where no wafer shows several, that is the class.
    assert len(set(sets_of(train).tolist())) == 6
    alone = train.chosen(np.flatnonzero(train.shown.sum(axis=1) == 1))
    assert sets_of(alone).tolist() == alone.labels.tolist()


def test_a_pattern_that_is_always_beside_another_is_kept_aside_too(store):
    manifest = freeze(store, "plain", (8, 0, 0))
    wafers = [
        replace(each, lot="", also=("c1",) if each.class_id == "c0" else ())
        for each in open_dataset(store, "plain").iter_wafers()
        if each.class_id != "c1"
    ]
    with DatasetWriter(store, "d", manifest.classes) as writer:
        writer.add(wafers)
        writer.finish()
    read = read_teaching_set(open_dataset(store, "d"), [], size=8, seed=0, task=Task.SEVERAL)
    assert read.tune.shown.any(axis=0).all()
    assert read.train.shown.any(axis=0).all()


def test_only_normal_misses_no_wafers_of_other_classes(store):
    manifest = freeze(store, "full", (6, 2, 2))
    with DatasetWriter(store, "d", manifest.classes) as writer:
        writer.add(each for each in open_dataset(store, "full").iter_wafers() if each.class_id == "c2")
        writer.finish()
    assert read_teaching_set(open_dataset(store, "d"), [], size=8, seed=0, task=Task.NORMAL).cautions == ()
    assert len(read_teaching_set(open_dataset(store, "d"), [], size=8, seed=0).cautions) == 2


def side(*lots, generated=False):
    count = len(lots)
    return Side(
        np.zeros((count, 4, 4, 2), np.float16),
        np.zeros(count, np.int64),
        np.ones((count, 1), np.bool_),
        list(lots),
        np.full(count, generated),
    )


def test_a_lot_on_two_sides_stops_the_job():
    check_sides(side("a", ""), side("b", ""), side("c"))
    with pytest.raises(DataLossError, match="'b'"):
        check_sides(side("a", "b"), side("b"), side("c"))
    with pytest.raises(DataLossError, match="generated"):
        check_sides(side("a"), side("b"), side("c", generated=True))


def test_a_class_without_test_wafers_is_named(store):
    manifest = freeze(store, "full", (6, 2, 2))
    with DatasetWriter(store, "d", manifest.classes) as writer:
        writer.add(
            each for each in open_dataset(store, "full").iter_wafers() if each.class_id != "c1" or each.split == "train"
        )
        writer.finish()
    wafers = read_teaching_set(open_dataset(store, "d"), [], size=8, seed=0)
    caution = wafers.cautions[-1]
    assert (caution.kind, caution.class_ids) == (SplitCautionKind.NO_TEST_WAFERS, ("c1",))
    assert "locked test wafers of Edge-Ring" in caution.sentence
