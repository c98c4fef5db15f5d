"""Several patterns a wafer, and only normal wafers: from simulated wafers over training and publishing to answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from teachwafer.predictor.v1 import predictor_pb2, predictor_pb2_grpc
from teachwafer.trainer.v1 import trainer_pb2, trainer_pb2_grpc
from teachwafer.type import wafer_map_pb2

from services.common.client import connect
from services.common.dataset import DatasetClass, DatasetWafer, DatasetWriter, Origin, Split, open_dataset
from services.common.errors import FailedPreconditionError
from services.common.splitting import split_by_lot
from services.common.store import BlobStore, open_store
from services.common.wafer_set import read_wafer_set
from services.generator.simulator.__main__ import main as simulate_command
from tests.helpers.processes import ServiceProcess, service_process
from tests.integration.trainer.test_training_jobs import ended, start

PATTERNS = ("Center", "Edge-Ring", "Scratch")
CONFIG = trainer_pb2.TrainingConfig
ANSWER = predictor_pb2.WaferAnswer
SETTINGS = {"TEACHWAFER_JOB_RETRY_DELAY_S": "0", "TEACHWAFER_JOB_SLOTS": "1"}


def store_of(home: Path) -> BlobStore:
    return open_store((home / "store").as_uri())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data sets of wafers that the simulator wrote, labels joined by +."""
    folder = tmp_path_factory.mktemp("types")
    file = folder / "wafers.npz"
    options = ["--wafers-per-class", "40", "--patterns", *PATTERNS, "none", "--mixed", "290", "--wafers-per-lot", "1"]
    assert simulate_command(["--out", str(file), *options]) == 0
    wafers = read_wafer_set(file)
    assert wafers.labels is not None
    assert wafers.groups is not None
    sets = [label.split("+") for label in wafers.labels]
    rows = [row for row, names in enumerate(sets) if set(names) <= {*PATTERNS, "none"}]
    lots = [wafers.groups[row] for row in rows]
    sides = dict(zip(rows, split_by_lot([wafers.labels[row] for row in rows], lots), strict=True))
    classes = [DatasetClass(name.lower(), name, name) for name in (*PATTERNS, "none")]

    def freeze(dataset_id: str, classes: list[DatasetClass], rows: list[int]) -> None:
        with DatasetWriter(store_of(folder), dataset_id, classes) as writer:
            writer.add(
                DatasetWafer(
                    f"w{row}",
                    wafers.grids[row],
                    sets[row][0].lower(),
                    wafers.groups[row],
                    Origin.SIMULATED,
                    split=Split(sides[row]),
                    also=tuple(name.lower() for name in sets[row][1:]),
                )
                for row in rows
            )
            writer.finish()

    freeze("mixed", classes, rows)
    plain = [row for row in rows if len(sets[row]) == 1]
    # Patterns only judge here, and one normal class alone is enough.
    judges = [row for row in plain if sets[row] == ["none"] or sides[row] == Split.TEST]
    freeze("unusual", classes, judges)
    freeze("normal", classes[-1:], [row for row in plain if sets[row] == ["none"]])
    return folder


@pytest.fixture(scope="module")
def trainer(home: Path) -> Iterator[ServiceProcess]:
    with service_process("services.trainer", home, SETTINGS) as process:
        process.wait_serving()
        yield process


def taught(trainer: ServiceProcess, dataset: str, config: dict[str, object]) -> trainer_pb2.TrainingJob:
    """Teaches and publishes a model under the name of its data set; returns the job."""

    async def teach() -> trainer_pb2.TrainingJob:
        async with connect(trainer.address) as channel:
            stub = trainer_pb2_grpc.TrainerServiceStub(channel)
            job = await ended(stub, (await start(stub, dataset, config)).name)
            assert job.state == job.STATE_SUCCEEDED, job.error
            await stub.PublishModel(trainer_pb2.PublishModelRequest(training_job=job.name, model_id=dataset))
            return job

    return asyncio.run(teach())


@pytest.fixture(scope="module")
def jobs(trainer: ServiceProcess) -> dict[str, trainer_pb2.TrainingJob]:
    return {
        "mixed": taught(trainer, "mixed", {"task": "TASK_SEVERAL_PATTERNS", "epochs": 15, "fine_tune": False}),
        "unusual": taught(trainer, "unusual", {"task": "TASK_ONLY_NORMAL"}),
        "normal": taught(trainer, "normal", {"task": "TASK_ONLY_NORMAL"}),
    }


@pytest.fixture(scope="module")
def predictor(jobs, home: Path) -> Iterator[ServiceProcess]:
    with service_process("services.predictor", home) as process:
        process.wait_serving()
        yield process


async def classified(predictor: ServiceProcess, model: str, grids: list[np.ndarray]) -> list[ANSWER]:
    request = predictor_pb2.ClassifyRequest(model=model, explain=True)
    for dies in grids:
        request.wafers.append(wafer_map_pb2.WaferMap(rows=dies.shape[0], columns=dies.shape[1], dies=dies.tobytes()))
    async with connect(predictor.address) as channel:
        return list((await predictor_pb2_grpc.PredictorServiceStub(channel).Classify(request)).answers)


