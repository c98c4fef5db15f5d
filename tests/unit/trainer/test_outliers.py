"""The sentry: what it learns from simulated patterns, and which of them classes claim."""

from __future__ import annotations

import numpy as np
import pytest

from services.common.dataset import DatasetClass
from services.common.errors import FailedPreconditionError
from services.common.head import log_softmax
from services.trainer.backbones import BackboneLibrary
from services.trainer.outliers import LEAST_WAFERS, MOST_WAFERS, Outliers, read_outliers, teach_sentry, unclaimed


def points(centres, count, seed):
    """Unit vectors around each centre, in order."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(centres)), count)
    found = centres[labels] + 0.15 * random.normal(size=(len(labels), centres.shape[1]))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.fixture
def centres():
    return np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))[0][:5]


def test_a_wafer_near_an_outlier_is_no_class_and_one_near_a_class_is(centres):
    taught, labels = points(centres[:3], 20, 1)
    outliers, patterns = points(centres[3:4], 40, 2)
    sentry = teach_sentry(taught, labels, outliers, patterns + 7, 3, seed=0)
    assert sentry.kernel.shape == (16, 4)
    strange, _ = points(centres[3:4], 10, 3)
    known, _ = points(centres[:3], 10, 4)
    best = [np.exp(log_softmax(sentry.logits(each)))[:, :3].max(axis=1) for each in (known, strange)]
    assert best[0].min() > best[1].max()


def test_without_outliers_the_sentry_knows_the_classes_alone(centres):
    taught, labels = points(centres[:3], 20, 1)
    sentry = teach_sentry(taught, labels, taught[:0], labels[:0], 3, seed=0)
    assert sentry.kernel.shape == (16, 3)
    assert (sentry.logits(taught).argmax(axis=1) == labels).all()


def test_classes_claim_the_pattern_of_their_name_or_the_one_that_they_look_like(centres):
    embeddings, patterns = points(centres, 30, 5)
    outliers = Outliers(("Center", "Donut", "Loc", "Scratch", "none"), np.zeros((150, 1, 1, 2), np.float16), patterns)
    classes = [DatasetClass("a", "Middle", "Center"), DatasetClass("b", "Our ring"), DatasetClass("c", "Odd")]
    strange = np.linalg.qr(np.random.default_rng(9).normal(size=(16, 16)))[0][:1]
    taught = np.concatenate([points(centres[:2], 10, 6)[0], points(strange, 10, 7)[0]])
    labels = np.repeat([0, 1, 2], 10)
    free = {outliers.patterns[each] for each in patterns[unclaimed(outliers, embeddings, classes, taught, labels)]}
    assert "Center" not in free
    assert "Donut" not in free
    assert len(free) >= 1


def test_the_shipped_outliers_are_read_in_the_number_asked_for(tmp_path):
    few, many = (read_outliers(BackboneLibrary(), 16, count) for count in (5, 1000))
    assert few.patterns == many.patterns
    assert {"Donut", "Scratch", "none"} <= set(few.patterns)
    assert np.bincount(few.labels).tolist() == [LEAST_WAFERS] * len(few.patterns)
    assert np.bincount(many.labels).tolist() == [MOST_WAFERS] * len(many.patterns)
    assert few.planes.shape == (len(few.labels), 16, 16, 2)
    with pytest.raises(FailedPreconditionError, match=r"outliers.npz is missing.*make pretrain"):
        read_outliers(BackboneLibrary(tmp_path), 16, 5)
