"""A whole teaching, from a data set version to a verified ONNX file and its scores."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from services.common.dataset import open_dataset
from services.common.evaluation import Evaluation, evaluate
from services.common.jobs.worker import JobContext
from services.common.model_repository import ModelClass, ModelManifest
from services.common.preprocessing import pad_grids
from services.trainer.backbones import BackboneLibrary, backbone_of_size, find_backbone
from services.trainer.calibration import bank_rows, calibrate
from services.trainer.domain import (
    STAGE_KIND,
    WARNING_KIND,
    TrainingOutcome,
    TrainingSpec,
    check_dataset,
    check_generated,
)
from services.trainer.export.onnx import Answers, answers_of, export_onnx, open_session, prove_parity
from services.trainer.features import embed, embedder
from services.trainer.network import Calibration, embedding_model, taught_model
from services.trainer.outliers import Outliers, read_outliers, teach_sentry, unclaimed
from services.trainer.publishing import MODEL_FILE, write_candidate
from services.trainer.teaching_set import Side, TeachingSet, read_teaching_set
from services.trainer.training import FEATURES_PROGRESS, TRAINED_PROGRESS, Taught, teach
from services.trainer.trunks import load_trunk

KERAS_FILE, GOLDEN_FILE, EVALUATION_FILE = "model.keras", "golden.npz", "evaluation.json"
"""Files beside the graph."""
GOLDEN_WAFERS = 16
"""Most wafers of the batch that every loader repeats before it serves a model."""
MAX_GOLDEN_PLACES = 500_000
"""Most places of that batch."""


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the exported file was measured to do."""

    tune: Evaluation
    test: Evaluation | None
    parity_wafers: int
    parity_max_difference: float


def run(context: JobContext, library: BackboneLibrary) -> TrainingOutcome:
    """Does one training job; writes model.onnx, model.keras, evaluation.json, golden.npz and candidate.json.

    Args:
        context: the job.
        library: pretrained weights.

    Raises:
        NotFoundError: a data set version is not there.
        FailedPreconditionError: the data cannot teach, or the backbone's weights are missing.
        InternalError: the exported file answers differently.
    """
    spec = TrainingSpec.from_json(context.spec)
    config = spec.config
    _begin(context, "reading", 0.0, device_name())
    backbone = find_backbone(config.backbone) if config.backbone else backbone_of_size(config.model_size)
    wafers = _read(context, spec, backbone.size)
    for warning in wafers.warnings:
        context.report(WARNING_KIND, message=warning)
    context.check_cancelled()
    keras.utils.set_random_seed(config.seed)
    tf.config.experimental.enable_op_determinism()
    trunk = load_trunk(backbone, library)
    _begin(context, "features", FEATURES_PROGRESS)
    taught = teach(trunk, backbone, wafers, config, context)
    _begin(context, "exporting", TRAINED_PROGRESS)
    outliers = read_outliers(library, backbone.size, len(wafers.train) / len(wafers.classes))
    calibration = _calibrate(context, trunk, backbone.orientations, wafers, outliers, taught, config.seed)
    model = taught_model(trunk, backbone.orientations, backbone.size, taught.head, calibration)
    model.save(context.folder / KERAS_FILE)
    export_onnx(model, context.folder / MODEL_FILE)
    _begin(context, "evaluating", 0.9)
    measured = _measure(context, model, wafers, calibration)
    outcome = TrainingOutcome(
        best_epoch=taught.best_epoch,
        epochs=taught.epochs,
        tune=measured.tune,
        test=measured.test,
        class_names=tuple((each.class_id, each.display_name) for each in wafers.classes),
        model_bytes=(context.folder / MODEL_FILE).stat().st_size,
        parity_max_difference=measured.parity_max_difference,
        parity_wafers=measured.parity_wafers,
        backbone=backbone.backbone_id,
        training_wafers=len(wafers.train),
        seconds=context.elapsed_s(),
        peak_memory_bytes=context.peak_memory_bytes(),
        warnings=wafers.warnings,
    )
    _write_facts(context.folder, outcome, spec, backbone.size, calibration)
    return outcome


