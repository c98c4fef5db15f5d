"""Teaching: a classifier on the pretrained network's embeddings, then, with wafers enough, the network itself.

First the embeddings of all wafers are computed once, and the classifier learns on them in seconds. Then, if every class
has wafers enough, the whole network learns at a small rate, for as many passes as a time budget allows. Of all epochs
the one with the best score on the tune wafers is kept. Everything random depends on the seed and the epoch alone, so
that a job which goes on from a checkpoint ends like one that was never stopped.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
from numpy.typing import NDArray

from services.common.checkpoint import read_checkpoint, write_checkpoint
from services.common.head import ANCHOR_WAFERS, Head, HeadState, cosine, step_sizes
from services.common.jobs.worker import PROGRESS_KIND, JobStopped
from services.common.task import Task
from services.trainer.augmentation import augment
from services.trainer.backbones import Backbone
from services.trainer.domain import EPOCH_KIND, STAGE_KIND, EpochReport, TrainingConfig
from services.trainer.embedding import is_whitened
from services.trainer.features import copies_of, embed, embed_copies, embedder
from services.trainer.fine_tuning import FineTuner
from services.trainer.known_patterns import KnownPatterns
from services.trainer.network import embedding_model
from services.trainer.objective import Objective, SinglePattern
from services.trainer.several import SeveralPatterns
from services.trainer.teaching_set import TeachingSet

FINE_TUNE_CLASS_WAFERS = 20
"""Real training wafers of the smallest class from which on teaching the whole network pays."""
FINE_TUNE_SHARE = 1 / 3
"""Largest share of the epochs in which the whole network is taught."""
FINE_TUNE_PATIENCE = 3000
"""Wafers, passes counted, after which teaching the whole network is given up when no epoch of it was better."""
SELECTION_WAFERS = 2000
"""Most tune wafers by which the best epoch is chosen; thresholds are chosen by all."""
CHECKPOINT_SECONDS = 60.0
"""Time after which a checkpoint is written inside of a long epoch; between epochs it is a tenth of that."""
CHECKPOINT_FILE = "training.npz"

FEATURES_PROGRESS, TRAINING_PROGRESS, TRAINED_PROGRESS = 0.05, 0.2, 0.8
"""Share of the whole work done when features, training and evaluation begin."""


class Listener(Protocol):
    """What teaching sees of the job it is part of; `services.common.jobs.worker.JobContext` for instance."""

    checkpoints: Path

    def report(self, kind: str, progress: float | None = None, device: str | None = None, **data: Any) -> None:
        """Tells that something happened."""

    def check_cancelled(self) -> None:
        """Raises JobStopped when the work was asked to stop."""


@dataclass(frozen=True, slots=True)
class Taught:
    """What teaching came to. The trunk that was passed to `teach` holds the best epoch's weights.

    Attributes:
        head: classifier of the best epoch.
        best_epoch: its number, from 1.
        epochs: epochs that ran.
        known_patterns: name of the known pattern that a class was taken for, by the class's id.
    """

    head: Head
    best_epoch: int
    epochs: int
    known_patterns: dict[str, str]


@dataclass(slots=True)
class _Progress:
    """Where teaching stands; all of it goes into checkpoints.

    Attributes:
        epoch: epochs that ended.
        stale: epochs since the best one, of the present phase.
        fine_tuning: whether the whole network is being taught.
        fine_epochs: epochs of that which ended.
        step: steps done in the running epoch of fine-tuning.
        loss: sum of the losses of those steps, times wafers.
        right: wafers right in those steps.
        best_epoch: best epoch so far, 0 before the first.
        best_score: its macro-F1 and its negative loss on the tune wafers.
        best_shifted: whether it expects normal wafers at their odds; see `head.normal_offset`.
        known_patterns: see `Taught`.
    """

    epoch: int = 0
    stale: int = 0
    fine_tuning: bool = False
    fine_epochs: int = 0
    step: int = 0
    loss: float = 0.0
    right: int = 0
    best_epoch: int = 0
    best_score: tuple[float, float] = (-1.0, 0.0)
    best_shifted: bool = False
    known_patterns: dict[str, str] = field(default_factory=dict)


def teach(
    trunk: keras.Model,
    backbone: Backbone,
    wafers: TeachingSet,
    config: TrainingConfig,
    listener: Listener,
    known: KnownPatterns | None = None,
) -> Taught:
    """Teaches a pretrained trunk; continues from the listener's checkpoint where there is one.

    Args:
        trunk: pretrained; holds the best epoch's weights afterwards.
        backbone: what the trunk is.
        wafers: what to teach.
        config: how to teach.
        listener: hears of epochs; says when to stop.
        known: patterns that the trunk knows, or None.

    Raises:
        JobStopped: the listener said so; a checkpoint was written.
    """
    return _Teaching(trunk, backbone, wafers, config, listener, known).run()


class _Teaching:
    def __init__(
        self,
        trunk: keras.Model,
        backbone: Backbone,
        wafers: TeachingSet,
        config: TrainingConfig,
        listener: Listener,
        known: KnownPatterns | None,
    ) -> None:
        self._trunk, self._config, self._listener = trunk, config, listener
        self._wafers = wafers
        self._objective: Objective = (
            SeveralPatterns(wafers.train, wafers.classes)
            if config.task is Task.SEVERAL
            else SinglePattern(wafers.train, wafers.classes, known)
        )
        self._embed = embedder(embedding_model(trunk, backbone.orientations))
        self._orientations = backbone.orientations
        self._pull = ANCHOR_WAFERS if is_whitened(trunk) else 0.0
        selection = np.random.default_rng([config.seed, 0]).permutation(len(wafers.tune))[:SELECTION_WAFERS]
        self._tune = wafers.tune.chosen(np.sort(selection))
        self._fine_epochs = self._planned_fine_epochs()
        self._head_epochs = config.epochs - self._fine_epochs
        self._progress = _Progress()
        self._saved_at = time.monotonic()
        self._epoch_began = time.monotonic()
        self._best_head: Head | None = None
        self._best_trunk: list[NDArray[Any]] | None = None
        self._tuner: FineTuner | None = None

    def run(self) -> Taught:
        saved = read_checkpoint(self._listener.checkpoints / CHECKPOINT_FILE)
        if saved is not None:
            self._progress = _Progress(**{**saved.facts, "best_score": tuple(saved.facts["best_score"])})
        state: HeadState | None = None
        try:
            if not self._progress.fine_tuning:
                copies = self._copies()
                tune = embed(self._embed, self._tune.planes, self._feature_progress(0.8, 1.0), self._orientations)
                state = self._restore_head(saved.arrays) if saved else self._first_state(copies)
                self._begin_training()
                self._train_head(state, copies, tune)
                del copies
            else:
                self._begin_training()
            if self._fine_epochs:
                self._fine_tune(saved.arrays if saved and self._progress.fine_tuning else None)
        except JobStopped:
            # Stopped before anything was learned: the next attempt starts afresh.
            if state is not None or self._tuner is not None:
                self._save(state)
            raise
        if self._best_trunk is not None:
            self._trunk.set_weights(self._best_trunk)
        assert self._best_head is not None  # noqa: S101 - at least one epoch ran
        head = self._best_head.shifted(self._objective.offset) if self._progress.best_shifted else self._best_head
        return Taught(head, self._progress.best_epoch, self._progress.epoch, self._progress.known_patterns)

    def _begin_training(self) -> None:
        share = self._share_done(0.0)
        self._listener.report(STAGE_KIND, progress=share, stage="training", share=share, device_name="")

    def _planned_fine_epochs(self) -> int:
        """Returns the epochs of fine-tuning: as many as its budget of wafers allows, at most a third of all."""
        train = self._wafers.train
        smallest = train.shown[~train.generated].sum(axis=0).min()
        most = int(self._config.epochs * FINE_TUNE_SHARE)
        if not self._config.fine_tune or smallest < FINE_TUNE_CLASS_WAFERS or not most:
            return 0
        return min(most, max(self._objective.passes, _fine_tune_budget(len(train)) // len(train)))

    def _copies(self) -> NDArray[np.float32]:
        train, config = self._wafers.train, self._config
        count = copies_of(len(train), self._orientations, config.augmentation)
        return embed_copies(
            self._embed,
            train.planes,
            count,
            config.augmentation,
            config.seed,
            self._feature_progress(0.0, 0.8),
            self._orientations,
        )

    def _feature_progress(self, begin: float, end: float) -> Any:
        def check(share: float) -> None:
            self._listener.check_cancelled()
            done = begin + (end - begin) * share
            progress = FEATURES_PROGRESS + (TRAINING_PROGRESS - FEATURES_PROGRESS) * done
            self._come_further("features", progress)

        return check

    def _first_state(self, copies: NDArray[np.float32]) -> HeadState:
        state, known = self._objective.first_state(copies.mean(axis=1), self._pull)
        classes = self._wafers.classes
        self._progress.known_patterns = {classes[place].class_id: name for place, name in known.items()}
        return state

    def _train_head(self, state: HeadState, copies: NDArray[np.float32], tune: NDArray[np.float32]) -> None:
        config, progress = self._config, self._progress
        steps = math.ceil(len(copies) / config.batch_size)
        while progress.epoch < self._head_epochs and not self._given_up():
            self._listener.check_cancelled()
            self._epoch_began = time.monotonic()
            random = np.random.default_rng([config.seed, 2, progress.epoch])
            rates = step_sizes(config.learning_rate, state.steps, self._head_epochs * steps)
            loss, accuracy = self._objective.train_epoch(state, copies, config.batch_size, rates, random)
            self._end_epoch(loss, accuracy, state.head, tune)
            self._save_if_due(state, CHECKPOINT_SECONDS / 10)

    def _fine_tune(self, saved: dict[str, NDArray[Any]] | None) -> None:
        config, progress, train = self._config, self._progress, self._wafers.train
        best_head = self._best_head if saved is None else Head(saved["best_kernel"], saved["best_bias"])
        assert best_head is not None  # noqa: S101 - the classifier's own epochs ran before
        tuner = self._tuner = FineTuner(self._trunk, best_head, self._objective.loss)
        if saved is None:
            progress.fine_tuning, progress.stale = True, 0
            self._best_trunk = self._trunk.get_weights()
        else:
            self._best_head = best_head
            self._best_trunk = _unpacked("best_trunk", saved)
            tuner.restore(_unpacked("tuner", saved))
        steps = math.ceil(len(train) / config.batch_size)
        while progress.fine_epochs < self._fine_epochs and not self._given_up():
            self._epoch_began = time.monotonic()
            random = np.random.default_rng([config.seed, 3, progress.fine_epochs])
            order = random.choice(len(train), len(train), p=self._objective.chances)
            while progress.step < steps:
                self._listener.check_cancelled()
                self._fine_tune_step(tuner, order, steps)
                self._save_if_due(None, CHECKPOINT_SECONDS)
            tune = embed(self._embed, self._tune.planes, lambda _: self._listener.check_cancelled(), self._orientations)
            loss, accuracy = progress.loss / len(train), progress.right / len(train)
            progress.fine_epochs, progress.step, progress.loss, progress.right = progress.fine_epochs + 1, 0, 0.0, 0
            self._end_epoch(loss, accuracy, tuner.head, tune)
            self._save_if_due(None, CHECKPOINT_SECONDS / 10)

    def _fine_tune_step(self, tuner: FineTuner, order: NDArray[np.int64], steps: int) -> None:
        config, progress, train = self._config, self._progress, self._wafers.train
        rows = order[progress.step * config.batch_size : (progress.step + 1) * config.batch_size]
        random = np.random.default_rng([config.seed, 4, progress.fine_epochs, progress.step])
        planes = augment(train.planes[rows].astype(np.float32), config.augmentation, random)
        done = progress.fine_epochs * steps + progress.step
        rate = next(cosine(config.learning_rate, done, self._fine_epochs * steps))
        loss, logits = tuner.step(planes, self._objective.targets(rows), rate)
        progress.loss += loss * len(rows)
        progress.right += self._objective.right(logits, rows)
        progress.step += 1
        self._come_further("training", self._share_done(progress.step / steps))

    def _given_up(self) -> bool:
        if self._progress.fine_tuning and self._progress.fine_epochs < min(self._objective.passes, self._fine_epochs):
            return False
        limit, stale = self._config.early_stopping_epochs, self._progress.stale
        if limit and self._progress.fine_tuning and stale * len(self._wafers.train) >= FINE_TUNE_PATIENCE:
            return True
        return 0 < limit <= stale

    def _end_epoch(self, loss: float, accuracy: float, head: Head, tune: NDArray[np.float32]) -> None:
        progress = self._progress
        judged = self._objective.judge(head.logits(tune), self._tune)
        score = (judged.macro_f1, -judged.loss)
        progress.epoch += 1
        best = score > progress.best_score
        progress.stale = 0 if best else progress.stale + 1
        if best:
            progress.best_epoch, progress.best_score, self._best_head = progress.epoch, score, head
            progress.best_shifted = judged.shifted
            if progress.fine_tuning:
                self._best_trunk = self._trunk.get_weights()
        report = EpochReport(
            epoch=progress.epoch,
            epochs=self._config.epochs,
            loss=loss,
            accuracy=accuracy,
            tune_loss=judged.loss,
            tune_accuracy=judged.accuracy,
            tune_macro_f1=judged.macro_f1,
            seconds=time.monotonic() - self._epoch_began,
            best=best,
        )
        data = {name: getattr(report, name) for name in EpochReport.__slots__}
        self._listener.report(EPOCH_KIND, progress=self._share_done(0.0), **data)

    def _come_further(self, stage: str, share: float) -> None:
        """Reports how far a stage has come; `share` of the whole work is done."""
        self._listener.report(PROGRESS_KIND, progress=share, stage=stage, share=share, device_name="")

    def _share_done(self, share_of_epoch: float) -> float:
        """Returns the share of the whole work; an epoch of fine-tuning takes about ten times as long as another."""
        progress = self._progress
        head = self._head_epochs if progress.fine_tuning else min(progress.epoch, self._head_epochs)
        done = head + 10 * (progress.fine_epochs + share_of_epoch)
        whole = self._head_epochs + 10 * self._fine_epochs
        return TRAINING_PROGRESS + (TRAINED_PROGRESS - TRAINING_PROGRESS) * min(1.0, done / whole)

    def _save_if_due(self, state: HeadState | None, seconds: float) -> None:
        if time.monotonic() - self._saved_at >= seconds:
            self._listener.check_cancelled()
            self._save(state)

    def _save(self, state: HeadState | None) -> None:
        arrays: dict[str, NDArray[Any]] = {}
        if self._best_head is not None:
            arrays |= {"best_kernel": self._best_head.kernel, "best_bias": self._best_head.bias}
        if self._progress.fine_tuning and self._tuner is not None:
            arrays |= _packed("tuner", self._tuner.state()) | _packed("best_trunk", self._best_trunk or [])
        elif state is not None:
            arrays |= {"weights": state.weights, "mean": state.mean, "square": state.square, "anchor": state.anchor}
            arrays |= {"pull": np.asarray(state.pull, np.float32), "steps": np.asarray(state.steps)}
        facts = {name: getattr(self._progress, name) for name in _Progress.__slots__}
        write_checkpoint(self._listener.checkpoints / CHECKPOINT_FILE, facts, arrays)
        self._saved_at = time.monotonic()

    def _restore_head(self, arrays: dict[str, NDArray[Any]]) -> HeadState:
        if "best_kernel" in arrays:
            self._best_head = Head(arrays["best_kernel"], arrays["best_bias"])
        weights, mean, square, anchor = (arrays[name] for name in ("weights", "mean", "square", "anchor"))
        return HeadState(weights, mean, square, anchor, self._pull, int(arrays["steps"]))


def _fine_tune_budget(wafers: int) -> int:
    """Returns how many wafers, passes counted, fine-tuning may look at: seconds for small jobs, minutes for large."""
    return max(3000, 2 * wafers, 4 * (wafers - 2500))


def _packed(name: str, arrays: list[NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {f"{name}_{index:04d}": array for index, array in enumerate(arrays)}


def _unpacked(name: str, arrays: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    return [arrays[key] for key in sorted(arrays) if key.startswith(f"{name}_")]
