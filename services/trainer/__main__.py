"""Runs the trainer: `python -m services.trainer`."""

from __future__ import annotations

from services.common.jobs.backends import running_engine
from services.common.model_repository import ModelRepository
from services.common.program import run_program
from services.common.server import GrpcServer
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
    async with running_engine(JOB_KIND, WORKER_MODULE, settings) as engine:
        servicer = TrainerServicer(
            engine,
            open_store(settings.resolved_store_url),
            ModelRepository(settings.resolved_model_repository),
            settings.runs_folder,
            settings.trainer_mobilenet_v2_weights,
            server.draining,
        )
        add_to(server, servicer)
        await server.start()
        server.set_serving(True)
        await server.run()


def main() -> None:
    """Reads the settings and serves."""
    run_program(
        SERVICE, "services.trainer", "Teaches models from data set versions and publishes them.", TrainerSettings, serve
    )


if __name__ == "__main__":
    main()
