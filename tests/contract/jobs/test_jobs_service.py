"""A service that is killed or stopped in every state of a job, and started again: nothing is lost, jobs end well."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from services.common.jobs import Job, JobState
from services.common.jobs.store import JobStore
from tests.contract.jobs.conftest import Service, ended, holding_pid
from tests.helpers.eventually import assert_eventually

MakeService = Callable[..., Service]


def epochs(store: JobStore, kind: str, job: Job) -> list[int]:
    _, events = store.events(kind, job.id, 0)
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    return [event.data["epoch"] for event in events if event.kind == "epoch"]


async def test_kill_while_jobs_run_and_wait(
    make_service: MakeService, store: JobStore, kind: str, tmp_path: Path
) -> None:
    """One worker lives on, passes its gate while nobody looks, and is adopted; one dies with the service."""
    first = make_service(TEACHWAFER_JOB_SLOTS="2")
    gate = tmp_path / "gate"
    living, dying = [store.create(kind, {"to": 4, "hold_at": 2, "gate": str(gate)}) for _ in range(2)]
    waiting = store.create(kind, {"to": 1})
    worker = psutil.Process(await holding_pid(store, kind, living.id))
    victim = await holding_pid(store, kind, dying.id)
    first.kill()
    os.kill(victim, signal.SIGKILL)
    acknowledged = store.events(kind, living.id, 0)[1]
    gate.touch()
    await assert_eventually(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, timeout_s=60)
    assert [store.get(kind, job.id).state for job in (living, dying, waiting)] == ["RUNNING", "RUNNING", "QUEUED"]
    make_service()
    for job, attempts in ((living, 1), (dying, 2), (waiting, 1)):
        done = await ended(store, kind, job.id)
        assert (done.state, done.attempt) == (JobState.SUCCEEDED, attempts)
        assert epochs(store, kind, job) == list(range(1, done.spec["to"] + 1))
    assert store.events(kind, living.id, 0)[1][: len(acknowledged)] == acknowledged


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("state", ["STARTING", "cancelling", "ending"])
async def test_kill_in_each_state_again_and_again(
    make_service: MakeService, store: JobStore, kind: str, tmp_path: Path, state: str
) -> None:
    """The kill comes as soon as the state is seen, twice; whatever moment it hits, the job ends as it should."""
    gate = tmp_path / "gate"
    spec = {"to": 3} if state == "ending" else {"to": 3, "hold_at": 1, "gate": str(gate)}
    job = store.create(kind, spec)

    async def reached() -> bool:
        now = store.get(kind, job.id)
        if state in ("cancelling", "ending"):
            return now.state is JobState.RUNNING or now.state.at_rest
        return now.state == state or now.state is JobState.RUNNING

    for _ in range(2):
        service = make_service()
        await assert_eventually(reached, timeout_s=60)
        if state == "cancelling":
            store.cancel(kind, job.id)
        service.kill()
    gate.touch()
    make_service()
    done = await ended(store, kind, job.id)
    if state == "cancelling":
        assert done.state in (JobState.CANCELLED, JobState.SUCCEEDED)
    else:
        assert (done.state, done.attempt) == (JobState.SUCCEEDED, 1)
        assert epochs(store, kind, job) == [1, 2, 3]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_sigterm_keeps_the_work_and_the_next_start_goes_on(
    make_service: MakeService, store: JobStore, kind: str, tmp_path: Path
) -> None:
    first = make_service()
    gate = tmp_path / "gate"
    job = store.create(kind, {"to": 4, "hold_at": 2, "gate": str(gate), "checkpoint_on_stop": True})
    pid = await holding_pid(store, kind, job.id)
    assert await asyncio.to_thread(first.stop) == 0
    assert not psutil.pid_exists(pid)
    assert store.get(kind, job.id).state is JobState.QUEUED
    gate.touch()
    make_service()
    done = await ended(store, kind, job.id)
    assert (done.state, done.attempt) == (JobState.SUCCEEDED, 2)
    assert epochs(store, kind, job) == [1, 2, 3, 4]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_second_replica_takes_over_from_one_that_froze(
    make_service: MakeService, store: JobStore, kind: str, tmp_path: Path
) -> None:
    """The frozen replica wakes after its jobs are done, and finds that they are no longer its own."""
    first = make_service(TEACHWAFER_JOB_LEASE_S="1")
    gate = tmp_path / "gate"
    job = store.create(kind, {"to": 4, "hold_at": 2, "gate": str(gate)})
    await holding_pid(store, kind, job.id)
    first.process.send_signal(signal.SIGSTOP)
    make_service(TEACHWAFER_JOB_LEASE_S="1")
    gate.touch()
    done = await ended(store, kind, job.id)
    assert (done.state, done.attempt) == (JobState.SUCCEEDED, 1)
    first.process.send_signal(signal.SIGCONT)
    other = store.create(kind, {"to": 1})
    assert (await ended(store, kind, other.id)).state is JobState.SUCCEEDED
    assert await asyncio.to_thread(first.stop) == 0
    assert store.get(kind, job.id) == done
    assert epochs(store, kind, job) == [1, 2, 3, 4]