async def test_what_a_model_tells_is_listed(predictor: ServiceProcess) -> None:
    async with connect(predictor.address) as channel:
        stub = predictor_pb2_grpc.PredictorServiceStub(channel)
        listed = (await stub.ListModels(predictor_pb2.ListModelsRequest())).models
    loaded = predictor_pb2.LoadedModel
    assert {each.model: each.task for each in listed} == {
        "mixed": loaded.TASK_SEVERAL_PATTERNS,
        "normal": loaded.TASK_ONLY_NORMAL,
        "unusual": loaded.TASK_ONLY_NORMAL,
    }
    classes = {each.model: [every.class_id for every in each.classes] for each in listed}
    assert classes == {
        "mixed": ["center", "edge-ring", "scratch", "none"],
        "normal": ["none"],
        "unusual": ["none"],
    }


async def test_several_patterns_are_told_as_they_were_scored(jobs, predictor: ServiceProcess, home: Path) -> None:
    result = jobs["mixed"].result
    test = list(open_dataset(store_of(home), "mixed").iter_wafers(Split.TEST))
    assert result.test.task == CONFIG.TASK_SEVERAL_PATTERNS
    assert not result.test.confusion
    assert any(wafer.also for wafer in test)
    answers = await classified(predictor, "mixed", [wafer.dies for wafer in test])
    right = 0
    for wafer, answer in zip(test, answers, strict=True):
        told = {each.class_id: each.probability for each in answer.classes}
        patterns = [each.class_id for each in answer.patterns]
        assert patterns == sorted((name for name in told if name != "none" and told[name] >= 0.5), key=told.get)[::-1]
        product = np.prod([1 - value for name, value in told.items() if name != "none"])
        assert told["none"] == pytest.approx(product, abs=1e-4)
        right += set(patterns) == set(wafer.class_ids) - {"none"}
    assert right / len(test) == pytest.approx(result.test.accuracy, abs=1e-6)
    # Simulated patterns as plain as these are told apart by any healthy backbone.
    assert result.test.macro_f1 > 0.7
    assert result.parity_max_difference <= 1e-4
    accepted = [answer.decision == ANSWER.DECISION_ACCEPTED for answer in answers]
    assert np.mean(accepted) == pytest.approx(result.test.accepted_share, abs=1e-6)


async def test_unusual_wafers_are_noticed_by_a_model_that_saw_only_normal_ones(
    jobs, predictor: ServiceProcess, home: Path
) -> None:
    result = jobs["unusual"].result
    test = list(open_dataset(store_of(home), "unusual").iter_wafers(Split.TEST))
    train = open_dataset(store_of(home), "unusual").iter_wafers(Split.TRAIN)
    assert result.training_wafers == sum(wafer.class_id == "none" for wafer in train)
    assert (result.best_epoch, result.epochs) == (0, 0)
    assert result.test.task == CONFIG.TASK_ONLY_NORMAL
    rows = {each.class_id: each for each in result.test.classes}
    assert list(rows) == ["center", "edge-ring", "scratch", "none"]
    answers = await classified(predictor, "unusual", [wafer.dies for wafer in test])
    for wafer, answer in zip(test, answers, strict=True):
        assert answer.class_id == "none"
        assert not answer.patterns
        assert answer.decision == (ANSWER.DECISION_UNKNOWN if answer.novelty > 1 else ANSWER.DECISION_ACCEPTED)
        assert len(answer.heat_map.heat) == wafer.dies.size
    for name, row in rows.items():
        own = [answer.novelty <= 1 for wafer, answer in zip(test, answers, strict=True) if wafer.class_id == name]
        assert (row.wafers, row.found) == (len(own), sum(own) if name == "none" else len(own) - sum(own))
    # The backbone has seen such patterns; what it has not seen are these wafers.
    assert result.test.auroc > 0.9


async def test_normal_wafers_alone_teach(jobs, predictor: ServiceProcess, home: Path) -> None:
    result = jobs["normal"].result
    assert [each.class_id for each in result.test.classes] == ["none"]
    assert result.test.auroc == 0
    wafers = list(open_dataset(store_of(home), "unusual").iter_wafers(Split.TEST))
    answers = await classified(predictor, "normal", [wafer.dies for wafer in wafers])
    far = [answer.novelty for wafer, answer in zip(wafers, answers, strict=True) if wafer.class_id != "none"]
    near = [answer.novelty for wafer, answer in zip(wafers, answers, strict=True) if wafer.class_id == "none"]
    assert np.median(far) > 2 * np.median(near)


async def test_wafers_of_several_patterns_cannot_teach_a_single_one(trainer: ServiceProcess) -> None:
    async with connect(trainer.address) as channel:
        stub = trainer_pb2_grpc.TrainerServiceStub(channel)
        job = trainer_pb2.TrainingJob(dataset_version="datasetVersions/mixed")
        with pytest.raises(FailedPreconditionError, match="show several"):
            await stub.CreateTrainingJob(trainer_pb2.CreateTrainingJobRequest(training_job=job, validate_only=True))
