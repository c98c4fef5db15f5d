"""Between the messages of the services and the values of the gateway. Only gateway.clients sees `*_pb2` beside it."""

from __future__ import annotations

from dataclasses import asdict, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2  # type: ignore[import-untyped]
from inference import grpc_service_pb2
from teachwafer.generator.v1 import generator_pb2
from teachwafer.predictor.v1 import predictor_pb2
from teachwafer.trainer.v1 import trainer_pb2

from gateway.values import (
    Backbone,
    ClassResult,
    ClassScore,
    Decision,
    EpochEnded,
    Evaluation,
    GenerationEvent,
    GenerationPreview,
    GenerationProgress,
    GenerationRequest,
    GenerationResult,
    GenerationRun,
    Interval,
    JobState,
    JobStateChanged,
    Method,
    ModelClass,
    ModelSize,
    ModelState,
    ModelVersion,
    PredictorAnswer,
    Problem,
    Proof,
    QuantisedVariant,
    Realism,
    Simulation,
    SplitCaution,
    SplitCautionKind,
    StageStarted,
    Task,
    TrainingEvent,
    TrainingOptions,
    TrainingResult,
    TrainingRun,
    VariationOptions,
    Warned,
)
from services.common.errors import from_status
from services.common.resource_names import DatasetVersionName, GenerationJobName, TrainingJobName
from services.common.wafer_map_converter import from_proto

# Both services number the states of their jobs alike; a test compares the names.
_STATES = {
    1: JobState.QUEUED,
    2: JobState.STARTING,
    3: JobState.RUNNING,
    4: JobState.SUCCEEDED,
    5: JobState.FAILED,
    6: JobState.CANCELLED,
}
_SIZES = {
    trainer_pb2.TrainingConfig.MODEL_SIZE_FAST: ModelSize.FAST,
    trainer_pb2.TrainingConfig.MODEL_SIZE_BALANCED: ModelSize.BALANCED,
    trainer_pb2.TrainingConfig.MODEL_SIZE_BEST: ModelSize.BEST,
}
_CAUTIONS = {
    trainer_pb2.SplitCaution.KIND_TUNE_FROM_TRAINING: SplitCautionKind.TUNE_FROM_TRAINING,
    trainer_pb2.SplitCaution.KIND_LOT_ON_BOTH_SIDES: SplitCautionKind.LOT_ON_BOTH_SIDES,
    trainer_pb2.SplitCaution.KIND_NO_TUNE_WAFERS: SplitCautionKind.NO_TUNE_WAFERS,
    trainer_pb2.SplitCaution.KIND_NO_TEST_WAFERS: SplitCautionKind.NO_TEST_WAFERS,
}
_SIZE_MESSAGES = {size: message for message, size in _SIZES.items()}
_TASKS = {
    trainer_pb2.TrainingConfig.TASK_SINGLE_PATTERN: Task.SINGLE,
    trainer_pb2.TrainingConfig.TASK_SEVERAL_PATTERNS: Task.SEVERAL,
    trainer_pb2.TrainingConfig.TASK_ONLY_NORMAL: Task.NORMAL,
}
_TASK_MESSAGES = {task: message for message, task in _TASKS.items()}
_MODEL_TASKS = {
    predictor_pb2.LoadedModel.TASK_SINGLE_PATTERN: Task.SINGLE,
    predictor_pb2.LoadedModel.TASK_SEVERAL_PATTERNS: Task.SEVERAL,
    predictor_pb2.LoadedModel.TASK_ONLY_NORMAL: Task.NORMAL,
}
_DECISIONS = {
    predictor_pb2.WaferAnswer.DECISION_ACCEPTED: Decision.ACCEPTED,
    predictor_pb2.WaferAnswer.DECISION_NOT_SURE: Decision.NOT_SURE,
    predictor_pb2.WaferAnswer.DECISION_UNKNOWN: Decision.UNKNOWN,
}

# Words of the KServe repository extension.
_MODEL_STATES = {"READY": ModelState.READY, "LOADING": ModelState.LOADING, "UNLOADING": ModelState.LOADING}


