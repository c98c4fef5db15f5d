"""The jobs in the database, as clients of a service see them: create, get, list, cancel, delete, events.

Correctness rests on constraints and row locks, never on the order in which two services happen to run. All methods
block; the engine calls them from threads.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from datetime import UTC, datetime
from typing import Any

from google.rpc import status_pb2  # type: ignore[import-untyped]
from sqlalchemy import Connection, Row, Select, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from services.common.database import Database, migrate
from services.common.database.migration import JOBS_MIGRATIONS, JOBS_VERSION_TABLE
from services.common.errors import AlreadyExistsError, FailedPreconditionError, NotFoundError
from services.common.jobs.model import Job, JobEvent, JobState
from services.common.jobs.tables import JOB_EVENTS, JOBS

RESOURCE_TYPE = "job"


class JobStore:
    """Jobs and their events. Several services and several replicas of a service may share one database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def migrate(self) -> None:
        """Makes the tables or brings them to the newest form.

        Raises:
            UnavailableError: If the database cannot be reached.
        """
        migrate(self.database, JOBS_MIGRATIONS, JOBS_VERSION_TABLE)

    def create(self, kind: str, spec: dict[str, Any], *, request_id: str = "", display_name: str = "") -> Job:
        """Creates a job in the queue, or returns the one that the same request made before.

        Raises:
            AlreadyExistsError: If the request id was used for another spec.
            UnavailableError: If the database cannot be reached; nothing was created, or the same request id finds it.
        """
        digest = _digest(spec)
        row: dict[str, Any] = {
            "id": secrets.token_hex(8),
            "kind": kind,
            "request_id": request_id or None,
            "spec": spec,
            "spec_sha256": digest,
            "display_name": display_name,
            "state": JobState.QUEUED,
            "attempt": 0,
            "failures": 0,
            "not_before": 0.0,
            "cancel_requested": False,
            "progress": 0.0,
            "device": "",
            "last_sequence": 0,
            "owner": "",
            "lease_until": 0.0,
            "created_at": datetime.now(UTC),
        }
        try:
            with self.database.write() as connection:
                if found := self._by_request(connection, kind, request_id):
                    return self._same_request(connection, found, digest)
                connection.execute(insert(JOBS).values(row))
                created = lock_job(connection, JOBS.c.id == row["id"])
                add_events(connection, created, [state_event(JobState.QUEUED, "")])
                return self._get(connection, kind, row["id"])
        except IntegrityError:
            # Another request with this id was faster.
            with self.database.read() as connection:
                if found := self._by_request(connection, kind, request_id):
                    return self._same_request(connection, found, digest)
            raise

    def get(self, kind: str, job_id: str) -> Job:
        """Returns one job.

        Raises:
            NotFoundError: If there is none.
        """
        with self.database.read() as connection:
            return self._get(connection, kind, job_id)

    def page(self, kind: str, limit: int, before: int | None = None) -> tuple[list[Job], int | None]:
        """Returns jobs, newest first.

        Args:
            kind: Kind of the jobs.
            limit: Most jobs to return.
            before: Where the page begins, as the page before returned it; None for the first page.

        Returns:
            The jobs, and where the next page begins; None when this is the last.
        """
        query = _job_query().where(JOBS.c.kind == kind).order_by(JOBS.c.number.desc()).limit(limit + 1)
        if before is not None:
            query = query.where(JOBS.c.number < before)
        with self.database.read() as connection:
            rows = connection.execute(query).all()
        return [_to_job(row) for row in rows[:limit]], rows[limit - 1].number if len(rows) > limit else None

    def events(self, kind: str, job_id: str, after_sequence: int, limit: int = 500) -> tuple[Job, list[JobEvent]]:
        """Returns a job and its events after a sequence, oldest first, both as of one moment.

        Raises:
            NotFoundError: If there is no such job.
        """
        with self.database.read() as connection:
            # Events first: a job at rest is then known to have no event that this answer could have missed.
            rows = connection.execute(
                select(JOB_EVENTS)
                .join(JOBS, JOBS.c.number == JOB_EVENTS.c.job_number)
                .where(JOBS.c.kind == kind, JOBS.c.id == job_id, JOB_EVENTS.c.sequence > after_sequence)
                .order_by(JOB_EVENTS.c.sequence)
                .limit(limit)
            ).all()
            job = self._get(connection, kind, job_id)
        return job, [JobEvent(row.sequence, row.time, row.kind, row.data) for row in rows]

    def cancel(self, kind: str, job_id: str) -> Job:
        """Cancels a job in the queue at once and marks a running one; a job at rest stays as it is.

        Raises:
            NotFoundError: If there is no such job.
        """
        with self.database.write() as connection:
            row = lock_job(connection, JOBS.c.kind == kind, JOBS.c.id == job_id)
            if row is None:
                raise NotFoundError(RESOURCE_TYPE, job_id)
            if row.state == JobState.QUEUED:
                end_job(connection, row, JobState.CANCELLED, "Cancelled while it waited.")
            elif not JobState(row.state).at_rest:
                update_job(connection, row, cancel_requested=True)
            return self._get(connection, kind, job_id)

    def delete(self, kind: str, job_id: str) -> None:
        """Deletes a job at rest and its events.

        Raises:
            NotFoundError: If there is no such job.
            FailedPreconditionError: If the job has not ended.
        """
        with self.database.write() as connection:
            row = lock_job(connection, JOBS.c.kind == kind, JOBS.c.id == job_id)
            if row is None:
                raise NotFoundError(RESOURCE_TYPE, job_id)
            if not JobState(row.state).at_rest:
                raise FailedPreconditionError(
                    f"Expected a job that has ended. Received: job {job_id}, which is {row.state}. Cancel it first.",
                    reason="JOB_NOT_AT_REST",
                )
            connection.execute(delete(JOBS).where(JOBS.c.number == row.number))

    @staticmethod
    def _get(connection: Connection, kind: str, job_id: str) -> Job:
        row = connection.execute(_job_query().where(JOBS.c.kind == kind, JOBS.c.id == job_id)).one_or_none()
        if row is None:
            raise NotFoundError(RESOURCE_TYPE, job_id)
        return _to_job(row)

    @staticmethod
    def _by_request(connection: Connection, kind: str, request_id: str) -> Row[Any] | None:
        if not request_id:
            return None
        query = select(JOBS).where(JOBS.c.kind == kind, JOBS.c.request_id == request_id)
        return connection.execute(query).one_or_none()

    def _same_request(self, connection: Connection, row: Row[Any], digest: str) -> Job:
        if row.spec_sha256 != digest:
            raise AlreadyExistsError(
                RESOURCE_TYPE,
                row.id,
                f"Expected the same job as the first time for request id {row.request_id}. Received: another one. "
                f"That request made job {row.id}; use a new request id for a new job.",
                reason="REQUEST_ID_REUSED",
                metadata={"request_id": row.request_id, "job": row.id},
            )
        return self._get(connection, row.kind, row.id)


