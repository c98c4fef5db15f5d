"""Runs the generator: `python -m services.generator`."""

from __future__ import annotations

from services.common.jobs.backends import running_engine
from services.common.program import run_program
from services.common.server import GrpcServer
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
    async with running_engine(JOB_KIND, WORKER_MODULE, settings) as engine:
        add_to(server, GeneratorServicer(engine, open_store(settings.resolved_store_url), server.draining))
        await server.start()
        server.set_serving(True)
        await server.run()


def main() -> None:
    """Reads the settings and serves."""
    run_program(
        SERVICE,
        "services.generator",
        "Makes more wafers of a class: variations, or a generator taught on it.",
        GeneratorSettings,
        serve,
    )


if __name__ == "__main__":
    main()
