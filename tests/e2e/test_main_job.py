"""The main job with all four programs as people run them, and what happens when one of them dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from gateway.settings import GatewaySettings
from gateway.studio import Studio
from gateway.values import (
    Decision,
    EpochEnded,
    GenerationRequest,
    JobState,
    ModelPublished,
    ModelState,
    TrainingEvent,
    TrainingOptions,
)
from tests.helpers.processes import ServiceProcess

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

SERVICES = ("generator", "trainer", "predictor")
PATTERNS = ("none", "Center", "Edge-Ring", "Scratch")


class House:
    """The four programs over one home.

    Args:
        home: TEACHWAFER_HOME.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.running: dict[str, ServiceProcess] = {}

    def start(self, name: str) -> ServiceProcess:
        """Starts a program, again after it has ended, and waits until it serves."""
        if name == "gateway":
            # The portal makes no sample project here: these tests bring their own wafers.
            addresses = {f"TEACHWAFER_{each.upper()}_ADDRESS": self.running[each].address for each in SERVICES}
            process = ServiceProcess("gateway", self.home, addresses)
            process.port()
        else:
            process = ServiceProcess(f"services.{name}", self.home)
            process.wait_serving()
        self.running[name] = process
        return process

    def stop(self) -> None:
        """Stops whatever runs."""
        for process in reversed(self.running.values()):
            process.stop()

    @asynccontextmanager
    async def studio(self) -> AsyncIterator[Studio]:
        """Opens the studio on the services as they run now."""
        addresses = {f"{name}_address": self.running[name].address for name in SERVICES}
        async with await Studio.open(GatewaySettings(home=self.home, **addresses)) as studio:
            yield studio

    def command(self, *arguments: str) -> dict[str, object]:
        """Runs `teachwafer ... --json` and returns what it says."""
        addresses = {f"TEACHWAFER_{name.upper()}_ADDRESS": self.running[name].address for name in SERVICES}
        done = subprocess.run(
            [sys.executable, "-m", "gateway.cli", *arguments, "--json"],
            env={**os.environ, **addresses, "TEACHWAFER_HOME": str(self.home)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return answer


@pytest.fixture
def house(home: Path) -> Iterator[House]:
    made = House(home)
    try:
        for name in SERVICES:
            made.start(name)
        yield made
    finally:
        made.stop()


@pytest.fixture
def wafer_set(tmp_path: Path) -> Path:
    """Simulated wafers of a few patterns in several lots."""
    path = tmp_path / "wafers.npz"
    command = ["--out", str(path), "--wafers-per-class", "24", "--patterns", *PATTERNS, "--seed", "5"]
    subprocess.run([sys.executable, "-m", "services.generator.simulator", *command], check=True, capture_output=True)
    return path


async def watch_to(studio: Studio, run_id: str, kind: type, after_sequence: int = 0) -> list[TrainingEvent]:
    """Returns the events of a training up to the first of a kind."""
    seen: list[TrainingEvent] = []
    async for event in studio.training.watch(run_id, after_sequence=after_sequence):
        seen.append(event)
        if isinstance(event, kind):
            break
    return seen


def read(gateway: ServiceProcess, path: str) -> bytes:
    """Returns what the portal answers with status 200."""
    with urllib.request.urlopen(f"http://{gateway.address}{path}", timeout=30) as page:
        assert page.status == 200
        body: bytes = page.read()
        return body


async def project_of(studio: Studio) -> str:
    """Returns the id of the project that the command line made."""
    return next(each.project.project_id for each in await studio.projects.list() if each.project.name == "fab")


async def test_from_wafers_to_answers_with_the_trainer_stopped_in_mid_training(house: House, wafer_set: Path) -> None:
    gateway = house.start("gateway")
    assert read(gateway, "/healthz")
    house.command("import", "--project", "fab", str(wafer_set))

    async with house.studio() as studio:
        project = await project_of(studio)
        scratch = next(each for each in await studio.classes.list(project) if each.name == "Scratch")
        made = await studio.generation.start(project, [GenerationRequest(scratch.class_id, 20)])
        _ = [event async for event in studio.generation.watch(made.run_id)]
        await studio.generation.accept(made.run_id)
        run = await studio.training.start(project, TrainingOptions(epochs=60, early_stopping_epochs=0))
        before = await watch_to(studio, run.run_id, EpochEnded)

    trainer = house.running["trainer"]
    trainer.terminate()
    assert trainer.wait(90) == 0
    house.start("trainer")

    async with house.studio() as studio:
        after = await watch_to(studio, run.run_id, ModelPublished, before[-1].sequence)
        ended = await studio.training.get(run.run_id)
        assert ended.state is JobState.SUCCEEDED, ended.problem
        numbers = [event.sequence for event in [*before, *after] if not isinstance(event, ModelPublished)]
        assert numbers == list(range(1, len(numbers) + 1))
        epochs = [event.epoch for event in [*before, *after] if isinstance(event, EpochEnded)]
        assert sorted(set(epochs)) == list(range(1, max(epochs) + 1))
        assert ended.result is not None
        assert ended.result.parity_max_difference <= 1e-4
        (model,) = await studio.models.of_project(project)
        assert model.state is ModelState.READY

    (listed,) = house.command("models", "list")["models"]  # type: ignore[misc]
    assert ended.result.test is not None
    assert listed["macro_f1"] == pytest.approx(ended.result.test.macro_f1)
    answer = house.command("evaluate", "--model", model.model_id, "--wafers", str(wafer_set))
    assert answer["wafers"] == len(PATTERNS) * 24
    # Its own training wafers are among them: this says that the served model is the taught one, not how good it is.
    assert float(str(answer["accuracy"])) > 0.6


async def test_every_service_may_be_killed(house: House, wafer_set: Path) -> None:
    house.command("import", "--project", "fab", str(wafer_set))

    # The generator dies while it makes wafers; its job is taken up again.
    async with house.studio() as studio:
        project = await project_of(studio)
        scratch = next(each for each in await studio.classes.list(project) if each.name == "Scratch")
        made = await studio.generation.start(project, [GenerationRequest(scratch.class_id, 3000)])
        house.running["generator"].kill()
    house.start("generator")
    async with house.studio() as studio:
        _ = [event async for event in studio.generation.watch(made.run_id)]
        results = await studio.generation.get(made.run_id)
        assert results.state is JobState.SUCCEEDED, results.problem
        assert results.result is not None
        assert results.result.classes[0].count == 3000

        # The trainer dies in mid-training; the worker goes on, and the next trainer reads its events.
        run = await studio.training.start(project, TrainingOptions(epochs=30, use_generated=False))
        before = await watch_to(studio, run.run_id, EpochEnded)
        house.running["trainer"].kill()
    house.start("trainer")
    async with house.studio() as studio:
        after = await watch_to(studio, run.run_id, ModelPublished, before[-1].sequence)
        assert (await studio.training.get(run.run_id)).state is JobState.SUCCEEDED
        numbers = [event.sequence for event in [*before, *after] if not isinstance(event, ModelPublished)]
        assert numbers == sorted(set(numbers))

        # The predictor dies; the next one serves the same model without being told.
        (model,) = await studio.models.of_project(project)
        page = await studio.wafers.page(project, page_size=8)
        ids = [each.wafer_id for each in page.wafers]
        first = await studio.answers.classify_wafers(model.model_id, ids)
        house.running["predictor"].kill()
    house.start("predictor")
    async with house.studio() as studio:
        again = await studio.answers.classify_wafers(model.model_id, ids)
        for one, other in zip(first.answers, again.answers, strict=True):
            assert one.decision is other.decision is not Decision.FAILED
            np.testing.assert_allclose(
                [each.probability for each in one.probabilities],
                [each.probability for each in other.probabilities],
                atol=1e-6,
            )

    # The gateway dies while a page is open; what was added is there afterwards.
    house.start("gateway").kill()
    gateway = house.start("gateway")
    assert b"teachwafer" in read(gateway, "/")
    async with house.studio() as studio:
        board = await studio.projects.board(project)
        assert sum(card.counts.wafers for card in board.cards) == len(PATTERNS) * 24


@pytest.mark.data
def test_real_wafers_are_taught_and_answered(house: House, data_folder: Path) -> None:
    wafers = data_folder / "wafers_small.npz"
    trained = house.command("train", str(wafers), "--epochs", "20", "--publish", "real", "--no-fine-tune")
    assert trained["model"] == "real"
    answer = house.command("evaluate", "--model", "real", "--wafers", str(wafers))
    assert answer["wafers"] == 540
    # One in nine is right by chance.
    assert float(str(answer["macro_f1"])) > 0.6
