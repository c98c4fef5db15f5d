"""What one of several processes of the predictor answers to callers, and what to its parent.

What changes the server, and what counts, goes from the process that a caller reached to the parent, which asks all of
them on their private sockets. Everything else is answered where it came in.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
from inference import grpc_service_pb2, grpc_service_pb2_grpc
from prometheus_client import CollectorRegistry, generate_latest
from teachwafer.predictor.v1 import predictor_pb2
from teachwafer.predictor.workers.v1 import workers_pb2, workers_pb2_grpc

from services.common.errors import TeachwaferError
from services.predictor import kserve_converters
from services.predictor import worker_converters as converters
from services.predictor.access import allowed, check_manager, check_model
from services.predictor.inference import InferenceRunner
from services.predictor.kserve_servicer import KServeServicer
from services.predictor.log_settings import LogSettings
from services.predictor.metrics import ModelCollector
from services.predictor.model_server import ModelServer, Moment
from services.predictor.parts import Parts
from services.predictor.servicer import PredictorServicer

_Context = grpc.aio.ServicerContext[Any, Any] | None
_Parent = grpc_service_pb2_grpc.GRPCInferenceServiceStub

logger = logging.getLogger(__name__)


class SharingServicer(KServeServicer):
    """Answers callers.

    Args:
        parent: The parent.
        *everything: Arguments of KServeServicer.
    """

    def __init__(self, parent: _Parent, *everything: Any) -> None:
        super().__init__(*everything)
        self._parent = parent

    async def ModelStatistics(
        self, request: grpc_service_pb2.ModelStatisticsRequest, context: _Context = None
    ) -> grpc_service_pb2.ModelStatisticsResponse:
        """Returns what all processes have done."""
        if request.name:
            check_model(request.name)
        response = await self._parent.ModelStatistics(request)
        return grpc_service_pb2.ModelStatisticsResponse(
            model_stats=[each for each in response.model_stats if allowed(each.name)]
        )

    async def RepositoryModelLoad(
        self, request: grpc_service_pb2.RepositoryModelLoadRequest, context: _Context = None
    ) -> grpc_service_pb2.RepositoryModelLoadResponse:
        """Loads a model in all processes."""
        check_manager()
        response: grpc_service_pb2.RepositoryModelLoadResponse = await self._parent.RepositoryModelLoad(request)
        return response

    async def RepositoryModelUnload(
        self, request: grpc_service_pb2.RepositoryModelUnloadRequest, context: _Context = None
    ) -> grpc_service_pb2.RepositoryModelUnloadResponse:
        """Takes a model out of service in all processes."""
        check_manager()
        response: grpc_service_pb2.RepositoryModelUnloadResponse = await self._parent.RepositoryModelUnload(request)
        return response

    async def SystemSharedMemoryRegister(
        self, request: grpc_service_pb2.SystemSharedMemoryRegisterRequest, context: _Context = None
    ) -> grpc_service_pb2.SystemSharedMemoryRegisterResponse:
        """Registers a region in all processes."""
        response: grpc_service_pb2.SystemSharedMemoryRegisterResponse = await self._parent.SystemSharedMemoryRegister(
            request
        )
        return response

    async def SystemSharedMemoryUnregister(
        self, request: grpc_service_pb2.SystemSharedMemoryUnregisterRequest, context: _Context = None
    ) -> grpc_service_pb2.SystemSharedMemoryUnregisterResponse:
        """Forgets a region, or all, in all processes."""
        response: grpc_service_pb2.SystemSharedMemoryUnregisterResponse = (
            await self._parent.SystemSharedMemoryUnregister(request)
        )
        return response

    async def TraceSetting(
        self, request: grpc_service_pb2.TraceSettingRequest, context: _Context = None
    ) -> grpc_service_pb2.TraceSettingResponse:
        """Changes what all processes trace and returns what they do."""
        if not request.settings:
            return await super().TraceSetting(request, context)
        check_manager()
        response: grpc_service_pb2.TraceSettingResponse = await self._parent.TraceSetting(request)
        return response

    async def LogSettings(
        self, request: grpc_service_pb2.LogSettingsRequest, context: _Context = None
    ) -> grpc_service_pb2.LogSettingsResponse:
        """Changes what all processes log and returns what they do."""
        if not request.settings:
            return await super().LogSettings(request, context)
        check_manager()
        response: grpc_service_pb2.LogSettingsResponse = await self._parent.LogSettings(request)
        return response


class SharedPredictorServicer(PredictorServicer):
    """Answers callers of the predictor's own protocol.

    Args:
        parent: The parent.
        models: Models in service.
        runner: Runs them.
        draining: Set when the server starts to stop.
    """

    def __init__(self, parent: _Parent, models: ModelServer, runner: InferenceRunner, draining: asyncio.Event) -> None:
        super().__init__(models, runner, draining)
        self._parent = parent

    async def ListModels(
        self, request: predictor_pb2.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> predictor_pb2.ListModelsResponse:
        """Returns the versions in service of models of wafers, with the wafers of all processes."""
        response = await super().ListModels(request, context)
        together = await self._parent.ModelStatistics(grpc_service_pb2.ModelStatisticsRequest())
        wafers = {(each.name, each.version): each.inference_count for each in together.model_stats}
        for each in response.models:
            each.wafers = wafers.get((each.model, str(each.version)), each.wafers)
        return response


class WorkerServicer(KServeServicer, workers_pb2_grpc.WorkerServiceServicer):
    """Answers the parent, on a socket that nobody else reaches.

    Args:
        parts: What this process is made of.
        log_settings: What is logged.
        draining: Set when the server starts to stop.

    Attributes:
        asked_to_open: Done when the parent wants the public ports open; set its result when they are.
    """

    def __init__(self, parts: Parts, log_settings: LogSettings, draining: asyncio.Event) -> None:
        super().__init__(parts.models, parts.runner, draining, parts.shared_memory, parts.tracer, log_settings)
        self._before: Moment | None = None
        self._metrics = CollectorRegistry()
        self._metrics.register(ModelCollector(parts.models, parts.access))
        self.asked_to_open: asyncio.Future[asyncio.Future[None]] = asyncio.get_running_loop().create_future()

    async def RepositoryModelLoad(
        self, request: grpc_service_pb2.RepositoryModelLoadRequest, context: _Context = None
    ) -> grpc_service_pb2.RepositoryModelLoadResponse:
        """Loads a model; `Settle` has the last word."""
        self._before = await asyncio.to_thread(self._models.moment)
        return await super().RepositoryModelLoad(request, context)

    async def RepositoryModelUnload(
        self, request: grpc_service_pb2.RepositoryModelUnloadRequest, context: _Context = None
    ) -> grpc_service_pb2.RepositoryModelUnloadResponse:
        """Takes a model out of service; `Settle` has the last word."""
        self._before = await asyncio.to_thread(self._models.moment)
        return await super().RepositoryModelUnload(request, context)

    async def Settle(self, request: workers_pb2.SettleRequest, context: _Context = None) -> workers_pb2.SettleResponse:
        """Ends a load or an unload."""
        before, self._before = self._before, None
        if before is not None and request.undo_reason:
            await asyncio.to_thread(self._models.go_back, before, request.undo_reason)
        return workers_pb2.SettleResponse()

    async def GetState(self, request: workers_pb2.GetStateRequest, context: _Context = None) -> workers_pb2.State:
        """Tells what is served here."""
        return converters.state_to_proto(
            await asyncio.to_thread(self._models.served),
            self._models.rejected(),
            self._shared_memory.regions(),
            self._tracer,
            self._log_settings.settings(),
        )

    async def TakeOver(
        self, request: workers_pb2.TakeOverRequest, context: _Context = None
    ) -> workers_pb2.TakeOverResponse:
        """Loads what another process serves, or what the repository holds."""
        if not request.HasField("state"):
            await asyncio.to_thread(self._models.load_all)
            return workers_pb2.TakeOverResponse()
        state = request.state
        await asyncio.to_thread(
            self._models.take_over, converters.served_from_proto(state), converters.rejected_from_proto(state)
        )
        for region in state.regions:
            try:
                await self.SystemSharedMemoryRegister(region)
            except TeachwaferError as error:
                # Its object may be gone by now: callers hear that the region is not registered, and register it anew.
                logger.warning("could not take over a region", extra={"region": region.name, "error": error.message})
        for trace in state.traces:
            changes = kserve_converters.trace_changes_from_proto(trace)
            if not changes.items() <= self._tracer.settings(trace.model_name).items():
                self._tracer.change(changes, trace.model_name)
        if (logged := kserve_converters.log_changes_from_proto(state.logs)) != self._log_settings.settings():
            self._log_settings.change(logged)
        return workers_pb2.TakeOverResponse()

    async def Open(self, request: workers_pb2.OpenRequest, context: _Context = None) -> workers_pb2.OpenResponse:
        """Listens on the public ports."""
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked_to_open.set_result(opened)
        await opened
        return workers_pb2.OpenResponse()

    async def Poll(self, request: workers_pb2.PollRequest, context: _Context = None) -> workers_pb2.PollResponse:
        """Looks for changes in the model repository."""
        await asyncio.to_thread(self._models.poll)
        return workers_pb2.PollResponse()

    async def EndTrial(
        self, request: workers_pb2.EndTrialRequest, context: _Context = None
    ) -> workers_pb2.EndTrialResponse:
        """Ends the trial of a new version."""
        verdict = converters.verdict_from_proto(request)
        await asyncio.to_thread(self._models.end_trial, request.model, request.candidate, verdict)
        return workers_pb2.EndTrialResponse()

    async def GetMetrics(
        self, request: workers_pb2.GetMetricsRequest, context: _Context = None
    ) -> workers_pb2.GetMetricsResponse:
        """Tells the metrics of this process."""
        return workers_pb2.GetMetricsResponse(text=generate_latest(self._metrics))
