"""A whole teaching, from a data set version to a verified ONNX file and its scores."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from services.common.dataset import DatasetClass, open_dataset
from services.common.evaluation import Evaluation, evaluate, evaluate_normal, evaluate_several
from services.common.jobs.worker import JobContext
from services.common.model_repository import ModelClass, ModelManifest
from services.common.pattern_sets import set_confidence, shown_classes
from services.common.preprocessing import pad_grids
from services.common.task import Task
from services.trainer.backbones import Backbone, BackboneLibrary, backbone_of_size, find_backbone
from services.trainer.calibration import accept_threshold_of, bank_rows, calibrate
from services.trainer.domain import (
    STAGE_KIND,
    WARNING_KIND,
    QuantisedVariant,
    TrainingConfig,
    TrainingOutcome,
    TrainingSpec,
    check_dataset,
    check_generated,
)
from services.trainer.export.onnx import Answers, answers_of, export_onnx, open_session, prove_parity
from services.trainer.export.quantised import quantise, same_answers
from services.trainer.features import embed, embedder
from services.trainer.network import embedding_model, taught_model
from services.trainer.normal import bank_of_normal, calibrate_normal, normal_model
from services.trainer.objective import normal_position
from services.trainer.outliers import read_outliers, teach_sentry, unclaimed
from services.trainer.publishing import MODEL_FILE, QUANTISED_FOLDER, write_candidate
from services.trainer.several import calibrate as calibrate_several
from services.trainer.several import pattern_columns, several_model
from services.trainer.teaching_set import Side, TeachingSet, read_teaching_set
from services.trainer.training import FEATURES_PROGRESS, TRAINED_PROGRESS, teach
from services.trainer.trunks import load_known_patterns, load_trunk

KERAS_FILE, GOLDEN_FILE, EVALUATION_FILE = "model.keras", "golden.npz", "evaluation.json"
"""Files beside the graph."""
GOLDEN_WAFERS = 16
"""Most wafers of the batch that every loader repeats before it serves a model."""
MAX_GOLDEN_PLACES = 500_000
"""Most places of that batch."""


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What was taught, ready to be exported; see `ModelManifest` and `TrainingOutcome` for the rest.

    Attributes:
        model: from dies to the outputs by name.
        classes: classes that it answers.
        training_wafers: wafers that taught it.
    """

    model: keras.Model
    classes: tuple[DatasetClass, ...]
    training_wafers: int
    novelty_threshold: float
    temperature: float = 1.0
    accept_threshold: float = 0.0
    best_epoch: int = 0
    epochs: int = 0
    doubtful_lots: tuple[str, ...] = ()
    known_patterns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Measured:
    """What the exported file was measured to do."""

    tune: Evaluation
    test: Evaluation | None
    tune_answers: Answers
    test_answers: Answers
    parity_wafers: int
    parity_max_difference: float


