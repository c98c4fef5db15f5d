"""A service that runs nothing but a job engine, to be killed: `python -m tests.contract.jobs.tiny_service KIND`.

Everything else comes from TEACHWAFER_*. It stops well on SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from services.common.database import open_database
from services.common.jobs.backends import open_backend
from services.common.jobs.engine import JobEngine
from services.common.jobs.settings import JobSettings
from services.common.jobs.store import JobStore


async def serve(kind: str) -> None:
    """Runs the engine until SIGTERM."""
    settings = JobSettings()
    store = JobStore(open_database(settings.resolved_database_url))
    backend = open_backend(settings)
    engine = JobEngine(kind, "tests.contract.jobs.tiny_worker", store, backend, settings, settings.resolved_store_url)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await engine.start()
    await ended.wait()
    await engine.stop()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
