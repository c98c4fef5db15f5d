"""The generator as people run it: a service, its workers, a folder and a database."""

import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format
from teachwafer.generator.v1 import generator_pb2, generator_pb2_grpc

from services.common.client import connect
from services.common.dataset import DatasetClass, DatasetWafer, DatasetWriter, Origin, Split, open_dataset
from services.common.errors import UnavailableError
from services.common.store import BlobStore, open_store
from services.common.wafer_map import NO_DIE
from services.common.wafer_map_converter import from_proto
from services.generator.simulator import SimulatedClass, simulate
from tests.helpers.eventually import assert_eventually
from tests.helpers.processes import ServiceProcess, service_process

JOB = generator_pb2.GenerationJob
LEARNING = {"class_id": "ring", "count": 10, "learned": {"steps": 100_000}}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generator")
    freeze(store_of(folder))
    return folder


@pytest.fixture(scope="module")
def service(home: Path) -> Iterator[ServiceProcess]:
    settings = {"TEACHWAFER_JOB_RETRY_DELAY_S": "0", "TEACHWAFER_JOB_SLOTS": "1"}
    with service_process("services.generator", home, settings) as process:
        process.wait_serving()
        yield process


@pytest.fixture
async def stub(service: ServiceProcess) -> AsyncIterator[generator_pb2_grpc.GeneratorServiceStub]:
    async with connect(service.address) as channel:
        yield generator_pb2_grpc.GeneratorServiceStub(channel)


def store_of(home: Path) -> BlobStore:
    return open_store((home / "store").as_uri())


def freeze(store: BlobStore) -> None:
    """Thirty training wafers a class, ten tested ones, and one generated one that must have no children."""
    classes = [DatasetClass("centre", "Centre", "Center"), DatasetClass("ring", "Ring", "Edge-Ring")]
    wanted = [SimulatedClass(("Center",), 40), SimulatedClass(("Edge-Ring",), 40)]
    with DatasetWriter(store, "parents", classes) as writer:
        for index, class_ in enumerate(classes):
            batches = [each for each in simulate(wanted, seed=1, rows=24, columns=24) if each.class_index == index]
            dies = [grid for batch in batches for grid in batch.dies]
            lots = [lot for batch in batches for lot in batch.lots]
            for number, (grid, lot) in enumerate(zip(dies, lots, strict=True)):
                split = Split.TRAIN if number < 30 else Split.TEST
                writer.add(
                    [
                        DatasetWafer(
                            f"{class_.class_id}{number}", grid, class_.class_id, lot, Origin.UPLOADED, split=split
                        )
                    ]
                )
            child = (f"{class_.class_id}0", Split.TRAIN)
            writer.add(
                [DatasetWafer(f"{class_.class_id}-old", dies[0], class_.class_id, lots[0], Origin.VARIATION, *child)]
            )
        writer.finish()


async def start(
    stub: generator_pb2_grpc.GeneratorServiceStub, *classes: object, seed: int = 3, prove: bool = False
) -> JOB:
    body = {"dataset_version": "datasetVersions/parents", "classes": list(classes), "seed": seed, "prove": prove}
    request = json_format.ParseDict({"generation_job": body}, generator_pb2.CreateGenerationJobRequest())
    return await stub.CreateGenerationJob(request)


async def watched(
    stub: generator_pb2_grpc.GeneratorServiceStub, name: str
) -> AsyncIterator[generator_pb2.GenerationEvent]:
    """Yields a job's events to its end, also over the end of a connection, as clients do."""
    request = generator_pb2.WatchGenerationJobRequest(name=name)
    while True:
        try:
            async for event in stub.WatchGenerationJob(request, timeout=240):
                request.after_sequence = event.sequence
                yield event
        except UnavailableError:
            continue
        return


async def ended(stub: generator_pb2_grpc.GeneratorServiceStub, name: str) -> JOB:
    async for _ in watched(stub, name):
        pass
    return await stub.GetGenerationJob(generator_pb2.GetGenerationJobRequest(name=name))


async def until_learned(stub: generator_pb2_grpc.GeneratorServiceStub, name: str, steps: int) -> None:
    """Watches until so many steps are learned."""
    async for event in watched(stub, name):
        if event.progressed.stage == "learning" and event.progressed.done >= steps:
            return
    raise AssertionError("the job ended before it had learned that much")


def content(home: Path, version: str) -> list[tuple[str, bytes]]:
    """Parent and dies of each wafer; ids carry the job's id and differ."""
    return [(wafer.parent_id, wafer.dies.tobytes()) for wafer in open_dataset(store_of(home), version).iter_wafers()]


async def test_variations_and_learned_wafers_become_a_data_set_version(stub, home: Path) -> None:
    variations = {"class_id": "centre", "count": 70, "variations": {}}
    learned = {"class_id": "ring", "count": 40, "learned": {"steps": 20}}
    made = await start(stub, variations, learned)
    events = [event async for event in watched(stub, made.name)]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    states = [event.state_changed.state for event in events if event.HasField("state_changed")]
    assert states[0] == JOB.STATE_QUEUED
    assert states[-1] == JOB.STATE_SUCCEEDED
    stages = {(event.progressed.class_id, event.progressed.stage) for event in events if event.HasField("progressed")}
    assert ("ring", "learning") in stages
    shares = [event.progressed.progress for event in events if event.HasField("progressed")]
    assert shares == sorted(shares)
    previews = [event.preview for event in events if event.HasField("preview")]
    assert {preview.class_id for preview in previews} == {"centre", "ring"}
    assert all(from_proto(wafer).dies.shape == (24, 24) for preview in previews for wafer in preview.wafers)

    done = await stub.GetGenerationJob(generator_pb2.GetGenerationJobRequest(name=made.name))
    assert done.state == JOB.STATE_SUCCEEDED
    assert done.progress == 1
    assert [(each.class_id, each.count, each.parents) for each in done.result.classes] == [
        ("centre", 70, 30),
        ("ring", 40, 30),
    ]
    assert done.result.classes[0].realism.copied_share == 0
    assert done.result.peak_memory_bytes > 0
    check_families(home, done.result.dataset_version)