def run(context: JobContext, library: BackboneLibrary) -> TrainingOutcome:
    """Does one training job; writes model.onnx, model.keras, evaluation.json, golden.npz and candidate.json.

    What is quantised lies in a folder of its own, without model.keras.

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
    for caution in wafers.cautions:
        context.report(WARNING_KIND, message=caution.sentence)
    context.check_cancelled()
    keras.utils.set_random_seed(config.seed)
    tf.config.experimental.enable_op_determinism()
    trunk = load_trunk(backbone, library)
    _begin(context, "features", FEATURES_PROGRESS)
    if config.task is Task.NORMAL:
        lesson = _teach_normal(context, trunk, backbone, wafers, config.seed)
    else:
        lesson = _teach_patterns(context, library, backbone, trunk, wafers, config)
    doubts = _of_lots(lesson.doubtful_lots)
    for warning in doubts:
        context.report(WARNING_KIND, message=warning)
    lesson.model.save(context.folder / KERAS_FILE)
    export_onnx(lesson.model, context.folder / MODEL_FILE)
    _begin(context, "evaluating", 0.9)
    measured = _measure(context, lesson, wafers, config.task)
    quantised = _quantise(context, lesson, wafers, config.task, measured) if config.quantise else None
    outcome = TrainingOutcome(
        best_epoch=lesson.best_epoch,
        epochs=lesson.epochs,
        tune=measured.tune,
        test=measured.test,
        class_names=tuple((each.class_id, each.display_name) for each in wafers.classes),
        model_bytes=(context.folder / MODEL_FILE).stat().st_size,
        parity_max_difference=measured.parity_max_difference,
        parity_wafers=measured.parity_wafers,
        backbone=backbone.backbone_id,
        training_wafers=lesson.training_wafers,
        seconds=context.elapsed_s(),
        peak_memory_bytes=context.peak_memory_bytes(),
        warnings=(*(each.sentence for each in wafers.cautions), *doubts),
        doubtful_lots=lesson.doubtful_lots,
        known_patterns=lesson.known_patterns,
        split_cautions=wafers.cautions,
        quantised=quantised[0] if quantised else None,
    )
    manifest = _manifest(lesson, spec, backbone)
    scores = outcome.to_json()
    _write_facts(context.folder, manifest, scores, (KERAS_FILE,))
    if quantised:
        variant = dataclasses.replace(manifest, quantised=True, accept_threshold=quantised[1])
        _write_facts(context.folder / QUANTISED_FOLDER, variant, scores["quantised"])
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


def _of_lots(doubtful: Sequence[str]) -> list[str]:
    """Returns a warning of lots whose labels are in doubt, where there are any."""
    if not doubtful:
        return []
    return [
        f"In the tune lots {', '.join(doubtful)} the labels contradict answers that the model is sure of far more "
        "often than in the others. Look at these labels. What is accepted without a look was decided without these "
        "lots."
    ]


def _read(context: JobContext, spec: TrainingSpec, size: int) -> TeachingSet:
    dataset = open_dataset(context.store, spec.dataset_id)
    check_dataset(dataset.manifest, spec.config.task)
    generated = [open_dataset(context.store, each) for each in spec.generated if spec.config.use_generated_wafers]
    for each in generated:
        check_generated(dataset.manifest, each.manifest)
    wafers = read_teaching_set(dataset, generated, size, spec.config.seed, spec.config.task)
    if spec.config.use_generated_wafers or not wafers.train.generated.any():
        return wafers
    real = wafers.train.chosen(np.flatnonzero(~wafers.train.generated))
    return dataclasses.replace(wafers, train=real)


def _teach_patterns(
    context: JobContext,
    library: BackboneLibrary,
    backbone: Backbone,
    trunk: keras.Model,
    wafers: TeachingSet,
    config: TrainingConfig,
) -> _Lesson:
    """Teaches the one pattern of a wafer, or several."""
    taught = teach(trunk, backbone, wafers, config, context, load_known_patterns(backbone, library))
    _begin(context, "exporting", TRAINED_PROGRESS)
    train = wafers.train
    groups = sets_of(train)
    rows = bank_rows(groups, train.generated, int(groups.max()) + 1, config.seed)
    embeddings_of = _embedder(context, trunk, backbone)
    bank, tune = embeddings_of(train.planes[rows]), embeddings_of(wafers.tune.planes)
    shape = (trunk, backbone.orientations, backbone.size)
    if config.task is Task.SEVERAL:
        shown = wafers.tune.shown[:, pattern_columns(wafers.classes)]
        calibration = calibrate_several(taught.head, bank, tune, shown, wafers.tune.lots)
        model = several_model(*shape, taught.head, calibration, normal_position(wafers.classes))
    else:
        labels, count = train.labels[rows], len(wafers.classes)
        outliers = read_outliers(library, backbone.size, len(train) / count)
        strange = embeddings_of(outliers.planes)
        free = unclaimed(outliers, strange, wafers.classes, bank, labels)
        sentry = teach_sentry(bank, labels, strange[free], outliers.labels[free], count, config.seed)
        calibration = calibrate(taught.head, sentry, bank, tune, wafers.tune.labels, wafers.tune.lots)
        model = taught_model(*shape, taught.head, calibration)
    return _Lesson(
        model=model,
        classes=wafers.classes,
        training_wafers=len(train),
        temperature=calibration.temperature,
        accept_threshold=calibration.accept_threshold,
        novelty_threshold=calibration.novelty_threshold,
        best_epoch=taught.best_epoch,
        epochs=taught.epochs,
        doubtful_lots=calibration.doubtful_lots,
        known_patterns=taught.known_patterns,
    )


def _teach_normal(
    context: JobContext, trunk: keras.Model, backbone: Backbone, wafers: TeachingSet, seed: int
) -> _Lesson:
    """Remembers normal wafers; wafers of other classes and generated ones teach nothing."""
    train = wafers.train
    normal = np.array([each.normal for each in wafers.classes])
    rows = bank_of_normal(np.flatnonzero(normal[train.labels] & ~train.generated), seed)
    embeddings_of = _embedder(context, trunk, backbone)
    bank = embeddings_of(train.planes[rows])
    judges = normal[wafers.tune.labels]
    tune = embeddings_of(wafers.tune.planes[judges]) if judges.any() else bank[:0]
    _begin(context, "exporting", TRAINED_PROGRESS)
    calibration = calibrate_normal(bank, [train.lots[row] for row in rows], tune)
    return _Lesson(
        model=normal_model(trunk, backbone.orientations, backbone.size, calibration),
        classes=tuple(each for each in wafers.classes if each.normal),
        training_wafers=len(rows),
        novelty_threshold=calibration.threshold,
    )


def _embedder(
    context: JobContext, trunk: keras.Model, backbone: Backbone
) -> Callable[[NDArray[np.float16]], NDArray[np.float32]]:
    """Returns what turns planes into embeddings, made once because TensorFlow takes seconds to trace it."""
    traced = embedder(embedding_model(trunk, backbone.orientations))
    return lambda planes: embed(traced, planes, lambda _: context.check_cancelled(), backbone.orientations)


def sets_of(side: Side) -> NDArray[np.int64]:
    """Returns a number (N,) for each wafer's set of classes: its class where every wafer shows one."""
    if (side.shown.sum(axis=1) == 1).all():
        return side.labels
    return np.unique(side.shown, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _measure(context: JobContext, lesson: _Lesson, wafers: TeachingSet, task: Task) -> _Measured:
    """Scores the exported file itself, so that what is measured is what is served."""
    session = open_session(context.folder / MODEL_FILE)
    tune = answers_of(session, wafers.tune.grids, context.check_cancelled)
    test = answers_of(session, wafers.test.grids, context.check_cancelled)
    context.check_cancelled()
    judged, known = (wafers.test, test) if len(wafers.test) else (wafers.tune, tune)
    parity = prove_parity(lesson.model, session, judged.grids, known, context.check_cancelled, task)
    _write_golden(context.folder / GOLDEN_FILE, session, judged)
    return _Measured(
        tune=_scores(wafers.classes, wafers.tune, tune, lesson.accept_threshold, task),
        test=_scores(wafers.classes, wafers.test, test, lesson.accept_threshold, task) if len(wafers.test) else None,
        tune_answers=tune,
        test_answers=test,
        parity_wafers=parity.wafers,
        parity_max_difference=parity.max_difference,
    )


def _quantise(
    context: JobContext, lesson: _Lesson, wafers: TeachingSet, task: Task, plain: _Measured
) -> tuple[QuantisedVariant, float]:
    """Writes the quantised variant and its golden batch, and measures it; returns its accept threshold, too."""
    folder = context.folder / QUANTISED_FOLDER
    folder.mkdir(exist_ok=True)
    quantise(context.folder / MODEL_FILE, folder / MODEL_FILE, wafers.train.grids, context.check_cancelled)
    session = open_session(folder / MODEL_FILE)
    tune = answers_of(session, wafers.tune.grids, context.check_cancelled)
    test = answers_of(session, wafers.test.grids, context.check_cancelled)
    _write_golden(folder / GOLDEN_FILE, session, wafers.test if len(wafers.test) else wafers.tune)
    accept = _accept_threshold(lesson, wafers, tune, task)
    same = np.concatenate([same_answers(plain.tune_answers, tune, task), same_answers(plain.test_answers, test, task)])
    variant = QuantisedVariant(
        tune=_scores(wafers.classes, wafers.tune, tune, accept, task),
        test=_scores(wafers.classes, wafers.test, test, accept, task) if len(wafers.test) else None,
        model_bytes=(folder / MODEL_FILE).stat().st_size,
        compared_wafers=len(same),
        same_answers=float(same.mean()),
    )
    return variant, accept


def _accept_threshold(lesson: _Lesson, wafers: TeachingSet, tune: Answers, task: Task) -> float:
    """Returns the accept rule that the tune wafers give a graph with the temperature and the novelty of the lesson."""
    if task is Task.NORMAL:
        return lesson.accept_threshold
    side, normal = wafers.tune, [each.normal for each in wafers.classes]
    if task is Task.SEVERAL:
        confidence = set_confidence(tune.probabilities, normal)
        right = (shown_classes(tune.probabilities, normal) == side.shown)[:, pattern_columns(wafers.classes)].all(
            axis=1
        )
    else:
        confidence = tune.probabilities.max(axis=1)
        right = tune.probabilities.argmax(axis=1) == side.labels
    return accept_threshold_of(confidence, right, tune.novelty <= 1.0, side.lots, lesson.doubtful_lots)


def _scores(
    classes: Sequence[DatasetClass], side: Side, answers: Answers, accept_threshold: float, task: Task
) -> Evaluation:
    probabilities, known = answers.probabilities, answers.novelty <= 1.0
    normal = [each.normal for each in classes]
    if task is Task.NORMAL:
        return evaluate_normal(answers.novelty, side.labels, normal, side.lots)
    if task is Task.SEVERAL:
        sure = set_confidence(probabilities, normal) >= accept_threshold
        return evaluate_several(probabilities, side.shown, normal, side.lots, sure & known)
    sure = probabilities.max(axis=1) >= accept_threshold
    return evaluate(probabilities, side.labels, side.lots, sure & known)


def _write_golden(path: Path, session: Any, side: Side) -> None:
    """Writes a few wafers of each set of classes in turn and their answers."""
    rows = golden_rows(sets_of(side), side.grids)
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


def _manifest(lesson: _Lesson, spec: TrainingSpec, backbone: Backbone) -> ModelManifest:
    return ModelManifest(
        classes=tuple(ModelClass(each.class_id, each.display_name, each.normal) for each in lesson.classes),
        size=backbone.size,
        temperature=lesson.temperature,
        accept_threshold=lesson.accept_threshold,
        novelty_threshold=lesson.novelty_threshold,
        task=spec.config.task,
        dataset_version=f"datasetVersions/{spec.dataset_id}",
        backbone=backbone.backbone_id,
        golden=GOLDEN_FILE,
    )


def _write_facts(folder: Path, manifest: ModelManifest, data: Mapping[str, Any], further: tuple[str, ...] = ()) -> None:
    """Writes the scores and the manifest of a candidate beside its graph and its golden batch.

    Args:
        folder: of the candidate.
        manifest: without scores.
        data: JSON values of its scores, `tune` and `test`.
        further: names of its other files.
    """
    sides = {name: data[name] for name in ("tune", "test") if name in data}
    figures = ["wafers", "lots", "macro_f1", "accuracy", "accepted_share", "accepted_error"]
    if manifest.task is Task.NORMAL:
        figures.append("auroc")
    (folder / EVALUATION_FILE).write_text(json.dumps(sides, indent=2, ensure_ascii=False))
    scores: dict[str, Any] = {side: {name: each[name] for name in figures} for side, each in sides.items()}
    if manifest.quantised:
        scores["same_answers"] = data["same_answers"]
    scored = dataclasses.replace(manifest, scores=scores)
    write_candidate(folder, scored, (MODEL_FILE, *further, GOLDEN_FILE, EVALUATION_FILE))
