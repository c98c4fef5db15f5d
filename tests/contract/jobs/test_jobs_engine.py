"""The job engine with real workers, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil
import psycopg
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import code_pb2

from services.common import errors
from services.common.jobs import Job, JobEvent, JobState
from services.common.jobs.backends import open_backend
from services.common.jobs.engine import JobEngine
from services.common.jobs.run_folder import AttemptFolder
from services.common.jobs.settings import JobSettings
from services.common.jobs.store import JobStore
from tests.contract.jobs.conftest import MakeEngine, ended, holding_pid
from tests.helpers.eventually import assert_eventually


async def watched(engine: JobEngine, job: Job, after: int = 0) -> list[JobEvent]:
    return [event async for event in engine.watch(job.id, after)]


def states(events: list[JobEvent]) -> list[str]:
    return [event.data["state"] for event in events if event.kind == "state"]


async def test_a_job_runs_and_its_events_are_numbered_without_gaps(make_engine: MakeEngine) -> None:
    engine = make_engine()
    await engine.start()
    job = await engine.create({"to": 5}, display_name="five")
    assert (job.state, job.attempt, job.started_at) == (JobState.QUEUED, 0, None)
    events = await watched(engine, job)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert states(events) == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
    assert [event.data["epoch"] for event in events if event.kind == "epoch"] == [1, 2, 3, 4, 5]
    done = await engine.get(job.id)
    assert done.result == {"count": 5, "begin": 0, "attempt": 1, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}
    assert (done.state, done.progress, done.device, done.last_sequence) == ("SUCCEEDED", 1.0, "tiny", len(events))
    assert done.created_at <= done.started_at <= done.ended_at  # type: ignore[operator]
    assert await watched(engine, job, after=events[3].sequence) == events[4:]
    assert await watched(engine, job, after=99) == []


@pytest.mark.parametrize(
    ("failure", "code", "attempts"),
    [
        ("config", code_pb2.INVALID_ARGUMENT, 1),
        ("data", code_pb2.DATA_LOSS, 1),
        ("precondition", code_pb2.FAILED_PRECONDITION, 1),
        ("missing", code_pb2.NOT_FOUND, 2),
        ("surprise", code_pb2.INTERNAL, 2),
        ("memory", code_pb2.RESOURCE_EXHAUSTED, 2),
        ("disk", code_pb2.RESOURCE_EXHAUSTED, 2),
    ],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_failed_job_says_why_and_is_tried_again_only_where_it_can_help(
    make_engine: MakeEngine, failure: str, code: int, attempts: int, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(job_max_attempts=2)
    await engine.start()
    job = await engine.create({"to": 1, "fail_attempts": [1, 2], "failure": failure})
    events = await watched(engine, job)
    done = await engine.get(job.id)
    assert (done.state, done.attempt, done.result) == (JobState.FAILED, attempts, None)
    assert done.error is not None
    assert done.error.code == code
    error = errors.from_status(done.error)
    assert "secret" not in error.message
    assert "Traceback" not in error.message
    if failure == "config":
        assert isinstance(error, errors.InvalidArgumentError)
        assert error.field == "config.epochs"
    assert states(events).count("STARTING") == attempts
    log = next(record for record in caplog.records if record.message == "attempt failed")
    assert "about to fail red at https://***@host/" in log.__dict__["worker_log"]


async def test_a_job_that_fails_once_goes_on_with_the_next_attempt(make_engine: MakeEngine) -> None:
    engine = make_engine()
    await engine.start()
    job = await engine.create({"to": 2, "fail_attempts": [1], "failure": "surprise"})
    events = await watched(engine, job)
    done = await engine.get(job.id)
    assert (done.state, done.attempt) == (JobState.SUCCEEDED, 2)
    assert states(events) == ["QUEUED", "STARTING", "RUNNING", "QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]


async def test_a_killed_worker_goes_on_from_its_checkpoint(
    make_engine: MakeEngine, store: JobStore, kind: str, tmp_path: Path
) -> None:
    engine = make_engine()
    await engine.start()
    gate = tmp_path / "gate"
    job = await engine.create({"to": 4, "hold_at": 2, "gate": str(gate)})
    pid = await holding_pid(store, kind, job.id)
    gate.touch()
    # Stopped first, so that it cannot pass the gate before it dies.
    os.kill(pid, signal.SIGKILL)
    done = await ended(store, kind, job.id)
    assert (done.state, done.attempt) == (JobState.SUCCEEDED, 2)
    assert done.result is not None
    assert done.result["begin"] >= 2
    epochs = [event.data["epoch"] for event in await watched(engine, job) if event.kind == "epoch"]
    assert epochs == [1, 2, 3, 4]


async def test_a_worker_that_is_always_killed_is_not_tried_for_ever(make_engine: MakeEngine) -> None:
    engine = make_engine(job_max_attempts=2)
    await engine.start()
    job = await engine.create({"exit_attempts": [1, 2, 3], "exit_code": 137})
    await watched(engine, job)
    done = await engine.get(job.id)
    assert (done.state, done.attempt) == (JobState.FAILED, 2)
    assert done.error is not None
    assert errors.from_status(done.error).reason == "JOB_OOM"


async def test_cancel_while_queued_while_running_and_at_rest(
    make_engine: MakeEngine, store: JobStore, kind: str, tmp_path: Path
) -> None:
    engine = make_engine(job_slots=1)
    await engine.start()
    running = await engine.create({"to": 2, "hold_at": 1, "gate": str(tmp_path / "never"), "child": True})
    waiting = await engine.create({"to": 1})
    pid = await holding_pid(store, kind, running.id)
    children = psutil.Process(pid).children()
    assert len(children) == 1
    assert (await engine.cancel(waiting.id)).state is JobState.CANCELLED
    asked = await engine.cancel(running.id)
    assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True)
    events = await watched(engine, running)
    assert states(events)[-1] == "CANCELLED"
    assert (await engine.get(waiting.id)).attempt == 0
    await assert_eventually(lambda: not psutil.pid_exists(pid))
    await assert_eventually(lambda: not any(child.is_running() for child in children))
    again = await engine.cancel(running.id)
    assert again.last_sequence == events[-1].sequence
    assert again.error is None


async def test_cancel_right_after_create_ends_the_job(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine()
    await engine.start()
    job = await engine.create({"to": 2, "hold_at": 1, "gate": str(tmp_path / "never")})
    await assert_eventually(lambda: engine_state(engine, job, JobState.STARTING))
    await engine.cancel(job.id)
    assert states(await watched(engine, job))[-1] == "CANCELLED"


async def engine_state(engine: JobEngine, job: Job, state: JobState) -> bool:
    return (await engine.get(job.id)).state is state


async def test_a_worker_that_does_not_listen_is_killed_after_the_grace(
    make_engine: MakeEngine, store: JobStore, kind: str, tmp_path: Path
) -> None:
    engine = make_engine(job_grace_s=0.0)
    await engine.start()
    job = await engine.create({"to": 2, "hold_at": 1, "gate": str(tmp_path / "never"), "ignore_sigterm": True})
    pid = await holding_pid(store, kind, job.id)
    await engine.cancel(job.id)
    assert (await ended(store, kind, job.id)).state is JobState.CANCELLED
    await assert_eventually(lambda: not psutil.pid_exists(pid))


async def test_a_job_over_its_deadline_fails(
    make_engine: MakeEngine, store: JobStore, kind: str, tmp_path: Path
) -> None:
    engine = make_engine(job_deadline_s=0.001)
    await engine.start()
    job = await engine.create({"to": 2, "hold_at": 1, "gate": str(tmp_path / "never")})
    done = await ended(store, kind, job.id)
    assert (done.state, done.attempt) == (JobState.FAILED, 1)
    assert done.error is not None
    assert done.error.code == code_pb2.DEADLINE_EXCEEDED


async def test_no_more_jobs_run_than_there_are_slots(
    make_engine: MakeEngine, store: JobStore, kind: str, tmp_path: Path
) -> None:
    engine = make_engine(job_slots=2)
    await engine.start()
    gates = [tmp_path / str(index) for index in range(3)]
    jobs = [await engine.create({"to": 1, "hold_at": 0, "gate": str(gate)}) for gate in gates]
    await holding_pid(store, kind, jobs[0].id)
    await holding_pid(store, kind, jobs[1].id)
    third = await engine.get(jobs[2].id)
    assert (third.state, third.queue_position) == (JobState.QUEUED, 0)
    gates[0].touch()
    await holding_pid(store, kind, jobs[2].id)
    for gate in gates:
        gate.touch()
    for job in jobs:
        assert (await ended(store, kind, job.id)).state is JobState.SUCCEEDED


async def test_stop_with_checkpoint_and_start_goes_on(
    make_engine: MakeEngine, store: JobStore, kind: str, tmp_path: Path
) -> None:
    first = make_engine(job_max_attempts=1)
    await first.start()
    gate = tmp_path / "gate"
    job = await first.create({"to": 4, "hold_at": 2, "gate": str(gate), "checkpoint_on_stop": True})
    await holding_pid(store, kind, job.id)
    await first.stop()
    between = store.get(kind, job.id)
    assert (between.state, between.attempt) == (JobState.QUEUED, 1)
    gate.touch()
    second = make_engine(job_max_attempts=1)
    await second.start()
    done = await ended(store, kind, job.id)
    assert (done.state, done.attempt) == (JobState.SUCCEEDED, 2)
    assert done.result is not None
    assert done.result["begin"] == 2
    epochs = [event.data["epoch"] for event in await watched(second, job) if event.kind == "epoch"]
    assert epochs == [1, 2, 3, 4]


async def test_stop_that_leaves_the_worker_running_and_start_that_adopts_it(
    make_engine: MakeEngine, store: JobStore, kind: str, tmp_path: Path
) -> None:
    first = make_engine(jobs_on_stop="leave")
    await first.start()
    gate = tmp_path / "gate"
    job = await first.create({"to": 4, "hold_at": 2, "gate": str(gate)})
    pid = await holding_pid(store, kind, job.id)
    await first.stop()
    assert psutil.pid_exists(pid)
    assert store.get(kind, job.id).state is JobState.RUNNING
    second = make_engine()
    await second.start()
    gate.touch()
    done = await ended(store, kind, job.id)
    assert (done.state, done.attempt) == (JobState.SUCCEEDED, 1)


async def test_a_frozen_attempt_that_wakes_after_its_successor_changes_nothing(
    make_engine: MakeEngine, store: JobStore, kind: str, tmp_path: Path
) -> None:
    """The machine of attempt 1 is lost for another replica, which cannot reach the process that is frozen there."""
    first = make_engine(host="machine-1", jobs_on_stop="leave")
    await first.start()
    gate = tmp_path / "gate"
    job = await first.create({"to": 4, "hold_at": 2, "gate": str(gate)})
    pid = await holding_pid(store, kind, job.id)
    os.kill(pid, signal.SIGSTOP)
    await first.stop()
    gate.touch()
    second = make_engine(host="machine-2")
    await second.start()
    done = await ended(store, kind, job.id)
    assert (done.state, done.attempt) == (JobState.SUCCEEDED, 2)
    events = store.events(kind, job.id, 0)
    frozen = psutil.Process(pid)
    assert frozen.status() == psutil.STATUS_STOPPED
    os.kill(pid, signal.SIGCONT)
    await assert_eventually(lambda: not frozen.is_running() or frozen.status() == psutil.STATUS_ZOMBIE)
    assert store.events(kind, job.id, 0) == events
    assert store.get(kind, job.id) == done
    assert not (first._settings.runs_folder / job.id / "attempts" / "1" / "result.json").exists()


async def test_two_engines_on_one_database_run_each_job_once(
    make_engine: MakeEngine, store: JobStore, kind: str
) -> None:
    engines = [make_engine(), make_engine()]
    for engine in engines:
        await engine.start()
    jobs = [await engines[index % 2].create({"to": 2}) for index in range(6)]
    for job in jobs:
        done = await ended(store, kind, job.id)
        assert (done.state, done.attempt) == (JobState.SUCCEEDED, 1)
        assert states(await watched(engines[0], job)) == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]


async def test_a_job_is_cancelled_through_the_replica_that_does_not_run_it(
    make_engine: MakeEngine, store: JobStore, kind: str, tmp_path: Path
) -> None:
    runner, other = make_engine(job_lease_s=0.4), make_engine(job_slots=1)
    await runner.start()
    job = await runner.create({"to": 2, "hold_at": 1, "gate": str(tmp_path / "never")})
    await holding_pid(store, kind, job.id)
    await other.start()
    await other.cancel(job.id)
    assert states(await watched(other, job))[-1] == "CANCELLED"


async def test_a_run_folder_that_cannot_be_written_is_a_clear_failure(make_engine: MakeEngine, home: Path) -> None:
    (home / "runs").write_text("a file where the folder should be")
    engine = make_engine(job_max_attempts=2)
    await engine.start()
    job = await engine.create({"to": 1})
    await watched(engine, job)
    done = await engine.get(job.id)
    assert (done.state, done.attempt) == (JobState.FAILED, 2)
    assert done.error is not None
    assert errors.from_status(done.error).reason == "JOB_STORAGE"
    assert "TEACHWAFER_HOME" in done.error.message


async def test_delete_takes_the_files_and_only_of_a_job_at_rest(
    make_engine: MakeEngine, store: JobStore, kind: str, tmp_path: Path
) -> None:
    engine = make_engine()
    await engine.start()
    job = await engine.create({"to": 2, "hold_at": 1, "gate": str(tmp_path / "never")})
    await holding_pid(store, kind, job.id)
    with pytest.raises(errors.FailedPreconditionError, match="Cancel it first"):
        await engine.delete(job.id)
    await engine.cancel(job.id)
    await watched(engine, job)
    folder = engine._settings.runs_folder / job.id
    assert folder.exists()
    await engine.delete(job.id)
    assert not folder.exists()
    with pytest.raises(errors.NotFoundError):
        await engine.get(job.id)
    with pytest.raises(errors.NotFoundError):
        await watched(engine, job)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_wrong_arguments_are_refused(make_engine: MakeEngine) -> None:
    engine = make_engine()
    await engine.start()
    with pytest.raises(errors.InvalidArgumentError, match="64"):
        await engine.create({}, request_id="x" * 65)
    with pytest.raises(errors.InvalidArgumentError, match="NUL"):
        await engine.create({}, display_name="a\0b")
    with pytest.raises(errors.InvalidArgumentError, match="256"):
        await engine.create({}, display_name="x" * 257)
    with pytest.raises(errors.InvalidArgumentError, match="JSON"):
        await engine.create({"path": AnyMessage()})
    with pytest.raises(errors.InvalidArgumentError):
        await engine.list(page_token="bm90IG91cnM")
    with pytest.raises(errors.InvalidArgumentError):
        await engine.list(page_size=-1)
    with pytest.raises(errors.InvalidArgumentError):
        [_ async for _ in engine.watch("any", -1)]


async def test_ending_a_watch_does_not_end_the_job(
    make_engine: MakeEngine, store: JobStore, kind: str, tmp_path: Path
) -> None:
    engine = make_engine()
    await engine.start()
    gate = tmp_path / "gate"
    job = await engine.create({"to": 2, "hold_at": 1, "gate": str(gate)})
    watcher = asyncio.create_task(watched(engine, job))
    await holding_pid(store, kind, job.id)
    watcher.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watcher
    gate.touch()
    assert (await ended(store, kind, job.id)).state is JobState.SUCCEEDED


@pytest.mark.parametrize("database_url", ["own postgresql"], indirect=True)
async def test_a_database_that_goes_away_and_comes_back_loses_nothing(
    make_engine: MakeEngine, store: JobStore, kind: str, tmp_path: Path, database_url: str, postgres_server: str
) -> None:
    """The worker ends while the server refuses everybody; what it did is stored once the server is back."""
    engine = make_engine()
    await engine.start()
    gate = tmp_path / "gate"
    job = await engine.create({"to": 3, "hold_at": 1, "gate": str(gate)})
    worker = psutil.Process(await holding_pid(store, kind, job.id))
    name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
    with psycopg.connect(postgres_server, autocommit=True) as server:
        server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')  # type: ignore[call-overload]
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        with pytest.raises(errors.UnavailableError):
            await engine.create({"to": 1})
        gate.touch()
        await assert_eventually(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
        server.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')  # type: ignore[call-overload]
    done = await ended(store, kind, job.id)
    assert (done.state, done.attempt) == (JobState.SUCCEEDED, 1)
    assert [event.data["epoch"] for event in await watched(engine, job) if event.kind == "epoch"] == [1, 2, 3]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_an_attempt_that_cannot_be_followed_fails_and_leaves_no_worker(
    make_engine: MakeEngine, store: JobStore, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(job_max_attempts=1)
    await engine.start()
    job = await engine.create({"to": 2, "hold_at": 1, "gate": str(tmp_path / "never")})
    pid = await holding_pid(store, kind, job.id)

    def broken(*_: object) -> None:
        raise PermissionError("events.jsonl")

    monkeypatch.setattr(AttemptFolder, "read_event_lines", broken)
    done = await ended(store, kind, job.id)
    assert done.error is not None
    assert (done.state, errors.from_status(done.error).reason) == (JobState.FAILED, "JOB_UNKNOWN")
    await assert_eventually(lambda: not psutil.pid_exists(pid))


def test_a_backend_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHWAFER_JOB_BACKEND", "kubernetes")
    with pytest.raises(errors.UnimplementedError, match="kubernetes"):
        open_backend(JobSettings())
