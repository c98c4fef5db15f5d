"""What runs the attempts of jobs: child processes on one machine, Kubernetes Jobs on a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from services.common.jobs.model import EndReason
from services.common.jobs.run_folder import WorkOrder


class Phase(StrEnum):
    """Where an attempt stands, seen from outside."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    GONE = "GONE"

    @property
    def ended(self) -> bool:
        """Whether nothing runs any more."""
        return self in (Phase.SUCCEEDED, Phase.FAILED, Phase.GONE)


@dataclass(frozen=True, slots=True)
class AttemptSpec:
    """An attempt to run.

    Attributes:
        order: What to do.
        attempt: Number of the attempt; together with the job's id it identifies the attempt.
        worker_module: Python module whose `__main__` calls `run_worker`.
        run_folder: The job's folder.
    """

    order: WorkOrder
    attempt: int
    worker_module: str
    run_folder: Path


@dataclass(frozen=True, slots=True)
class JobRef:
    """An attempt that a backend runs.

    Attributes:
        job_id: Id of the job.
        attempt: Number of the attempt.
        handle: What the backend needs to find it again after a restart of the service; JSON values.
    """

    job_id: str
    attempt: int
    handle: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        """Identifies the attempt."""
        return self.job_id, self.attempt


@dataclass(frozen=True, slots=True)
class AttemptStatus:
    """Where an attempt stands; always the whole state, never a difference.

    Attributes:
        ref: The attempt.
        phase: Where it stands. GONE means that nobody can say any more how it ended.
        exit_code: Exit code of the worker, 128 + signal when it was killed; None while it runs or when unknown.
        reason: Why it ended, where only the backend can know (NODE_LOST, PREEMPTED, IMAGE, ...).
    """

    ref: JobRef
    phase: Phase
    exit_code: int | None = None
    reason: EndReason | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """Places for attempts.

    Attributes:
        total: Places there are.
        free: Places that are free now.
        gpus: GPUs among them; 0 when the work runs on the CPU.
        device: Where the work runs, for people.
    """

    total: int
    free: int
    gpus: int
    device: str


class JobBackend(Protocol):
    """Runs attempts. All calls may be repeated: none does its work twice."""

    async def submit(self, spec: AttemptSpec) -> JobRef:
        """Starts an attempt, or finds it when it was started before.

        Raises:
            UnavailableError: If nothing can be started now; the job stays in the queue.
            TeachwaferError: If the attempt cannot be started.
            OSError: If the disk is full or the run folder cannot be written.
        """
        ...

    def observe(self) -> AsyncIterator[AttemptStatus]:
        """Streams the state of every attempt that this backend was told of, then each change. Never ends by itself."""
        ...

    async def get(self, ref: JobRef) -> AttemptStatus:
        """Returns the state of one attempt, and from now on observes it."""
        ...

    async def cancel(self, ref: JobRef, grace_s: float) -> None:
        """Asks an attempt to stop and kills it after the grace. Returns when nothing runs any more."""
        ...

    async def release(self, ref: JobRef) -> None:
        """Forgets an attempt and frees its place; what still runs is left alone."""
        ...

    async def tail(self, ref: JobRef, lines: int) -> list[str]:
        """Returns the last lines of an attempt's output."""
        ...

    async def capacity(self) -> Capacity:
        """Returns the places for attempts."""
        ...
