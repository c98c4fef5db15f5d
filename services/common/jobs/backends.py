"""The one place that knows which job backends there are, and opens an engine on the one that the settings name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.common.database import open_database
from services.common.errors import UnimplementedError
from services.common.jobs.backend import JobBackend
from services.common.jobs.engine import JobEngine
from services.common.jobs.local import LocalBackend
from services.common.jobs.settings import JobSettings
from services.common.jobs.store import JobStore


@asynccontextmanager
async def running_engine(kind: str, worker_module: str, settings: JobSettings) -> AsyncIterator[JobEngine]:
    """Runs the jobs of a service while inside.

    Args:
        kind: Kind of its jobs.
        worker_module: Python module whose `__main__` calls `run_worker`.
        settings: Settings of the service.

    Raises:
        UnimplementedError: If this version does not have the backend that the settings name.
        UnavailableError: If the database cannot be reached.
    """
    database = open_database(settings.resolved_database_url)
    try:
        backend = open_backend(settings)
        engine = JobEngine(kind, worker_module, JobStore(database), backend, settings, settings.resolved_store_url)
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()
    finally:
        database.close()


def open_backend(settings: JobSettings) -> JobBackend:
    """Returns the backend that the settings name.

    Raises:
        UnimplementedError: If this version does not have it.
    """
    if settings.job_backend == "local":
        return LocalBackend(settings.runs_folder, slots=settings.job_slots, poll_s=settings.job_poll_s)
    raise UnimplementedError(
        f"Expected TEACHWAFER_JOB_BACKEND=local. Received: {settings.job_backend}, which this version cannot run. "
        "Unset the variable to run jobs as child processes."
    )
