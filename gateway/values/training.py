"""Trainings: settings, runs, events, results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from gateway.values.common import Problem
from gateway.values.evaluation import Evaluation
from gateway.values.jobs import JobState, JobStateChanged


class ModelSize(StrEnum):
    """Size of the pretrained model."""

    FAST = "fast"
    BALANCED = "balanced"
    BEST = "best"


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """The Advanced box.

    Attributes:
        epochs: Passes over the training wafers, 1 to 1,000.
        batch_size: Wafers a step, 1 to 4,096.
        learning_rate: Step size, over 0, at most 1.
        model_size: Size of the pretrained model.
        backbone: Pretrained model by name; "" means the one of model_size.
        augmentation: Strength of rotation, mirroring and die noise, 0 to 1.
        use_generated: Whether generated wafers enter training.
        seed: Seed of everything random, 0 to 2^32-1.
        fine_tune: Whether the pretrained weights are taught too; None: where the trainer knows that it pays.
        early_stopping_epochs: Epochs without a better tune score before it stops; 0 never.
        quantise: Whether a quantised variant is made too: smaller, faster on processors, slightly less exact.
    """

    epochs: int = 50
    batch_size: int = 16
    learning_rate: float = 0.001
    model_size: ModelSize = ModelSize.FAST
    backbone: str = ""
    augmentation: float = 1.0
    use_generated: bool = True
    seed: int = 0
    fine_tune: bool | None = None
    early_stopping_epochs: int = 10
    quantise: bool = False


@dataclass(frozen=True, slots=True)
class Backbone:
    """A pretrained model that can be taught.

    Attributes:
        backbone_id: Name, for TrainingOptions.backbone.
        name: Text for people.
        model_size: Size whose default it is, or None.
        parameters: Weights in the network.
        mflops: Multiplications an answer, millions.
        available: Whether its weights are there and whole.
        unavailable_reason: Why not and what to do; "" when it is.
    """

    backbone_id: str
    name: str
    model_size: ModelSize | None
    parameters: int
    mflops: float
    available: bool
    unavailable_reason: str = ""


@dataclass(frozen=True, slots=True)
class FrozenDataset:
    """A data set version made of a project.

    Attributes:
        dataset_id: Its id.
        project_id: Its project.
        wafers: Real wafers on each side: `train`, `tune`, `test`.
        generated_dataset_id: Data set version with the generated wafers; "" when there are none.
        generated: Generated wafers that enter training.
        generated_left_out: Generated wafers left out because a lot that they were made from now measures.
        warnings: Sentences about classes that a side had to do without, English.
        created_at: When it was made.
    """

    dataset_id: str
    project_id: str
    wafers: Mapping[str, int]
    generated_dataset_id: str
    generated: int
    generated_left_out: int
    warnings: tuple[str, ...]
    created_at: datetime


class SplitCautionKind(StrEnum):
    """What makes scores less sure than they look; see the trainer's protocol."""

    TUNE_FROM_TRAINING = "tune_from_training"
    LOT_ON_BOTH_SIDES = "lot_on_both_sides"
    NO_TUNE_WAFERS = "no_tune_wafers"
    NO_TEST_WAFERS = "no_test_wafers"


