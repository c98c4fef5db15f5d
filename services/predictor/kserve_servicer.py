"""The open inference protocol, as Triton and KServe speak it: from the wire, one call, to the wire.

The REST form of the protocol goes through the same handlers, so none of them needs the context of a gRPC call.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib.metadata import version as installed_version
from typing import Any

import grpc
from inference import grpc_service_pb2, grpc_service_pb2_grpc

from services.common.errors import NotFoundError, TeachwaferError, UnavailableError
from services.common.model_repository import checked_model_id
from services.common.server import GrpcServer
from services.common.streams import until_draining
from services.predictor import infer_converters
from services.predictor import kserve_converters as converters
from services.predictor.access import allowed, check_manager, check_model
from services.predictor.domain import STREAM_AGAIN
from services.predictor.inference import InferenceRunner
from services.predictor.log_settings import LogSettings
from services.predictor.model_server import LoadedModel, ModelServer, ModelState
from services.predictor.shared_memory import SharedMemory
from services.predictor.tracing import Tracer

SERVICE_NAME: str = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
SERVER_NAME = "teachwafer"
EXTENSIONS = (
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
)

_Context = grpc.aio.ServicerContext[Any, Any] | None


class KServeServicer(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    """Serves the same models to clients of other makers.

    Args:
        models: Models in service.
        runner: Runs them.
        draining: Set when the server starts to stop; streams end then, and the caller opens them elsewhere.
        shared_memory: Regions that callers register. Default: an own store of them.
        tracer: What is traced; the one of the runner. Default: nothing can be traced.
        log_settings: What is logged. Default: that of this process.
    """

    def __init__(
        self,
        models: ModelServer,
        runner: InferenceRunner,
        draining: asyncio.Event,
        shared_memory: SharedMemory | None = None,
        tracer: Tracer | None = None,
        log_settings: LogSettings | None = None,
    ) -> None:
        self._models = models
        self._runner = runner
        self._draining = draining
        self._shared_memory = shared_memory or SharedMemory()
        self._tracer = tracer or Tracer()
        self._log_settings = log_settings or LogSettings()

    async def ServerLive(
        self, request: grpc_service_pb2.ServerLiveRequest, context: _Context = None
    ) -> grpc_service_pb2.ServerLiveResponse:
        """Tells that the server answers."""
        return grpc_service_pb2.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: grpc_service_pb2.ServerReadyRequest, context: _Context = None
    ) -> grpc_service_pb2.ServerReadyResponse:
        """Tells whether the models are loaded and calls are welcome."""
        return grpc_service_pb2.ServerReadyResponse(ready=self._models.ready and not self._draining.is_set())

    async def ModelReady(
        self, request: grpc_service_pb2.ModelReadyRequest, context: _Context = None
    ) -> grpc_service_pb2.ModelReadyResponse:
        """Tells whether a model serves; one that does not exist does not."""
        version = converters.version_from_text(request.version)
        ready = any(
            each.name == request.name and version in (0, each.version) and not each.fault
            for each in self._models.loaded()
        )
        return grpc_service_pb2.ModelReadyResponse(ready=ready)

    async def ServerMetadata(
        self, request: grpc_service_pb2.ServerMetadataRequest, context: _Context = None
    ) -> grpc_service_pb2.ServerMetadataResponse:
        """Returns name, version and extensions of the server."""
        return grpc_service_pb2.ServerMetadataResponse(
            name=SERVER_NAME, version=installed_version(SERVER_NAME), extensions=EXTENSIONS
        )

    async def ModelMetadata(
        self, request: grpc_service_pb2.ModelMetadataRequest, context: _Context = None
    ) -> grpc_service_pb2.ModelMetadataResponse:
        """Returns inputs and outputs of a model."""
        model = self._model(request.name, request.version)
        return converters.metadata_to_proto(model, self._versions(model.name))

    async def ModelConfig(
        self, request: grpc_service_pb2.ModelConfigRequest, context: _Context = None
    ) -> grpc_service_pb2.ModelConfigResponse:
        """Returns the configuration of a model, with everything that was derived from its graph."""
        return converters.config_to_proto(self._model(request.name, request.version))

    async def ModelInfer(
        self, request: grpc_service_pb2.ModelInferRequest, context: _Context = None
    ) -> grpc_service_pb2.ModelInferResponse:
        """Runs a model on tensors."""
        return await self._infer(request, stream=False)

    async def ModelStreamInfer(
        self, requests: AsyncIterator[grpc_service_pb2.ModelInferRequest], context: _Context = None
    ) -> AsyncIterator[grpc_service_pb2.ModelStreamInferResponse]:
        """Runs a model on request after request, in order; a bad request gets its error and does not end the stream."""
        async for request in until_draining(requests, self._draining, STREAM_AGAIN):
            try:
                response = await self._infer(request, stream=True)
                if infer_converters.wants_final_response(request):
                    response.parameters[infer_converters.FINAL_RESPONSE].bool_param = True
                yield grpc_service_pb2.ModelStreamInferResponse(infer_response=response)
            except TeachwaferError as error:
                yield grpc_service_pb2.ModelStreamInferResponse(
                    error_message=error.message,
                    infer_response=grpc_service_pb2.ModelInferResponse(id=request.id),
                )

    async def ModelStatistics(
        self, request: grpc_service_pb2.ModelStatisticsRequest, context: _Context = None
    ) -> grpc_service_pb2.ModelStatisticsResponse:
        """Returns what one version, all versions of a model, or each of them has done."""
        version = converters.version_from_text(request.version)
        if request.name:
            check_model(request.name)
            newest = self._models.get(request.name, version)
            models = [newest] if version else [each for each in self._models.loaded() if each.name == newest.name]
        else:
            models = [each for each in self._models.loaded() if allowed(each.name)]
        return grpc_service_pb2.ModelStatisticsResponse(
            model_stats=[converters.statistics_to_proto(each) for each in models]
        )

    async def RepositoryIndex(
        self, request: grpc_service_pb2.RepositoryIndexRequest, context: _Context = None
    ) -> grpc_service_pb2.RepositoryIndexResponse:
        """Lists the versions in the model repository, or only those that serve."""
        _check_repository(request.repository_name)
        entries = await asyncio.to_thread(self._models.index)
        return converters.index_to_proto(
            [each for each in entries if (each.state is ModelState.READY or not request.ready) and allowed(each.name)]
        )

    async def RepositoryModelLoad(
        self, request: grpc_service_pb2.RepositoryModelLoadRequest, context: _Context = None
    ) -> grpc_service_pb2.RepositoryModelLoadResponse:
        """Loads a model, perhaps with a configuration or files sent along, in the place of what serves."""
        _check_repository(request.repository_name)
        check_manager()
        override, files = converters.load_parameters_from_proto(request)
        await asyncio.to_thread(self._models.load, checked_model_id(request.model_name), override, files)
        return grpc_service_pb2.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: grpc_service_pb2.RepositoryModelUnloadRequest, context: _Context = None
    ) -> grpc_service_pb2.RepositoryModelUnloadResponse:
        """Takes a model out of service, and the models of an ensemble with it where the caller says so."""
        _check_repository(request.repository_name)
        check_manager()
        dependents = converters.unload_parameters_from_proto(request)
        name = checked_model_id(request.model_name)
        await asyncio.to_thread(self._models.unload, name, dependents=dependents)
        return grpc_service_pb2.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(
        self, request: grpc_service_pb2.SystemSharedMemoryStatusRequest, context: _Context = None
    ) -> grpc_service_pb2.SystemSharedMemoryStatusResponse:
        """Returns the registered regions, or one of them."""
        return converters.regions_to_proto(self._shared_memory.regions(request.name))

    async def SystemSharedMemoryRegister(
        self, request: grpc_service_pb2.SystemSharedMemoryRegisterRequest, context: _Context = None
    ) -> grpc_service_pb2.SystemSharedMemoryRegisterResponse:
        """Registers a region."""
        self._shared_memory.register(request.name, request.key, request.offset, request.byte_size)
        return grpc_service_pb2.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(
        self, request: grpc_service_pb2.SystemSharedMemoryUnregisterRequest, context: _Context = None
    ) -> grpc_service_pb2.SystemSharedMemoryUnregisterResponse:
        """Forgets a region, or all."""
        self._shared_memory.unregister(request.name)
        return grpc_service_pb2.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(
        self, request: grpc_service_pb2.CudaSharedMemoryStatusRequest, context: _Context = None
    ) -> grpc_service_pb2.CudaSharedMemoryStatusResponse:
        """Refuses: see `_no_gpu_memory`."""
        raise _no_gpu_memory()

    async def CudaSharedMemoryRegister(
        self, request: grpc_service_pb2.CudaSharedMemoryRegisterRequest, context: _Context = None
    ) -> grpc_service_pb2.CudaSharedMemoryRegisterResponse:
        """Refuses: see `_no_gpu_memory`."""
        raise _no_gpu_memory()

    async def CudaSharedMemoryUnregister(
        self, request: grpc_service_pb2.CudaSharedMemoryUnregisterRequest, context: _Context = None
    ) -> grpc_service_pb2.CudaSharedMemoryUnregisterResponse:
        """Refuses: see `_no_gpu_memory`."""
        raise _no_gpu_memory()

    async def TraceSetting(
        self, request: grpc_service_pb2.TraceSettingRequest, context: _Context = None
    ) -> grpc_service_pb2.TraceSettingResponse:
        """Changes what is traced and returns what is."""
        if request.settings:
            check_manager()
        if request.model_name:
            self._models.get(request.model_name)
        self._tracer.change(converters.trace_changes_from_proto(request), request.model_name)
        return converters.trace_to_proto(self._tracer.settings(request.model_name))

    async def LogSettings(
        self, request: grpc_service_pb2.LogSettingsRequest, context: _Context = None
    ) -> grpc_service_pb2.LogSettingsResponse:
        """Changes what is logged and returns what is."""
        if request.settings:
            check_manager()
        self._log_settings.change(converters.log_changes_from_proto(request))
        return converters.log_to_proto(self._log_settings.settings())

    def _model(self, name: str, version: str) -> LoadedModel:
        check_model(name)
        return self._models.get(name, converters.version_from_text(version))

    def _versions(self, name: str) -> list[int]:
        return [each.version for each in self._models.loaded() if each.name == name]

    async def _infer(
        self, request: grpc_service_pb2.ModelInferRequest, *, stream: bool
    ) -> grpc_service_pb2.ModelInferResponse:
        model = self._model(request.model_name, request.model_version)
        wishes = infer_converters.wishes_from_proto(request, stream=stream)
        inputs = infer_converters.inputs_from_proto(request, model, self._shared_memory)
        wanted = infer_converters.outputs_from_proto(request, model, self._shared_memory)
        names = [each.name for each in wanted]
        values = await self._runner.infer(model, inputs, names, wishes)
        return infer_converters.infer_to_proto(request, model, wanted, values)


def add_to(server: GrpcServer, servicer: KServeServicer) -> None:
    """Adds the service to a server."""
    grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server.aio)  # type: ignore[no-untyped-call]


def _check_repository(name: str) -> None:
    if name:
        raise NotFoundError(
            "model repository", name, f"Expected no name, because there is one repository. Received: {name[:100]!r}."
        )


def _no_gpu_memory() -> UnavailableError:
    return UnavailableError(
        "Expected tensors in the message or in system shared memory. Received: CUDA shared memory, which this server "
        "does not have. Register system shared memory.",
        60.0,
        reason="NO_CUDA_SHARED_MEMORY",
    )
