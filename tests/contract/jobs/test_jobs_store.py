"""What the job store promises, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from google.rpc import code_pb2
from sqlalchemy import inspect

from services.common import errors
from services.common.database import Database, open_database
from services.common.database.migration import JOBS_VERSION_TABLE
from services.common.jobs import EndReason, JobState
from services.common.jobs.attempts import Attempt, AttemptReplacedError, AttemptStore, End
from services.common.jobs.run_folder import WorkerEvent
from services.common.jobs.store import JobStore
from services.common.jobs.tables import METADATA

FAILURE = errors.to_status(errors.InternalError("Broken.")).SerializeToString()


def epoch(number: int, progress: float | None = None) -> WorkerEvent:
    return WorkerEvent(datetime.now(UTC), "epoch", {"epoch": number}, progress, "tiny")


def engine(database: Database, kind: str, owner: str = "engine-1", lease_s: float = 60.0) -> AttemptStore:
    return AttemptStore(database, kind, owner, lease_s)


def claimed(attempts: AttemptStore) -> Attempt:
    attempt = attempts.claim()
    assert attempt is not None
    return attempt


def test_create_fills_everything_in(store: JobStore, kind: str) -> None:
    spec = {"epochs": 3, "name": "웨이퍼", "rate": 0.1, "nothing": None, "nested": [1, {"a": True}]}
    job = store.create(kind, spec, request_id="r1", display_name="First")
    assert store.get(kind, job.id) == job
    assert (job.spec, job.request_id, job.display_name, job.kind) == (spec, "r1", "First", kind)
    assert (job.state, job.attempt, job.progress, job.device, job.last_sequence) == (JobState.QUEUED, 0, 0.0, "", 1)
    assert (job.result, job.error, job.started_at, job.ended_at) == (None, None, None, None)
    assert job.created_at.tzinfo is not None


def test_fifty_requests_with_one_id_make_one_job(store: JobStore, kind: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        jobs = list(pool.map(lambda _: store.create(kind, {"a": 1}, request_id="same"), range(50)))
    assert len({job.id for job in jobs}) == 1
    assert len(store.page(kind, 100)[0]) == 1
    assert store.events(kind, jobs[0].id, 0)[1] == store.events(kind, jobs[0].id, 0)[1][:1]


def test_the_same_request_id_with_another_spec_is_refused(store: JobStore, kind: str) -> None:
    job = store.create(kind, {"a": 1, "b": 2}, request_id="r")
    assert store.create(kind, {"b": 2, "a": 1}, request_id="r") == job
    with pytest.raises(errors.AlreadyExistsError, match="new request id") as caught:
        store.create(kind, {"a": 2}, request_id="r")
    assert caught.value.metadata["job"] == job.id
    assert store.create(f"{kind}x", {"a": 2}, request_id="r").id != job.id
    assert store.create(kind, {"a": 1}).id != store.create(kind, {"a": 1}).id


def test_pages_are_complete_newest_first_and_stay_true_when_jobs_come_and_go(store: JobStore, kind: str) -> None:
    ids = [store.create(kind, {"n": number}).id for number in range(5)]
    seen: list[str] = []
    before: int | None = None
    for step in range(5):
        jobs, before = store.page(kind, 1, before)
        seen += [job.id for job in jobs]
        if step == 1:
            store.create(kind, {"n": "new"})
            store.cancel(kind, ids[0])
    assert seen == ids[::-1]
    assert before is None
    assert [job.id for job in store.page(kind, 10)[0]][1:] == ids[::-1]
    store.delete(kind, ids[0])
    assert store.page(kind, 10, None)[1] is None


def test_queue_positions_count_only_waiting_jobs_of_the_kind(store: JobStore, database: Database, kind: str) -> None:
    jobs = [store.create(kind, {}) for _ in range(3)]
    store.create(f"{kind}x", {})
    assert [store.get(kind, job.id).queue_position for job in jobs] == [0, 1, 2]
    claimed(engine(database, kind))
    assert [store.get(kind, job.id).queue_position for job in jobs] == [0, 0, 1]
    store.cancel(kind, jobs[1].id)
    assert [store.get(kind, job.id).queue_position for job in jobs] == [0, 0, 0]


def test_unknown_jobs_and_jobs_of_another_kind_are_not_found(store: JobStore, kind: str) -> None:
    job = store.create(f"{kind}x", {})
    for call in (store.get, store.cancel, store.delete, lambda k, i: store.events(k, i, 0)):
        with pytest.raises(errors.NotFoundError):
            call(kind, job.id)  # type: ignore[operator]


def test_cancel_and_delete_in_every_state(store: JobStore, database: Database, kind: str) -> None:
    attempts = engine(database, kind)
    waiting = store.create(kind, {})
    with pytest.raises(errors.FailedPreconditionError):
        store.delete(kind, waiting.id)
    assert store.cancel(kind, waiting.id).state is JobState.CANCELLED
    store.delete(kind, waiting.id)

    running = store.create(kind, {})
    attempt = claimed(attempts)
    asked = store.cancel(kind, running.id)
    assert (asked.state, asked.cancel_requested) == (JobState.STARTING, True)
    assert attempts.renew([running.id]) == {(running.id, 1): True}
    with pytest.raises(errors.FailedPreconditionError):
        store.delete(kind, running.id)
    attempts.requeue(attempt, End("The worker died."), failed=True)
    rest = store.get(kind, running.id)
    assert rest.state is JobState.CANCELLED
    assert rest.ended_at is not None
    assert store.cancel(kind, running.id) == rest
    store.delete(kind, running.id)
    assert store.page(kind, 10) == ([], None)


def test_an_attempt_from_claim_to_success(store: JobStore, database: Database, kind: str) -> None:
    attempts = engine(database, kind)
    assert attempts.claim() is None
    job = store.create(kind, {"a": 1})
    attempt = claimed(attempts)
    assert (attempt.job_id, attempt.number, attempt.spec, attempt.handle) == (job.id, 1, {"a": 1}, None)
    attempt = attempts.set_handle(attempt, {"pid": 7})
    attempt = attempts.append(attempt, [WorkerEvent(datetime.now(UTC), "", {})], 10)
    assert store.get(kind, job.id).state is JobState.RUNNING
    attempt = attempts.append(attempt, [epoch(1, 0.25), epoch(2, 0.5), epoch(3)], 99)
    assert store.get(kind, job.id).progress == 0.5
    attempts.succeed(attempt, {"score": float("nan")}, End(""))
    job, events = store.events(kind, job.id, 0)
    assert (job.state, job.progress, job.device) == (JobState.SUCCEEDED, 1.0, "tiny")
    assert job.result is not None
    assert job.result["score"] != job.result["score"]
    assert [event.sequence for event in events] == list(range(1, 8)) == list(range(1, job.last_sequence + 1))
    assert [event.kind for event in events] == ["state"] * 3 + ["epoch"] * 3 + ["state"]
    assert [event.sequence for event in store.events(kind, job.id, 2, limit=2)[1]] == [3, 4]


def test_failed_attempts_are_counted_and_stopped_ones_are_not(store: JobStore, database: Database, kind: str) -> None:
    attempts = engine(database, kind)
    job = store.create(kind, {})
    attempts.requeue(claimed(attempts), End("Stopped.", reason=EndReason.PREEMPTED), failed=False)
    attempts.requeue(claimed(attempts), End("Broke.", 1, EndReason.UNKNOWN), failed=True)
    third = claimed(attempts)
    assert (third.number, third.failures) == (3, 1)
    attempts.fail(third, FAILURE, End("Broke.", 1, EndReason.UNKNOWN))
    done = store.get(kind, job.id)
    assert (done.state, done.attempt) == (JobState.FAILED, 3)
    assert done.error is not None
    assert done.error.code == code_pb2.INTERNAL


def test_a_job_that_must_wait_is_not_claimed_before_its_time(store: JobStore, database: Database, kind: str) -> None:
    attempts = engine(database, kind)
    first, second = store.create(kind, {}), store.create(kind, {})
    attempts.requeue(claimed(attempts), End("Broke."), failed=True, delay_s=3600)
    assert claimed(attempts).job_id == second.id
    assert attempts.claim() is None
    assert store.get(kind, first.id).state is JobState.QUEUED


def test_two_engines_never_claim_the_same_job(store: JobStore, database: Database, kind: str) -> None:
    ids = {store.create(kind, {}).id for _ in range(20)}
    engines = [engine(database, kind, f"engine-{number}") for number in range(4)]

    def drain(attempts: AttemptStore) -> list[str]:
        found = []
        # A claim may come back empty because another engine holds the one row that it looked at.
        while any(job.state is JobState.QUEUED for job in store.page(kind, 100)[0]):
            if (attempt := attempts.claim()) is not None:
                found.append(attempt.job_id)
        return found

    with ThreadPoolExecutor(4) as pool:
        found = [job_id for each in pool.map(drain, engines) for job_id in each]
    assert sorted(found) == sorted(ids)


@pytest.mark.parametrize("how", ["next attempt", "other owner", "at rest", "deleted"])
def test_writes_of_a_replaced_attempt_change_nothing(store: JobStore, database: Database, kind: str, how: str) -> None:
    attempts = engine(database, kind)
    job = store.create(kind, {})
    stale = claimed(attempts)
    if how == "next attempt":
        attempts.requeue(stale, End("Lost."), failed=True)
        claimed(attempts)
    elif how == "other owner":
        engine(database, kind, "engine-2").take_over(lambda owner: owner == "engine-1")
    else:
        attempts.fail(stale, FAILURE, End("Broken."))
        if how == "deleted":
            store.delete(kind, job.id)
    before = None if how == "deleted" else store.events(kind, job.id, 0)
    writes: list[Callable[[], object]] = [
        lambda: attempts.check(stale),
        lambda: attempts.set_handle(stale, {"pid": 1}),
        lambda: attempts.append(stale, [epoch(9)], 50),
        lambda: attempts.succeed(stale, {}, End("")),
        lambda: attempts.fail(stale, FAILURE, End("")),
        lambda: attempts.cancelled(stale, End("")),
        lambda: attempts.requeue(stale, End(""), failed=True),
        lambda: attempts.leave(stale),
    ]
    for write in writes:
        with pytest.raises(AttemptReplacedError) as caught:
            write()
        assert caught.value.superseded is (how != "other owner")
    if before is not None:
        assert store.events(kind, job.id, 0) == before


def test_jobs_of_dead_left_and_silent_engines_are_taken_over(store: JobStore, database: Database, kind: str) -> None:
    for _ in range(4):
        store.create(kind, {})
    dead = claimed(engine(database, kind, "dead"))
    dead = engine(database, kind, "dead").set_handle(dead, {"pid": 7})
    dead = engine(database, kind, "dead").append(dead, [epoch(1)], 33)
    left = claimed(engine(database, kind, "left"))
    engine(database, kind, "left").leave(left)
    silent = claimed(engine(database, kind, "silent", lease_s=-1.0))
    alive = claimed(engine(database, kind, "alive"))
    taker = engine(database, kind, "taker")
    taken = {attempt.job_id: attempt for attempt in taker.take_over(lambda owner: owner == "dead")}
    assert set(taken) == {dead.job_id, left.job_id, silent.job_id}
    assert (taken[dead.job_id].handle, taken[dead.job_id].events_offset) == ({"pid": 7}, 33)
    assert taker.take_over(lambda owner: owner == "dead") == []
    everything = [*taken, alive.job_id]
    assert set(taker.renew(everything)) == {(job_id, 1) for job_id in taken}
    assert set(engine(database, kind, "alive").renew(everything)) == {(alive.job_id, 1)}


def test_an_engine_takes_a_job_again_that_it_lost_sight_of(store: JobStore, database: Database, kind: str) -> None:
    job = store.create(kind, {})
    attempts = engine(database, kind, lease_s=-1.0)
    attempt = claimed(attempts)
    assert attempts.renew([]) == {}
    assert attempts.take_over(lambda _: False, held=[job.id]) == []
    assert attempts.take_over(lambda _: False) == [attempt]


def test_migrations_make_the_tables_that_the_code_expects(database: Database) -> None:
    with database.read() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": JOBS_VERSION_TABLE, "compare_type": True}
        )
        assert compare_metadata(context, METADATA) == []


@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_four_services_may_start_at_once_on_an_empty_database(
    backend: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Each in its own engine, as in a process of its own, so that only the database's locks can order them."""
    url = (
        f"sqlite:///{tmp_path / 'new' / 'jobs.db'}"
        if backend == "sqlite"
        else request.getfixturevalue("new_postgres_url")()
    )

    def start(_: int) -> set[str]:
        database = open_database(url)
        JobStore(database).migrate()
        JobStore(database).create("k", {}, request_id="first")
        tables = set(inspect(database.engine).get_table_names())
        database.close()
        return tables

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(start, range(4)))
    assert all(each == {"jobs", "job_attempts", "job_events", JOBS_VERSION_TABLE} for each in results)
    database = open_database(url)
    assert len(JobStore(database).page("k", 10)[0]) == 1
    database.close()


def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    database = open_database("postgresql://nobody@127.0.0.1:1/none?connect_timeout=2")
    with pytest.raises(errors.UnavailableError, match="TEACHWAFER_DATABASE_URL"):
        JobStore(database).get("k", "x")
    database.close()
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(errors.UnavailableError):
        JobStore(open_database(f"sqlite:///{tmp_path / 'folder.db'}")).get("k", "x")
    for url in ("mysql://host/name", "sqlite://"):
        with pytest.raises(ValueError, match="Expected a"):
            open_database(url)
