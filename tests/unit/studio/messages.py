"""Messages that the scripted services answer with."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from teachwafer.generator.v1 import generator_pb2
from teachwafer.predictor.v1 import predictor_pb2
from teachwafer.trainer.v1 import trainer_pb2

from services.common.errors import TeachwaferError, to_status

T = trainer_pb2.TrainingJob
G = generator_pb2.GenerationJob


def moment() -> Timestamp:
    """A time."""
    stamp = Timestamp()
    stamp.FromDatetime(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    return stamp


def evaluation(class_ids: Sequence[str], macro_f1: float = 0.9) -> trainer_pb2.Evaluation:
    """Scores in which one wafer of the first class is called the second."""
    width = len(class_ids)
    confusion = [5 if row == column else 0 for row in range(width) for column in range(width)]
    confusion[0], confusion[1] = 4, 1
    scores = [
        trainer_pb2.ClassScore(
            class_id=each,
            display_name=f"name {i}",
            wafers=5,
            lots=2,
            found=4 if i == 0 else 5,
            recall=0.8 if i == 0 else 1,
            f1=0.8 if i == 0 else 0.95 - i / 100,
        )
        for i, each in enumerate(class_ids)
    ]
    return trainer_pb2.Evaluation(
        wafers=5 * width, lots=4, macro_f1=macro_f1, accuracy=0.9, classes=scores, confusion=confusion
    )


def training(
    dataset: str, state: Any = T.STATE_QUEUED, *, run: str = "run-1", error: TeachwaferError | None = None, **more: Any
) -> trainer_pb2.TrainingJob:
    """A training job."""
    job = T(
        name=f"trainingJobs/{run}",
        dataset_version=dataset,
        state=state,
        config=trainer_pb2.TrainingConfig(epochs=50, batch_size=16, learning_rate=0.001, augmentation=1),
        create_time=moment(),
        **more,
    )
    if error is not None:
        job.error.CopyFrom(to_status(error))
    return job


def training_events(*states: Any, first: int = 1) -> list[trainer_pb2.TrainingEvent]:
    """State changes."""
    changed = trainer_pb2.TrainingEvent.StateChanged
    return [
        trainer_pb2.TrainingEvent(sequence=first + i, event_time=moment(), state_changed=changed(state=state))
        for i, state in enumerate(states)
    ]


def epoch(sequence: int, number: int) -> trainer_pb2.TrainingEvent:
    """The end of an epoch."""
    ended = trainer_pb2.TrainingEvent.EpochEnded(epoch=number, epochs=50, loss=1 / number, accuracy=0.5, best=True)
    return trainer_pb2.TrainingEvent(sequence=sequence, event_time=moment(), epoch_ended=ended)


def generation(dataset: str, state: Any = G.STATE_QUEUED, *, run: str = "gen-1", **more: Any) -> G:
    """A generation job."""
    return G(name=f"generationJobs/{run}", dataset_version=dataset, state=state, create_time=moment(), **more)


def wafer_answer(class_id: str, probability: float, **more: Any) -> predictor_pb2.WaferAnswer:
    """An accepted answer."""
    return predictor_pb2.WaferAnswer(
        class_id=class_id,
        display_name="taught name",
        probability=probability,
        decision=predictor_pb2.WaferAnswer.DECISION_ACCEPTED,
        classes=[
            predictor_pb2.ClassProbability(class_id=class_id, display_name="taught name", probability=probability)
        ],
        **more,
    )
