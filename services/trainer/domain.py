"""What a training is asked to do and what came of it. No protocol buffers, no TensorFlow."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from services.common.dataset import DatasetClass, DatasetManifest, Split
from services.common.errors import FailedPreconditionError, FieldViolation, InvalidArgumentError
from services.common.evaluation import Evaluation
from services.common.task import Task
from services.trainer.backbones import BACKBONES

JOB_KIND = "training"
"""Kind of the trainer's jobs in the job store."""
EPOCH_KIND = "epoch"
"""Kind of the event at the end of an epoch; its data are those of `EpochReport`."""
STAGE_KIND = "stage"
"""Kind of the event at the beginning of a step of the work."""
WARNING_KIND = "warning"
"""Kind of the event that tells what a person should know about the data or the result."""

LEAST_SAME_ANSWERS = 0.98
"""Least share of held back wafers to which a quantised variant must say the same to be published."""
PARITY_TOLERANCE = 1e-4
"""Largest difference allowed between a probability of the exported graph and of what taught it."""
MIN_CLASSES = 2
"""Fewest classes that can be told apart."""
MIN_CLASS_WAFERS = 5
"""Fewest wafers of a class, all sides of the split together."""
MIN_NORMAL_WAFERS = 20
"""Fewest wafers of the normal class where only it is taught, all sides of the split together."""
MODEL_SIZES = ("fast", "balanced", "best")
"""Sizes of pretrained models, in the order of the protocol's enum."""
MAX_EPOCHS = 1000
MAX_BATCH_SIZE = 4096
MAX_SEED = 2**32 - 1

