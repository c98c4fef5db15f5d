"""Jobs without a service: the very code that a training or generation job runs, on a data set version made here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from numpy.typing import NDArray

from services.common.dataset import Dataset, DatasetClass, DatasetWafer, DatasetWriter, Origin, Split, open_dataset
from services.common.errors import InternalError
from services.common.head import Array, Head
from services.common.jobs.run_folder import RunFolder, WorkOrder
from services.common.jobs.worker import open_context
from services.common.model_manifest import ModelManifest
from services.common.preprocessing import pad_grids
from services.common.store import BlobStore, open_store
from services.common.task import NORMAL_PATTERN, Task
from services.trainer.backbones import BackboneLibrary
from services.trainer.domain import JOB_KIND, TrainingConfig, TrainingOutcome, TrainingSpec, check_spec
from services.trainer.export.onnx import batches_by_size, open_session
from services.trainer.protocols.progress import Progress
from services.trainer.protocols.split_set import Rows, SplitSet, first_of_each
from services.trainer.publishing import CANDIDATE_FILE, MODEL_FILE
from services.trainer.teaching import KERAS_FILE, run

_ATTEMPT = 1


@dataclass(frozen=True, slots=True)
class TaughtModel:
    """What a training job made.

    Attributes:
        outcome: what the job said of it.
        manifest: thresholds and classes.
        folder: its files.
    """

    outcome: TrainingOutcome
    manifest: ModelManifest
    folder: Path

    def answers(self, grids: Sequence[NDArray[np.uint8]]) -> Answers:
        """Returns what the exported graph answers to wafers, N >= 1."""
        session, names = open_session(self.folder / MODEL_FILE), ("probabilities", "novelty", "embedding")
        parts: list[list[Array]] = []
        order: list[int] = []
        told = Progress("answering")
        for rows in batches_by_size(grids):
            parts.append(session.run(list(names), {"dies": pad_grids([grids[row] for row in rows])}))
            order += rows
            told(len(order) / len(grids))
        back = np.argsort(np.array(order))
        return Answers(*(np.concatenate(each)[back] for each in zip(*parts, strict=True)))

    def head(self) -> Head:
        """Returns the taught classifier, as the saved Keras model holds it."""
        layer = keras.saving.load_model(self.folder / KERAS_FILE).get_layer("answers")
        return Head(np.asarray(layer.kernel), np.asarray(layer.bias))


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of a graph, in the order of the wafers.

    Attributes:
        probabilities: float32 (N, classes).
        novelty: float32 (N,).
        embedding: float32 (N, D).
    """

    probabilities: Array
    novelty: Array
    embedding: Array


def teach_job(folder: Path, wafers: SplitSet, config: TrainingConfig, library: BackboneLibrary) -> TaughtModel:
    """Freezes wafers as a data set version and does a training job on it: reading, teaching, export, evaluation, proof.

    Args:
        folder: an empty folder for all that is written.
        wafers: what to teach and what judges; sides are kept.
        config: settings of the job.
        library: pretrained weights.

    Raises:
        InvalidArgumentError: a setting is out of range, or this release has no such task.
    """
    spec = TrainingSpec("measured", (), config)
    check_spec(spec)
    store = open_store(str(folder / "store"))
    freeze(store, "measured", wafers, np.arange(len(wafers)), config.task)
    order = WorkOrder("measured", JOB_KIND, store.url, spec.to_json())
    RunFolder(folder / "run").prepare(order, _ATTEMPT)
    context = open_context(folder / "run", _ATTEMPT)
    outcome = run(context, library)
    manifest = ModelManifest.from_json((context.folder / CANDIDATE_FILE).read_bytes())
    return TaughtModel(outcome, manifest, context.folder)


def freeze(store: BlobStore, dataset_id: str, wafers: SplitSet, rows: Rows, task: Task = Task.SINGLE) -> None:
    """Writes some wafers as a data set version; their identifiers are their positions in the set.

    Args:
        store: where to.
        dataset_id: its identifier.
        wafers: the set.
        rows: positions of the wafers.
        task: with several patterns a wafer, labels are taken apart at `+`.
    """
    several = task is Task.SEVERAL
    names = patterns_of(wafers.classes) if several else wafers.classes
    classes = [DatasetClass(name, name, name if name in _PATTERNS else "") for name in names]

    def shown(row: int) -> list[str]:
        return wafers.names[row].split("+") if several else [wafers.names[row]]

    with DatasetWriter(store, dataset_id, classes) as writer:
        writer.add(
            DatasetWafer(
                wafer_id=str(row),
                dies=wafers.grids[row],
                class_id=shown(row)[0],
                also=tuple(shown(row)[1:]),
                lot=wafers.lots[row],
                origin=Origin.UPLOADED,
                split=Split(str(wafers.sides[row])),
            )
            for row in rows
        )
        writer.finish()


def patterns_of(labels: Sequence[str]) -> tuple[str, ...]:
    """Returns the different patterns in labels that `+` joins, sorted."""
    return tuple(sorted({name for label in labels for name in label.split("+")}))


def generate_job(folder: Path, wafers: SplitSet, rows: Rows, method: str, counts: dict[str, int], seed: int) -> Dataset:
    """Has the generator make wafers from some wafers and returns the data set version that it wrote.

    The generator's own worker program and not an import: the trainer runs without the generator's code.

    Args:
        folder: an empty folder for all that is written.
        wafers: where the parents come from.
        rows: the parents, all of them training wafers.
        method: "variations" or "learned".
        counts: wafers to make, by class.
        seed: seed of everything random.

    Raises:
        InternalError: the generator failed.
    """
    store = open_store(str(folder / "store"))
    freeze(store, "parents", wafers, rows)
    classes = [{"class_id": name, "count": count, "method": method, "options": {}} for name, count in counts.items()]
    order = WorkOrder("made", "generation", store.url, {"dataset_id": "parents", "seed": seed, "classes": classes})
    attempt = RunFolder(folder / "run").prepare(order, _ATTEMPT)
    command = [sys.executable, "-m", "services.generator.worker", "--run-folder", str(folder / "run")]
    done = subprocess.run([*command, "--attempt", str(_ATTEMPT)], check=False, capture_output=True, text=True)  # noqa: S603
    result = attempt.read_result()
    if done.returncode or result is None:
        raise InternalError(f"Expected generated wafers. Received: exit code {done.returncode}.\n{done.stderr[-2000:]}")
    return open_dataset(store, str(result["dataset_id"]))


def thinned(wafers: SplitSet, most: int | None, seed: int) -> SplitSet:
    """Returns a set with at most so many training wafers of each class, drawn by the seed; all others stay.

    Args:
        wafers: the set.
        most: training wafers of a class; None keeps all.
        seed: seed of the draw.
    """
    if most is None:
        return wafers
    train = np.random.default_rng(seed).permutation(wafers.rows(Split.TRAIN))
    kept = first_of_each(train, wafers.labels, len(wafers.classes), most)
    return wafers.chosen(np.sort(np.concatenate([kept, wafers.rows(Split.TUNE, Split.TEST)])))


_PATTERNS = ("Center", "Donut", "Edge-Loc", "Edge-Ring", "Loc", "Near-full", "Random", "Scratch", NORMAL_PATTERN)
