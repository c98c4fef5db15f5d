"""The real wafers of a data set version: the parents of generated ones, and those that judge them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from services.common.dataset import GENERATED, Dataset, DatasetWafer, Split

Wafers = tuple[list[NDArray[np.uint8]], list[str], list[str]]
"""Die grids, classes and lots."""


def real_by_class(dataset: Dataset, *sides: Split) -> dict[str, list[DatasetWafer]]:
    """Returns the wafers of some sides that show one pattern and were not generated, by class; reads the file once.

    A wafer that shows several patterns is no parent: which of them a wafer made from it shows is not known.
    """
    by_class: dict[str, list[DatasetWafer]] = {}
    for side in sides:
        for wafer in dataset.iter_wafers(side):
            if not wafer.also and wafer.origin not in GENERATED:
                # A copy, because a view would keep all the wafers that were read together with it.
                by_class.setdefault(wafer.class_id, []).append(replace(wafer, dies=wafer.dies.copy()))
    return by_class


def even_sample(by_class: Mapping[str, Sequence[DatasetWafer]], most: int) -> Wafers:
    """Returns die grids, classes and lots of at most so many wafers of each class; of more, an even sample."""
    chosen = [wafers[place] for wafers in by_class.values() for place in even_places(len(wafers), most).tolist()]
    return [each.dies for each in chosen], [each.class_id for each in chosen], [each.lot for each in chosen]


def even_places(count: int, most: int) -> NDArray[np.intp]:
    """Returns at most so many positions spread evenly over `count`."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.intp))
