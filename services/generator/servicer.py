"""The generator's gRPC service: from the wire, one call, to the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
from google.protobuf import empty_pb2
from teachwafer.generator.v1 import generator_pb2, generator_pb2_grpc

from services.common.dataset import read_manifest
from services.common.jobs.engine import JobEngine
from services.common.jobs.wire import check_request_id
from services.common.resource_names import GenerationJobName
from services.common.server import GrpcServer
from services.common.store import BlobStore
from services.common.streams import until_draining
from services.generator import converters
from services.generator.domain import check_against, check_spec
from services.generator.simulator import SimulatedBatch

SERVICE_NAME: str = generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"].full_name

_Context = grpc.aio.ServicerContext[Any, Any]


class GeneratorServicer(generator_pb2_grpc.GeneratorServiceServicer):
    """Serves generation jobs and simulated wafers.

    Args:
        engine: Engine of the generation jobs.
        store: Store of the data set versions.
        draining: Set when the server starts to stop; watching ends then, and the caller goes on watching elsewhere.
    """

    def __init__(self, engine: JobEngine, store: BlobStore, draining: asyncio.Event) -> None:
        self._engine = engine
        self._store = store
        self._draining = draining

    async def CreateGenerationJob(
        self, request: generator_pb2.CreateGenerationJobRequest, context: _Context
    ) -> generator_pb2.GenerationJob:
        """Checks a request and starts its job."""
        check_request_id(request.request_id)
        spec = converters.spec_from_proto(request.generation_job)
        check_spec(spec)
        check_against(spec, await asyncio.to_thread(read_manifest, self._store, spec.dataset_id))
        display_name = request.generation_job.display_name
        if request.validate_only:
            return converters.validated_to_proto(spec, display_name)
        job = await self._engine.create(spec.to_json(), request_id=request.request_id, display_name=display_name)
        return converters.job_to_proto(job)

    async def GetGenerationJob(
        self, request: generator_pb2.GetGenerationJobRequest, context: _Context
    ) -> generator_pb2.GenerationJob:
        """Returns one job."""
        return converters.job_to_proto(await self._engine.get(GenerationJobName.parse(request.name).id))

    async def ListGenerationJobs(
        self, request: generator_pb2.ListGenerationJobsRequest, context: _Context
    ) -> generator_pb2.ListGenerationJobsResponse:
        """Returns a page of jobs, newest first."""
        jobs, next_page_token = await self._engine.list(request.page_size, request.page_token)
        return generator_pb2.ListGenerationJobsResponse(
            generation_jobs=[converters.job_to_proto(job) for job in jobs], next_page_token=next_page_token
        )

    async def CancelGenerationJob(
        self, request: generator_pb2.CancelGenerationJobRequest, context: _Context
    ) -> generator_pb2.GenerationJob:
        """Asks a job to stop."""
        return converters.job_to_proto(await self._engine.cancel(GenerationJobName.parse(request.name).id))

    async def DeleteGenerationJob(
        self, request: generator_pb2.DeleteGenerationJobRequest, context: _Context
    ) -> empty_pb2.Empty:
        """Deletes a job that has ended."""
        await self._engine.delete(GenerationJobName.parse(request.name).id)
        return empty_pb2.Empty()

    async def WatchGenerationJob(
        self, request: generator_pb2.WatchGenerationJobRequest, context: _Context
    ) -> AsyncIterator[generator_pb2.GenerationEvent]:
        """Streams the events of a job until it has ended or this server drains."""
        name = GenerationJobName.parse(request.name)
        events = self._engine.watch(name.id, request.after_sequence)
        async for event in until_draining(events, self._draining, "Watch again after the last event received."):
            yield converters.event_to_proto(event)

    async def SimulateWafers(
        self, request: generator_pb2.SimulateWafersRequest, context: _Context
    ) -> AsyncIterator[generator_pb2.SimulateWafersResponse]:
        """Streams simulated wafers, a batch of one product at a time."""
        batches = converters.simulation_from_proto(request)
        # In a thread, a batch at a time: the loop stays free, and no more is made than the caller takes.
        while (message := await asyncio.to_thread(_next_message, batches)) is not None:
            yield message


def add_to(server: GrpcServer, servicer: GeneratorServicer) -> None:
    """Adds the service to a server."""
    generator_pb2_grpc.add_GeneratorServiceServicer_to_server(servicer, server.aio)  # type: ignore[no-untyped-call]


def _next_message(batches: Iterator[SimulatedBatch]) -> generator_pb2.SimulateWafersResponse | None:
    batch = next(batches, None)
    return None if batch is None else converters.simulated_to_proto(batch)
