"""Runs the generator: `python -m services.generator`."""

from __future__ import annotations

from services.common import logs
from services.common.database import open_database
from services.common.jobs.backends import open_backend
from services.common.jobs.engine import JobEngine
from services.common.jobs.store import JobStore
from services.common.server import GrpcServer, run_service
from services.common.settings import load_settings
from services.common.store import open_store
from services.generator.domain import JOB_KIND
from services.generator.servicer import SERVICE_NAME, GeneratorServicer, add_to
from services.generator.settings import GeneratorSettings

SERVICE = "generator"
WORKER_MODULE = "services.generator.worker"


async def serve(settings: GeneratorSettings) -> None:
    """Serves until the process is asked to stop."""
    settings.home.mkdir(parents=True, exist_ok=True)
    server = GrpcServer.from_settings(
        settings, service=SERVICE, port=settings.generator_port, service_names=[SERVICE_NAME]
    )
    database = open_database(settings.resolved_database_url)
    jobs = JobStore(database)
    backend = open_backend(settings)
    engine = JobEngine(JOB_KIND, WORKER_MODULE, jobs, backend, settings, settings.resolved_store_url)
    add_to(server, GeneratorServicer(engine, open_store(settings.resolved_store_url), server.draining))
    await engine.start()
    try:
        await server.start()
        server.set_serving(True)
        await server.run()
    finally:
        await engine.stop()
        database.close()


def main() -> None:
    """Reads the settings and serves."""
    settings = load_settings(GeneratorSettings)
    logs.configure(settings, SERVICE)
    run_service(serve(settings))


if __name__ == "__main__":
    main()
