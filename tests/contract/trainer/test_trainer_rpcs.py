"""Every RPC of the trainer through a real server. The queue is real; no worker runs, so that jobs stay queued."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from google.protobuf import json_format
from teachwafer.trainer.v1 import trainer_pb2, trainer_pb2_grpc

from services.common.client import connect
from services.common.database import open_database
from services.common.dataset import DatasetClass, DatasetWafer, DatasetWriter, Origin
from services.common.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from services.common.jobs.engine import JobEngine
from services.common.jobs.local import LocalBackend
from services.common.jobs.store import JobStore
from services.common.model_repository import ModelRepository
from services.common.server import GrpcServer
from services.common.store import BlobStore, open_store
from services.common.task import Task
from services.trainer.domain import JOB_KIND, TrainingConfig, fine_tune_pays
from services.trainer.servicer import SERVICE_NAME, TrainerServicer, add_to
from services.trainer.settings import TrainerSettings
from tests.unit.trainer.wafers import simulated

DATASET = "datasetVersions/taught"
JOB = trainer_pb2.TrainingJob


def freeze(store: BlobStore, dataset_id: str, counts: dict[str, int], parent: str = "") -> None:
    classes = [DatasetClass(name, name.capitalize()) for name in counts]
    grid = simulated("none", 1)[0][0]
    with DatasetWriter(store, dataset_id, classes, parent=parent) as writer:
        for name, count in counts.items():
            writer.add(DatasetWafer(f"{name}{n}", grid, name, "", Origin.UPLOADED) for n in range(count))
        writer.finish()


@pytest.fixture
async def server(home: Path) -> AsyncIterator[GrpcServer]:
    settings = TrainerSettings()
    store = open_store(settings.resolved_store_url)
    freeze(store, "taught", {"ring": 5, "none": 6})
    database = open_database(settings.resolved_database_url)
    jobs = JobStore(database)
    jobs.migrate()
    engine = JobEngine(
        JOB_KIND, "unused", jobs, LocalBackend(settings.runs_folder), settings, settings.resolved_store_url
    )
    server = GrpcServer(host="127.0.0.1", port=0, service_names=[SERVICE_NAME], drain_seconds=0)
    repository = ModelRepository(settings.resolved_model_repository)
    add_to(server, TrainerServicer(engine, store, repository, settings.runs_folder, None, server.draining))
    await server.start()
    yield server
    await server.drain()
    database.close()


@pytest.fixture
async def stub(server: GrpcServer) -> AsyncIterator[trainer_pb2_grpc.TrainerServiceStub]:
    async with connect(f"127.0.0.1:{server.port}") as channel:
        yield trainer_pb2_grpc.TrainerServiceStub(channel)


def create(config: dict[str, object] | None = None, **fields: object) -> trainer_pb2.CreateTrainingJobRequest:
    outside = {name: fields.pop(name) for name in ("request_id", "validate_only") if name in fields}
    body = {"dataset_version": DATASET, "config": config or {}, **fields}
    return json_format.ParseDict({"training_job": body, **outside}, trainer_pb2.CreateTrainingJobRequest())


def test_every_rpc_is_implemented() -> None:
    for method in trainer_pb2.DESCRIPTOR.services_by_name["TrainerService"].methods:
        base = getattr(trainer_pb2_grpc.TrainerServiceServicer, method.name)
        assert getattr(TrainerServicer, method.name) is not base


async def test_a_job_can_be_made_read_listed_cancelled_watched_and_deleted(stub) -> None:
    config = {"epochs": 3, "model_size": "MODEL_SIZE_BEST", "fine_tune": False, "augmentation": 0.0, "seed": "9"}
    made = await stub.CreateTrainingJob(create(config, display_name="rings"))
    assert made.state == JOB.STATE_QUEUED
    assert made.name.startswith("trainingJobs/")
    assert (made.display_name, made.dataset_version) == ("rings", DATASET)
    sent = json_format.MessageToDict(made.config, preserving_proto_field_name=True)
    assert {name: sent[name] for name in config} == config

    assert await stub.GetTrainingJob(trainer_pb2.GetTrainingJobRequest(name=made.name)) == made
    second = await stub.CreateTrainingJob(create())
    first_page = await stub.ListTrainingJobs(trainer_pb2.ListTrainingJobsRequest(page_size=1))
    assert [each.name for each in first_page.training_jobs] == [second.name]
    next_request = trainer_pb2.ListTrainingJobsRequest(page_size=1, page_token=first_page.next_page_token)
    next_page = await stub.ListTrainingJobs(next_request)
    assert [each.name for each in next_page.training_jobs] == [made.name]
    assert next_page.next_page_token == ""

    with pytest.raises(FailedPreconditionError):
        await stub.DeleteTrainingJob(trainer_pb2.DeleteTrainingJobRequest(name=made.name))
    cancelled = await stub.CancelTrainingJob(trainer_pb2.CancelTrainingJobRequest(name=made.name))
    assert cancelled.state == JOB.STATE_CANCELLED
    watched = trainer_pb2.WatchTrainingJobRequest(name=made.name)
    states = [event.state_changed.state async for event in stub.WatchTrainingJob(watched)]
    assert states == [JOB.STATE_QUEUED, JOB.STATE_CANCELLED]
    watched.after_sequence = 1
    assert [event.sequence async for event in stub.WatchTrainingJob(watched)] == [2]
    await stub.DeleteTrainingJob(trainer_pb2.DeleteTrainingJobRequest(name=made.name))
    with pytest.raises(NotFoundError):
        await stub.GetTrainingJob(trainer_pb2.GetTrainingJobRequest(name=made.name))


async def test_defaults_are_filled_in(stub) -> None:
    made = await stub.CreateTrainingJob(create())
    for name in ("epochs", "batch_size", "early_stopping_epochs", "fine_tune", "use_generated_wafers", "seed"):
        assert made.config.HasField(name)
        assert getattr(made.config, name) == getattr(TrainingConfig(), name)
    assert made.config.learning_rate == pytest.approx(0.001)
    assert made.config.model_size == trainer_pb2.TrainingConfig.MODEL_SIZE_FAST


async def test_the_network_itself_is_taught_by_default_only_where_that_pays(stub) -> None:
    several = create(config={"task": "TASK_SEVERAL_PATTERNS"})
    assert (await stub.CreateTrainingJob(several)).config.fine_tune
    assert not (await stub.CreateTrainingJob(create())).config.fine_tune
    assert (await stub.CreateTrainingJob(create(config={"fine_tune": True}))).config.fine_tune
    assert fine_tune_pays(Task.SINGLE, "mobilenet-v2")


async def test_the_same_request_id_makes_one_job(stub) -> None:
    first = await stub.CreateTrainingJob(create(request_id="r1"))
    assert (await stub.CreateTrainingJob(create(request_id="r1"))).name == first.name
    with pytest.raises(AlreadyExistsError):
        await stub.CreateTrainingJob(create({"seed": 1}, request_id="r1"))
    with pytest.raises(InvalidArgumentError, match="64"):
        await stub.CreateTrainingJob(create(request_id="r" * 65))


async def test_validate_only_checks_and_starts_nothing(stub) -> None:
    checked = await stub.CreateTrainingJob(create({"epochs": 7}, validate_only=True))
    assert checked.config.epochs == 7
    assert not (await stub.ListTrainingJobs(trainer_pb2.ListTrainingJobsRequest())).training_jobs
    with pytest.raises(InvalidArgumentError):
        await stub.CreateTrainingJob(create({"epochs": 0}, validate_only=True))


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1001}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": "NaN"}, "learning_rate"),
        ({"model_size": 9}, "model_size"),
        ({"backbone": "resnet"}, "backbone"),
        ({"augmentation": 1.5}, "augmentation"),
        ({"seed": "-1"}, "seed"),
        ({"early_stopping_epochs": -1}, "early_stopping_epochs"),
    ],
)
async def test_wrong_settings_name_their_field(stub, config: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await stub.CreateTrainingJob(create(config))
    assert [each.field for each in caught.value.violations] == [f"training_job.config.{field}"]


async def test_several_wrong_settings_are_all_named(stub) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await stub.CreateTrainingJob(create({"epochs": 0, "batch_size": 5000}))
    assert len(caught.value.violations) == 2


async def test_other_wrong_fields_are_named(stub) -> None:
    for fields, field in (
        ({"dataset_version": "taught"}, "training_job.dataset_version"),
        ({"generated_dataset_versions": ["x"]}, "training_job.generated_dataset_versions[0]"),
        ({"display_name": "x" * 257}, "display_name"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            await stub.CreateTrainingJob(create(**fields))
        assert caught.value.violations[0].field.endswith(field)


async def test_data_that_cannot_teach_are_refused_at_once(stub) -> None:
    store = open_store(TrainerSettings().resolved_store_url)
    freeze(store, "few", {"ring": 4, "none": 6})
    freeze(store, "one", {"ring": 9})
    freeze(store, "stranger", {"ring": 9}, parent="other")
    with pytest.raises(FailedPreconditionError, match=r"class 'Ring'.*Received: 4") as caught:
        await stub.CreateTrainingJob(create(dataset_version="datasetVersions/few"))
    assert caught.value.reason == "TOO_FEW_WAFERS"
    with pytest.raises(FailedPreconditionError, match="at least 2 classes"):
        await stub.CreateTrainingJob(create(dataset_version="datasetVersions/one"))
    with pytest.raises(FailedPreconditionError, match="generated from"):
        await stub.CreateTrainingJob(create(generated_dataset_versions=["datasetVersions/stranger"]))


async def test_unknown_names_are_not_found(stub) -> None:
    with pytest.raises(NotFoundError):
        await stub.CreateTrainingJob(create(dataset_version="datasetVersions/none"))
    name = "trainingJobs/none"
    calls = [
        stub.GetTrainingJob(trainer_pb2.GetTrainingJobRequest(name=name)),
        stub.CancelTrainingJob(trainer_pb2.CancelTrainingJobRequest(name=name)),
        stub.DeleteTrainingJob(trainer_pb2.DeleteTrainingJobRequest(name=name)),
        stub.PublishModel(trainer_pb2.PublishModelRequest(training_job=name, model_id="m")),
    ]
    for call in calls:
        with pytest.raises(NotFoundError):
            await call
    with pytest.raises(NotFoundError):
        async for _ in stub.WatchTrainingJob(trainer_pb2.WatchTrainingJobRequest(name=name)):
            pass
    with pytest.raises(InvalidArgumentError):
        await stub.GetTrainingJob(trainer_pb2.GetTrainingJobRequest(name="generationJobs/x"))
    with pytest.raises(InvalidArgumentError):
        await stub.ListTrainingJobs(trainer_pb2.ListTrainingJobsRequest(page_token="rubbish"))


async def test_only_a_training_that_succeeded_can_be_published_under_a_good_name(stub) -> None:
    made = await stub.CreateTrainingJob(create())
    with pytest.raises(FailedPreconditionError, match=r"succeeded.*QUEUED"):
        await stub.PublishModel(trainer_pb2.PublishModelRequest(training_job=made.name, model_id="m"))
    for wrong in ("", "../m", "a/b", ".m"):
        with pytest.raises(InvalidArgumentError):
            await stub.PublishModel(trainer_pb2.PublishModelRequest(training_job=made.name, model_id=wrong))


async def test_watching_ends_with_unavailable_when_the_server_drains(server: GrpcServer, stub) -> None:
    made = await stub.CreateTrainingJob(create())
    seen = aiter(stub.WatchTrainingJob(trainer_pb2.WatchTrainingJobRequest(name=made.name)))
    assert (await anext(seen)).state_changed.state == JOB.STATE_QUEUED
    server.draining.set()
    with pytest.raises(UnavailableError, match="Watch again"):
        await anext(seen)


async def test_backbones_are_listed_with_the_defaults_first_and_what_is_missing(stub) -> None:
    listed = (await stub.ListBackbones(trainer_pb2.ListBackbonesRequest())).backbones
    sizes = [each.model_size for each in listed]
    config = trainer_pb2.TrainingConfig
    assert sizes[:3] == [config.MODEL_SIZE_FAST, config.MODEL_SIZE_BALANCED, config.MODEL_SIZE_BEST]
    assert all(each.available and each.parameters and each.mflops > 1 for each in listed[:3])
    mobilenet = next(each for each in listed if each.backbone_id == "mobilenet-v2")
    assert not mobilenet.available
    assert "TEACHWAFER_TRAINER_MOBILENET_V2_WEIGHTS" in mobilenet.unavailable_reason
