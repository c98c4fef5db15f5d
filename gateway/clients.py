"""Typed clients of the services: values in, values out, errors of services.common.errors; one channel a service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inference import grpc_service_pb2, grpc_service_pb2_grpc
from teachwafer.generator.v1 import generator_pb2, generator_pb2_grpc
from teachwafer.predictor.v1 import predictor_pb2, predictor_pb2_grpc
from teachwafer.trainer.v1 import trainer_pb2, trainer_pb2_grpc

from gateway import converters
from gateway.settings import GatewaySettings
from gateway.values import (
    Backbone,
    GenerationEvent,
    GenerationRequest,
    GenerationRun,
    ModelVersion,
    PredictorAnswer,
    QueueState,
    SimulatedClass,
    Simulation,
    Task,
    TrainingEvent,
    TrainingOptions,
    TrainingRun,
)
from services.common.client import connect, replicas_of
from services.common.errors import UnavailableError
from services.common.resource_names import DatasetVersionName, GenerationJobName, TrainingJobName
from services.common.wafer_map import WaferMap
from services.common.wafer_map_converter import from_proto, to_proto

MAX_WAFERS: Final = 1024
"""Most wafers of one call to the predictor."""

_MAX_DIES: Final = 16 << 20
_PUBLISH_TIMEOUT_S: Final = 300.0
_LOAD_TIMEOUT_S: Final = 180.0
_CLASSIFY_TIMEOUT_S: Final = 300.0


class TrainerClient:
    """The trainer.

    Args:
        channel: Open channel to it.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = trainer_pb2_grpc.TrainerServiceStub(channel)  # type: ignore[no-untyped-call]

    async def create(
        self,
        dataset_id: str,
        options: TrainingOptions,
        *,
        task: Task = Task.SINGLE,
        generated: Sequence[str] = (),
        display_name: str = "",
        request_id: str = "",
        validate_only: bool = False,
    ) -> TrainingRun:
        """Starts a training.

        Args:
            dataset_id: Data set version to teach from.
            options: How.
            task: What the model shall tell.
            generated: Ids of data set versions with generated wafers.
            display_name: Text for people.
            request_id: The same id again returns the first training.
            validate_only: Whether only to check.
        """
        job = trainer_pb2.TrainingJob(
            display_name=display_name[:256],
            dataset_version=str(DatasetVersionName(dataset_id)),
            generated_dataset_versions=[str(DatasetVersionName(each)) for each in generated],
            config=converters.options_to_proto(options, task),
        )
        request = trainer_pb2.CreateTrainingJobRequest(
            training_job=job, request_id=request_id, validate_only=validate_only
        )
        return converters.training_run(await self._stub.CreateTrainingJob(request))

    async def get(self, run_id: str) -> TrainingRun:
        """Returns a training."""
        request = trainer_pb2.GetTrainingJobRequest(name=str(TrainingJobName(run_id)))
        return converters.training_run(await self._stub.GetTrainingJob(request))

    async def list(self, page_size: int = 0, page_token: str = "") -> tuple[tuple[TrainingRun, ...], str]:
        """Returns a page of trainings, newest first, and the token of the next one."""
        request = trainer_pb2.ListTrainingJobsRequest(page_size=page_size, page_token=page_token)
        page = await self._stub.ListTrainingJobs(request)
        return tuple(converters.training_run(job) for job in page.training_jobs), page.next_page_token

    async def cancel(self, run_id: str) -> TrainingRun:
        """Asks a training to stop."""
        request = trainer_pb2.CancelTrainingJobRequest(name=str(TrainingJobName(run_id)))
        return converters.training_run(await self._stub.CancelTrainingJob(request))

    async def watch(self, run_id: str, after_sequence: int = 0) -> AsyncIterator[TrainingEvent]:
        """Yields the events of a training until it has ended."""
        request = trainer_pb2.WatchTrainingJobRequest(name=str(TrainingJobName(run_id)), after_sequence=after_sequence)
        async for message in self._stub.WatchTrainingJob(request):
            event = converters.training_event(message)
            if event is not None:
                yield event

    async def publish(self, run_id: str, model_id: str, request_id: str, *, quantised: bool = False) -> int:
        """Publishes the model of a succeeded training, or its quantised variant, and returns its version."""
        request = trainer_pb2.PublishModelRequest(
            training_job=str(TrainingJobName(run_id)), model_id=model_id, request_id=request_id, quantised=quantised
        )
        response = await self._stub.PublishModel(request, timeout=_PUBLISH_TIMEOUT_S)
        return int(response.version)

    async def backbones(self) -> tuple[Backbone, ...]:
        """Returns the pretrained models."""
        response = await self._stub.ListBackbones(trainer_pb2.ListBackbonesRequest())
        return tuple(converters.backbone(each) for each in response.backbones)

    async def queue(self) -> QueueState:
        """Returns how many jobs wait and run."""
        jobs, _ = await self.list(page_size=200)
        return _queue(jobs)


