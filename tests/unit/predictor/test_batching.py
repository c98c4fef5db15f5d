"""Calls share runs of a model, lose nothing when a neighbour goes, and models take turns."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from services.common.errors import DeadlineExceededError, ResourceExhaustedError
from services.predictor.batching import MAX_BATCH_WAFERS, Batcher, Member, size_of
from services.predictor.model_config import QueuePolicy, Scheduling, ServingConfig
from services.predictor.statistics import ModelStatistics


class GatedModel:
    """Answers each wafer with its first die, when its gate is open; notes how many wafers each run had."""

    def __init__(self, log: list[str] | None = None, name: str = "", scheduling: Scheduling | None = None) -> None:
        self.name = name
        self.statistics = ModelStatistics()
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.runs: list[int] = []
        self._log, self._name = log if log is not None else [], name
        self.session = SimpleNamespace(
            run=self._run,
            config=ServingConfig(
                message=b"", max_batch_size=1024, inputs=(), outputs=(), scheduling=scheduling or Scheduling()
            ),
        )

    @property
    def graph(self) -> SimpleNamespace:
        return self.session

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


def submitted(batcher: Batcher, model: GatedModel, value: int, level: int = 0, timeout_us: int = 0) -> Member:
    """Puts one wafer into the queue."""
    (member,) = batcher.submit(model, [Member([grid(value)], size_of([grid(value)]), ("p",))], level, timeout_us)
    return member


async def begun(model: GatedModel) -> None:
    await asyncio.to_thread(model.entered.wait, 20)


async def values_of(members: list[Member]) -> list[list[float]]:
    return [(await each.answer)["p"].tolist() for each in members]


async def test_calls_wait_for_company_as_long_as_the_model_says(batcher):
    model = GatedModel(scheduling=Scheduling(max_delay_us=50_000))
    model.gate.set()
    waiting = [submitted(batcher, model, value) for value in (2, 3)]
    assert await values_of(waiting) == [[2], [3]]
    assert model.runs == [2]


async def test_a_preferred_size_begins_before_the_delay_is_over(batcher):
    model = GatedModel(scheduling=Scheduling(preferred=(2, 4), max_delay_us=3_600_000_000))
    model.gate.set()
    assert await values_of([submitted(batcher, model, value) for value in (2, 3)]) == [[2], [3]]
    assert model.runs == [2]


async def test_a_batch_is_cut_to_the_largest_preferred_size(batcher):
    model = GatedModel(scheduling=Scheduling(preferred=(2, 4)))
    first = submitted(batcher, model, 1)
    await begun(model)
    waiting = [submitted(batcher, model, value) for value in range(2, 9)]
    model.gate.set()
    assert await values_of([first, *waiting]) == [[value] for value in range(1, 9)]
    assert model.runs == [1, 4, 2, 1]


async def test_without_dynamic_batching_each_call_runs_alone(batcher):
    model = GatedModel(scheduling=Scheduling(dynamic=False))
    first = submitted(batcher, model, 1)
    await begun(model)
    waiting = [submitted(batcher, model, value) for value in (2, 3)]
    model.gate.set()
    assert await values_of([first, *waiting]) == [[1], [2], [3]]
    assert model.runs == [1, 1, 1]


async def test_higher_priorities_run_before_lower_ones(batcher):
    log: list[int] = []
    model = GatedModel(scheduling=Scheduling(dynamic=False, levels=3, default_level=2))
    first = submitted(batcher, model, 1)
    await begun(model)
    waiting = {level: submitted(batcher, model, level + 2, level) for level in (3, 0, 1, 9)}
    for level, member in waiting.items():
        member.answer.add_done_callback(lambda _, level=level: log.append(level))
    model.gate.set()
    await values_of([first, *waiting.values()])
    # A call without a priority, or with one that the model does not have, has the default one.
    assert log == [1, 0, 9, 3]


async def test_a_full_queue_of_a_model_refuses(batcher):
    model = GatedModel(scheduling=Scheduling(default_policy=QueuePolicy(max_size=2)))
    first = submitted(batcher, model, 1)
    await begun(model)
    waiting = [submitted(batcher, model, value) for value in (2, 3)]
    with pytest.raises(ResourceExhaustedError, match="max_queue_size"):
        submitted(batcher, model, 4)
    waiting[0].answer.cancel()
    waiting.append(submitted(batcher, model, 5))
    model.gate.set()
    assert await values_of([first, *waiting[1:]]) == [[1], [3], [5]]
    assert model.statistics.waiting == 0


async def test_a_call_that_waits_too_long_is_refused_at_once(batcher):
    model = GatedModel(scheduling=Scheduling(default_policy=QueuePolicy(timeout_us=1000)))
    first = submitted(batcher, model, 1)
    await begun(model)
    with pytest.raises(DeadlineExceededError, match="1000 microseconds"):
        await submitted(batcher, model, 2).answer
    model.gate.set()
    assert await values_of([first]) == [[1]]
    # With a free thread nothing waits.
    assert await values_of([submitted(batcher, model, 3)]) == [[3]]
    assert model.runs == [1, 1]


async def test_a_call_may_shorten_its_wait_only_where_the_model_allows_it(batcher):
    strict = GatedModel()
    first = submitted(batcher, strict, 1)
    await begun(strict)
    stays = submitted(batcher, strict, 2, timeout_us=1000)
    lenient = GatedModel(scheduling=Scheduling(default_policy=QueuePolicy(allow_override=True)))
    with pytest.raises(DeadlineExceededError):
        await submitted(batcher, lenient, 3, timeout_us=1000).answer
    assert not stays.answer.done()
    strict.gate.set()
    assert await values_of([first, stays]) == [[1], [2]]


async def test_a_call_that_waits_too_long_can_go_behind_the_others_instead(batcher):
    log: list[int] = []
    policy = QueuePolicy(timeout_us=1, delays=True)
    model = GatedModel(scheduling=Scheduling(dynamic=False, default_policy=policy))
    first = submitted(batcher, model, 1)
    await begun(model)
    late = submitted(batcher, model, 2)
    in_time = submitted(batcher, model, 3)
    in_time.due = float("inf")
    for member, value in ((late, 2), (in_time, 3)):
        member.answer.add_done_callback(lambda _, value=value: log.append(value))
    model.gate.set()
    await values_of([first, late, in_time])
    assert log == [3, 2]


async def test_a_model_runs_in_as_many_instances_as_it_has():
    made = Batcher(threads=2)
    model, other = GatedModel(scheduling=Scheduling(instances=1, dynamic=False)), GatedModel()
    first = submitted(made, model, 1)
    await begun(model)
    second = submitted(made, model, 2)
    other.gate.set()
    # The thread that the model must not have is free for another one.
    assert await values_of([submitted(made, other, 3)]) == [[3]]
    assert model.runs == [1]
    model.gate.set()
    assert await values_of([first, second]) == [[1], [2]]
    made.close()
