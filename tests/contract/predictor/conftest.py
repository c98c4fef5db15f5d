"""A predictor in this process, with both of its protocols, on ports that the system chooses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import httpx
import pytest
from inference import grpc_service_pb2_grpc
from teachwafer.predictor.v1 import predictor_pb2_grpc

from services.common.model_repository import ModelRepository
from services.predictor import kserve_servicer, servicer
from services.predictor.access import Access
from services.predictor.access_interceptor import AccessInterceptor
from services.predictor.inference import InferenceRunner
from services.predictor.kserve_servicer import KServeServicer
from services.predictor.log_settings import LogSettings
from services.predictor.model_config import ModelControl
from services.predictor.model_server import ModelServer
from services.predictor.response_cache import ResponseCache
from services.predictor.rest_server import RestServer, serving_rest
from services.predictor.servicer import PredictorServicer
from services.predictor.shared_memory import SharedMemory
from services.predictor.spans import Spans
from services.predictor.trace_interceptor import TraceInterceptor
from services.predictor.tracing import Tracer
from tests.helpers.grpc_testing import serving


@dataclass(frozen=True)
class Server:
    """A running predictor.

    Attributes:
        models: Its models.
        root: Its repository.
        kserve: Stub of the open inference protocol.
        own: Stub of our protocol.
        handlers: The handlers that both forms of the open protocol go through.
        traces: File of its traces.
        draining: Set when it stops.
        rest: Client of the REST form.
        channel: Channel of the stubs.
        address: Where the stubs' protocols listen.
    """

    models: ModelServer
    root: Path
    kserve: grpc_service_pb2_grpc.GRPCInferenceServiceStub
    own: predictor_pb2_grpc.PredictorServiceStub
    handlers: KServeServicer
    traces: Path
    draining: asyncio.Event
    rest: httpx.AsyncClient
    channel: grpc.aio.Channel
    address: str


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Server]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Returns what runs a predictor on `tmp_path / "models"` while inside."""

    @contextlib.asynccontextmanager
    async def start(
        *,
        control: ModelControl = ModelControl.EXPLICIT,
        shared_memory: bool = True,
        threads: int | None = None,
        log_settings: LogSettings | None = None,
        max_body_bytes: int = 1 << 20,
        max_waiting: int = 4096,
        access: Access | None = None,
        key: str = "",
        spans: Spans | None = None,
    ) -> AsyncIterator[Server]:
        root = tmp_path / "models"
        models = ModelServer(ModelRepository(root), control, threads)
        traces = tmp_path / "trace.json"
        tracer = Tracer(traces)
        runner = InferenceRunner(max_waiting, threads, ResponseCache(1 << 20), tracer, access, spans)
        draining = asyncio.Event()
        handlers = KServeServicer(models, runner, draining, SharedMemory(allowed=shared_memory), tracer, log_settings)
        await asyncio.to_thread(models.load_all)

        def add(server: object) -> None:
            predictor_pb2_grpc.add_PredictorServiceServicer_to_server(
                PredictorServicer(models, runner, draining), server
            )
            grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(handlers, server)

        names = (servicer.SERVICE_NAME, kserve_servicer.SERVICE_NAME)
        with contextlib.closing(runner):
            rest = RestServer(handlers, "127.0.0.1", 0, max_body_bytes=max_body_bytes, access=access)
            async with (
                serving(
                    add,
                    service_names=names,
                    client={"key": key},
                    interceptors=[*([AccessInterceptor(access)] if access else []), TraceInterceptor()],
                ) as served,
                serving_rest(rest),
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{rest.port}", timeout=60) as client,
            ):
                yield Server(
                    models,
                    root,
                    grpc_service_pb2_grpc.GRPCInferenceServiceStub(served.channel),
                    predictor_pb2_grpc.PredictorServiceStub(served.channel),
                    handlers,
                    traces,
                    draining,
                    client,
                    served.channel,
                    served.address,
                )

    return start
