"""The trainer's gRPC service: from the wire, one call, to the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import empty_pb2
from teachwafer.trainer.v1 import trainer_pb2, trainer_pb2_grpc

from services.common.dataset import read_manifest
from services.common.errors import FailedPreconditionError
from services.common.jobs.engine import JobEngine
from services.common.jobs.run_folder import RunFolder
from services.common.jobs.wire import check_request_id
from services.common.model_repository import ModelRepository, checked_model_id
from services.common.resource_names import TrainingJobName
from services.common.server import GrpcServer
from services.common.store import BlobStore
from services.common.streams import until_draining
from services.trainer import converters
from services.trainer.backbones import BACKBONES, BackboneLibrary
from services.trainer.domain import TrainingSpec, check_dataset, check_generated, check_spec
from services.trainer.publishing import publish

SERVICE_NAME: str = trainer_pb2.DESCRIPTOR.services_by_name["TrainerService"].full_name

_Context = grpc.aio.ServicerContext[Any, Any]


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """Serves training jobs, publishing and the list of backbones.

    Args:
        engine: Engine of the training jobs.
        store: Store of the data set versions.
        repository: Where models are published.
        runs_folder: Folder with one folder a job.
        mobilenet_v2_weights: Weights file that makes the backbone mobilenet-v2 available, or None.
        draining: Set when the server starts to stop; watching ends then, and the caller goes on watching elsewhere.
    """

    def __init__(
        self,
        engine: JobEngine,
        store: BlobStore,
        repository: ModelRepository,
        runs_folder: Path,
        mobilenet_v2_weights: Path | None,
        draining: asyncio.Event,
    ) -> None:
        self._engine = engine
        self._store = store
        self._repository = repository
        self._runs_folder = runs_folder
        self._mobilenet_v2_weights = mobilenet_v2_weights
        self._draining = draining

    async def CreateTrainingJob(
        self, request: trainer_pb2.CreateTrainingJobRequest, context: _Context
    ) -> trainer_pb2.TrainingJob:
        """Checks a request and starts its job."""
        check_request_id(request.request_id)
        spec = converters.spec_from_proto(request.training_job)
        check_spec(spec)
        await asyncio.to_thread(self._check_datasets, spec)
        display_name = request.training_job.display_name
        if request.validate_only:
            return converters.validated_to_proto(spec, display_name)
        job = await self._engine.create(spec.to_json(), request_id=request.request_id, display_name=display_name)
        return converters.job_to_proto(job)

    async def GetTrainingJob(
        self, request: trainer_pb2.GetTrainingJobRequest, context: _Context
    ) -> trainer_pb2.TrainingJob:
        """Returns one job."""
        return converters.job_to_proto(await self._engine.get(TrainingJobName.parse(request.name).id))

    async def ListTrainingJobs(
        self, request: trainer_pb2.ListTrainingJobsRequest, context: _Context
    ) -> trainer_pb2.ListTrainingJobsResponse:
        """Returns a page of jobs, newest first."""
        jobs, next_page_token = await self._engine.list(request.page_size, request.page_token)
        return trainer_pb2.ListTrainingJobsResponse(
            training_jobs=[converters.job_to_proto(job) for job in jobs], next_page_token=next_page_token
        )

    async def CancelTrainingJob(
        self, request: trainer_pb2.CancelTrainingJobRequest, context: _Context
    ) -> trainer_pb2.TrainingJob:
        """Asks a job to stop."""
        return converters.job_to_proto(await self._engine.cancel(TrainingJobName.parse(request.name).id))

    async def DeleteTrainingJob(
        self, request: trainer_pb2.DeleteTrainingJobRequest, context: _Context
    ) -> empty_pb2.Empty:
        """Deletes a job that has ended."""
        await self._engine.delete(TrainingJobName.parse(request.name).id)
        return empty_pb2.Empty()

    async def WatchTrainingJob(
        self, request: trainer_pb2.WatchTrainingJobRequest, context: _Context
    ) -> AsyncIterator[trainer_pb2.TrainingEvent]:
        """Streams the events of a job until it has ended or this server drains."""
        name = TrainingJobName.parse(request.name)
        events = self._engine.watch(name.id, request.after_sequence)
        async for event in until_draining(events, self._draining, "Watch again after the last event received."):
            yield converters.event_to_proto(event)

    async def PublishModel(
        self, request: trainer_pb2.PublishModelRequest, context: _Context
    ) -> trainer_pb2.PublishModelResponse:
        """Verifies and publishes what a job made."""
        check_request_id(request.request_id)
        model_id = checked_model_id(request.model_id)
        job = await self._engine.get(TrainingJobName.parse(request.training_job, "training_job").id)
        folder = RunFolder(self._runs_folder / job.id).attempt(job.attempt).path
        version = await asyncio.to_thread(
            publish, self._repository, job, folder, model_id, request.request_id, quantised=request.quantised
        )
        return trainer_pb2.PublishModelResponse(model_id=model_id, version=version)

    async def ListBackbones(
        self, request: trainer_pb2.ListBackbonesRequest, context: _Context
    ) -> trainer_pb2.ListBackbonesResponse:
        """Lists the pretrained networks."""
        return trainer_pb2.ListBackbonesResponse(
            backbones=await asyncio.to_thread(_list_backbones, self._mobilenet_v2_weights)
        )

    def _check_datasets(self, spec: TrainingSpec) -> None:
        manifest = read_manifest(self._store, spec.dataset_id)
        check_dataset(manifest, spec.config.task)
        for dataset_id in spec.generated:
            check_generated(manifest, read_manifest(self._store, dataset_id))


def add_to(server: GrpcServer, servicer: TrainerServicer) -> None:
    """Adds the service to a server."""
    trainer_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server.aio)  # type: ignore[no-untyped-call]


def _list_backbones(mobilenet_v2_weights: Path | None) -> list[trainer_pb2.Backbone]:
    library = BackboneLibrary(mobilenet_v2_weights=mobilenet_v2_weights)
    messages = []
    for backbone in BACKBONES.values():
        reason = ""
        try:
            library.check(backbone)
        except FailedPreconditionError as error:
            reason = str(error)
        messages.append(
            trainer_pb2.Backbone(
                backbone_id=backbone.backbone_id,
                display_name=backbone.display_name,
                model_size=converters.model_size(backbone.model_size),
                parameters=backbone.parameters,
                mflops=backbone.mflops,
                available=not reason,
                unavailable_reason=reason,
            )
        )
    return messages
