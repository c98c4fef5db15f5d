"""The generator's messages from and to its domain. Only this module and the servicer see `generator_pb2`."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from teachwafer.generator.v1 import generator_pb2

from services.common.errors import FieldViolation, InvalidArgumentError
from services.common.jobs import Job, JobEvent, JobState
from services.common.jobs.wire import VALIDATED_ID, check_display_name, fill_in
from services.common.jobs.worker import PROGRESS_KIND
from services.common.resource_names import DatasetVersionName, GenerationJobName
from services.common.wafer_map import WaferGeometry, WaferIdentity, WaferMap
from services.common.wafer_map_converter import to_proto
from services.generator.domain import (
    MAX_SEED,
    PREVIEW_KIND,
    ClassRequest,
    GenerationOutcome,
    GenerationSpec,
    LearnedOptions,
    VariationOptions,
)
from services.generator.simulator import (
    DEFAULT_WAFERS_PER_LOT,
    PATTERNS,
    Range,
    SimulatedBatch,
    SimulatedClass,
    simulate,
)

_VARIATION_NAMES = tuple(field.name for field in fields(VariationOptions))
_MAX_SIMULATED = 100_000


def spec_from_proto(job: generator_pb2.GenerationJob) -> GenerationSpec:
    """Returns what a job is to make; values are checked by `domain.check_spec`.

    Raises:
        InvalidArgumentError: The data set version is no name, the display name too long or a method is missing.
    """
    check_display_name(job.display_name, "generation_job.display_name")
    dataset = DatasetVersionName.parse(job.dataset_version, "generation_job.dataset_version")
    classes = tuple(
        _class_from_proto(each, f"generation_job.classes[{index}]") for index, each in enumerate(job.classes)
    )
    return GenerationSpec(dataset.id, classes, job.seed, job.prove)


def job_to_proto(job: Job) -> generator_pb2.GenerationJob:
    """Returns a job as it stands."""
    message = _requested(GenerationSpec.from_json(job.spec))
    fill_in(message, job, str(GenerationJobName(job.id)))
    if job.state is JobState.SUCCEEDED and job.result is not None:
        message.result.CopyFrom(_result_to_proto(GenerationOutcome.from_json(job.result)))
    return message


def validated_to_proto(spec: GenerationSpec, display_name: str) -> generator_pb2.GenerationJob:
    """Returns the job that a checked request would make."""
    message = _requested(spec)
    message.name = str(GenerationJobName(VALIDATED_ID))
    message.display_name = display_name
    message.state = generator_pb2.GenerationJob.STATE_QUEUED
    return message


def event_to_proto(event: JobEvent) -> generator_pb2.GenerationEvent:
    """Returns an event; a kind that this version does not know has no content."""
    time = Timestamp()
    time.FromDatetime(event.time)
    message = generator_pb2.GenerationEvent(sequence=event.sequence, event_time=time)
    data = event.data
    if event.kind == "state":
        message.state_changed.state = _state(JobState(data["state"]))
        message.state_changed.reason = data.get("reason") or ""
    elif event.kind == PROGRESS_KIND:
        message.progressed.CopyFrom(
            generator_pb2.GenerationEvent.Progressed(
                class_id=data["class_id"],
                stage=data["stage"],
                done=data["done"],
                total=data["total"],
                progress=data["share"],
                loss=data["loss"],
                device=data["device_name"],
            )
        )
    elif event.kind == PREVIEW_KIND:
        message.preview.class_id = data["class_id"]
        for wafer in data["wafers"]:
            dies = np.frombuffer(base64.b64decode(wafer["dies"]), np.uint8).reshape(wafer["rows"], wafer["columns"])
            message.preview.wafers.append(to_proto(WaferMap(dies)))
    return message


def simulation_from_proto(request: generator_pb2.SimulateWafersRequest) -> Iterator[SimulatedBatch]:
    """Returns the simulation that was asked for; nothing is made before the first batch is taken.

    Raises:
        InvalidArgumentError: With a violation for each wrong field.
    """
    wrong: list[FieldViolation] = []

    def expect(right: bool, field: str, text: str, received: object) -> None:
        if not right:
            wrong.append(FieldViolation(field, f"Expected {text}. Received: {received}."))

    def in_range(message: Any, name: str, lowest: float, highest: float, path: str = "") -> Range | None:
        if not message.HasField(name):
            return None
        low, high = getattr(message, name).low, getattr(message, name).high
        text = f"{lowest:g} to {highest:g}, the smaller value first"
        expect(lowest <= low <= high <= highest, f"{path}{name}", text, f"{low:g} to {high:g}")
        return low, high

    expect(bool(request.classes), "classes", "at least one entry", "none")
    classes: list[SimulatedClass] = []
    for index, each in enumerate(request.classes):
        names = list(each.patterns)
        known = bool(names) and len(set(names)) == len(names) and all(name in PATTERNS for name in names)
        expect(known, f"classes[{index}].patterns", f"different names out of {', '.join(PATTERNS)}", names)
        counted = 1 <= each.count <= _MAX_SIMULATED
        expect(counted, f"classes[{index}].count", f"1 to {_MAX_SIMULATED}", each.count)
        strength = in_range(each, "strength", 0.1, 1, f"classes[{index}].")
        classes.append(SimulatedClass(tuple(names), each.count, strength))
    expect(0 <= request.seed <= MAX_SEED, "seed", f"0 to {MAX_SEED}", request.seed)
    expect(0 <= request.wafers_per_lot <= 25, "wafers_per_lot", "1 to 25, or 0 for 5", request.wafers_per_lot)
    expect((request.rows == 0) == (request.columns == 0), "columns", "both rows and columns or none", request.columns)
    expect(request.skip >= 0, "skip", "0 or more", request.skip)
    for name in ("rows", "columns"):
        side = getattr(request, name)
        expect(side == 0 or 8 <= side <= 300, name, "8 to 300, or 0 for products of many sizes", side)
    for name in ("sides", "aspect"):
        given: Any = request
        expect(not (request.rows and given.HasField(name)), name, "nothing beside rows and columns", "a range")
    sides, aspect = in_range(request, "sides", 8, 300), in_range(request, "aspect", 0.25, 4)
    background = in_range(request, "background_fail_rate", 0, 0.5)
    if wrong:
        text = " ".join(f"{each.field}: {each.description}" for each in wrong)
        raise InvalidArgumentError(f"The request is wrong. {text}", violations=wrong)
    return simulate(
        classes,
        seed=request.seed,
        wafers_per_lot=request.wafers_per_lot or DEFAULT_WAFERS_PER_LOT,
        rows=request.rows,
        columns=request.columns,
        sides=sides,
        aspect=aspect,
        background=background,
        skip=request.skip,
    )


def simulated_to_proto(batch: SimulatedBatch) -> generator_pb2.SimulateWafersResponse:
    """Returns simulated wafers with lot, wafer, slot and product in their identity."""
    product = batch.product
    geometry = WaferGeometry(die_pitch_x_mm=product.pitch_x_mm, die_pitch_y_mm=product.pitch_y_mm)
    wafers = [
        WaferMap(dies, WaferIdentity(lot=lot, wafer=f"{lot}.{slot:02d}", slot=slot, product=product.name), geometry)
        for dies, lot, slot in zip(batch.dies, batch.lots, batch.slots, strict=True)
    ]
    return generator_pb2.SimulateWafersResponse(
        wafers=[to_proto(wafer) for wafer in wafers], class_indexes=[batch.class_index] * len(wafers)
    )


def _class_from_proto(message: generator_pb2.ClassGeneration, path: str) -> ClassRequest:
    method: VariationOptions | LearnedOptions
    match message.WhichOneof("method"):
        case "variations":
            given: Any = message.variations
            method = VariationOptions(
                **{name: getattr(given, name) for name in _VARIATION_NAMES if given.HasField(name)}
            )
        case "learned":
            method = LearnedOptions(message.learned.steps if message.learned.HasField("steps") else None)
        case _:
            raise InvalidArgumentError("Expected variations or learned. Received: neither.", field=f"{path}.method")
    return ClassRequest(message.class_id, message.count, method)


def _requested(spec: GenerationSpec) -> generator_pb2.GenerationJob:
    return generator_pb2.GenerationJob(
        dataset_version=str(DatasetVersionName(spec.dataset_id)),
        classes=[_class_to_proto(each) for each in spec.classes],
        seed=spec.seed,
        prove=spec.prove,
    )


def _class_to_proto(request: ClassRequest) -> generator_pb2.ClassGeneration:
    given = {name: value for name, value in asdict(request.method).items() if value is not None}
    if isinstance(request.method, LearnedOptions):
        learned = generator_pb2.Learned(**given)
        return generator_pb2.ClassGeneration(class_id=request.class_id, count=request.count, learned=learned)
    variations = generator_pb2.Variations(**given)
    return generator_pb2.ClassGeneration(class_id=request.class_id, count=request.count, variations=variations)


def _result_to_proto(outcome: GenerationOutcome) -> generator_pb2.GenerationResult:
    classes: Sequence[generator_pb2.ClassResult] = [
        generator_pb2.ClassResult(
            class_id=each.class_id,
            count=each.count,
            parents=each.parents,
            rejected=each.rejected,
            realism=generator_pb2.Realism(
                **{name: value for name, value in asdict(each.realism).items() if value is not None}
            ),
        )
        for each in outcome.classes
    ]
    return generator_pb2.GenerationResult(
        dataset_version=str(DatasetVersionName(outcome.dataset_id)),
        classes=classes,
        seconds=outcome.seconds,
        peak_memory_bytes=outcome.peak_memory_bytes,
        proof=generator_pb2.Proof(**asdict(outcome.proof)) if outcome.proof else None,
    )


def _state(state: JobState) -> generator_pb2.GenerationJob.State.ValueType:
    return generator_pb2.GenerationJob.State.Value(f"STATE_{state.value}")
