"""Calls share runs of a model, lose nothing when a neighbour goes, and models take turns."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from services.predictor.batching import MAX_BATCH_WAFERS, Batcher
from services.predictor.statistics import ModelStatistics


class GatedModel:
    """Answers each wafer with its first die, when its gate is open; notes how many wafers each run had."""

    def __init__(self, log: list[str] | None = None, name: str = "") -> None:
        self.statistics = ModelStatistics()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.runs: list[int] = []
        self._log, self._name = log if log is not None else [], name
        self.session = SimpleNamespace(run=self._run)

    def _run(self, dies, outputs):
        self.runs.append(len(dies))
        self._log.append(self._name)
        self.entered.set()
        assert self.gate.wait(20)
        if (dies == 9).any():
            raise ValueError("a die of 9")
        return {name: dies[:, 0, 0].astype(np.float32) for name in outputs}


def grid(value: int, side: int = 4) -> np.ndarray:
    return np.full((side, side), value, np.uint8)


async def started(batcher: Batcher, model: GatedModel, grids, outputs=("p",)) -> asyncio.Task:
    task = asyncio.create_task(batcher.run(model, grids, outputs))
    await asyncio.sleep(0)
    return task


@pytest.fixture
async def batcher():
    made = Batcher(threads=1)
    yield made
    made.close()


async def busy(batcher: Batcher, model: GatedModel) -> asyncio.Task:
    """Occupies the only thread, so that what comes now waits."""
    task = await started(batcher, model, [grid(1)])
    await asyncio.to_thread(model.entered.wait, 20)
    return task


async def test_an_idle_thread_begins_at_once(batcher):
    model = GatedModel()
    model.gate.set()
    values = await batcher.run(model, [grid(1), grid(2)], ("p",))
    assert values["p"].tolist() == [1, 2]
    assert model.runs == [2]


async def test_calls_that_wait_run_together_and_get_their_own_rows(batcher):
    model = GatedModel()
    first = await busy(batcher, model)
    waiting = [await started(batcher, model, [grid(value), grid(value + 1)]) for value in (2, 4, 6)]
    model.gate.set()
    assert [(await each)["p"].tolist() for each in waiting] == [[2, 3], [4, 5], [6, 7]]
    await first
    assert model.runs == [1, 6]
    assert model.statistics.executions == 2


async def test_a_batch_survives_a_cancelled_member(batcher):
    model = GatedModel()
    first = await busy(batcher, model)
    gone, stays = [await started(batcher, model, [grid(value)]) for value in (2, 3)]
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    model.gate.set()
    assert (await stays)["p"].tolist() == [3]
    await first
    assert model.runs == [1, 1]


async def test_a_member_cancelled_while_it_runs_does_no_harm(batcher):
    model = GatedModel()
    first = await busy(batcher, model)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    model.gate.set()
    assert (await batcher.run(model, [grid(5)], ("p",)))["p"].tolist() == [5]


async def test_an_error_reaches_every_member_and_the_thread_goes_on(batcher):
    model = GatedModel()
    first = await busy(batcher, model)
    both = [await started(batcher, model, [grid(value)]) for value in (9, 2)]
    model.gate.set()
    for each in both:
        with pytest.raises(ValueError, match="a die of 9"):
            await each
    await first
    assert (await batcher.run(model, [grid(3)], ("p",)))["p"].tolist() == [3]


async def test_batches_end_at_their_bounds_and_unlike_sizes_run_apart(batcher):
    model = GatedModel()
    first = await busy(batcher, model)
    large = await started(batcher, model, [grid(2, 40)])
    small = [await started(batcher, model, [grid(1)]) for _ in range(MAX_BATCH_WAFERS + 3)]
    model.gate.set()
    await asyncio.gather(first, large, *small)
    # One small wafer beside the large one is padded to less than twice of both; two are not.
    assert model.runs[1] == 2
    assert max(model.runs) == MAX_BATCH_WAFERS
    assert sum(model.runs) == MAX_BATCH_WAFERS + 5


async def test_other_outputs_run_apart(batcher):
    model = GatedModel()
    first = await busy(batcher, model)
    one = await started(batcher, model, [grid(2)], ("p",))
    other = await started(batcher, model, [grid(3)], ("p", "q"))
    model.gate.set()
    assert set(await one) == {"p"}
    assert set(await other) == {"p", "q"}
    await first


async def test_models_take_turns(batcher):
    log: list[str] = []
    flooded, quiet = GatedModel(log, "flooded"), GatedModel(log, "quiet")
    quiet.gate.set()
    first = await busy(batcher, flooded)
    flood = [await started(batcher, flooded, [grid(1)] * MAX_BATCH_WAFERS) for _ in range(4)]
    one = await started(batcher, quiet, [grid(1)])
    flooded.gate.set()
    await asyncio.gather(first, one, *flood)
    assert log.index("quiet") <= 2