CONFIG = "training_job.config"
"""Path of the settings in a request."""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Settings of a teaching, with their defaults.

    Attributes:
        epochs: passes over the training wafers.
        batch_size: wafers a step.
        learning_rate: step size of the optimiser.
        model_size: one of MODEL_SIZES.
        backbone: name of the pretrained network; "" takes the one of the model size.
        augmentation: strength of turning, mirroring and die noise, 0 to 1.
        use_generated_wafers: whether generated wafers enter training.
        seed: seed of everything random.
        fine_tune: whether the network's own weights are taught too once there are wafers enough; see `fine_tune_pays`.
        early_stopping_epochs: epochs without a better tune score after which teaching stops; 0 never.
        task: what the model is to tell.
        quantise: whether a quantised variant of the model is made too.
    """

    epochs: int = 50
    batch_size: int = 16
    learning_rate: float = 0.001
    model_size: str = "fast"
    backbone: str = ""
    augmentation: float = 1.0
    use_generated_wafers: bool = True
    seed: int = 0
    fine_tune: bool = False
    early_stopping_epochs: int = 10
    task: Task = Task.SINGLE
    quantise: bool = False


def fine_tune_pays(task: Task, backbone_id: str) -> bool:
    """Returns whether teaching the network's own weights gains anything, unless a request says what to do.

    Sets of patterns are told better then. Where a wafer shows one, shipped networks gained nothing on locked lots,
    whether pretraining knew the classes or not, and a classifier alone takes a third of the time; a network that never
    saw a wafer gains.

    Args:
        task: what the model is to tell.
        backbone_id: name of the network; "" is one of the shipped.
    """
    backbone = BACKBONES.get(backbone_id)
    return task is Task.SEVERAL or (backbone is not None and not backbone.weights)


@dataclass(frozen=True, slots=True)
class TrainingSpec:
    """A teaching to do.

    Attributes:
        dataset_id: data set version to teach from.
        generated: data set versions with wafers generated from it.
        config: how to teach.
    """

    dataset_id: str
    generated: tuple[str, ...] = ()
    config: TrainingConfig = field(default_factory=TrainingConfig)

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values that `from_json` reads."""
        return {"dataset_id": self.dataset_id, "generated": list(self.generated), "config": asdict(self.config)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrainingSpec:
        """Reads what `to_json` made."""
        config = TrainingConfig(**data["config"])
        return cls(data["dataset_id"], tuple(data["generated"]), replace(config, task=Task(config.task)))


@dataclass(frozen=True, slots=True)
class EpochReport:
    """How an epoch ended.

    Attributes:
        epoch: number of the epoch, from 1.
        epochs: epochs asked for.
        loss: mean loss on the training wafers.
        accuracy: share of training wafers right.
        tune_loss: mean loss on the tune wafers.
        tune_accuracy: share of tune wafers right.
        tune_macro_f1: macro-F1 on the tune wafers.
        seconds: wall time of the epoch.
        best: whether it is the best so far.
    """

    epoch: int
    epochs: int
    loss: float
    accuracy: float
    tune_loss: float
    tune_accuracy: float
    tune_macro_f1: float
    seconds: float
    best: bool


class SplitCautionKind(enum.StrEnum):
    """What makes scores less sure than they look; see the protocol's `SplitCaution`."""

    TUNE_FROM_TRAINING = "tune_from_training"
    LOT_ON_BOTH_SIDES = "lot_on_both_sides"
    NO_TUNE_WAFERS = "no_tune_wafers"
    NO_TEST_WAFERS = "no_test_wafers"


@dataclass(frozen=True, slots=True)
class SplitCaution:
    """A warning on how the wafers were divided.

    Attributes:
        kind: what it is.
        class_ids: classes that it concerns; none where it concerns all.
        sentence: the warning for people, English.
    """

    kind: SplitCautionKind
    class_ids: tuple[str, ...]
    sentence: str


@dataclass(frozen=True, slots=True)
class QuantisedVariant:
    """The quantised variant of a model, measured on the same wafers.

    Attributes:
        tune: scores on the tune wafers, by which its accept rule was chosen anew.
        test: scores on the locked test wafers; None when the data set has none.
        model_bytes: size of its ONNX file.
        compared_wafers: wafers, tune and test, that both were asked about.
        same_answers: share of them to which both say the same; see `export.quantised.same_answers`.
        least_same_answers: least share with which it may be published.
    """

    tune: Evaluation
    test: Evaluation | None
    model_bytes: int
    compared_wafers: int
    same_answers: float
    least_same_answers: float = LEAST_SAME_ANSWERS


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What a teaching came to.

    Attributes:
        best_epoch: epoch whose weights are the model's, from 1; 0 where only normal wafers teach.
        epochs: epochs that ran.
        tune: scores on the tune wafers.
        test: scores on the locked test wafers; None when the data set has none.
        class_names: id and display name of each class of the data set.
        model_bytes: size of the ONNX file.
        parity_max_difference: largest difference between an ONNX and a Keras probability.
        parity_wafers: wafers compared.
        backbone: network that was taught.
        training_wafers: wafers trained on, generated ones included.
        seconds: wall time of the attempt.
        peak_memory_bytes: peak resident memory of the attempt.
        warnings: what a person should know about the data or the result.
        doubtful_lots: tune lots that the accept rule left out; see `services.trainer.calibration.doubtful_lots`.
        known_patterns: name of the known pattern that a class was taken for, by the class's id; see
            `services.trainer.known_patterns`.
        split_cautions: of the warnings, those on how the wafers were divided.
        quantised: the quantised variant; None where none was asked for.
    """

    best_epoch: int
    epochs: int
    tune: Evaluation
    test: Evaluation | None
    class_names: tuple[tuple[str, str], ...]
    model_bytes: int
    parity_max_difference: float
    parity_wafers: int
    backbone: str
    training_wafers: int
    seconds: float
    peak_memory_bytes: int
    warnings: tuple[str, ...] = ()
    doubtful_lots: tuple[str, ...] = ()
    known_patterns: Mapping[str, str] = field(default_factory=dict)
    split_cautions: tuple[SplitCaution, ...] = ()
    quantised: QuantisedVariant | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the outcome as JSON values whose names are those of the protocol's `TrainingResult`."""
        data = asdict(self)
        names = data.pop("class_names")
        if data["quantised"] is None:
            del data["quantised"]
        for scored in (data, data.get("quantised", {})):
            for side in ("tune", "test"):
                if scored.get(side) is None:
                    scored.pop(side, None)
                else:
                    scored[side] = _evaluation_to_json(scored[side], names)
        return data


def check_spec(spec: TrainingSpec) -> None:
    """Checks the values of a request alone.

    Raises:
        InvalidArgumentError: with a violation for each value out of range.
    """
    config = spec.config
    wrong = [
        _violation(name, expected, getattr(config, name))
        for name, good, expected in (
            ("epochs", 1 <= config.epochs <= MAX_EPOCHS, f"1 to {MAX_EPOCHS}"),
            ("batch_size", 1 <= config.batch_size <= MAX_BATCH_SIZE, f"1 to {MAX_BATCH_SIZE}"),
            # Written so that NaN is out of range, too.
            ("learning_rate", 0 < config.learning_rate <= 1, "a number over 0, at most 1"),
            ("model_size", config.model_size in MODEL_SIZES, f"one of {', '.join(MODEL_SIZES)}"),
            ("augmentation", 0 <= config.augmentation <= 1, "0 to 1"),
            ("backbone", config.backbone in ("", *BACKBONES), f"one of {', '.join(BACKBONES)}"),
            ("seed", 0 <= config.seed <= MAX_SEED, f"0 to {MAX_SEED}"),
            ("early_stopping_epochs", config.early_stopping_epochs >= 0, "0 or more"),
        )
        if not good
    ]
    if len(set(spec.generated)) != len(spec.generated):
        text = "Expected each data set version once."
        wrong.append(FieldViolation("training_job.generated_dataset_versions", text))
    if wrong:
        text = " ".join(f"{each.field}: {each.description}" for each in wrong)
        raise InvalidArgumentError(f"The settings are wrong. {text}", violations=wrong)


def check_dataset(manifest: DatasetManifest, task: Task) -> None:
    """Checks that a data set version can teach.

    * A single pattern: two classes, and no wafer that shows several.
    * Several patterns: two classes, one of them at least a pattern; at most one normal class.
    * Only normal: one normal class with MIN_NORMAL_WAFERS wafers. Other classes need none.

    Raises:
        FailedPreconditionError: it is otherwise, or a class that teaches has too few wafers or none to train on.
    """
    normal = [each for each in manifest.classes if each.normal]
    if task is not Task.SINGLE and len(normal) > 1:
        raise FailedPreconditionError(
            f"Expected one normal class at most. Received: {', '.join(each.display_name for each in normal)}. "
            "Merge them.",
            subject=manifest.name,
            reason="TOO_MANY_NORMAL_CLASSES",
        )
    if task is Task.NORMAL:
        _check_normal(manifest, normal)
        return
    if len(manifest.classes) < MIN_CLASSES:
        raise FailedPreconditionError(
            f"Expected at least {MIN_CLASSES} classes to tell apart. Received: {len(manifest.classes)}. Add a class.",
            subject=manifest.name,
            reason="TOO_FEW_CLASSES",
        )
    if task is Task.SINGLE and sum(sum(sides.values()) for sides in manifest.counts.values()) > manifest.wafers:
        raise FailedPreconditionError(
            "Expected wafers of a single class. Received: some that show several. Choose the project type with several "
            "patterns a wafer, or leave one class to each of these wafers.",
            subject=manifest.name,
            reason="SEVERAL_CLASSES",
        )
    for each in manifest.classes:
        _check_class(manifest, each, MIN_CLASS_WAFERS)


def _check_normal(manifest: DatasetManifest, normal: list[DatasetClass]) -> None:
    if not normal:
        raise FailedPreconditionError(
            "Expected a normal class, the one whose pattern is none. "
            f"Received: {', '.join(each.display_name for each in manifest.classes)}. Name the normal class.",
            subject=manifest.name,
            reason="NO_NORMAL_CLASS",
        )
    _check_class(manifest, normal[0], MIN_NORMAL_WAFERS)


def _check_class(manifest: DatasetManifest, class_: DatasetClass, least: int) -> None:
    counts = manifest.counts[class_.class_id]
    wafers = sum(counts.values())
    if wafers < least or not counts[Split.TRAIN]:
        raise FailedPreconditionError(
            f"Expected at least {least} wafers of class {class_.display_name!r}, one for training. "
            f"Received: {wafers}, {counts[Split.TRAIN]} for training. Add wafers to the class"
            f"{', or remove it' if least == MIN_CLASS_WAFERS else ''}.",
            subject=class_.class_id,
            reason="TOO_FEW_WAFERS",
            metadata={"class_id": class_.class_id, "wafers": str(wafers)},
        )


def check_generated(manifest: DatasetManifest, generated: DatasetManifest) -> None:
    """Checks that a data set version with generated wafers fits the one that it was made from.

    Raises:
        FailedPreconditionError: it was made from another data set version, or has a class of its own.
    """
    if generated.parent != manifest.dataset_id:
        raise FailedPreconditionError(
            f"Expected wafers generated from {manifest.name}. Received: {generated.name}, which was generated from "
            f"{generated.parent or 'none'}. Generate them again from this data set version.",
            subject=generated.name,
            reason="OTHER_PARENT",
        )
    unknown = {each.class_id for each in generated.classes} - {each.class_id for each in manifest.classes}
    if unknown:
        raise FailedPreconditionError(
            f"Expected only classes of {manifest.name}. Received: {', '.join(sorted(unknown))} in {generated.name}.",
            subject=generated.name,
            reason="OTHER_CLASSES",
        )


def _violation(name: str, expected: str, received: object) -> FieldViolation:
    shown = f"{received:g}" if isinstance(received, float) and math.isfinite(received) else f"{received}"[:100]
    return FieldViolation(f"{CONFIG}.{name}", f"Expected {expected}. Received: {shown}.")


def _evaluation_to_json(data: dict[str, Any], names: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    def interval(values: Any) -> dict[str, float]:
        return {"low": values[0], "high": values[1]}

    classes = [
        {
            **score,
            "recall_interval": interval(score["recall_interval"]),
            "class_id": class_id,
            "display_name": display_name,
        }
        for score, (class_id, display_name) in zip(data["classes"], names, strict=True)
    ]
    return {
        **data,
        "macro_f1_interval": interval(data["macro_f1_interval"]),
        "classes": classes,
        "confusion": [count for row in data["confusion"] for count in row],
    }