def device_name() -> str:
    """Returns the device that teaches, for people: "CPU, 2 cores" or the name of the GPU."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU"))
    cores = len(os.sched_getaffinity(0))
    return f"CPU, {cores} core{'s' if cores > 1 else ''}"


def _begin(context: JobContext, stage: str, share: float, device: str = "") -> None:
    """Reports that a stage begins; `share` of the whole work is done."""
    context.report(STAGE_KIND, progress=share, device=device or None, stage=stage, share=share, device_name=device)


def _read(context: JobContext, spec: TrainingSpec, size: int) -> TeachingSet:
    dataset = open_dataset(context.store, spec.dataset_id)
    check_dataset(dataset.manifest)
    generated = [open_dataset(context.store, each) for each in spec.generated if spec.config.use_generated_wafers]
    for each in generated:
        check_generated(dataset.manifest, each.manifest)
    wafers = read_teaching_set(dataset, generated, size, spec.config.seed)
    if spec.config.use_generated_wafers or not wafers.train.generated.any():
        return wafers
    real = wafers.train.chosen(np.flatnonzero(~wafers.train.generated))
    return dataclasses.replace(wafers, train=real)


def _calibrate(
    context: JobContext,
    trunk: keras.Model,
    orientations: int,
    wafers: TeachingSet,
    outliers: Outliers,
    taught: Taught,
    seed: int,
) -> Calibration:
    embeddings_of = embedder(embedding_model(trunk, orientations))
    rows = bank_rows(wafers.train.labels, wafers.train.generated, len(wafers.classes), seed)

    def check(_: float) -> None:
        context.check_cancelled()

    bank = embed(embeddings_of, wafers.train.planes[rows], check, orientations)
    tune = embed(embeddings_of, wafers.tune.planes, check, orientations)
    labels, count = wafers.train.labels[rows], len(wafers.classes)
    strange = embed(embeddings_of, outliers.planes, check, orientations)
    free = unclaimed(outliers, strange, wafers.classes, bank, labels)
    sentry = teach_sentry(bank, labels, strange[free], outliers.labels[free], count, seed)
    return calibrate(taught.head, sentry, bank, tune, wafers.tune.labels)


def _measure(context: JobContext, model: keras.Model, wafers: TeachingSet, calibration: Calibration) -> _Measured:
    """Scores the exported file itself, so that what is measured is what is served."""
    session = open_session(context.folder / MODEL_FILE)
    tune = answers_of(session, wafers.tune.grids, context.check_cancelled)
    test = answers_of(session, wafers.test.grids, context.check_cancelled)
    context.check_cancelled()
    judged, known = (wafers.test, test) if len(wafers.test) else (wafers.tune, tune)
    parity = prove_parity(model, session, judged.grids, known, context.check_cancelled)
    _write_golden(context.folder / GOLDEN_FILE, session, judged)
    return _Measured(
        tune=_scores(wafers.tune, tune, calibration),
        test=_scores(wafers.test, test, calibration) if len(wafers.test) else None,
        parity_wafers=parity.wafers,
        parity_max_difference=parity.max_difference,
    )


def _scores(side: Side, answers: Answers, calibration: Calibration) -> Evaluation:
    sure = answers.probabilities.max(axis=1) >= calibration.accept_threshold
    return evaluate(answers.probabilities, side.labels, side.lots, sure & (answers.novelty <= 1.0))


def _write_golden(path: Path, session: Any, side: Side) -> None:
    """Writes a few wafers of each class in turn and their answers."""
    rows = golden_rows(side.labels, side.grids)
    dies = pad_grids([side.grids[row] for row in rows])
    (probabilities,) = session.run(["probabilities"], {"dies": dies})
    np.savez_compressed(path, allow_pickle=False, dies=dies, probabilities=probabilities)


def golden_rows(labels: NDArray[np.int64], grids: Sequence[NDArray[np.uint8]]) -> list[int]:
    """Returns up to GOLDEN_WAFERS wafers, the smallest of each class in turn, in at most MAX_GOLDEN_PLACES places."""
    sizes = [grid.size for grid in grids]
    queues = [sorted(np.flatnonzero(labels == each).tolist(), key=sizes.__getitem__) for each in np.unique(labels)]
    depth = max(len(queue) for queue in queues)
    turns = [queue[place] for place in range(depth) for queue in queues if place < len(queue)]
    rows: list[int] = []
    for row in turns[:GOLDEN_WAFERS]:
        shape = np.max([grids[each].shape for each in [*rows, row]], axis=0)
        if rows and (len(rows) + 1) * int(shape.prod()) > MAX_GOLDEN_PLACES:
            break
        rows.append(row)
    return rows


def _write_facts(
    folder: Path, outcome: TrainingOutcome, spec: TrainingSpec, size: int, calibration: Calibration
) -> None:
    data = outcome.to_json()
    sides = {name: data[name] for name in ("tune", "test") if name in data}
    (folder / EVALUATION_FILE).write_text(json.dumps(sides, indent=2, ensure_ascii=False))
    manifest = ModelManifest(
        classes=tuple(ModelClass(class_id, name) for class_id, name in outcome.class_names),
        size=size,
        temperature=calibration.temperature,
        accept_threshold=calibration.accept_threshold,
        novelty_threshold=calibration.novelty_threshold,
        dataset_version=f"datasetVersions/{spec.dataset_id}",
        backbone=outcome.backbone,
        scores={
            side: {
                name: scores[name]
                for name in ("wafers", "lots", "macro_f1", "accuracy", "accepted_share", "accepted_error")
            }
            for side, scores in sides.items()
        },
        golden=GOLDEN_FILE,
    )
    write_candidate(folder, manifest, (MODEL_FILE, KERAS_FILE, GOLDEN_FILE, EVALUATION_FILE))
