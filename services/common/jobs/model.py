"""What a job is: its states, its events, and the words for how an attempt ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

from google.rpc import status_pb2  # type: ignore[import-untyped]


class JobState(StrEnum):
    """Life of a job. A job at rest (see `at_rest`) never changes again."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def at_rest(self) -> bool:
        """Whether the job has ended."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class EndReason(StrEnum):
    """Why an attempt ended without a result. The same words on one machine and on a cluster."""

    OOM = "OOM"
    DEADLINE = "DEADLINE"
    NODE_LOST = "NODE_LOST"
    PREEMPTED = "PREEMPTED"
    BAD_CONFIG = "BAD_CONFIG"
    BAD_DATA = "BAD_DATA"
    IMAGE = "IMAGE"
    UNSCHEDULABLE = "UNSCHEDULABLE"
    CANCELLED = "CANCELLED"
    STORAGE = "STORAGE"
    TRY_AGAIN = "TRY_AGAIN"
    UNKNOWN = "UNKNOWN"


class ExitCode(IntEnum):
    """Exit codes of a worker, the same for a child process and for the container of a Kubernetes Job."""

    OK = 0
    FAILED = 1
    BAD_CONFIG = 64
    BAD_DATA = 65
    STORAGE = 74
    TRY_AGAIN = 75
    OUT_OF_MEMORY = 137
    STOPPED = 143


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of long work and where it stands.

    Attributes:
        id: Name of the job within its kind; also the name of its run folder.
        kind: What sort of work it is; the service that owns it.
        state: Where it stands.
        display_name: Text for people, at most 256 characters.
        spec: What to do, as the worker reads it; JSON values only.
        request_id: Id of the request that made it; empty when the request had none.
        attempt: Number of the current or last attempt, from 1; 0 before the first.
        progress: Share of the work done, 0 to 1.
        device: Device it runs on, for people; empty before it runs.
        queue_position: Jobs of its kind that start before it; 0 unless QUEUED.
        result: What it made; set when SUCCEEDED.
        error: Why it failed; set when FAILED.
        created_at: When it was created, UTC.
        started_at: When it first ran, UTC; None before.
        ended_at: When it came to rest, UTC; None before.
        last_sequence: Number of its latest event; 0 without one.
        cancel_requested: Whether it was asked to stop.
    """

    id: str
    kind: str
    state: JobState
    display_name: str
    spec: dict[str, Any]
    request_id: str
    attempt: int
    progress: float
    device: str
    queue_position: int
    result: dict[str, Any] | None
    error: status_pb2.Status | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    last_sequence: int
    cancel_requested: bool = False


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job.

    Attributes:
        sequence: Number of the event in its job, from 1, without gaps.
        time: When it happened, UTC.
        kind: "state" is written by the engine with data {"state", "reason"}; all other kinds come from the worker.
        data: What happened; JSON values.
    """

    sequence: int
    time: datetime
    kind: str
    data: dict[str, Any] = field(default_factory=dict)