def options_to_proto(options: TrainingOptions, task: Task) -> trainer_pb2.TrainingConfig:
    """Returns the message of training options and of what the model shall tell."""
    return trainer_pb2.TrainingConfig(
        task=_TASK_MESSAGES[task],
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        model_size=_SIZE_MESSAGES[options.model_size],
        backbone=options.backbone,
        augmentation=options.augmentation,
        use_generated_wafers=options.use_generated,
        seed=options.seed,
        fine_tune=options.fine_tune,
        early_stopping_epochs=options.early_stopping_epochs,
        quantise=options.quantise,
    )


def options_from_proto(config: trainer_pb2.TrainingConfig) -> TrainingOptions:
    """Returns the training options of a message whose fields are filled in."""
    return TrainingOptions(
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        model_size=_SIZES.get(config.model_size, ModelSize.FAST),
        backbone=config.backbone,
        augmentation=config.augmentation,
        use_generated=config.use_generated_wafers,
        seed=config.seed,
        fine_tune=config.fine_tune,
        early_stopping_epochs=config.early_stopping_epochs,
        quantise=config.quantise,
    )


def training_run(job: trainer_pb2.TrainingJob) -> TrainingRun:
    """Returns a training as the trainer tells it; project and model are not known to it."""
    return TrainingRun(
        run_id=TrainingJobName.parse(job.name).id,
        project_id="",
        dataset_id=DatasetVersionName.parse(job.dataset_version).id,
        options=options_from_proto(job.config),
        state=_STATES[job.state],
        progress=job.progress,
        queue_position=job.queue_position,
        device=job.device,
        created_at=_time(job.create_time),
        started_at=_optional_time(job, "start_time"),
        ended_at=_optional_time(job, "end_time"),
        problem=problem(job.error) if job.HasField("error") else None,
        result=_training_result(job.result) if job.HasField("result") else None,
    )


def training_event(event: trainer_pb2.TrainingEvent) -> TrainingEvent | None:
    """Returns an event of a training; None for kinds that newer services send."""
    head = (event.sequence, _time(event.event_time))
    match event.WhichOneof("event"):
        case "state_changed":
            changed = event.state_changed
            return JobStateChanged(*head, state=_STATES[changed.state], reason=changed.reason)
        case "stage_started":
            stage = event.stage_started
            return StageStarted(*head, stage=stage.stage, progress=stage.progress, device=stage.device)
        case "epoch_ended":
            epoch = event.epoch_ended
            return EpochEnded(
                *head,
                epoch=epoch.epoch,
                epochs=epoch.epochs,
                loss=epoch.loss,
                accuracy=epoch.accuracy,
                tune_loss=epoch.tune_loss,
                tune_accuracy=epoch.tune_accuracy,
                tune_macro_f1=epoch.tune_macro_f1,
                seconds=epoch.seconds,
                best=epoch.best,
            )
        case "warning":
            return Warned(*head, message=event.warning.message)
    return None


def backbone(message: trainer_pb2.Backbone) -> Backbone:
    """Returns a pretrained model."""
    return Backbone(
        backbone_id=message.backbone_id,
        name=message.display_name,
        model_size=_SIZES.get(message.model_size),
        parameters=message.parameters,
        mflops=message.mflops,
        available=message.available,
        unavailable_reason=message.unavailable_reason,
    )


def evaluation(message: trainer_pb2.Evaluation) -> Evaluation:
    """Returns scores."""
    width = len(message.classes)
    counts = np.array(message.confusion, np.int64).reshape(-1, max(1, width))
    return Evaluation(
        wafers=message.wafers,
        lots=message.lots,
        macro_f1=message.macro_f1,
        macro_f1_interval=_interval(message.macro_f1_interval),
        accuracy=message.accuracy,
        classes=tuple(
            ClassScore(
                class_id=each.class_id,
                name=each.display_name,
                wafers=each.wafers,
                lots=each.lots,
                found=each.found,
                false_alarms=each.false_alarms,
                recall=each.recall,
                recall_interval=_interval(each.recall_interval),
                precision=each.precision,
                f1=each.f1,
            )
            for each in message.classes
        ),
        confusion=tuple(tuple(row) for row in counts.tolist()),
        accepted_share=message.accepted_share,
        accepted_error=message.accepted_error,
        calibration_error=message.expected_calibration_error,
        task=_TASKS.get(message.task, Task.SINGLE),
        auroc=message.auroc,
    )