class GeneratorClient:
    """The generator.

    Args:
        channel: Open channel to it.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = generator_pb2_grpc.GeneratorServiceStub(channel)  # type: ignore[no-untyped-call]

    async def create(
        self,
        dataset_id: str,
        requests: Sequence[GenerationRequest],
        *,
        seed: int = 0,
        display_name: str = "",
        request_id: str = "",
        validate_only: bool = False,
        prove: bool = False,
    ) -> GenerationRun:
        """Starts a generation.

        Args:
            dataset_id: Data set version whose training wafers are the parents.
            requests: What to make.
            seed: Seed of everything random.
            display_name: Text for people.
            request_id: The same id again returns the first generation.
            validate_only: Whether only to check.
            prove: Whether to teach a classifier with and without the wafers made and tell what they change.
        """
        job = generator_pb2.GenerationJob(
            display_name=display_name[:256],
            dataset_version=str(DatasetVersionName(dataset_id)),
            classes=[converters.request_to_proto(each) for each in requests],
            seed=seed,
            prove=prove,
        )
        request = generator_pb2.CreateGenerationJobRequest(
            generation_job=job, request_id=request_id, validate_only=validate_only
        )
        return converters.generation_run(await self._stub.CreateGenerationJob(request))

    async def get(self, run_id: str) -> GenerationRun:
        """Returns a generation."""
        request = generator_pb2.GetGenerationJobRequest(name=str(GenerationJobName(run_id)))
        return converters.generation_run(await self._stub.GetGenerationJob(request))

    async def list(self, page_size: int = 0, page_token: str = "") -> tuple[tuple[GenerationRun, ...], str]:
        """Returns a page of generations, newest first, and the token of the next one."""
        request = generator_pb2.ListGenerationJobsRequest(page_size=page_size, page_token=page_token)
        page = await self._stub.ListGenerationJobs(request)
        return tuple(converters.generation_run(job) for job in page.generation_jobs), page.next_page_token

    async def cancel(self, run_id: str) -> GenerationRun:
        """Asks a generation to stop."""
        request = generator_pb2.CancelGenerationJobRequest(name=str(GenerationJobName(run_id)))
        return converters.generation_run(await self._stub.CancelGenerationJob(request))

    async def watch(self, run_id: str, after_sequence: int = 0) -> AsyncIterator[GenerationEvent]:
        """Yields the events of a generation until it has ended."""
        request = generator_pb2.WatchGenerationJobRequest(
            name=str(GenerationJobName(run_id)), after_sequence=after_sequence
        )
        async for message in self._stub.WatchGenerationJob(request):
            event = converters.generation_event(message)
            if event is not None:
                yield event

    async def simulate(
        self, classes: Sequence[tuple[Sequence[str], int]], *, seed: int = 0, wafers_per_lot: int = 0
    ) -> AsyncIterator[tuple[int, WaferMap]]:
        """Yields simulated wafers.

        Args:
            classes: Patterns and number of wafers of each class.
            seed: Seed of everything random.
            wafers_per_lot: Wafers a lot, 1 to 25; 0 means 5.

        Yields:
            Position of its class, and the wafer.
        """
        wanted = tuple(SimulatedClass(tuple(patterns), count) for patterns, count in classes)
        async for each in self.run_simulation(Simulation(wanted, seed, wafers_per_lot)):
            yield each

    async def run_simulation(self, simulation: Simulation) -> AsyncIterator[tuple[int, WaferMap]]:
        """Yields the wafers of a simulation: position of its class, and the wafer.

        A long one outlives its connection, and goes on where it was on another one.

        Raises:
            InvalidArgumentError: With a violation for each wrong field.
            UnavailableError: The generator went away, and another call brought nothing more.
        """
        received = 0
        while True:
            before = received
            try:
                async for batch in self._stub.SimulateWafers(converters.simulation_to_proto(simulation, received)):
                    received += 1
                    for index, message in zip(batch.class_indexes, batch.wafers, strict=True):
                        yield index, from_proto(message, "wafers")
            except UnavailableError:
                if received == before:
                    raise
            else:
                return

    async def queue(self) -> QueueState:
        """Returns how many jobs wait and run."""
        jobs, _ = await self.list(page_size=200)
        return _queue(jobs)


class PredictorClient:
    """The predictor, by both of its protocols.

    Args:
        channel: Open channel to it.
        address: Where it listens; a name of several replicas makes each of them load and unload.
        key: Key to show where it asks for one.
    """

    def __init__(self, channel: grpc.aio.Channel, address: str, key: str = "") -> None:
        self._address, self._key = address, key
        self._stub = predictor_pb2_grpc.PredictorServiceStub(channel)  # type: ignore[no-untyped-call]
        self._repository = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]

    async def classify(
        self, model_id: str, maps: Sequence[WaferMap], *, version: int = 0, explain: bool = False, embed: bool = False
    ) -> tuple[int, tuple[PredictorAnswer, ...]]:
        """Classifies any number of wafers, in as many calls as it takes.

        Args:
            model_id: Name of the model.
            maps: The wafers.
            version: Version; 0 means the newest that is loaded, the same one for all wafers.
            explain: Whether to answer with heat maps.
            embed: Whether to answer with embeddings.

        Returns:
            Version that answered, and the answers in the order of the wafers.
        """
        answers: list[PredictorAnswer] = []
        for batch in _batches(maps):
            request = predictor_pb2.ClassifyRequest(
                model=model_id,
                version=version,
                wafers=[to_proto(each) for each in batch],
                explain=explain,
                embed=embed,
            )
            response = await self._stub.Classify(request, timeout=_CLASSIFY_TIMEOUT_S)
            version = int(response.version)
            answers += [converters.answer(each) for each in response.answers]
        return version, tuple(answers)

    async def loaded(self) -> tuple[ModelVersion, ...]:
        """Returns the versions that serve, with their classes and figures."""
        response = await self._stub.ListModels(predictor_pb2.ListModelsRequest())
        return tuple(converters.loaded_model(each) for each in response.models)

    async def index(self) -> tuple[ModelVersion, ...]:
        """Returns everything in the model repository, whether it serves or not."""
        response = await self._repository.RepositoryIndex(grpc_service_pb2.RepositoryIndexRequest())
        return tuple(converters.indexed_model(each) for each in response.models)

    async def load(self, model_id: str) -> None:
        """Loads the newest version of a model, in every replica."""
        request = grpc_service_pb2.RepositoryModelLoadRequest(model_name=model_id)
        await self._everywhere(lambda stub: stub.RepositoryModelLoad(request, timeout=_LOAD_TIMEOUT_S))

    async def unload(self, model_id: str) -> None:
        """Takes a model out of service, in every replica."""
        request = grpc_service_pb2.RepositoryModelUnloadRequest(model_name=model_id)
        await self._everywhere(lambda stub: stub.RepositoryModelUnload(request, timeout=_LOAD_TIMEOUT_S))

    async def _everywhere(self, call: Callable[[Any], Any]) -> None:
        """Makes a call to each replica; one that is going or coming needs none: it loads the repository as it starts.

        Raises:
            TeachwaferError: That of a replica that refused, or that of the last one when none could be reached.
        """
        replicas = await replicas_of(self._address)
        if len(replicas) == 1:
            await call(self._repository)
            return
        answers = await asyncio.gather(*(self._at(each, call) for each in replicas), return_exceptions=True)
        failures = [each for each in answers if isinstance(each, BaseException)]
        refused = [each for each in failures if not isinstance(each, UnavailableError)]
        if refused or len(failures) == len(replicas):
            raise (refused or failures)[-1]

    async def _at(self, address: str, call: Callable[[Any], Any]) -> None:
        async with connect(address, key=self._key) as channel:
            await call(grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel))  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Clients:
    """All services.

    Attributes:
        trainer: The trainer.
        generator: The generator.
        predictor: The predictor.
        channels: Channel of each, by name.
        addresses: Where each should listen, by name.
    """

    trainer: TrainerClient
    generator: GeneratorClient
    predictor: PredictorClient
    channels: dict[str, grpc.aio.Channel]
    addresses: dict[str, str]

    @classmethod
    def open(cls, settings: GatewaySettings) -> Self:
        """Opens one channel a service. They need not be there yet."""
        addresses = {
            "trainer": settings.trainer_address,
            "generator": settings.generator_address,
            "predictor": settings.predictor_address,
        }
        limit = settings.max_message_bytes
        keys = {"predictor": settings.predictor_key}
        channels = {
            name: connect(address, max_message_bytes=limit, key=keys.get(name, ""))
            for name, address in addresses.items()
        }
        return cls(
            TrainerClient(channels["trainer"]),
            GeneratorClient(channels["generator"]),
            PredictorClient(channels["predictor"], addresses["predictor"], keys["predictor"]),
            channels,
            addresses,
        )

    async def check(self, name: str, timeout_s: float = 2.0) -> None:
        """Asks a service whether it serves.

        Args:
            name: `trainer`, `generator` or `predictor`.
            timeout_s: Longest wait, seconds.

        Raises:
            UnavailableError: It is not reachable, or starts or drains (reason NOT_SERVING).
        """
        stub = health_pb2_grpc.HealthStub(self.channels[name])
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise UnavailableError(
                f"Expected the {name} at {self.addresses[name]} to serve. Received: it is starting or stopping.",
                reason="NOT_SERVING",
                metadata={"service": name},
            )

    async def close(self) -> None:
        """Closes all channels."""
        await asyncio.gather(*(channel.close(None) for channel in self.channels.values()))


def _batches(maps: Sequence[WaferMap]) -> Iterable[list[WaferMap]]:
    """Yields the wafers in portions that fit into one message each."""
    batch: list[WaferMap] = []
    dies = 0
    for each in maps:
        if batch and (len(batch) == MAX_WAFERS or dies + each.dies.size > _MAX_DIES):
            yield batch
            batch, dies = [], 0
        batch.append(each)
        dies += each.dies.size
    if batch:
        yield batch


def _queue(jobs: Sequence[TrainingRun] | Sequence[GenerationRun]) -> QueueState:
    live = [job for job in jobs if not job.state.ended]
    queued = sum(job.state.value == "queued" for job in live)
    device = next((job.device for job in [*live, *jobs] if job.device), "")
    return QueueState(queued=queued, running=len(live) - queued, device=device)
