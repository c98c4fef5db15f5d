"""The trainer's messages from and to its domain. Only this module and the servicer see `trainer_pb2`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp
from teachwafer.trainer.v1 import trainer_pb2

from services.common.errors import InvalidArgumentError
from services.common.jobs import Job, JobEvent, JobState
from services.common.jobs.wire import VALIDATED_ID, check_display_name, fill_in
from services.common.jobs.worker import PROGRESS_KIND
from services.common.resource_names import DatasetVersionName, TrainingJobName
from services.common.task import Task
from services.trainer.domain import (
    CONFIG,
    EPOCH_KIND,
    MODEL_SIZES,
    STAGE_KIND,
    WARNING_KIND,
    EpochReport,
    TrainingConfig,
    TrainingSpec,
    fine_tune_pays,
)

_TASKS = {
    Task.SINGLE: trainer_pb2.TrainingConfig.TASK_SINGLE_PATTERN,
    Task.SEVERAL: trainer_pb2.TrainingConfig.TASK_SEVERAL_PATTERNS,
    Task.NORMAL: trainer_pb2.TrainingConfig.TASK_ONLY_NORMAL,
}

# Fields with presence: absent means the default of `TrainingConfig`.
_OPTIONAL = (
    "epochs",
    "batch_size",
    "learning_rate",
    "augmentation",
    "use_generated_wafers",
    "seed",
    "fine_tune",
    "early_stopping_epochs",
)


def spec_from_proto(job: trainer_pb2.TrainingJob) -> TrainingSpec:
    """Returns what a job is to teach; values are checked by `domain.check_spec`.

    Raises:
        InvalidArgumentError: a data set version is no name, the display name is too long, or the task is unknown.
    """
    check_display_name(job.display_name, "training_job.display_name")
    dataset = DatasetVersionName.parse(job.dataset_version, "training_job.dataset_version")
    generated = tuple(
        DatasetVersionName.parse(name, f"training_job.generated_dataset_versions[{index}]").id
        for index, name in enumerate(job.generated_dataset_versions)
    )
    return TrainingSpec(dataset.id, generated, _config_from_proto(job.config))


def job_to_proto(job: Job) -> trainer_pb2.TrainingJob:
    """Returns a job as it stands."""
    message = _requested(TrainingSpec.from_json(job.spec))
    fill_in(message, job, str(TrainingJobName(job.id)))
    if job.state is JobState.SUCCEEDED and job.result is not None:
        # A result of a later version may carry more than this protocol shows.
        ParseDict(_result_to_wire(job.result), message.result, ignore_unknown_fields=True)
    return message


def validated_to_proto(spec: TrainingSpec, display_name: str) -> trainer_pb2.TrainingJob:
    """Returns the job that a checked request would make."""
    message = _requested(spec)
    message.name = str(TrainingJobName(VALIDATED_ID))
    message.display_name = display_name
    message.state = trainer_pb2.TrainingJob.STATE_QUEUED
    return message


def event_to_proto(event: JobEvent) -> trainer_pb2.TrainingEvent:
    """Returns an event; a kind that this version does not know has no content."""
    time = Timestamp()
    time.FromDatetime(event.time)
    message = trainer_pb2.TrainingEvent(sequence=event.sequence, event_time=time)
    data = event.data
    if event.kind == "state":
        message.state_changed.state = _state(JobState(data["state"]))
        message.state_changed.reason = data.get("reason") or ""
    elif event.kind == EPOCH_KIND:
        values = {field.name: data[field.name] for field in fields(EpochReport)}
        message.epoch_ended.CopyFrom(trainer_pb2.TrainingEvent.EpochEnded(**values))
    elif event.kind in (STAGE_KIND, PROGRESS_KIND):
        message.stage_started.CopyFrom(
            trainer_pb2.TrainingEvent.StageStarted(
                stage=data["stage"], progress=data["share"], device=data["device_name"]
            )
        )
    elif event.kind == WARNING_KIND:
        message.warning.message = data["message"]
    return message


def model_size(size: str) -> trainer_pb2.TrainingConfig.ModelSize.ValueType:
    """Returns a model size by name; "" is unspecified."""
    return trainer_pb2.TrainingConfig.ModelSize.Value(f"MODEL_SIZE_{size.upper() or 'UNSPECIFIED'}")


def _config_from_proto(config: trainer_pb2.TrainingConfig) -> TrainingConfig:
    message: Any = config
    given: dict[str, Any] = {name: getattr(message, name) for name in _OPTIONAL if message.HasField(name)}
    # 0 is "not said", which means the smallest; a number that this version does not know becomes no known size.
    size = config.model_size or trainer_pb2.TrainingConfig.MODEL_SIZE_FAST
    given["model_size"] = MODEL_SIZES[size - 1] if 0 < size <= len(MODEL_SIZES) else str(size)
    task = _task_from_proto(config.task)
    given.setdefault("fine_tune", fine_tune_pays(task, config.backbone))
    return TrainingConfig(backbone=config.backbone, task=task, quantise=config.quantise, **given)


def _task_from_proto(value: trainer_pb2.TrainingConfig.Task.ValueType) -> Task:
    if value == trainer_pb2.TrainingConfig.TASK_UNSPECIFIED:
        return Task.SINGLE
    for task, number in _TASKS.items():
        if number == value:
            return task
    # A wrong task teaches a wrong model: what this version does not know is refused, not replaced.
    raise InvalidArgumentError(f"Expected one of {', '.join(Task)}. Received: task {value}.", f"{CONFIG}.task")


def _requested(spec: TrainingSpec) -> trainer_pb2.TrainingJob:
    values = asdict(spec.config)
    size, task = model_size(values.pop("model_size")), _TASKS[values.pop("task")]
    return trainer_pb2.TrainingJob(
        dataset_version=str(DatasetVersionName(spec.dataset_id)),
        generated_dataset_versions=[str(DatasetVersionName(each)) for each in spec.generated],
        config=trainer_pb2.TrainingConfig(model_size=size, task=task, **values),
    )


def _result_to_wire(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a result with the names of the protocol's enums in the place of ours."""
    cautions = [{**each, "kind": f"KIND_{each['kind'].upper()}"} for each in result.get("split_cautions", ())]
    variant = {"quantised": _sides_to_wire(result["quantised"])} if "quantised" in result else {}
    return {**_sides_to_wire(result), **variant, "split_cautions": cautions}


def _sides_to_wire(scored: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values with the names of the protocol's tasks in the scores of its sides."""
    sides = {side: scored[side] for side in ("tune", "test") if "task" in scored.get(side, ())}
    names = {side: trainer_pb2.TrainingConfig.Task.Name(_TASKS[Task(each["task"])]) for side, each in sides.items()}
    return {**scored, **{side: {**each, "task": names[side]} for side, each in sides.items()}}


def _state(state: JobState) -> trainer_pb2.TrainingJob.State.ValueType:
    return trainer_pb2.TrainingJob.State.Value(f"STATE_{state.value}")
