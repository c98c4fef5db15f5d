"""Runs the predictor: `python -m services.predictor`."""

from __future__ import annotations

import asyncio
import contextlib

from services.common.program import run_program
from services.common.server import announce_listening
from services.predictor import kserve_servicer, servicer, workers
from services.predictor.kserve_servicer import KServeServicer
from services.predictor.metrics import MetricsServer
from services.predictor.parts import METRICS, REST, SERVICE, Parts, following
from services.predictor.rest_server import serving_rest
from services.predictor.servicer import PredictorServicer
from services.predictor.settings import PredictorSettings


async def serve(settings: PredictorSettings) -> None:
    """Serves until the process is asked to stop."""
    if settings.predictor_processes > 1:
        await workers.serve(settings)
        return
    with Parts(settings) as parts:
        models = parts.models
        server = parts.grpc_server(settings.predictor_grpc_port)
        kserve = KServeServicer(models, parts.runner, server.draining, parts.shared_memory, parts.tracer)
        servicer.add_to(server, PredictorServicer(models, parts.runner, server.draining))
        kserve_servicer.add_to(server, kserve)
        metrics = MetricsServer(models, settings.host, settings.predictor_metrics_port, parts.access)
        with contextlib.closing(metrics):
            await server.start()
            rest = parts.rest_server(kserve, settings.predictor_rest_port)
            announce_listening(METRICS, metrics.port, settings.port_file_dir)
            announce_listening(REST, rest.port, settings.port_file_dir)
            async with serving_rest(rest), following(lambda: asyncio.to_thread(models.poll), settings):
                await asyncio.to_thread(models.load_all)
                server.set_serving(True)
                await server.run()


def main() -> None:
    """Reads the settings and serves."""
    run_program(
        SERVICE,
        "services.predictor",
        "Serves the models of the model repository: teachwafer.predictor.v1 and the open inference protocol.",
        PredictorSettings,
        serve,
        batched_logs=True,
    )


if __name__ == "__main__":
    main()
