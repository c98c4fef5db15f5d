"""The jobs in the database, as engines see them: claims, leases, and fenced writes of attempts.

An engine owns the jobs that it claimed while it renews its lease. Each write names the attempt and the owner, and a
write of an attempt that is not the current one, or of an engine that lost the job, changes nothing and raises.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, func, insert, or_, select, update

from services.common.database import Database
from services.common.jobs.model import EndReason, JobEvent, JobState
from services.common.jobs.run_folder import WorkerEvent
from services.common.jobs.store import add_events, end_job, lock_job, state_event, update_job
from services.common.jobs.tables import JOB_ATTEMPTS, JOBS

_ACTIVE = (JobState.STARTING, JobState.RUNNING)


class AttemptReplacedError(Exception):
    """The attempt is no longer the current one, or another engine looks after it. Nothing was written; let it go.

    Attributes:
        superseded: Whether the attempt itself is over, so that its worker should stop. Otherwise another engine looks
            after the same worker.
    """

    def __init__(self, attempt: Attempt, superseded: bool) -> None:
        super().__init__(f"Attempt {attempt.number} of job {attempt.job_id} is no longer this engine's.")
        self.superseded = superseded


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that an engine looks after.

    Attributes:
        job_number: Key of the job in the database.
        job_id: Id of the job.
        kind: Kind of the job.
        spec: What to do.
        number: Number of the attempt.
        owner: The engine.
        failures: Attempts of the job that failed before.
        cancel_requested: Whether the job was asked to stop when it was claimed.
        handle: The backend's handle; None when the attempt may not have been submitted yet.
        events_offset: Bytes of the events file that are stored already.
        started_at: When the attempt was claimed, UTC.
    """

    job_number: int
    job_id: str
    kind: str
    spec: dict[str, Any]
    number: int
    owner: str
    failures: int
    cancel_requested: bool
    handle: Mapping[str, Any] | None
    events_offset: int
    started_at: datetime


@dataclass(frozen=True, slots=True)
class End:
    """How an attempt ended, beside its job's state.

    Attributes:
        text: Why, for people.
        exit_code: Exit code of the worker; None when unknown.
        reason: Why, in one word; None when it ended well.
    """

    text: str
    exit_code: int | None = None
    reason: EndReason | None = None


