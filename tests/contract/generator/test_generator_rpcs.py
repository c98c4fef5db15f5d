"""Every RPC of the generator through a real server. The queue is real; no worker runs, so that jobs stay queued."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from google.protobuf import json_format
from teachwafer.generator.v1 import generator_pb2, generator_pb2_grpc

from services.common.client import connect
from services.common.database import open_database
from services.common.dataset import DatasetClass, DatasetWafer, DatasetWriter, Origin, Split
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
from services.common.server import GrpcServer
from services.common.store import BlobStore, open_store
from services.common.wafer_map_converter import from_proto
from services.generator.domain import JOB_KIND
from services.generator.servicer import SERVICE_NAME, GeneratorServicer, add_to
from services.generator.settings import GeneratorSettings

DATASET = "datasetVersions/parents"
JOB = generator_pb2.GenerationJob


def freeze(store: BlobStore) -> None:
    grid = np.array([[0, 1, 0], [1, 2, 1], [0, 1, 0]], np.uint8)
    classes = [DatasetClass("c1", "Centre", "Center"), DatasetClass("c2", "Ring", "Edge-Ring"), DatasetClass("c3", "X")]
    with DatasetWriter(store, "parents", classes) as writer:
        writer.add(DatasetWafer(f"a{n}", grid, "c1", f"L{n}", Origin.UPLOADED) for n in range(20))
        writer.add(DatasetWafer(f"b{n}", grid, "c2", f"M{n}", Origin.UPLOADED) for n in range(19))
        writer.add(DatasetWafer(f"d{n}", grid, "c2", f"N{n}", Origin.UPLOADED, split=Split.TEST) for n in range(9))
        writer.finish()


@pytest.fixture
async def server(home: Path) -> AsyncIterator[GrpcServer]:
    settings = GeneratorSettings()
    store = open_store(settings.resolved_store_url)
    freeze(store)
    database = open_database(settings.resolved_database_url)
    jobs = JobStore(database)
    jobs.migrate()
    engine = JobEngine(
        JOB_KIND, "unused", jobs, LocalBackend(settings.runs_folder), settings, settings.resolved_store_url
    )
    server = GrpcServer(host="127.0.0.1", port=0, service_names=[SERVICE_NAME], drain_seconds=0)
    add_to(server, GeneratorServicer(engine, store, server.draining))
    await server.start()
    yield server
    await server.drain()
    database.close()


@pytest.fixture
async def stub(server: GrpcServer) -> AsyncIterator[generator_pb2_grpc.GeneratorServiceStub]:
    async with connect(f"127.0.0.1:{server.port}") as channel:
        yield generator_pb2_grpc.GeneratorServiceStub(channel)


def job(**fields: object) -> dict[str, object]:
    wanted = {"class_id": "c1", "count": 5, "variations": {}}
    return {"dataset_version": DATASET, "classes": [wanted], **fields}


def create(body: dict[str, object], **fields: object) -> generator_pb2.CreateGenerationJobRequest:
    return json_format.ParseDict({"generation_job": body, **fields}, generator_pb2.CreateGenerationJobRequest())


def test_every_rpc_is_implemented() -> None:
    for method in generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"].methods:
        base = getattr(generator_pb2_grpc.GeneratorServiceServicer, method.name)
        assert getattr(GeneratorServicer, method.name) is not base


async def test_a_job_can_be_made_read_listed_cancelled_watched_and_deleted(stub) -> None:
    options = {"rotation_degrees": 10, "horizontal_mirror": False, "die_noise": 0}
    wanted = [
        {"class_id": "c1", "count": 7, "learned": {"steps": 30}},
        {"class_id": "c2", "count": 3, "variations": options},
    ]
    made = await stub.CreateGenerationJob(create(job(classes=wanted, seed=9, display_name="more")))
    assert made.state == JOB.STATE_QUEUED
    assert made.name.startswith("generationJobs/")
    sent = json_format.MessageToDict(made, preserving_proto_field_name=True)["classes"]
    assert sent == wanted
    assert (made.seed, made.display_name, made.dataset_version) == (9, "more", DATASET)

    assert await stub.GetGenerationJob(generator_pb2.GetGenerationJobRequest(name=made.name)) == made
    second = await stub.CreateGenerationJob(create(job()))
    first_page = await stub.ListGenerationJobs(generator_pb2.ListGenerationJobsRequest(page_size=1))
    assert [each.name for each in first_page.generation_jobs] == [second.name]
    next_request = generator_pb2.ListGenerationJobsRequest(page_size=1, page_token=first_page.next_page_token)
    next_page = await stub.ListGenerationJobs(next_request)
    assert [each.name for each in next_page.generation_jobs] == [made.name]
    assert next_page.next_page_token == ""

    with pytest.raises(FailedPreconditionError):
        await stub.DeleteGenerationJob(generator_pb2.DeleteGenerationJobRequest(name=made.name))
    cancelled = await stub.CancelGenerationJob(generator_pb2.CancelGenerationJobRequest(name=made.name))
    assert cancelled.state == JOB.STATE_CANCELLED
    watched = generator_pb2.WatchGenerationJobRequest(name=made.name)
    states = [event.state_changed.state async for event in stub.WatchGenerationJob(watched)]
    assert states == [JOB.STATE_QUEUED, JOB.STATE_CANCELLED]
    watched.after_sequence = 1
    assert [event.sequence async for event in stub.WatchGenerationJob(watched)] == [2]
    await stub.DeleteGenerationJob(generator_pb2.DeleteGenerationJobRequest(name=made.name))
    with pytest.raises(NotFoundError):
        await stub.GetGenerationJob(generator_pb2.GetGenerationJobRequest(name=made.name))


async def test_the_same_request_id_makes_one_job(stub) -> None:
    first = await stub.CreateGenerationJob(create(job(), request_id="r1"))
    assert (await stub.CreateGenerationJob(create(job(), request_id="r1"))).name == first.name
    with pytest.raises(AlreadyExistsError):
        await stub.CreateGenerationJob(create(job(seed=1), request_id="r1"))
    with pytest.raises(InvalidArgumentError, match="64"):
        await stub.CreateGenerationJob(create(job(), request_id="r" * 65))


async def test_validate_only_checks_and_starts_nothing(stub) -> None:
    checked = await stub.CreateGenerationJob(create(job(), validate_only=True))
    assert checked.classes[0].count == 5
    listed = await stub.ListGenerationJobs(generator_pb2.ListGenerationJobsRequest())
    assert not listed.generation_jobs
    with pytest.raises(InvalidArgumentError):
        await stub.CreateGenerationJob(create(job(seed=-1), validate_only=True))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"classes": []}, "generation_job.classes"),
        ({"seed": -1}, "generation_job.seed"),
        ({"seed": 2**32}, "generation_job.seed"),
        ({"dataset_version": "parents"}, "generation_job.dataset_version"),
        ({"display_name": "x" * 257}, "generation_job.display_name"),
        ({"classes": [{"class_id": "c1", "count": 1}]}, "generation_job.classes[0].method"),
        ({"classes": [{"class_id": "c1", "variations": {}}]}, "generation_job.classes[0].count"),
        ({"classes": [{"class_id": "c1", "count": 1_000_001, "variations": {}}]}, "generation_job.classes[0].count"),
        ({"classes": [{"class_id": "", "count": 1, "variations": {}}]}, "generation_job.classes[0].class_id"),
        ({"classes": [{"class_id": "c1", "count": 1, "variations": {}}] * 2}, "generation_job.classes[1].class_id"),
        (
            {"classes": [{"class_id": "c1", "count": 1, "learned": {"steps": 0}}]},
            "generation_job.classes[0].learned.steps",
        ),
    ],
)
async def test_wrong_values_name_their_field(stub, fields: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await stub.CreateGenerationJob(create(job(**fields)))
    assert field in [violation.field for violation in caught.value.violations]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rotation_degrees", 181),
        ("shear", 0.31),
        ("shift", -0.01),
        ("die_noise", 0.21),
        ("die_noise", "NaN"),
        ("strength", 0.6),
    ],
)
async def test_options_out_of_range_name_their_field(stub, option: str, value: float | str) -> None:
    wanted = [{"class_id": "c1", "count": 1, "variations": {option: value}}]
    with pytest.raises(InvalidArgumentError) as caught:
        await stub.CreateGenerationJob(create(job(classes=wanted)))
    assert [each.field for each in caught.value.violations] == [f"generation_job.classes[0].variations.{option}"]


async def test_a_class_with_handedness_cannot_be_mirrored(stub) -> None:
    settings = {"handedness": True, "vertical_mirror": True, "horizontal_mirror": False}
    wanted = [{"class_id": "c1", "count": 1, "variations": settings}]
    with pytest.raises(InvalidArgumentError, match="handedness") as caught:
        await stub.CreateGenerationJob(create(job(classes=wanted)))
    fields = [each.field for each in caught.value.violations]
    assert fields == ["generation_job.classes[0].variations.vertical_mirror"]


async def test_an_edge_class_cannot_be_shifted(stub) -> None:
    wanted = [{"class_id": "c2", "count": 1, "variations": {"shift": 0.1}}]
    with pytest.raises(InvalidArgumentError, match="Edge-Ring") as caught:
        await stub.CreateGenerationJob(create(job(classes=wanted)))
    assert caught.value.field == "generation_job.classes[0].variations.shift"


async def test_a_learned_generator_needs_twenty_training_wafers(stub) -> None:
    wanted = [{"class_id": "c2", "count": 1, "learned": {}}]
    with pytest.raises(FailedPreconditionError, match=r"20 training wafers of class 'Ring'.*Received: 19") as caught:
        await stub.CreateGenerationJob(create(job(classes=wanted)))
    assert caught.value.reason == "TOO_FEW_WAFERS"
    with pytest.raises(FailedPreconditionError, match="'X'"):
        await stub.CreateGenerationJob(create(job(classes=[{"class_id": "c3", "count": 1, "variations": {}}])))


async def test_unknown_names_are_not_found(stub) -> None:
    with pytest.raises(NotFoundError):
        await stub.CreateGenerationJob(create(job(dataset_version="datasetVersions/none")))
    with pytest.raises(NotFoundError):
        await stub.CreateGenerationJob(create(job(classes=[{"class_id": "c9", "count": 1, "variations": {}}])))
    name = "generationJobs/none"
    calls = [
        stub.GetGenerationJob(generator_pb2.GetGenerationJobRequest(name=name)),
        stub.CancelGenerationJob(generator_pb2.CancelGenerationJobRequest(name=name)),
        stub.DeleteGenerationJob(generator_pb2.DeleteGenerationJobRequest(name=name)),
    ]
    for call in calls:
        with pytest.raises(NotFoundError):
            await call
    with pytest.raises(NotFoundError):
        async for _ in stub.WatchGenerationJob(generator_pb2.WatchGenerationJobRequest(name=name)):
            pass
    with pytest.raises(InvalidArgumentError):
        await stub.GetGenerationJob(generator_pb2.GetGenerationJobRequest(name="trainingJobs/x"))
    with pytest.raises(InvalidArgumentError):
        await stub.ListGenerationJobs(generator_pb2.ListGenerationJobsRequest(page_token="rubbish"))


async def test_watching_ends_with_unavailable_when_the_server_drains(server: GrpcServer, stub) -> None:
    made = await stub.CreateGenerationJob(create(job()))
    events: grpc.aio.UnaryStreamCall = stub.WatchGenerationJob(generator_pb2.WatchGenerationJobRequest(name=made.name))
    seen = aiter(events)
    assert (await anext(seen)).state_changed.state == JOB.STATE_QUEUED
    server.draining.set()
    with pytest.raises(UnavailableError, match="Watch again"):
        await anext(seen)


async def test_simulated_wafers_stream_in_order_with_lots(stub) -> None:
    request = json_format.ParseDict(
        {
            "classes": [{"patterns": ["Center"], "count": 12}, {"patterns": ["Edge-Ring", "Scratch"], "count": 7}],
            "seed": 4,
            "wafers_per_lot": 3,
            "rows": 30,
            "columns": 25,
        },
        generator_pb2.SimulateWafersRequest(),
    )
    indexes: list[int] = []
    wafers = []
    async for response in stub.SimulateWafers(request):
        assert len(response.wafers) == len(response.class_indexes)
        indexes.extend(response.class_indexes)
        wafers.extend(from_proto(wafer) for wafer in response.wafers)
    assert indexes == [0] * 12 + [1] * 7
    assert {wafer.dies.shape for wafer in wafers} == {(30, 25)}
    assert len({wafer.identity.lot for wafer in wafers}) == 4 + 3
    assert len({wafer.identity.wafer for wafer in wafers}) == 19
    assert all(wafer.identity.product and wafer.geometry.die_pitch_x_mm > 0 for wafer in wafers)
    request.skip = 1
    rest = [from_proto(wafer) async for response in stub.SimulateWafers(request) for wafer in response.wafers]
    assert [wafer.sha256() for wafer in rest] == [wafer.sha256() for wafer in wafers[12:]]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"classes": []}, "classes"),
        ({"classes": [{"patterns": [], "count": 1}]}, "classes[0].patterns"),
        ({"classes": [{"patterns": ["Banana"], "count": 1}]}, "classes[0].patterns"),
        ({"classes": [{"patterns": ["Loc", "Loc"], "count": 1}]}, "classes[0].patterns"),
        ({"classes": [{"patterns": ["Loc"], "count": 0}]}, "classes[0].count"),
        ({"wafers_per_lot": 26}, "wafers_per_lot"),
        ({"rows": 20}, "columns"),
        ({"rows": 7, "columns": 20}, "rows"),
        ({"rows": 20, "columns": 301}, "columns"),
        ({"seed": -1}, "seed"),
        ({"skip": -1}, "skip"),
        ({"sides": {"low": 7, "high": 30}}, "sides"),
        ({"sides": {"low": 40, "high": 30}}, "sides"),
        ({"sides": {"low": 20, "high": 30}, "rows": 20, "columns": 20}, "sides"),
        ({"aspect": {"low": 1, "high": "NaN"}}, "aspect"),
        ({"background_fail_rate": {"low": 0, "high": 0.6}}, "background_fail_rate"),
        ({"classes": [{"patterns": ["Loc"], "count": 1, "strength": {"high": 1}}]}, "classes[0].strength"),
    ],
)
async def test_wrong_simulations_name_their_field(stub, fields: dict[str, object], field: str) -> None:
    body = {"classes": [{"patterns": ["Loc"], "count": 1}], **fields}
    request = json_format.ParseDict(body, generator_pb2.SimulateWafersRequest())
    with pytest.raises(InvalidArgumentError) as caught:
        async for _ in stub.SimulateWafers(request):
            pass
    assert [violation.field for violation in caught.value.violations] == [field]
