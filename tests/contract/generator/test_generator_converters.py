"""Jobs, events and specs survive the wire and the database."""

import base64
import dataclasses
from datetime import UTC, datetime

import numpy as np
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st
from teachwafer.generator.v1 import generator_pb2

from services.common.jobs import Job, JobEvent, JobState
from services.common.wafer_map_converter import from_proto
from services.generator import converters
from services.generator.domain import (
    ClassOutcome,
    ClassRequest,
    GenerationOutcome,
    GenerationSpec,
    LearnedOptions,
    Proof,
    Realism,
    VariationOptions,
)

optional_share = st.none() | st.floats(0, 0.2)
variations = st.builds(
    VariationOptions,
    rotation_degrees=st.none() | st.floats(0, 180),
    shear=optional_share,
    horizontal_mirror=st.none() | st.booleans(),
    vertical_mirror=st.none() | st.booleans(),
    shift=optional_share,
    die_noise=optional_share,
    strength=optional_share,
    handedness=st.none() | st.booleans(),
)
learned = st.builds(LearnedOptions, steps=st.none() | st.integers(1, 100_000))
requests = st.builds(ClassRequest, st.text(min_size=1), st.integers(1, 1_000_000), variations | learned)
specs = st.builds(
    GenerationSpec,
    st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True),
    st.lists(requests, max_size=4).map(tuple),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def job(spec: GenerationSpec, **fields: object) -> Job:
    values = {
        "id": "j1",
        "kind": "generation",
        "state": JobState.RUNNING,
        "display_name": "more",
        "spec": spec.to_json(),
        "request_id": "",
        "attempt": 2,
        "progress": 0.5,
        "device": "CPU",
        "queue_position": 0,
        "result": None,
        "error": None,
        "created_at": NOW,
        "started_at": None,
        "ended_at": None,
        "last_sequence": 3,
    }
    return Job(**{**values, **fields})  # type: ignore[arg-type]


@given(specs)
def test_a_spec_survives_storage_and_wire(spec: GenerationSpec) -> None:
    assert GenerationSpec.from_json(spec.to_json()) == spec
    assert converters.spec_from_proto(converters.job_to_proto(job(spec))) == spec


measured = [each for each in dataclasses.fields(Realism) if each.default is None]


@given(
    st.lists(st.floats(0, 1), min_size=7, max_size=7),
    st.lists(st.none() | st.floats(0, 1), min_size=len(measured), max_size=len(measured)),
    st.none() | st.builds(Proof, *[st.floats(-1, 1)] * 5, st.integers(1, 9999), st.integers(1, 9999)),
    st.integers(0, 2**40),
)
def test_a_result_survives_storage_and_wire(
    figures: list[float], optional: list[float | None], proof: Proof | None, memory: int
) -> None:
    realism = Realism(*figures, *optional)
    outcome = GenerationOutcome("d1", (ClassOutcome("c1", 5, 20, 1, realism),), 1.5, memory, proof)
    assert GenerationOutcome.from_json(outcome.to_json()) == outcome
    spec = GenerationSpec("d0", ())
    done = job(spec, state=JobState.SUCCEEDED, result=outcome.to_json(), started_at=NOW, ended_at=NOW)
    result = converters.job_to_proto(done).result
    assert result.dataset_version == "datasetVersions/d1"
    assert result.peak_memory_bytes == memory
    assert result.HasField("proof") == (proof is not None)
    for field in dataclasses.fields(Proof) if proof else ():
        assert getattr(result.proof, field.name) == getattr(proof, field.name)
    shown = result.classes[0]
    for field in dataclasses.fields(Realism):
        expected = getattr(realism, field.name)
        if field in measured:
            assert shown.realism.HasField(field.name) == (expected is not None)
        assert getattr(shown.realism, field.name) == (expected or 0)


def test_a_result_stored_before_the_embedding_was_asked_is_still_read() -> None:
    old = dict.fromkeys((each.name for each in dataclasses.fields(Realism) if each not in measured), 0.5)
    data = {"class_id": "c1", "count": 5, "parents": 20, "rejected": 1, "realism": old}
    outcome = GenerationOutcome.from_json({"dataset_id": "d", "classes": [data], "seconds": 1, "peak_memory_bytes": 2})
    assert outcome.classes[0].realism.precision is None


def test_a_failed_job_carries_its_error_and_no_result() -> None:
    error = status_pb2.Status(code=9, message="too few")
    shown = converters.job_to_proto(job(GenerationSpec("d0", ()), state=JobState.FAILED, error=error))
    assert shown.error == error
    assert not shown.HasField("result")
    assert not shown.HasField("end_time")


def test_every_state_of_the_engine_has_a_name_on_the_wire() -> None:
    for state in JobState:
        event = JobEvent(1, NOW, "state", {"state": state.value, "reason": "why"})
        changed = converters.event_to_proto(event).state_changed
        assert generator_pb2.GenerationJob.State.Name(changed.state) == f"STATE_{state.value}"
        assert changed.reason == "why"


def test_previews_carry_wafers_and_unknown_events_nothing() -> None:
    dies = np.array([[0, 1], [2, 1]], np.uint8)
    wafer = {"rows": 2, "columns": 2, "dies": base64.b64encode(dies.tobytes()).decode()}
    event = JobEvent(4, NOW, "preview", {"class_id": "c1", "wafers": [wafer]})
    preview = converters.event_to_proto(event).preview
    assert preview.class_id == "c1"
    assert np.array_equal(from_proto(preview.wafers[0]).dies, dies)
    assert converters.event_to_proto(JobEvent(5, NOW, "later", {})).WhichOneof("event") is None
