"""The studio with the real services: from the sample project to answers of its own model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

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
    ProjectState,
    SampleState,
    TrainingOptions,
)
from tests.helpers.eventually import assert_eventually
from tests.helpers.processes import ServiceProcess, service_process


@pytest.fixture
def services(home: Path) -> Iterator[dict[str, ServiceProcess]]:
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(service_process(f"services.{name}", home))
            for name in ("generator", "trainer", "predictor")
        }


@pytest.fixture
async def studio(home: Path, services: dict[str, ServiceProcess]) -> AsyncIterator[Studio]:
    settings = GatewaySettings(
        home=home,
        generator_address=services["generator"].address,
        trainer_address=services["trainer"].address,
        predictor_address=services["predictor"].address,
    )
    async with await Studio.open(settings) as opened:
        yield opened


async def test_a_sample_project_is_taught_published_and_answers(studio: Studio) -> None:
    await studio.sample.ensure()
    await assert_eventually(lambda: studio.sample.progress().state is SampleState.READY, timeout_s=120)
    project_id = studio.sample.progress().project_id
    assert any(each.available for each in await studio.training.backbones())

    scratch = next(each for each in await studio.classes.list(project_id) if each.pattern == "Scratch")
    more = await studio.generation.start(project_id, [GenerationRequest(scratch.class_id, 12)])
    _ = [event async for event in studio.generation.watch(more.run_id)]
    await studio.generation.accept(more.run_id)

    run = await studio.training.start(project_id, TrainingOptions(epochs=3, fine_tune=False))
    events = [event async for event in studio.training.watch(run.run_id)]
    run = await studio.training.get(run.run_id)
    assert run.state is JobState.SUCCEEDED, run.problem
    assert run.result is not None
    frozen = await studio.datasets.get(run.dataset_id)
    assert frozen.generated == 12
    assert run.result.training_wafers == frozen.wafers["train"] + 12
    assert any(isinstance(event, EpochEnded) for event in events)
    assert isinstance(events[-1], ModelPublished), events[-1]
    board = await studio.projects.board(project_id)
    assert (board.state, board.model_version) == (ProjectState.TRAINED, 1)
    (model,) = await studio.models.of_project(project_id)
    assert (model.state, model.version, model.run_id) == (ModelState.READY, 1, run.run_id)
    assert {each.class_id for each in model.classes} == {card.wafer_class.class_id for card in board.cards}

    # What the served model answers on the locked test is what the trainer said of it, wafer by wafer.
    view = await studio.evaluation.of_run(run.run_id)
    assert view.part == "test"
    ids = [each.class_id for each in view.evaluation.classes]
    for true, row in zip(ids, view.evaluation.confusion, strict=True):
        for called, count in zip(ids, row, strict=True):
            assert len(await studio.evaluation.cell(run.run_id, true, called)) == count

    page = await studio.wafers.page(project_id, page_size=12)
    wafer_ids = [each.wafer_id for each in page.wafers]
    found = await studio.answers.classify_wafers(board.project.model_id, wafer_ids, explain=True, neighbours=3)
    detail = await studio.wafers.get(wafer_ids[0])
    first = found.answers[0]
    assert found.version == 1
    assert all(answer.decision is not Decision.FAILED for answer in found.answers)
    assert sum(each.probability for each in first.probabilities) == pytest.approx(1, abs=1e-4)
    assert first.heat is not None
    assert first.heat.shape == detail.map.dies.shape
    assert len(first.neighbours) == 3
    assert await studio.pictures.of_map(first.map, heat=first.heat)

    # Editing marks the model as older, and it goes on serving.
    await studio.wafers.delete(wafer_ids[:1])
    assert (await studio.projects.board(project_id)).state is ProjectState.OUTDATED
    again = await studio.models.publish(run.run_id)
    assert (again.version, again.state) == (1, ModelState.READY)
    state = await studio.server.state()
    assert state.all_reachable, state
    assert state.services[0].name == "trainer"
