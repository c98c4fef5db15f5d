"""The open inference protocol, as Triton and KServe speak it: from the wire, one call, to the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib.metadata import version as installed_version
from typing import Any

import grpc
from inference import grpc_service_pb2, grpc_service_pb2_grpc

from services.common.errors import NotFoundError, TeachwaferError, UnimplementedError
from services.common.model_repository import checked_model_id
from services.common.server import GrpcServer
from services.common.streams import until_draining
from services.predictor import kserve_converters as converters
from services.predictor.domain import STREAM_AGAIN
from services.predictor.inference import InferenceRunner
from services.predictor.model_server import LoadedModel, ModelServer, ModelState

SERVICE_NAME: str = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
SERVER_NAME = "teachwafer"
EXTENSIONS = ("model_repository", "model_configuration", "statistics")

_Context = grpc.aio.ServicerContext[Any, Any]


class KServeServicer(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves the same models to clients of other makers.

    Args:
        models: Models in service.
        runner: Runs them.
        draining: Set when the server starts to stop; streams end then, and the caller opens them elsewhere.
    """

    def __init__(self, models: ModelServer, runner: InferenceRunner, draining: asyncio.Event) -> None:
        self._models = models
        self._runner = runner
        self._draining = draining

    async def ServerLive(
        self, request: grpc_service_pb2.ServerLiveRequest, context: _Context
    ) -> grpc_service_pb2.ServerLiveResponse:
        """Tells that the server answers."""
        return grpc_service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: grpc_service_pb2.ServerReadyRequest, context: _Context
    ) -> grpc_service_pb2.ServerReadyResponse:
        """Tells whether the models are loaded and calls are welcome."""
        return grpc_service_pb2.ServerReadyResponse(ready=self._models.ready and not self._draining.is_set())

    async def ModelReady(
        self, request: grpc_service_pb2.ModelReadyRequest, context: _Context
    ) -> grpc_service_pb2.ModelReadyResponse:
        """Tells whether a model serves; one that does not exist does not."""
        version = converters.version_from_text(request.version)
        loaded = [(each.name, each.version) for each in self._models.loaded()]
        ready = any(name == request.name and version in (0, its_version) for name, its_version in loaded)
        return grpc_service_pb2.ModelReadyResponse(ready=ready)

    async def ServerMetadata(
        self, request: grpc_service_pb2.ServerMetadataRequest, context: _Context
    ) -> grpc_service_pb2.ServerMetadataResponse:
        """Returns name, version and extensions of the server."""
        return grpc_service_pb2.ServerMetadataResponse(
            name=SERVER_NAME, version=installed_version(SERVER_NAME), extensions=EXTENSIONS
        )

    async def ModelMetadata(
        self, request: grpc_service_pb2.ModelMetadataRequest, context: _Context
    ) -> grpc_service_pb2.ModelMetadataResponse:
        """Returns inputs and outputs of a model."""
        return converters.metadata_to_proto(self._model(request.name, request.version))

    async def ModelConfig(
        self, request: grpc_service_pb2.ModelConfigRequest, context: _Context
    ) -> grpc_service_pb2.ModelConfigResponse:
        """Returns the configuration of a model."""
        model = self._model(request.name, request.version)
        return await asyncio.to_thread(converters.read_config, self._models.repository.root / model.name)

    async def ModelInfer(
        self, request: grpc_service_pb2.ModelInferRequest, context: _Context
    ) -> grpc_service_pb2.ModelInferResponse:
        """Runs a model on a tensor of die grids."""
        return await self._infer(request)

    async def ModelStreamInfer(
        self, requests: AsyncIterator[grpc_service_pb2.ModelInferRequest], context: _Context
    ) -> AsyncIterator[grpc_service_pb2.ModelStreamInferResponse]:
        """Runs a model on request after request, in order; a bad request gets its error and does not end the stream."""
        async for request in until_draining(requests, self._draining, STREAM_AGAIN):
            try:
                yield grpc_service_pb2.ModelStreamInferResponse(infer_response=await self._infer(request))
            except TeachwaferError as error:
                yield grpc_service_pb2.ModelStreamInferResponse(
                    error_message=error.message,
                    infer_response=grpc_service_pb2.ModelInferResponse(id=request.id),
                )

    async def ModelStatistics(
        self, request: grpc_service_pb2.ModelStatisticsRequest, context: _Context
    ) -> grpc_service_pb2.ModelStatisticsResponse:
        """Returns what one model, or each of them, has done."""
        models = [self._model(request.name, request.version)] if request.name else self._models.loaded()
        return grpc_service_pb2.ModelStatisticsResponse(
            model_stats=[converters.statistics_to_proto(each) for each in models]
        )

    async def RepositoryIndex(
        self, request: grpc_service_pb2.RepositoryIndexRequest, context: _Context
    ) -> grpc_service_pb2.RepositoryIndexResponse:
        """Lists the versions in the model repository, or only those that serve."""
        _check_repository(request.repository_name)
        entries = await asyncio.to_thread(self._models.index)
        return converters.index_to_proto(
            [each for each in entries if each.state is ModelState.READY or not request.ready]
        )

    async def RepositoryModelLoad(
        self, request: grpc_service_pb2.RepositoryModelLoadRequest, context: _Context
    ) -> grpc_service_pb2.RepositoryModelLoadResponse:
        """Loads the newest version of a model and puts it in the place of the one that serves."""
        _check_repository(request.repository_name)
        if request.parameters:
            raise UnimplementedError(
                f"Expected no parameters. Received: {sorted(request.parameters)[:10]}. Publish the files and the "
                "configuration of a model in the repository instead of sending them along."
            )
        await asyncio.to_thread(self._models.load, checked_model_id(request.model_name))
        return grpc_service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: grpc_service_pb2.RepositoryModelUnloadRequest, context: _Context
    ) -> grpc_service_pb2.RepositoryModelUnloadResponse:
        """Takes a model out of service."""
        _check_repository(request.repository_name)
        await asyncio.to_thread(self._models.unload, checked_model_id(request.model_name))
        return grpc_service_pb2.RepositoryModelUnloadResponse()

    async def _refuse(self, request: Any, context: _Context) -> Any:
        raise UnimplementedError(
            "Expected a method that this server has. Received one for shared memory, tracing or log settings. Send "
            "tensors in the message; set the log level with TEACHWAFER_LOG_LEVEL."
        )

    SystemSharedMemoryStatus = _refuse
    SystemSharedMemoryRegister = _refuse
    SystemSharedMemoryUnregister = _refuse
    CudaSharedMemoryStatus = _refuse
    CudaSharedMemoryRegister = _refuse
    CudaSharedMemoryUnregister = _refuse
    TraceSetting = _refuse
    LogSettings = _refuse

    def _model(self, name: str, version: str) -> LoadedModel:
        return self._models.get(name, converters.version_from_text(version))

    async def _infer(self, request: grpc_service_pb2.ModelInferRequest) -> grpc_service_pb2.ModelInferResponse:
        model = self._model(request.model_name, request.model_version)
        dies = converters.dies_from_proto(request, model.session.inputs[0])
        wanted = converters.outputs_wanted(request, model.session.outputs)
        return converters.infer_to_proto(request, model, await self._runner.run(model, list(dies), wanted))


def add_to(server: GrpcServer, servicer: KServeServicer) -> None:
    """Adds the service to a server."""
    grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server.aio)  # type: ignore[no-untyped-call]


def _check_repository(name: str) -> None:
    if name:
        raise NotFoundError(
            "model repository", name, f"Expected no name, because there is one repository. Received: {name[:100]!r}."
        )
