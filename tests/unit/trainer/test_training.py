"""Teaching: it learns, stops, and goes on as if it had never stopped."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

from services.common.dataset import open_dataset
from services.common.jobs.worker import JobStopped
from services.common.preprocessing import planes_of
from services.common.store import open_store
from services.common.task import Task
from services.trainer import training
from services.trainer.backbones import Backbone
from services.trainer.domain import EPOCH_KIND, TrainingConfig
from services.trainer.embedding import pooled_of, unit_length, whitening_of
from services.trainer.teaching_set import read_teaching_set
from services.trainer.training import teach
from services.trainer.trunks import wafer_cnn
from tests.unit.trainer.wafers import PATTERNS, RecordingListener, freeze, freeze_mixed, simulated

# Keras 3.15 reads TensorFlow's variables in a way that NumPy 2 frowns at.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE = 16
BACKBONE = Backbone("tiny", "Tiny", SIZE, "", 0, 0.0)
CONFIG = TrainingConfig(epochs=9, batch_size=8, learning_rate=0.05, early_stopping_epochs=0, fine_tune=True)


@pytest.fixture(scope="module")
def wafers(tmp_path_factory):
    store = open_store(str(tmp_path_factory.mktemp("store")))
    freeze(store, "d", (20, 6, 4))
    return read_teaching_set(open_dataset(store, "d"), [], SIZE, seed=0)


def fresh_trunk():
    """An untaught trunk whose batch normalisation and whitening have seen wafers."""
    keras.utils.set_random_seed(1)
    trunk = wafer_cnn(SIZE, (8, 12, 16), "tiny")
    planes = planes_of([grid for pattern in PATTERNS for grid in simulated(pattern, 8)[0]], SIZE)
    for _ in range(30):
        trunk(planes, training=True)
    evidence = unit_length(pooled_of(trunk(planes)[:-1])[0])
    layer = trunk.get_layer("embedding")
    mean, matrix = whitening_of(np.asarray(evidence), np.repeat(np.arange(len(PATTERNS)), 8))
    layer.mean.assign(mean)
    layer.matrix.assign(matrix)
    return trunk


def epochs_of(*listeners):
    timeless = [
        {name: value for name, value in data.items() if name not in ("seconds", "progress")}
        for listener in listeners
        for data in listener.of(EPOCH_KIND)
    ]
    return sorted(timeless, key=lambda data: data["epoch"])


@pytest.fixture(scope="module")
def uninterrupted(wafers, tmp_path_factory):
    listener = RecordingListener(tmp_path_factory.mktemp("whole"))
    trunk = fresh_trunk()
    return trunk, teach(trunk, BACKBONE, wafers, CONFIG, listener), listener


def test_every_epoch_is_reported_and_the_best_one_is_kept(uninterrupted):
    _, taught, listener = uninterrupted
    epochs = epochs_of(listener)
    assert [each["epoch"] for each in epochs] == list(range(1, 10))
    assert taught.epochs == 9
    assert taught.best_epoch == max(each["epoch"] for each in epochs if each["best"])
    best = epochs[taught.best_epoch - 1]
    assert best["tune_macro_f1"] == max(each["tune_macro_f1"] for each in epochs)
    assert best["tune_macro_f1"] > 0.6
    assert all(0 <= each["accuracy"] <= 1 and each["loss"] > 0 for each in epochs)


def test_the_whole_network_learns_too_once_there_are_wafers_enough(uninterrupted, wafers, tmp_path):
    trunk, *_ = uninterrupted
    moved = not np.array_equal(trunk.get_weights()[0], fresh_trunk().get_weights()[0])
    frozen = fresh_trunk()
    listener = RecordingListener(tmp_path)
    taught = teach(frozen, BACKBONE, wafers, dataclasses.replace(CONFIG, fine_tune=False), listener)
    assert np.array_equal(frozen.get_weights()[0], fresh_trunk().get_weights()[0])
    assert taught.epochs == 9
    assert moved or uninterrupted[1].best_epoch <= 6


@pytest.mark.parametrize("checks", [3, 12, 17, 30], ids=["features", "head", "head later", "fine-tuning"])
def test_a_job_that_was_stopped_ends_like_one_that_was_not(uninterrupted, wafers, tmp_path, checks):
    trunk, taught, whole = uninterrupted
    calls = iter(range(10_000))
    first = RecordingListener(tmp_path, stop_at=lambda _: next(calls) == checks)
    with pytest.raises(JobStopped):
        teach(fresh_trunk(), BACKBONE, wafers, CONFIG, first)
    second = RecordingListener(tmp_path)
    again = fresh_trunk()
    resumed = teach(again, BACKBONE, wafers, CONFIG, second)
    assert epochs_of(first, second) == epochs_of(whole)
    assert (resumed.best_epoch, resumed.epochs) == (taught.best_epoch, taught.epochs)
    assert np.array_equal(resumed.head.kernel, taught.head.kernel)
    assert all(np.array_equal(a, b) for a, b in zip(again.get_weights(), trunk.get_weights(), strict=True))


def test_teaching_gives_up_after_epochs_without_a_better_one(wafers, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=200, early_stopping_epochs=2, fine_tune=False)
    listener = RecordingListener(tmp_path)
    taught = teach(fresh_trunk(), BACKBONE, wafers, config, listener)
    assert taught.epochs < 200
    assert taught.epochs == taught.best_epoch + 2


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    store = open_store(str(tmp_path_factory.mktemp("mixed")))
    freeze_mixed(store, "d", (20, 6, 0))
    return read_teaching_set(open_dataset(store, "d"), [], SIZE, 0, Task.SEVERAL)


def test_several_patterns_are_taught_and_a_stopped_job_ends_alike(mixed, tmp_path):
    config = dataclasses.replace(CONFIG, task=Task.SEVERAL)
    whole, second = RecordingListener(tmp_path / "whole"), RecordingListener(tmp_path / "again")
    trunk = fresh_trunk()
    taught = teach(trunk, BACKBONE, mixed, config, whole)
    assert taught.head.kernel.shape[1] == 3
    epochs = epochs_of(whole)
    assert [each["epoch"] for each in epochs] == list(range(1, 10))
    assert epochs[taught.best_epoch - 1]["tune_macro_f1"] > 0.6
    assert epochs[5]["loss"] < epochs[0]["loss"]
    first = RecordingListener(tmp_path / "again", stop_at=lambda listener: len(listener.of(EPOCH_KIND)) == 7)
    with pytest.raises(JobStopped):
        teach(fresh_trunk(), BACKBONE, mixed, config, first)
    again = fresh_trunk()
    resumed = teach(again, BACKBONE, mixed, config, second)
    assert epochs_of(first, second) == epochs
    assert np.array_equal(resumed.head.kernel, taught.head.kernel)
    assert all(np.array_equal(a, b) for a, b in zip(again.get_weights(), trunk.get_weights(), strict=True))


def test_several_patterns_are_fine_tuned_to_the_end_of_their_passes(mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "FINE_TUNE_PATIENCE", 1)
    config = dataclasses.replace(CONFIG, task=Task.SEVERAL, epochs=18, early_stopping_epochs=9)
    head = dataclasses.replace(config, epochs=12, fine_tune=False)
    alone = teach(fresh_trunk(), BACKBONE, mixed, head, RecordingListener(tmp_path / "alone"))
    whole = teach(fresh_trunk(), BACKBONE, mixed, config, RecordingListener(tmp_path / "whole"))
    assert whole.epochs == alone.epochs + 6


def test_another_seed_teaches_otherwise(uninterrupted, wafers, tmp_path):
    listener = RecordingListener(tmp_path)
    config = dataclasses.replace(CONFIG, seed=5, fine_tune=False, epochs=2)
    teach(fresh_trunk(), BACKBONE, wafers, config, listener)
    assert epochs_of(listener)[0]["loss"] != epochs_of(uninterrupted[2])[0]["loss"]


def test_small_jobs_fine_tune_for_seconds_and_large_ones_for_passes():
    budget = training._fine_tune_budget
    assert budget(60) // 60 == 50
    assert budget(1800) // 1800 == 2
    assert 3 <= budget(28_000) // 28_000 <= 4
