"""Runs the predictor: `python -m services.predictor`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from services.common.model_repository import ModelRepository
from services.common.program import run_program
from services.common.server import GrpcServer, TlsFiles, announce_listening
from services.predictor import kserve_servicer, servicer
from services.predictor.access import Access
from services.predictor.access_interceptor import AccessInterceptor
from services.predictor.inference import InferenceRunner
from services.predictor.kserve_servicer import KServeServicer
from services.predictor.metrics import MetricsServer
from services.predictor.model_config import CanaryRules, ModelControl
from services.predictor.model_server import ModelServer
from services.predictor.response_cache import ResponseCache
from services.predictor.rest_server import RestServer, serving_rest
from services.predictor.servicer import PredictorServicer
from services.predictor.settings import PredictorSettings
from services.predictor.shared_memory import SharedMemory
from services.predictor.spans import Spans
from services.predictor.trace_interceptor import TraceInterceptor
from services.predictor.tracing import Tracer

SERVICE = "predictor"
METRICS, REST = "predictor-metrics", "predictor-rest"

logger = logging.getLogger(__name__)


async def serve(settings: PredictorSettings) -> None:
    """Serves until the process is asked to stop."""
    access = Access(settings.predictor_keys_file)
    server = GrpcServer.from_settings(
        settings,
        service=SERVICE,
        port=settings.predictor_grpc_port,
        service_names=[servicer.SERVICE_NAME, kserve_servicer.SERVICE_NAME],
        interceptors=[
            *([AccessInterceptor(access)] if access.guarded else []),
            *([TraceInterceptor()] if settings.predictor_trace_endpoint else []),
        ],
    )
    models = ModelServer(
        ModelRepository(settings.resolved_model_repository),
        settings.predictor_model_control,
        settings.predictor_threads,
        CanaryRules(settings.predictor_canary_percent),
    )
    spans = Spans(settings.predictor_trace_endpoint, settings.predictor_trace_share)
    tracer = Tracer(settings.resolved_trace_file)
    runner = InferenceRunner(
        settings.predictor_max_waiting_wafers,
        settings.predictor_threads,
        ResponseCache(settings.predictor_response_cache_bytes),
        tracer,
        access,
        spans,
    )
    shared_memory = SharedMemory(allowed=settings.resolved_shared_memory)
    kserve = KServeServicer(models, runner, server.draining, shared_memory, tracer)
    servicer.add_to(server, PredictorServicer(models, runner, server.draining))
    kserve_servicer.add_to(server, kserve)
    with contextlib.closing(spans), contextlib.closing(runner):
        metrics = MetricsServer(models, settings.host, settings.predictor_metrics_port, access)
        with contextlib.closing(metrics):
            await server.start()
            rest = RestServer(
                kserve,
                settings.host,
                settings.predictor_rest_port,
                max_body_bytes=settings.max_message_bytes,
                deadline_s=settings.default_deadline_seconds,
                max_concurrent=settings.max_concurrent_rpcs,
                tls=TlsFiles.from_settings(settings),
                access=access,
            )
            announce_listening(METRICS, metrics.port, settings.port_file_dir)
            announce_listening(REST, rest.port, settings.port_file_dir)
            async with serving_rest(rest), _polled(models, settings):
                await asyncio.to_thread(models.load_all)
                server.set_serving(True)
                await server.run()


@contextlib.asynccontextmanager
async def _polled(models: ModelServer, settings: PredictorSettings) -> AsyncIterator[None]:
    """Follows the changes of the repository while inside, where the settings say so."""

    async def poll() -> None:
        while True:
            await asyncio.sleep(settings.predictor_poll_seconds)
            try:
                await asyncio.to_thread(models.poll)
            except OSError as error:
                logger.warning("could not look at the model repository", extra={"error": str(error)})

    polling = asyncio.create_task(poll()) if settings.predictor_model_control is ModelControl.POLL else None
    try:
        yield
    finally:
        if polling is not None:
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)


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
