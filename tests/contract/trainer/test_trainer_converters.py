"""Jobs and events from the domain to the wire."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from teachwafer.trainer.v1 import trainer_pb2

from services.common.errors import FailedPreconditionError, InvalidArgumentError
from services.common.evaluation import evaluate
from services.common.jobs import Job, JobEvent, JobState
from services.common.jobs.worker import PROGRESS_KIND
from services.common.model_repository import ModelRepository
from services.common.task import Task
from services.trainer.converters import event_to_proto, job_to_proto, spec_from_proto, validated_to_proto
from services.trainer.domain import (
    EPOCH_KIND,
    LEAST_SAME_ANSWERS,
    STAGE_KIND,
    WARNING_KIND,
    QuantisedVariant,
    SplitCaution,
    SplitCautionKind,
    TrainingOutcome,
    TrainingSpec,
)
from services.trainer.publishing import publish

NOW = datetime(2026, 1, 2, tzinfo=UTC)


TASK = trainer_pb2.TrainingConfig


@pytest.mark.parametrize(
    ("wire", "task"),
    [
        (TASK.TASK_UNSPECIFIED, Task.SINGLE),
        (TASK.TASK_SINGLE_PATTERN, Task.SINGLE),
        (TASK.TASK_SEVERAL_PATTERNS, Task.SEVERAL),
        (TASK.TASK_ONLY_NORMAL, Task.NORMAL),
    ],
)
def test_tasks_come_from_the_wire_and_go_back(wire, task) -> None:
    job = trainer_pb2.TrainingJob(dataset_version="datasetVersions/d", config=trainer_pb2.TrainingConfig(task=wire))
    spec = spec_from_proto(job)
    assert spec.config.task is task
    assert TrainingSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert validated_to_proto(spec, "").config.task == (wire or TASK.TASK_SINGLE_PATTERN)


def test_a_task_of_a_later_version_is_refused() -> None:
    config = trainer_pb2.TrainingConfig(task=9)  # type: ignore[arg-type]
    job = trainer_pb2.TrainingJob(dataset_version="datasetVersions/d", config=config)
    with pytest.raises(InvalidArgumentError, match="single, several, normal") as caught:
        spec_from_proto(job)
    assert caught.value.field == "training_job.config.task"


def test_a_spec_of_an_earlier_version_has_a_single_pattern() -> None:
    data = TrainingSpec("d").to_json()
    del data["config"]["task"]
    assert TrainingSpec.from_json(data).config.task is Task.SINGLE


def event(kind: str, **data: object) -> JobEvent:
    return JobEvent(3, NOW, kind, data)


def test_events_of_every_kind_reach_the_wire() -> None:
    assert event_to_proto(event("state", state="RUNNING", reason="why")).state_changed.reason == "why"
    stage = event_to_proto(event(STAGE_KIND, stage="features", share=0.25, device_name="CPU")).stage_started
    assert (stage.stage, stage.progress, stage.device) == ("features", 0.25, "CPU")
    further = event_to_proto(event(PROGRESS_KIND, stage="training", share=0.5, device_name="")).stage_started
    assert (further.stage, further.progress, further.device) == ("training", 0.5, "")
    assert event_to_proto(event(WARNING_KIND, message="few")).warning.message == "few"
    numbers = {"loss": 0.5, "accuracy": 0.25, "tune_loss": 1.5, "tune_accuracy": 0.75, "tune_macro_f1": 0.125}
    epoch = event_to_proto(event(EPOCH_KIND, epoch=2, epochs=9, seconds=0.5, best=True, **numbers)).epoch_ended
    assert (epoch.epoch, epoch.epochs, epoch.best) == (2, 9, True)
    assert {name: getattr(epoch, name) for name in numbers} == numbers


def test_an_event_of_a_later_version_keeps_its_number_and_has_no_content() -> None:
    message = event_to_proto(event("novelty", text="x"))
    assert message.sequence == 3
    assert message.WhichOneof("event") is None


@pytest.mark.parametrize("kind", SplitCautionKind)
def test_an_outcome_reaches_the_wire_with_every_figure(kind: SplitCautionKind, tmp_path: Path) -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], np.float32)
    tune = evaluate(probabilities, np.array([0, 1, 1]), ["a", "b", ""], np.array([True, True, False]), draws=10)
    outcome = TrainingOutcome(
        best_epoch=4,
        epochs=9,
        tune=tune,
        test=None,
        class_names=(("c0", "Ring"), ("c1", "없음")),
        model_bytes=1_200_000,
        parity_max_difference=1e-6,
        parity_wafers=3,
        backbone="wafer-fast",
        training_wafers=12,
        seconds=3.5,
        peak_memory_bytes=2**33,
        warnings=("few wafers",),
        doubtful_lots=("lot-7",),
        known_patterns={"c0": "Edge-Ring"},
        split_cautions=(SplitCaution(kind, ("c1",), "Few."),),
        quantised=QuantisedVariant(tune, None, 800_000, 3, 0.9),
    )
    job = Job(
        id="j",
        kind="training",
        state=JobState.SUCCEEDED,
        display_name="",
        spec=TrainingSpec("d").to_json(),
        request_id="",
        attempt=1,
        progress=1.0,
        device="CPU",
        queue_position=0,
        result=outcome.to_json(),
        error=None,
        created_at=NOW,
        started_at=NOW,
        ended_at=NOW,
        last_sequence=3,
    )
    result = job_to_proto(job).result
    assert not result.HasField("test")
    assert list(result.tune.confusion) == [1, 0, 1, 1]
    assert result.tune.classes[1].display_name == "없음"
    assert result.tune.classes[0].recall_interval.high > 0.5
    assert result.tune.task == TASK.TASK_SINGLE_PATTERN
    assert result.tune.accepted_error == tune.accepted_error
    assert result.tune.macro_f1_interval.low == tune.macro_f1_interval.low
    assert list(result.warnings) == ["few wafers"]
    assert list(result.doubtful_lots) == ["lot-7"]
    assert dict(result.known_patterns) == {"c0": "Edge-Ring"}
    assert [(each.kind, list(each.class_ids)) for each in result.split_cautions] == [
        (trainer_pb2.SplitCaution.Kind.Value(f"KIND_{kind.name}"), ["c1"])
    ]
    assert result.peak_memory_bytes == 2**33
    variant = result.quantised
    assert (variant.model_bytes, variant.compared_wafers, variant.same_answers) == (800_000, 3, 0.9)
    assert variant.least_same_answers == LEAST_SAME_ANSWERS
    assert variant.tune == result.tune
    assert not variant.HasField("test")
    # One that answers otherwise of one wafer in ten is not published.
    with pytest.raises(FailedPreconditionError, match=r"98\.0%.*90\.0% of 3") as caught:
        publish(ModelRepository(tmp_path), job, tmp_path, "m", "", quantised=True)
    assert caught.value.reason == "QUANTISED_DIFFERS"