class AttemptStore:
    """Claims and fenced writes of one engine."""

    def __init__(self, database: Database, kind: str, owner: str, lease_s: float) -> None:
        self._database = database
        self._kind = kind
        self._owner = owner
        self._lease_s = lease_s

    def claim(self) -> Attempt | None:
        """Takes the first job of the queue and begins its next attempt; None when none is due.

        Two engines never get the same job.
        """
        with self._database.read() as connection:
            # Most looks find nothing; they need not take the write lock.
            if connection.execute(self._due(connection)).first() is None:
                return None
        with self._database.write() as connection:
            row = connection.execute(self._due(connection).with_for_update(skip_locked=True)).one_or_none()
            if row is None:
                return None
            number, now = row.attempt + 1, datetime.now(UTC)
            update_job(
                connection,
                row,
                state=JobState.STARTING,
                attempt=number,
                owner=self._owner,
                lease_until=self._clock(connection) + self._lease_s,
            )
            connection.execute(
                insert(JOB_ATTEMPTS).values(
                    job_number=row.number, attempt=number, events_offset=0, reason="", started_at=now
                )
            )
            add_events(connection, row, [state_event(JobState.STARTING, f"Attempt {number}.")])
            return self._attempt(row, number, None, 0, now)

    def take_over(self, is_dead: Callable[[str], bool], held: Iterable[str] = ()) -> list[Attempt]:
        """Takes running jobs that nobody looks after: left behind, of a dead engine, or with a lapsed lease.

        Args:
            is_dead: Says whether the engine of this name is known to be dead.
            held: Ids of the jobs that this engine looks after itself.
        """
        active = select(JOBS).where(JOBS.c.kind == self._kind, JOBS.c.state.in_(_ACTIVE), JOBS.c.id.not_in(list(held)))
        with self._database.read() as connection:
            others = connection.execute(active).all()
            now = self._clock(connection)
        owners = {row.owner for row in others} - {self._owner}
        dead = {owner for owner in owners if owner == "" or is_dead(owner)}
        if not any(row.owner in dead or row.lease_until < now for row in others):
            return []
        taken: list[Attempt] = []
        with self._database.write() as connection:
            now = self._clock(connection)
            orphans = active.where(or_(JOBS.c.owner.in_(dead), JOBS.c.lease_until < now))
            for row in connection.execute(orphans.with_for_update(skip_locked=True)).all():
                update_job(connection, row, owner=self._owner, lease_until=now + self._lease_s)
                attempt = connection.execute(
                    select(JOB_ATTEMPTS).where(
                        JOB_ATTEMPTS.c.job_number == row.number, JOB_ATTEMPTS.c.attempt == row.attempt
                    )
                ).one()
                taken.append(self._attempt(row, row.attempt, attempt.handle, attempt.events_offset, attempt.started_at))
        return taken

    def renew(self, held: Iterable[str]) -> dict[tuple[str, int], bool]:
        """Renews the lease of jobs of this engine.

        Args:
            held: Ids of the jobs that it looks after. Others, which it lost sight of, lapse and are taken over.

        Returns:
            For each (job id, attempt) that it still owns, whether the job was asked to stop.
        """
        with self._database.write() as connection:
            rows = connection.execute(
                update(JOBS)
                .where(JOBS.c.owner == self._owner, JOBS.c.state.in_(_ACTIVE), JOBS.c.id.in_(list(held)))
                .values(lease_until=self._clock(connection) + self._lease_s)
                .returning(JOBS.c.id, JOBS.c.attempt, JOBS.c.cancel_requested)
            ).all()
        return {(row.id, row.attempt): row.cancel_requested for row in rows}

    def check(self, attempt: Attempt) -> None:
        """Returns if the attempt is this engine's current one.

        Raises:
            AttemptReplacedError: If it is not.
        """
        with self._database.write() as connection:
            self._locked(connection, attempt)

    def set_handle(self, attempt: Attempt, handle: Mapping[str, Any]) -> Attempt:
        """Stores how the backend finds the attempt again.

        Raises:
            AttemptReplacedError: If the attempt is not this engine's current one.
        """
        with self._database.write() as connection:
            self._locked(connection, attempt)
            self._update_attempt(connection, attempt, handle=dict(handle))
        return replace(attempt, handle=handle)

    def append(self, attempt: Attempt, events: Sequence[WorkerEvent], offset: int) -> Attempt:
        """Stores events of the worker, and in the same transaction how far its file was read.

        Raises:
            AttemptReplacedError: If the attempt is not this engine's current one.
        """
        with self._database.write() as connection:
            row = self._locked(connection, attempt)
            stored = [JobEvent(0, event.time, event.kind, event.data) for event in events if event.kind]
            values: dict[str, Any] = {}
            if row.state == JobState.STARTING:
                stored.insert(0, state_event(JobState.RUNNING, ""))
                values = {"state": JobState.RUNNING, "started_at": row.started_at or datetime.now(UTC)}
            for event in events:
                if event.progress is not None:
                    values["progress"] = event.progress
                if event.device is not None:
                    values["device"] = event.device.replace("\0", "")
            add_events(connection, row, stored)
            if values:
                update_job(connection, row, **values)
            self._update_attempt(connection, attempt, events_offset=offset)
        return replace(attempt, events_offset=offset)

    def succeed(self, attempt: Attempt, result: dict[str, Any], end: End) -> None:
        """Brings the job to rest with a result.

        Raises:
            AttemptReplacedError: If the attempt is not this engine's current one.
        """
        with self._database.write() as connection:
            row = self._locked(connection, attempt)
            started_at = row.started_at or attempt.started_at
            end_job(connection, row, JobState.SUCCEEDED, end.text, result=result, progress=1.0, started_at=started_at)
            self._end_attempt(connection, attempt, end)

    def fail(self, attempt: Attempt, error: bytes, end: End) -> None:
        """Brings the job to rest with an error, a serialised google.rpc.Status.

        Raises:
            AttemptReplacedError: If the attempt is not this engine's current one.
        """
        with self._database.write() as connection:
            row = self._locked(connection, attempt)
            end_job(connection, row, JobState.FAILED, end.text, error=error, failures=row.failures + 1)
            self._end_attempt(connection, attempt, end)

    def cancelled(self, attempt: Attempt, end: End) -> None:
        """Brings the job to rest because it was asked to stop.

        Raises:
            AttemptReplacedError: If the attempt is not this engine's current one.
        """
        with self._database.write() as connection:
            row = self._locked(connection, attempt)
            end_job(connection, row, JobState.CANCELLED, end.text)
            self._end_attempt(connection, attempt, end)

    def requeue(self, attempt: Attempt, end: End, *, failed: bool, delay_s: float = 0.0) -> None:
        """Puts the job back into the queue for its next attempt; a job that was asked to stop is cancelled instead.

        Args:
            attempt: The attempt that ended.
            end: How it ended.
            failed: Whether it counts as a failed attempt.
            delay_s: Least wait before the next one, seconds.

        Raises:
            AttemptReplacedError: If the attempt is not this engine's current one.
        """
        with self._database.write() as connection:
            row = self._locked(connection, attempt)
            if row.cancel_requested:
                end_job(connection, row, JobState.CANCELLED, end.text)
            else:
                add_events(connection, row, [state_event(JobState.QUEUED, end.text)])
                update_job(
                    connection,
                    row,
                    state=JobState.QUEUED,
                    owner="",
                    lease_until=0.0,
                    failures=row.failures + int(failed),
                    not_before=self._clock(connection) + delay_s,
                )
            self._end_attempt(connection, attempt, end)

    def leave(self, attempt: Attempt) -> None:
        """Stops looking after an attempt that runs on, so that the next engine takes it over at once.

        Raises:
            AttemptReplacedError: If the attempt is not this engine's current one.
        """
        with self._database.write() as connection:
            row = self._locked(connection, attempt)
            update_job(connection, row, owner="", lease_until=0.0)

    def _due(self, connection: Connection) -> Any:
        return (
            select(JOBS)
            .where(
                JOBS.c.kind == self._kind,
                JOBS.c.state == JobState.QUEUED,
                JOBS.c.not_before <= self._clock(connection),
            )
            .order_by(JOBS.c.number)
            .limit(1)
        )

    def _clock(self, connection: Connection) -> float:
        """Returns the database's time: replicas on several machines must agree on when a lease ends."""
        if self._database.is_sqlite:
            return time.time()
        return float(connection.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one())

    def _attempt(
        self, row: Any, number: int, handle: Mapping[str, Any] | None, offset: int, started_at: datetime
    ) -> Attempt:
        return Attempt(
            job_number=row.number,
            job_id=row.id,
            kind=row.kind,
            spec=row.spec,
            number=number,
            owner=self._owner,
            failures=row.failures,
            cancel_requested=row.cancel_requested,
            handle=handle,
            events_offset=offset,
            started_at=started_at,
        )

    @staticmethod
    def _locked(connection: Connection, attempt: Attempt) -> Any:
        """Locks the job of an attempt. This is the fence: all writes go through it."""
        row = lock_job(connection, JOBS.c.number == attempt.job_number)
        if row is None or row.state not in _ACTIVE or row.attempt != attempt.number:
            raise AttemptReplacedError(attempt, superseded=True)
        if row.owner != attempt.owner:
            raise AttemptReplacedError(attempt, superseded=False)
        return row

    @staticmethod
    def _update_attempt(connection: Connection, attempt: Attempt, **values: Any) -> None:
        connection.execute(
            update(JOB_ATTEMPTS)
            .where(JOB_ATTEMPTS.c.job_number == attempt.job_number, JOB_ATTEMPTS.c.attempt == attempt.number)
            .values(**values)
        )

    def _end_attempt(self, connection: Connection, attempt: Attempt, end: End) -> None:
        self._update_attempt(
            connection, attempt, exit_code=end.exit_code, reason=end.reason or "", ended_at=datetime.now(UTC)
        )
