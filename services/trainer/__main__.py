"""Runs the trainer: `python -m services.trainer`."""

from __future__ import annotations

from services.common import logs
from services.common.database import open_database
from services.common.jobs.backends import open_backend
from services.common.jobs.engine import JobEngine
from services.common.jobs.store import JobStore
from services.common.model_repository import ModelRepository
from services.common.server import GrpcServer, run_service
from services.common.settings import load_settings
from services.common.store import open_store
from services.trainer.domain import JOB_KIND
from services.trainer.servicer import SERVICE_NAME, TrainerServicer, add_to
from services.trainer.settings import TrainerSettings

SERVICE = "trainer"
WORKER_MODULE = "services.trainer.worker"


async def serve(settings: TrainerSettings) -> None:
    """Serves until the process is asked to stop."""
    settings.home.mkdir(parents=True, exist_ok=True)
    server = GrpcServer.from_settings(
        settings, service=SERVICE, port=settings.trainer_port, service_names=[SERVICE_NAME]
    )
    jobs = JobStore(open_database(settings.resolved_database_url))
    backend = open_backend(settings)
    engine = JobEngine(JOB_KIND, WORKER_MODULE, jobs, backend, settings, settings.resolved_store_url)
    servicer = TrainerServicer(
        engine,
        open_store(settings.resolved_store_url),
        ModelRepository(settings.resolved_model_repository),
        settings.runs_folder,
        settings.trainer_mobilenet_v2_weights,
        server.draining,
    )
    add_to(server, servicer)
    await engine.start()
    try:
        await server.start()
        server.set_serving(True)
        await server.run()
    finally:
        await engine.stop()


def main() -> None:
    """Reads the settings and serves."""
    settings = load_settings(TrainerSettings)
    logs.configure(settings, SERVICE)
    run_service(serve(settings))


if __name__ == "__main__":
    main()