def lock_job(connection: Connection, *conditions: Any) -> Any:
    """Returns a job's row, locked until the transaction ends; None when there is none."""
    return connection.execute(select(JOBS).where(*conditions).with_for_update()).one_or_none()


def update_job(connection: Connection, row: Any, **values: Any) -> None:
    """Changes columns of a locked job."""
    connection.execute(update(JOBS).where(JOBS.c.number == row.number).values(**values))


def end_job(connection: Connection, row: Any, state: JobState, reason: str, **values: Any) -> None:
    """Brings a locked job to rest and says so in its last event."""
    add_events(connection, row, [state_event(state, reason)])
    update_job(connection, row, state=state, ended_at=datetime.now(UTC), owner="", lease_until=0.0, **values)


def add_events(connection: Connection, row: Any, events: list[JobEvent]) -> None:
    """Appends events to a locked job; their sequences go on without a gap whatever they were before."""
    first = connection.execute(select(JOBS.c.last_sequence).where(JOBS.c.number == row.number)).scalar_one() + 1
    rows = [
        {"job_number": row.number, "sequence": sequence, "time": event.time, "kind": event.kind, "data": event.data}
        for sequence, event in enumerate(events, first)
    ]
    if rows:
        connection.execute(insert(JOB_EVENTS), rows)
        update_job(connection, row, last_sequence=rows[-1]["sequence"])


def state_event(state: JobState, reason: str) -> JobEvent:
    """Returns the event that says that a job's state changed."""
    return JobEvent(0, datetime.now(UTC), "state", {"state": state, "reason": reason})


def _job_query() -> Select[Any]:
    ahead = JOBS.alias("ahead")
    position = (
        select(func.count())
        .where(ahead.c.kind == JOBS.c.kind, ahead.c.state == JobState.QUEUED, ahead.c.number < JOBS.c.number)
        .scalar_subquery()
    )
    return select(JOBS, position.label("position"))


def _to_job(row: Row[Any]) -> Job:
    state = JobState(row.state)
    return Job(
        id=row.id,
        kind=row.kind,
        state=state,
        display_name=row.display_name,
        spec=row.spec,
        request_id=row.request_id or "",
        attempt=row.attempt,
        progress=row.progress,
        device=row.device,
        queue_position=row.position if state is JobState.QUEUED else 0,
        result=row.result,
        error=None if row.error is None else status_pb2.Status.FromString(row.error),
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        last_sequence=row.last_sequence,
        cancel_requested=row.cancel_requested,
    )


def _digest(spec: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
