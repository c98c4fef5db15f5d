"""The trainer as people run it: a service, its workers, a folder, a database, a model repository."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import json_format
from teachwafer.trainer.v1 import trainer_pb2, trainer_pb2_grpc

from services.common.client import connect
from services.common.dataset import DatasetWafer, DatasetWriter, Origin, Split, open_dataset
from services.common.errors import DataLossError, FailedPreconditionError, UnavailableError
from services.common.model_repository import ModelRepository
from services.common.preprocessing import pad_grids
from services.common.store import BlobStore, open_store
from services.predictor.session import ModelSession
from tests.helpers.processes import ServiceProcess, service_process
from tests.unit.trainer.wafers import freeze

JOB = trainer_pb2.TrainingJob
PATTERNS = ("Center", "Donut", "Edge-Loc", "Edge-Ring", "Loc", "Near-full", "Random", "Scratch", "none")
QUICK = {"epochs": 4, "augmentation": 0.0}
LONG = {"epochs": 60, "early_stopping_epochs": 0, "batch_size": 4}
"""Fine-tunes for as long as the tests need to interfere."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainer")
    store = store_of(folder)
    manifest = freeze(store, "nine", (6, 2, 2), PATTERNS)
    freeze(store, "two", (22, 4, 4), ("Center", "Edge-Ring"))
    freeze(store, "untuned", (8, 0, 0), ("Center", "none"))
    wafers = list(open_dataset(store, "nine").iter_wafers(Split.TRAIN))
    with DatasetWriter(store, "more", manifest.classes, parent="nine") as writer:
        writer.add(
            DatasetWafer(f"g{each.wafer_id}", each.dies, each.class_id, each.lot, Origin.VARIATION, each.wafer_id)
            for each in wafers
        )
        writer.finish()
    return folder


@pytest.fixture(scope="module")
def service(home: Path) -> Iterator[ServiceProcess]:
    settings = {"TEACHWAFER_JOB_RETRY_DELAY_S": "0", "TEACHWAFER_JOB_SLOTS": "1"}
    with service_process("services.trainer", home, settings) as process:
        process.wait_serving()
        yield process


@pytest.fixture
async def stub(service: ServiceProcess) -> AsyncIterator[trainer_pb2_grpc.TrainerServiceStub]:
    async with connect(service.address) as channel:
        yield trainer_pb2_grpc.TrainerServiceStub(channel)


def store_of(home: Path) -> BlobStore:
    return open_store((home / "store").as_uri())


async def start(stub, dataset: str, config: dict[str, object], *generated: str) -> JOB:
    body = {
        "dataset_version": f"datasetVersions/{dataset}",
        "generated_dataset_versions": [f"datasetVersions/{each}" for each in generated],
        "config": config,
    }
    request = json_format.ParseDict({"training_job": body}, trainer_pb2.CreateTrainingJobRequest())
    return await stub.CreateTrainingJob(request)


async def watched(stub, name: str) -> AsyncIterator[trainer_pb2.TrainingEvent]:
    """Yields a job's events to its end, also over the end of a connection, as clients do."""
    request = trainer_pb2.WatchTrainingJobRequest(name=name)
    while True:
        try:
            async for event in stub.WatchTrainingJob(request, timeout=280):
                request.after_sequence = event.sequence
                yield event
        except UnavailableError:
            continue
        return


async def ended(stub, name: str) -> JOB:
    async for _ in watched(stub, name):
        pass
    return await stub.GetTrainingJob(trainer_pb2.GetTrainingJobRequest(name=name))


async def until_epoch(stub, name: str, epoch: int) -> None:
    async for event in watched(stub, name):
        if event.epoch_ended.epoch >= epoch:
            return
    raise AssertionError("the job ended before it had come so far")


