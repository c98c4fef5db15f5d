"""Which wafers others may be made from."""

from __future__ import annotations

import numpy as np

from services.common.dataset import DatasetClass, DatasetWafer, DatasetWriter, Origin, Split, open_dataset
from services.common.store import open_store
from services.generator.real_wafers import real_by_class


def test_parents_are_real_training_wafers_that_show_their_class_alone(tmp_path):
    store = open_store(str(tmp_path / "store"))
    dies = np.ones((3, 3), np.uint8)
    wafers = [
        DatasetWafer("alone", dies, "a", "", Origin.UPLOADED),
        DatasetWafer("mixed", dies, "a", "", Origin.UPLOADED, also=("b",)),
        DatasetWafer("the other way round", dies, "b", "", Origin.UPLOADED, also=("a",)),
        DatasetWafer("other", dies, "b", "", Origin.UPLOADED),
        DatasetWafer("generated", dies, "a", "", Origin.VARIATION),
        DatasetWafer("judge", dies, "a", "", Origin.UPLOADED, split=Split.TEST),
    ]
    with DatasetWriter(store, "d", [DatasetClass("a", "A"), DatasetClass("b", "B")]) as writer:
        writer.add(wafers)
        writer.finish()
    assert [each.wafer_id for each in real_by_class(open_dataset(store, "d"), Split.TRAIN)["a"]] == ["alone"]