@dataclass(frozen=True, slots=True)
class SplitCaution:
    """A warning on how the wafers were divided.

    Attributes:
        kind: What it is.
        class_ids: Classes that it concerns; none where it concerns all.
    """

    kind: SplitCautionKind
    class_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QuantisedVariant:
    """The model of a training with its convolutions in 8 bits, measured on the same wafers.

    Attributes:
        tune: Scores on the tune wafers; None when the data set has none.
        test: Scores on the locked test; None when the data set has none.
        model_bytes: Size of the ONNX file.
        compared_wafers: Tune and test wafers that both were asked about.
        same_answers: Share of them to which both say the same.
        least_same_answers: Least share with which it may be published.
    """

    tune: Evaluation | None
    test: Evaluation | None
    model_bytes: int
    compared_wafers: int
    same_answers: float
    least_same_answers: float

    @property
    def publishable(self) -> bool:
        """Whether the trainer publishes it."""
        return self.same_answers >= self.least_same_answers


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a succeeded training made.

    Attributes:
        best_epoch: Epoch whose weights are the model's, from 1.
        epochs: Epochs that ran.
        tune: Scores on the tune wafers; None when the data set has none.
        test: Scores on the locked test; None when the data set has none.
        model_bytes: Size of the ONNX file.
        parity_max_difference: Largest difference between an ONNX and a Keras probability.
        parity_wafers: Wafers on which both were compared.
        backbone: Pretrained model it was taught from.
        training_wafers: Wafers trained on, generated ones included.
        seconds: Wall time.
        peak_memory_bytes: Peak resident memory.
        doubtful_lots: Tune lots whose labels contradict sure answers so often that the accept rule left them out.
        known_patterns: Pattern that pretraining knows by name and that a class looks like, by the class's id.
        cautions: Warnings on how the wafers were divided.
        quantised: Its quantised variant; None where none was made.
    """

    best_epoch: int
    epochs: int
    tune: Evaluation | None
    test: Evaluation | None
    model_bytes: int
    parity_max_difference: float
    parity_wafers: int
    backbone: str
    training_wafers: int
    seconds: float
    peak_memory_bytes: int
    doubtful_lots: tuple[str, ...] = ()
    known_patterns: Mapping[str, str] = field(default_factory=dict)
    cautions: tuple[SplitCaution, ...] = ()
    quantised: QuantisedVariant | None = None


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One training of a project.

    Attributes:
        run_id: Id of the job, as in `trainingJobs/{run_id}`.
        project_id: Its project; "" for trainings started elsewhere.
        dataset_id: Data set version it teaches from.
        options: How it teaches.
        state: Where it stands.
        progress: Share done, 0 to 1.
        queue_position: Trainings that start before this one.
        device: Device it runs on, for people; "" before it runs.
        created_at: When it was started by a person.
        started_at: When it first ran.
        ended_at: When it ended.
        problem: Why it failed, or why its model could not be published.
        result: What it made, when it succeeded.
        model_id: Model it was published as, "" before.
        model_version: Version it was published as, 0 before.
        quantised_version: Version its quantised variant was published as, 0 before.
    """

    run_id: str
    project_id: str
    dataset_id: str
    options: TrainingOptions
    state: JobState
    progress: float
    queue_position: int
    device: str
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    problem: Problem | None = None
    result: TrainingResult | None = None
    model_id: str = ""
    model_version: int = 0
    quantised_version: int = 0


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A step of the work began.

    Attributes:
        sequence: Number of the event in its job, from 1.
        when: When it happened.
        stage: `reading`, `features`, `training`, `evaluating` or `exporting`.
        progress: Share of the whole work done, 0 to 1.
        device: Device in use; set with the first stage.
    """

    sequence: int
    when: datetime
    stage: str
    progress: float
    device: str = ""


@dataclass(frozen=True, slots=True)
class EpochEnded:
    """An epoch ended.

    Attributes:
        sequence: Number of the event in its job, from 1.
        when: When it happened.
        epoch: Number of the epoch, from 1.
        epochs: Epochs asked for.
        loss: Mean loss on the training wafers.
        accuracy: Share of training wafers right.
        tune_loss: Mean loss on the tune wafers.
        tune_accuracy: Share of tune wafers right.
        tune_macro_f1: Macro-F1 on the tune wafers.
        seconds: Wall time of the epoch.
        best: Whether it is the best epoch so far.
    """

    sequence: int
    when: datetime
    epoch: int
    epochs: int
    loss: float
    accuracy: float
    tune_loss: float
    tune_accuracy: float
    tune_macro_f1: float
    seconds: float
    best: bool


@dataclass(frozen=True, slots=True)
class Warned:
    """Something about the data or the result that a person should know.

    Attributes:
        sequence: Number of the event in its job, from 1.
        when: When it happened.
        message: One or two sentences, English.
    """

    sequence: int
    when: datetime
    message: str


@dataclass(frozen=True, slots=True)
class ModelPublished:
    """The model of a training was published and serves. Comes after the job's last event.

    Attributes:
        sequence: That of the job's last event.
        when: When it happened.
        model_id: Name of the model.
        version: Its version.
    """

    sequence: int
    when: datetime
    model_id: str
    version: int


@dataclass(frozen=True, slots=True)
class PublishFailed:
    """The training succeeded, but its model could not be published or loaded. Publishing can be tried again.

    Attributes:
        sequence: That of the job's last event.
        when: When it happened.
        problem: Why.
    """

    sequence: int
    when: datetime
    problem: Problem


TrainingEvent = JobStateChanged | StageStarted | EpochEnded | Warned | ModelPublished | PublishFailed
"""What `Studio.training.watch` yields."""
