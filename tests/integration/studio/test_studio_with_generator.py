"""The studio with a real generator: the sample project, and wafers generated from it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from gateway.settings import GatewaySettings
from gateway.studio import Studio
from gateway.values import (
    GenerationPreview,
    GenerationProgress,
    GenerationRequest,
    JobState,
    JobStateChanged,
    Method,
    SampleState,
)
from tests.helpers.eventually import assert_eventually
from tests.helpers.processes import ServiceProcess, service_process


@pytest.fixture
def generator(home: Path) -> Iterator[ServiceProcess]:
    with service_process("services.generator", home) as process:
        yield process


@pytest.fixture
async def studio(home: Path, generator: ServiceProcess) -> AsyncIterator[Studio]:
    # The studio opens before the generator serves, as it does at a first start.
    nobody = "127.0.0.1:9"
    settings = GatewaySettings(
        home=home, generator_address=generator.address, trainer_address=nobody, predictor_address=nobody
    )
    async with await Studio.open(settings) as opened:
        yield opened


async def test_the_sample_project_is_simulated_and_more_wafers_are_generated_from_it(studio: Studio) -> None:
    await studio.sample.ensure()
    await assert_eventually(lambda: studio.sample.progress().state is SampleState.READY, timeout_s=120)
    project_id = studio.sample.progress().project_id
    board = await studio.projects.board(project_id)
    assert board.training.open
    assert all(card.counts.lots >= 3 for card in board.cards), [card.counts for card in board.cards]

    center = next(card for card in board.cards if card.wafer_class.pattern == "Center")
    class_id = center.wafer_class.class_id
    run = await studio.generation.start(project_id, [GenerationRequest(class_id, 30, Method.VARIATIONS)], seed=7)
    events = [event async for event in studio.generation.watch(run.run_id)]
    states = [event.state for event in events if isinstance(event, JobStateChanged)]
    assert states[-1] is JobState.SUCCEEDED, (await studio.generation.get(run.run_id)).problem
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert any(isinstance(event, GenerationProgress) for event in events)
    assert any(isinstance(event, GenerationPreview) and event.maps for event in events)

    done = await studio.generation.get(run.run_id)
    assert done.result is not None
    (made,) = done.result.classes
    assert (made.class_id, made.count) == (class_id, 30)
    assert 0 <= made.realism.fail_fraction <= 1
    shown = await studio.generation.results(run.run_id, class_id)
    assert len(shown) == 30
    await studio.generation.accept(run.run_id, leave_out=[wafer_id for wafer_id, _ in shown[:3]])
    board = await studio.projects.board(project_id)
    card = next(card for card in board.cards if card.wafer_class.class_id == class_id)
    assert (card.counts.generated, card.counts.real) == (27, center.counts.real)

    # Their parents teach in the same split again, so all of them may teach.
    frozen = await studio.datasets.freeze(project_id)
    assert (frozen.generated, frozen.generated_left_out) == (27, 0)
    parents = {each.parent_id for each in (await studio.wafers.page(project_id, class_id, generated=True)).wafers}
    known = {each.wafer_id for each in (await studio.wafers.page(project_id, class_id, generated=False)).wafers}
    assert parents <= known