def request_to_proto(request: GenerationRequest) -> generator_pb2.ClassGeneration:
    """Returns the message of what to make of one class."""
    message = generator_pb2.ClassGeneration(class_id=request.class_id, count=request.count)
    if request.method is Method.LEARNED:
        message.learned.CopyFrom(generator_pb2.Learned(steps=request.steps))
        return message
    message.variations.CopyFrom(generator_pb2.Variations(**asdict(request.variations)))
    return message


def request_from_proto(message: generator_pb2.ClassGeneration) -> GenerationRequest:
    """Returns what is to be made of one class."""
    if message.HasField("learned"):
        steps = message.learned.steps if message.learned.HasField("steps") else None
        return GenerationRequest(message.class_id, message.count, Method.LEARNED, steps=steps)
    wanted: Any = message.variations
    names = (field.name for field in fields(VariationOptions))
    given = {name: getattr(wanted, name) for name in names if wanted.HasField(name)}
    return GenerationRequest(message.class_id, message.count, Method.VARIATIONS, VariationOptions(**given))


def simulation_to_proto(simulation: Simulation, skip: int = 0) -> generator_pb2.SimulateWafersRequest:
    """Returns the message of what to simulate, but for so many messages at the beginning."""
    return generator_pb2.SimulateWafersRequest(
        classes=[
            generator_pb2.SimulatedClass(patterns=each.patterns, count=each.count, strength=_range(each.strength))
            for each in simulation.classes
        ],
        seed=simulation.seed,
        wafers_per_lot=simulation.wafers_per_lot,
        rows=simulation.rows,
        columns=simulation.columns,
        sides=_range(simulation.sides),
        aspect=_range(simulation.aspect),
        background_fail_rate=_range(simulation.background_fail_rate),
        skip=skip,
    )


def _range(values: tuple[float, float] | None) -> generator_pb2.Range | None:
    return None if values is None else generator_pb2.Range(low=values[0], high=values[1])


def generation_run(job: generator_pb2.GenerationJob) -> GenerationRun:
    """Returns a generation as the generator tells it; the project is not known to it."""
    return GenerationRun(
        run_id=GenerationJobName.parse(job.name).id,
        project_id="",
        dataset_id=DatasetVersionName.parse(job.dataset_version).id,
        requests=tuple(request_from_proto(each) for each in job.classes),
        seed=job.seed,
        state=_STATES[job.state],
        progress=job.progress,
        queue_position=job.queue_position,
        device=job.device,
        created_at=_time(job.create_time),
        started_at=_optional_time(job, "start_time"),
        ended_at=_optional_time(job, "end_time"),
        problem=problem(job.error) if job.HasField("error") else None,
        result=_generation_result(job.result) if job.HasField("result") else None,
    )


def generation_event(event: generator_pb2.GenerationEvent) -> GenerationEvent | None:
    """Returns an event of a generation; None for kinds that newer services send."""
    head = (event.sequence, _time(event.event_time))
    match event.WhichOneof("event"):
        case "state_changed":
            changed = event.state_changed
            return JobStateChanged(*head, state=_STATES[changed.state], reason=changed.reason)
        case "progressed":
            step = event.progressed
            return GenerationProgress(
                *head,
                class_id=step.class_id,
                stage=step.stage,
                done=step.done,
                total=step.total,
                progress=step.progress,
                loss=step.loss,
                device=step.device,
            )
        case "preview":
            maps = tuple(from_proto(each, f"wafers[{index}]") for index, each in enumerate(event.preview.wafers))
            return GenerationPreview(*head, class_id=event.preview.class_id, maps=maps)
    return None


def answer(message: predictor_pb2.WaferAnswer) -> PredictorAnswer:
    """Returns what the predictor says of one wafer."""
    if message.status.code:
        return PredictorAnswer(Decision.FAILED, problem=problem(message.status))
    heat = None
    if message.HasField("heat_map"):
        grid = message.heat_map
        heat = np.frombuffer(grid.heat, np.uint8).reshape(grid.rows, grid.columns)
    return PredictorAnswer(
        decision=_DECISIONS[message.decision],
        class_id=message.class_id,
        name=message.display_name,
        probability=message.probability,
        probabilities=tuple((each.class_id, each.display_name, each.probability) for each in message.classes),
        patterns=tuple((each.class_id, each.display_name, each.probability) for each in message.patterns),
        novelty=message.novelty,
        heat=heat,
        embedding=np.array(message.embedding, np.float32) if message.embedding else None,
    )