def check_families(home: Path, version: str) -> None:
    """Generated wafers stand in training, with the lot, class and die grid of a real training wafer."""
    store = store_of(home)
    parents = {wafer.wafer_id: wafer for wafer in open_dataset(store, "parents").iter_wafers()}
    generated = open_dataset(store, version)
    assert generated.manifest.parent == "parents"
    assert [each.class_id for each in generated.classes] == ["centre", "ring"]
    wafers = list(generated.iter_wafers())
    assert len(wafers) == 110
    assert {wafer.split for wafer in wafers} == {Split.TRAIN}
    for wafer in wafers:
        parent = parents[wafer.parent_id]
        assert parent.split is Split.TRAIN
        assert parent.origin is Origin.UPLOADED
        assert (wafer.lot, wafer.class_id) == (parent.lot, parent.class_id)
        assert wafer.origin is (Origin.VARIATION if wafer.class_id == "centre" else Origin.LEARNED)
        assert np.array_equal(wafer.dies == NO_DIE, parent.dies == NO_DIE)
    tested = {parent.lot for parent in parents.values() if parent.split is Split.TEST}
    assert not tested & {wafer.lot for wafer in wafers}
    # All parents have children, as far as there are enough of them.
    assert len({wafer.parent_id for wafer in wafers}) == 60


async def test_the_same_seed_makes_the_same_wafers(stub, home: Path) -> None:
    wanted = {"class_id": "centre", "count": 40, "variations": {}}
    jobs = [await start(stub, wanted, seed=seed) for seed in (5, 5, 6)]
    versions = [(await ended(stub, job.name)).result.dataset_version for job in jobs]
    one, same, other = (content(home, version) for version in versions)
    assert one == same
    assert one != other


async def test_a_job_tells_what_its_wafers_change_by_wafers_of_lots_without_children(stub, home: Path) -> None:
    wanted = [{"class_id": name, "count": 30, "variations": {}} for name in ("centre", "ring")]
    job = await start(stub, *wanted, prove=True)
    done = await ended(stub, job.name)
    assert done.prove
    proof = done.result.proof
    assert (proof.judged_wafers, proof.judged_lots) == (20, 4)
    assert 0 <= proof.without <= 1
    assert proof.low <= proof.difference <= proof.high
    judged = {w.lot for w in open_dataset(store_of(home), "parents").iter_wafers(Split.TEST)}
    version = done.result.dataset_version
    assert not judged & {wafer.lot for wafer in open_dataset(store_of(home), version).iter_wafers()}
    stages = [event.progressed.stage async for event in watched(stub, job.name) if event.HasField("progressed")]
    assert "proving" in stages


async def test_a_cancelled_job_leaves_nothing_behind(stub, home: Path) -> None:
    job = await start(stub, LEARNING)
    await until_learned(stub, job.name, 5)
    await stub.CancelGenerationJob(generator_pb2.CancelGenerationJobRequest(name=job.name))
    assert (await ended(stub, job.name)).state == JOB.STATE_CANCELLED
    identifier = job.name.partition("/")[2]
    assert not [blob.key for blob in store_of(home).list("datasets/") if identifier in blob.key]


async def test_a_killed_worker_goes_on_from_its_checkpoint(stub, home: Path) -> None:
    job = await start(stub, {"class_id": "ring", "count": 20, "learned": {"steps": 110}})
    await until_learned(stub, job.name, 55)
    note = home / "runs" / job.name.partition("/")[2] / "attempts" / "1" / "process.json"
    os.kill(json.loads(note.read_text())["pid"], signal.SIGKILL)
    done = await ended(stub, job.name)
    assert done.state == JOB.STATE_SUCCEEDED
    assert done.attempt == 2
    learned = [event.progressed.done async for event in watched(stub, job.name) if event.progressed.stage == "learning"]
    resumed_at = [after for before, after in pairwise(learned) if after <= before]
    assert all(step > 50 for step in resumed_at)
    assert len(content(home, done.result.dataset_version)) == 20


async def test_a_job_outlives_its_service(home: Path) -> None:
    """SIGTERM in mid-learning: the worker ends, and the next service takes the job up again."""
    folder = home / "second"
    freeze(store_of(folder))
    wanted = {"class_id": "ring", "count": 20, "learned": {"steps": 110}}
    with service_process("services.generator", folder) as process:
        async with connect(process.address) as channel:
            stub = generator_pb2_grpc.GeneratorServiceStub(channel)
            job = await start(stub, wanted)
            await until_learned(stub, job.name, 55)
        process.terminate()
        await assert_eventually(lambda: process.popen.poll() is not None, 60)
        assert process.popen.returncode == 0, process.log
    with service_process("services.generator", folder) as process:
        async with connect(process.address) as channel:
            done = await ended(generator_pb2_grpc.GeneratorServiceStub(channel), job.name)
    assert done.state == JOB.STATE_SUCCEEDED
    assert done.result.classes[0].count == 20