@pytest.fixture(scope="module")
def taught(service: ServiceProcess) -> tuple[JOB, list[trainer_pb2.TrainingEvent]]:
    """A job over nine classes with generated wafers that ended well, and its events."""

    async def teach() -> tuple[JOB, list[trainer_pb2.TrainingEvent]]:
        async with connect(service.address) as channel:
            stub = trainer_pb2_grpc.TrainerServiceStub(channel)
            made = await start(stub, "nine", {**QUICK, "quantise": True}, "more")
            events = [event async for event in watched(stub, made.name)]
            return await stub.GetTrainingJob(trainer_pb2.GetTrainingJobRequest(name=made.name)), events

    return asyncio.run(teach())


async def test_nine_classes_are_taught_and_every_step_is_told(taught) -> None:
    job, events = taught
    assert job.state == JOB.STATE_SUCCEEDED, job.error
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    told = [event.stage_started for event in events if event.HasField("stage_started")]
    # A stage is told again whenever it has come further.
    stages = [stage for stage, _ in groupby(each.stage for each in told)]
    assert [each.progress for each in told] == sorted(each.progress for each in told)
    assert stages == ["reading", "features", "training", "exporting", "evaluating"]
    epochs = [event.epoch_ended for event in events if event.HasField("epoch_ended")]
    assert [each.epoch for each in epochs] == [1, 2, 3, 4]
    assert all(each.epochs == 4 and each.loss > 0 for each in epochs)
    assert job.device.startswith(("CPU", "NVIDIA"))
    assert job.progress == 1


async def test_the_result_says_what_the_exported_file_does(taught) -> None:
    result = taught[0].result
    assert result.backbone == "wafer-fast"
    assert result.training_wafers == 9 * 6 * 2
    assert (result.tune.wafers, result.test.wafers) == (18, 18)
    assert sum(result.test.confusion) == 18
    assert [each.display_name for each in result.test.classes] == list(PATTERNS)
    # Simulated patterns as plain as these are told apart by any healthy backbone.
    assert result.test.macro_f1 > 0.6
    assert result.test.macro_f1_interval.low <= result.test.macro_f1 <= result.test.macro_f1_interval.high
    assert result.parity_wafers == 18
    assert result.parity_max_difference <= 1e-4
    assert result.model_bytes > 100_000
    assert result.peak_memory_bytes > 0


async def test_a_taught_model_is_published_once_for_a_request(taught, stub, home: Path) -> None:
    request = trainer_pb2.PublishModelRequest(training_job=taught[0].name, model_id="rings", request_id="p1")
    first = await stub.PublishModel(request)
    assert (first.model_id, first.version) == ("rings", 1)
    assert await stub.PublishModel(request) == first
    request.request_id = "p2"
    assert (await stub.PublishModel(request)).version == 2
    repository = ModelRepository(home / "models")
    folder = repository.folder("rings", 1)
    manifest = repository.manifest("rings", 1)
    assert [each.class_id for each in manifest.classes] == [f"c{index}" for index in range(9)]
    assert set(manifest.files) >= {"model.onnx", "model.keras", "evaluation.json", "golden.npz"}
    assert manifest.dataset_version == "datasetVersions/nine"
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    grids = open_dataset(store_of(home), "nine").grids(Split.TEST)
    probabilities, novelty = session.run(["probabilities", "novelty"], {"dies": pad_grids(grids)})
    right = probabilities.argmax(axis=1) == open_dataset(store_of(home), "nine").labels(Split.TEST)
    assert right.mean() == pytest.approx(taught[0].result.test.accuracy, abs=1e-6)
    accepted = (probabilities.max(axis=1) >= manifest.accept_threshold) & (novelty <= 1)
    assert accepted.mean() == pytest.approx(taught[0].result.test.accepted_share, abs=1e-6)