def loaded_model(message: predictor_pb2.LoadedModel) -> ModelVersion:
    """Returns a version that serves."""
    return ModelVersion(
        model_id=message.model,
        version=message.version,
        state=ModelState.READY,
        classes=tuple(ModelClass(each.class_id, each.display_name) for each in message.classes),
        device=message.execution_provider,
        wafers=message.wafers,
        latency_ms=message.latency_ms_p50,
        task=_MODEL_TASKS.get(message.task, Task.SINGLE),
        quantised=message.quantised,
    )


def indexed_model(message: grpc_service_pb2.RepositoryIndexResponse.ModelIndex) -> ModelVersion:
    """Returns a version of the model repository; one without a version number gets 0."""
    state = _MODEL_STATES.get(message.state, ModelState.UNLOADED)
    if state is ModelState.UNLOADED and message.reason and message.reason.lower() != "unloaded":
        state = ModelState.REJECTED
    version = int(message.version) if message.version.isdigit() else 0
    return ModelVersion(message.name, version, state, message.reason)


def problem(status: status_pb2.Status) -> Problem:
    """Returns the problem that a status tells of."""
    return Problem.of(from_status(status))


def _training_result(message: trainer_pb2.TrainingResult) -> TrainingResult:
    return TrainingResult(
        best_epoch=message.best_epoch,
        epochs=message.epochs,
        tune=evaluation(message.tune) if message.HasField("tune") else None,
        test=evaluation(message.test) if message.HasField("test") else None,
        model_bytes=message.model_bytes,
        parity_max_difference=message.parity_max_difference,
        parity_wafers=message.parity_wafers,
        backbone=message.backbone,
        training_wafers=message.training_wafers,
        seconds=message.seconds,
        peak_memory_bytes=message.peak_memory_bytes,
        doubtful_lots=tuple(message.doubtful_lots),
        known_patterns=dict(message.known_patterns),
        cautions=tuple(
            SplitCaution(_CAUTIONS[each.kind], tuple(each.class_ids))
            for each in message.split_cautions
            if each.kind in _CAUTIONS
        ),
        quantised=_quantised(message.quantised) if message.HasField("quantised") else None,
    )


def _quantised(message: trainer_pb2.QuantisedVariant) -> QuantisedVariant:
    return QuantisedVariant(
        tune=evaluation(message.tune) if message.HasField("tune") else None,
        test=evaluation(message.test) if message.HasField("test") else None,
        model_bytes=message.model_bytes,
        compared_wafers=message.compared_wafers,
        same_answers=message.same_answers,
        least_same_answers=message.least_same_answers,
    )


def _generation_result(message: generator_pb2.GenerationResult) -> GenerationResult:
    return GenerationResult(
        dataset_id=DatasetVersionName.parse(message.dataset_version).id,
        classes=tuple(
            ClassResult(each.class_id, each.count, each.parents, each.rejected, _realism(each.realism))
            for each in message.classes
        ),
        seconds=message.seconds,
        peak_memory_bytes=message.peak_memory_bytes,
        proof=_proof(message.proof) if message.HasField("proof") else None,
    )


def _proof(message: generator_pb2.Proof) -> Proof:
    return Proof(**{field.name: getattr(message, field.name) for field in fields(Proof)})


def _realism(message: generator_pb2.Realism) -> Realism:
    present: Message = message
    optional = [each.name for each in fields(Realism) if each.default is None]
    return Realism(
        nearest_distance=message.nearest_distance,
        nearest_distance_real=message.nearest_distance_real,
        copied_share=message.copied_share,
        coverage=message.coverage,
        fail_fraction=message.fail_fraction,
        fail_fraction_real=message.fail_fraction_real,
        radial_profile_difference=message.radial_profile_difference,
        **{name: getattr(message, name) for name in optional if present.HasField(name)},
    )


def _interval(message: trainer_pb2.Interval) -> Interval:
    return Interval(message.low, message.high)


def _time(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)


def _optional_time(message: Message, field: str) -> datetime | None:
    return _time(getattr(message, field)) if message.HasField(field) else None
