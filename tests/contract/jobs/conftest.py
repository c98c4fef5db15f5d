"""Databases, engines and services for the tests of jobs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.common.database import Database, open_database
from services.common.jobs import Job
from services.common.jobs.engine import JobEngine
from services.common.jobs.local import LocalBackend
from services.common.jobs.processes import ProcessIdentity
from services.common.jobs.settings import JobSettings
from services.common.jobs.store import JobStore
from tests.helpers.eventually import assert_eventually

ROOT = Path(__file__).parents[3]
WORKER = "tests.contract.jobs.tiny_worker"
MakeEngine = Callable[..., JobEngine]


@pytest.fixture(scope="session")
def jobs_postgres_url(new_postgres_url: Callable[[], str]) -> str:
    """A PostgreSQL database with no tables but those of jobs."""
    return new_postgres_url()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, home: Path) -> str:
    """Both databases, one after the other."""
    if request.param == "sqlite":
        return f"sqlite:///{home / 'teachwafer.db'}"
    if request.param == "own postgresql":
        return str(request.getfixturevalue("new_postgres_url")())
    return str(request.getfixturevalue("jobs_postgres_url"))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open database with the tables of jobs."""
    opened = open_database(database_url)
    JobStore(opened).migrate()
    yield opened
    opened.close()


@pytest.fixture
def store(database: Database) -> JobStore:
    """The jobs in that database."""
    return JobStore(database)


@pytest.fixture
def kind() -> str:
    """A kind of job that no other test uses, because tests share the PostgreSQL database."""
    return f"k{uuid.uuid4().hex[:12]}"


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, database_url: str) -> JobSettings:
    """Settings that make nobody wait; services in processes of their own read the same ones."""
    values = {
        "DATABASE_URL": database_url,
        "JOB_RETRY_DELAY_S": "0",
        "JOB_POLL_S": "0.02",
        "JOB_GRACE_S": "20",
        "JOB_SLOTS": "4",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"TEACHWAFER_{name}", value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return JobSettings()


@pytest.fixture
async def make_engine(kind: str, store: JobStore, settings: JobSettings) -> AsyncIterator[MakeEngine]:
    """Makes engines of this test; those that were not stopped are stopped at its end, and no worker is left."""
    made: list[JobEngine] = []

    def make(host: str = "", **changes: Any) -> JobEngine:
        changed = settings.model_copy(update=changes)
        backend = LocalBackend(changed.runs_folder, slots=changed.job_slots, poll_s=changed.job_poll_s, host=host)
        engine = JobEngine(kind, WORKER, store, backend, changed, changed.resolved_store_url)
        made.append(engine)
        return engine

    yield make
    kill_workers(settings.runs_folder)
    for engine in made:
        await engine.stop()


class Service:
    """A service in a process of its own.

    Args:
        kind: Kind of its jobs.
        home: TEACHWAFER_HOME.
        environment: Further variables.
    """

    def __init__(self, kind: str, home: Path, **environment: str) -> None:
        with (home / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.contract.jobs.tiny_service", kind],
                env={**os.environ, **environment},
                cwd=ROOT,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture
def make_service(kind: str, settings: JobSettings) -> Iterator[Callable[..., Service]]:
    """Starts services of this test; none outlives it."""
    made: list[Service] = []

    def make(**environment: str) -> Service:
        made.append(Service(kind, settings.home, **environment))
        return made[-1]

    yield make
    for service in made:
        service.kill()
    kill_workers(settings.runs_folder)


def kill_workers(runs: Path) -> None:
    """Kills the workers of a test: those that are noted, and those whose command line shows that they begin."""
    for path in runs.glob("*/attempts/*/process.json"):
        note = json.loads(path.read_bytes())
        ProcessIdentity(note["pid"], note["started"]).signal_group(signal.SIGKILL)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(str(runs) in argument for argument in process.cmdline()):
                process.kill()


async def ended(store: JobStore, kind: str, job_id: str) -> Job:
    """Returns a job once it is at rest."""
    await assert_eventually(lambda: store.get(kind, job_id).state.at_rest, timeout_s=60)
    return store.get(kind, job_id)


async def holding_pid(store: JobStore, kind: str, job_id: str, attempt: int = 1) -> int:
    """Returns the process of an attempt that waits at its gate."""
    pids: list[int] = []

    def holds() -> bool:
        job, events = store.events(kind, job_id, 0)
        pids[:] = [event.data["pid"] for event in events if event.kind == "holding"]
        return job.attempt == attempt and len(pids) >= 1 and events[-1].kind == "holding"

    await assert_eventually(holds, timeout_s=60)
    return pids[-1]