async def test_the_quantised_variant_is_measured_published_and_served(taught, stub, home: Path) -> None:
    result = taught[0].result
    variant = result.quantised
    assert variant.model_bytes < 0.75 * result.model_bytes
    assert variant.compared_wafers == 36
    assert variant.least_same_answers <= variant.same_answers <= 1
    assert (variant.tune.wafers, variant.test.wafers) == (18, 18)
    request = trainer_pb2.PublishModelRequest(training_job=taught[0].name, model_id="small", quantised=True)
    version = (await stub.PublishModel(request)).version
    repository = ModelRepository(home / "models")
    manifest, folder = repository.manifest("small", version), repository.folder("small", version)
    assert manifest.quantised
    assert manifest.scores["same_answers"] == variant.same_answers
    kinds = [(node.op_type, node.input[0]) for node in onnx.load(folder / "model.onnx").graph.node]
    convolutions = [source for kind, source in kinds if kind == "Conv"]
    assert convolutions
    assert all(source.endswith("DequantizeLinear_Output") for source in convolutions)
    # The predictor repeats the golden batch; what it answers is what was measured, in batches of any size.
    session = ModelSession.load(repository, "small", version)
    grids = open_dataset(store_of(home), "nine").grids(Split.TEST)
    together = session.run(pad_grids(grids), ["probabilities", "novelty"])
    alone = np.concatenate([session.run(grid[None], ["probabilities"])["probabilities"] for grid in grids])
    np.testing.assert_allclose(alone, together["probabilities"], atol=1e-5)
    right = together["probabilities"].argmax(axis=1) == open_dataset(store_of(home), "nine").labels(Split.TEST)
    assert right.mean() == pytest.approx(variant.test.accuracy, abs=1e-6)
    accepted = (together["probabilities"].max(axis=1) >= manifest.accept_threshold) & (together["novelty"] <= 1)
    assert accepted.mean() == pytest.approx(variant.test.accepted_share, abs=1e-6)


async def test_a_file_that_changed_since_is_not_published(stub, home: Path) -> None:
    job = await ended(stub, (await start(stub, "untuned", QUICK)).name)
    assert job.state == JOB.STATE_SUCCEEDED, job.error
    assert not job.result.HasField("test")
    assert not job.result.HasField("quantised")
    quantised = trainer_pb2.PublishModelRequest(training_job=job.name, model_id="x", quantised=True)
    with pytest.raises(FailedPreconditionError) as caught:
        await stub.PublishModel(quantised)
    assert caught.value.reason == "NOT_QUANTISED"
    assert any("no tune wafers" in each for each in job.result.warnings)
    assert job.result.split_cautions[0].kind == trainer_pb2.SplitCaution.KIND_TUNE_FROM_TRAINING
    attempt = home / "runs" / job.name.partition("/")[2] / "attempts" / "1"
    golden = attempt / "golden.npz"
    with np.load(golden) as archive:
        arrays = dict(archive)
    np.savez_compressed(golden, **{**arrays, "probabilities": arrays["probabilities"][:, ::-1]})
    with pytest.raises(DataLossError, match=r"golden\.npz"):
        await stub.PublishModel(trainer_pb2.PublishModelRequest(training_job=job.name, model_id="x"))


async def test_a_cancelled_training_stops_at_the_next_step(stub) -> None:
    job = await start(stub, "two", LONG)
    await until_epoch(stub, job.name, 2)
    await stub.CancelTrainingJob(trainer_pb2.CancelTrainingJobRequest(name=job.name))
    assert (await ended(stub, job.name)).state == JOB.STATE_CANCELLED


async def test_a_killed_worker_ends_like_one_that_lived(stub, home: Path) -> None:
    config = {"epochs": 12, "early_stopping_epochs": 0, "batch_size": 4}
    lived = await ended(stub, (await start(stub, "two", config)).name)
    assert lived.state == JOB.STATE_SUCCEEDED, lived.error
    job = await start(stub, "two", config)
    await until_epoch(stub, job.name, 9)
    note = home / "runs" / job.name.partition("/")[2] / "attempts" / "1" / "process.json"
    os.kill(json.loads(note.read_text())["pid"], signal.SIGKILL)
    killed = await ended(stub, job.name)
    assert killed.state == JOB.STATE_SUCCEEDED, killed.error
    assert killed.attempt == 2
    for result in (lived.result, killed.result):
        result.ClearField("seconds")
        result.ClearField("peak_memory_bytes")
    assert killed.result == lived.result
