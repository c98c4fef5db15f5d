"""Runs the predictor: `python -m services.predictor`."""

from __future__ import annotations

import asyncio
import contextlib

from services.common.model_repository import ModelRepository
from services.common.program import run_program
from services.common.server import GrpcServer, announce_listening
from services.predictor import kserve_servicer, servicer
from services.predictor.inference import InferenceRunner
from services.predictor.kserve_servicer import KServeServicer
from services.predictor.metrics import MetricsServer
from services.predictor.model_server import ModelServer
from services.predictor.servicer import PredictorServicer
from services.predictor.settings import PredictorSettings

SERVICE = "predictor"
METRICS = "predictor-metrics"


async def serve(settings: PredictorSettings) -> None:
    """Serves until the process is asked to stop."""
    server = GrpcServer.from_settings(
        settings,
        service=SERVICE,
        port=settings.predictor_grpc_port,
        service_names=[servicer.SERVICE_NAME, kserve_servicer.SERVICE_NAME],
    )
    models = ModelServer(ModelRepository(settings.resolved_model_repository))
    runner = InferenceRunner(settings.predictor_max_waiting_wafers)
    servicer.add_to(server, PredictorServicer(models, runner, server.draining))
    kserve_servicer.add_to(server, KServeServicer(models, runner, server.draining))
    with contextlib.closing(runner):
        metrics = MetricsServer(models, settings.host, settings.predictor_metrics_port)
        with contextlib.closing(metrics):
            await server.start()
            announce_listening(METRICS, metrics.port, settings.port_file_dir)
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
    )


if __name__ == "__main__":
    main()
