"""What one process of the predictor is made of, whether it is the only one or one of several."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Self

import grpc.aio

from services.common.model_repository import ModelRepository
from services.common.server import GrpcServer, TlsFiles
from services.predictor import kserve_servicer, servicer
from services.predictor.access import Access
from services.predictor.access_interceptor import AccessInterceptor
from services.predictor.inference import InferenceRunner
from services.predictor.kserve_servicer import KServeServicer
from services.predictor.model_config import CanaryRules, ModelControl
from services.predictor.model_server import ModelServer
from services.predictor.response_cache import ResponseCache
from services.predictor.rest_server import RestServer
from services.predictor.settings import PredictorSettings
from services.predictor.shared_memory import SharedMemory
from services.predictor.spans import Spans
from services.predictor.trace_interceptor import TraceInterceptor
from services.predictor.tracing import Tracer

SERVICE = "predictor"
METRICS, REST = "predictor-metrics", "predictor-rest"

logger = logging.getLogger(__name__)


class Parts:
    """Models, and all that runs, counts and traces them.

    Args:
        settings: Settings.
        number: Number of this process among those of the predictor, from 0.

    Attributes:
        access: Knows callers by their keys.
        models: Models in service.
        tracer: Traces requests.
        runner: Runs the models.
        shared_memory: Regions that callers register.
    """

    def __init__(self, settings: PredictorSettings, number: int = 0) -> None:
        processes = settings.predictor_processes
        self.access = Access(settings.predictor_keys_file)
        self.models = ModelServer(
            ModelRepository(settings.resolved_model_repository),
            settings.predictor_model_control,
            settings.predictor_threads,
            CanaryRules(settings.predictor_canary_percent),
            keeps_files=processes > 1,
        )
        self.tracer = Tracer(settings.resolved_trace_file, itertools.count(1 + number, processes))
        self.shared_memory = SharedMemory(allowed=settings.resolved_shared_memory)
        self._spans = Spans(settings.predictor_trace_endpoint, settings.predictor_trace_share)
        self.runner = InferenceRunner(
            settings.predictor_max_waiting_wafers,
            settings.predictor_threads,
            ResponseCache(settings.predictor_response_cache_bytes),
            self.tracer,
            self.access,
            self._spans,
        )
        self._settings = settings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.close()
        self._spans.close()

    def grpc_server(self, port: int, *, so_reuseport: bool = False) -> GrpcServer:
        """Returns the public server; the servicers are still to be added.

        Args:
            port: Port to listen on.
            so_reuseport: Whether several processes share it.
        """
        interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = [
            *([AccessInterceptor(self.access)] if self.access.guarded else []),
            *([TraceInterceptor()] if self._settings.predictor_trace_endpoint else []),
        ]
        return GrpcServer.from_settings(
            self._settings,
            service=SERVICE,
            port=port,
            service_names=[servicer.SERVICE_NAME, kserve_servicer.SERVICE_NAME],
            interceptors=interceptors,
            so_reuseport=so_reuseport,
        )

    def rest_server(self, handlers: KServeServicer, port: int, *, so_reuseport: bool = False) -> RestServer:
        """Starts the REST form of the open inference protocol.

        Args:
            handlers: What answers.
            port: Port to listen on.
            so_reuseport: Whether several processes share it.
        """
        return RestServer(
            handlers,
            self._settings.host,
            port,
            max_body_bytes=self._settings.max_message_bytes,
            deadline_s=self._settings.default_deadline_seconds,
            max_concurrent=self._settings.max_concurrent_rpcs,
            tls=TlsFiles.from_settings(self._settings),
            access=self.access,
            so_reuseport=so_reuseport,
        )


@contextlib.asynccontextmanager
async def following(poll: Callable[[], Awaitable[None]], settings: PredictorSettings) -> AsyncIterator[None]:
    """Follows the changes of the repository while inside, where the settings say so.

    Args:
        poll: Looks at it.
        settings: Whether, and how often.
    """

    async def run() -> None:
        while True:
            await asyncio.sleep(settings.predictor_poll_seconds)
            try:
                await poll()
            except OSError as error:
                logger.warning("could not look at the model repository", extra={"error": str(error)})

    polling = asyncio.create_task(run()) if settings.predictor_model_control is ModelControl.POLL else None
    try:
        yield
    finally:
        if polling is not None:
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)
