"""Dynamic batching: whenever a thread is free, it takes what waits for one model and runs it together.

Nothing waits for company unless the model's configuration says so: on a processor a batch saves hops between threads
and no arithmetic, so an idle thread begins at once with what is there, and batches grow by themselves when there is
more work than threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from services.common.errors import DataLossError, DeadlineExceededError, ResourceExhaustedError
from services.common.preprocessing import pad_grids
from services.predictor.cores import usable_cores
from services.predictor.model_config import QueuePolicy, Scheduling
from services.predictor.model_server import LoadedModel
from services.predictor.statistics import Run
from services.predictor.tensors import Tensor

Grids = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
Tensors = Mapping[str, Tensor]
Outputs = dict[str, NDArray[Any]]

MAX_BATCH_WAFERS = 64
"""Most wafers of one run; more bring nothing on a processor."""
MAX_BATCH_PLACES = 4_000_000
"""Places of the grids of one run, padding included: the graph needs some ten bytes for each."""

_MOST_PADDING = 2
"""A batch ends before padding makes it this many times as large as its wafers."""
_FOR_EVER = float("inf")


@dataclass(slots=True)
class BatchSize:
    """How large a batch of wafers is, and whether more fits.

    Attributes:
        wafers: Wafers.
        rows: Most rows of a wafer.
        columns: Most columns of a wafer.
        places: Places of the grids together, without padding.
        most: Most wafers of a batch.
    """

    wafers: int = 0
    rows: int = 0
    columns: int = 0
    places: int = 0
    most: int = MAX_BATCH_WAFERS

    def with_more(self, other: BatchSize) -> BatchSize:
        """Returns the size of both together."""
        return BatchSize(
            self.wafers + other.wafers,
            max(self.rows, other.rows),
            max(self.columns, other.columns),
            self.places + other.places,
            self.most,
        )

    @property
    def items(self) -> int:
        """Elements of the batch."""
        return self.wafers

    @property
    def fits(self) -> bool:
        """Whether a batch may be as large; a single wafer always may."""
        padded = self.rows * self.columns * self.wafers
        return self.wafers <= 1 or (
            self.wafers <= self.most and padded <= MAX_BATCH_PLACES and padded <= _MOST_PADDING * self.places
        )


@dataclass(frozen=True, slots=True)
class TensorSize:
    """How large a batch of tensors is, and whether more fits: tensors are joined where they differ in the batch alone.

    Attributes:
        items: Elements of the batch.
        shapes: Shapes of the inputs without the batch; None where two differ.
        most: Most elements of a batch; 0 where requests are not joined.
    """

    items: int
    shapes: tuple[tuple[int, ...], ...] | None
    most: int

    @classmethod
    def of(cls, inputs: Tensors, max_batch_size: int) -> TensorSize:
        """Returns the size of one request."""
        items = next(iter(inputs.values())).shape[0] if max_batch_size and inputs else 1
        return cls(items, tuple(inputs[name].shape[1:] for name in sorted(inputs)), max_batch_size)

    def with_more(self, other: TensorSize) -> TensorSize:
        """Returns the size of both together."""
        return TensorSize(self.items + other.items, self.shapes if self.shapes == other.shapes else None, self.most)

    @property
    def fits(self) -> bool:
        """Whether a batch may be like this."""
        return self.shapes is not None and self.items <= self.most


@dataclass(slots=True, eq=False)
class Member:
    """What one call brings to a batch, and what came of it.

    Attributes:
        content: Grids of wafers, or all inputs by name.
        size: How large it is.
        outputs: Names of the outputs wanted; only members that want the same share a run.
        leads: Whether it is the first, perhaps only, member of its call.
        level: Priority of the call.
        late: Whether it waited too long and goes behind the others of its priority.
        due: When it has waited too long, seconds of `time.perf_counter`.
        arrived: When it came, seconds of `time.perf_counter`.
        answer: The outputs, a row an element.
        run: The run that it had a part in.
        alarm: Ends its waiting.
    """

    content: Grids | Tensors
    size: BatchSize | TensorSize
    outputs: tuple[str, ...]
    leads: bool = True
    level: int = 0
    late: bool = False
    due: float = _FOR_EVER
    arrived: float = field(default_factory=time.perf_counter)
    answer: asyncio.Future[Outputs] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    run: Run | None = None
    alarm: asyncio.TimerHandle | None = None


class _Queue:
    """What waits for one model: the highest priority first, and in each those that came first.

    Args:
        model: The model.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._statistics = model.statistics
        self._scheduling: Scheduling = model.session.config.scheduling
        self._lanes: dict[tuple[int, bool], deque[Member]] = {}

    def __bool__(self) -> bool:
        return any(self._lanes.values())

    def waiting(self, level: int) -> int:
        """Returns how many calls of a priority wait."""
        lanes = (self._lanes.get((level, late), ()) for late in (False, True))
        return sum(member.leads and not member.answer.done() for lane in lanes for member in lane)

    def add(self, member: Member) -> None:
        """Puts a member behind those of its priority."""
        self._lane(member.level, late=False).append(member)
        self._statistics.waiting += member.leads

    def take(self, now: float) -> tuple[list[Member], float]:
        """Returns a batch that can begin now, or none and when to look again.

        Args:
            now: Seconds of `time.perf_counter`.
        """
        self._put_back_late_ones(now)
        batch, size, full = self._gather()
        if not batch:
            return [], _FOR_EVER
        keep = self._preferred(batch)
        if not keep:
            wake = min(member.arrived for member in batch) + self._scheduling.max_delay_us / 1e6
            if self._scheduling.dynamic and not full and size.items < size.most and wake > now:
                self._put_back(batch)
                return [], wake
            keep = len(batch)
        self._put_back(batch[keep:])
        for member in batch[:keep]:
            self._statistics.waiting -= member.leads
            if member.alarm is not None:
                member.alarm.cancel()
        return batch[:keep], now

    def _lane(self, level: int, *, late: bool) -> deque[Member]:
        lane = self._lanes.get((level, late))
        if lane is None:
            lane = self._lanes[level, late] = deque()
            self._lanes = dict(sorted(self._lanes.items()))
        return lane

    def _put_back_late_ones(self, now: float) -> None:
        """Puts those that waited too long behind the others, where the policy says so."""
        for (level, late), lane in list(self._lanes.items()):
            if late or not self._scheduling.policy(level).delays:
                continue
            for member in [each for each in lane if each.due <= now]:
                lane.remove(member)
                member.late = True
                self._lane(level, late=True).append(member)

    def _gather(self) -> tuple[list[Member], Any, bool]:
        """Takes the first member whose caller still waits, and all that fit beside it, in their order."""
        batch: list[Member] = []
        size: Any = None
        full = False
        for lane in self._lanes.values():
            left: list[Member] = []
            while lane and not (batch and (size.items >= size.most or not self._scheduling.dynamic)):
                member = lane.popleft()
                if member.answer.done():
                    self._statistics.waiting -= member.leads
                    continue
                if not batch:
                    batch, size = [member], member.size
                    continue
                together = size.with_more(member.size)
                if member.outputs == batch[0].outputs and together.fits:
                    batch.append(member)
                    size = together
                else:
                    left.append(member)
                    full = True
            lane.extendleft(reversed(left))
        return batch, size, full

    def _preferred(self, batch: list[Member]) -> int:
        """Returns how many members make the largest preferred size; 0 where none does."""
        best = total = 0
        if self._scheduling.preferred:
            for count, member in enumerate(batch, 1):
                total += member.size.items
                if total in self._scheduling.preferred:
                    best = count
        return best

    def _put_back(self, members: Sequence[Member]) -> None:
        for member in reversed(members):
            self._lane(member.level, late=member.late).appendleft(member)


class Batcher:
    """Runs models on threads of its own. Used from one event loop.

    Calls that ask one model for the same outputs share runs. Models take turns, so that a flood for one does not starve
    another. A member whose caller has gone is left out, and its batch-mates get their answers.

    Args:
        threads: Runs at a time. Default: one a core, because each session works with one thread.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._most = self._free = threads or usable_cores()
        # A pool with futures of its own would wake the event loop several times for each run.
        self._jobs: SimpleQueue[tuple[asyncio.AbstractEventLoop, LoadedModel, list[Member]] | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"inference_{index}", daemon=True) for index in range(self._most)
        ]
        for thread in self._threads:
            thread.start()
        self._queue_of: WeakKeyDictionary[LoadedModel, _Queue] = WeakKeyDictionary()
        self._queues: OrderedDict[LoadedModel, _Queue] = OrderedDict()
        self._instances: Counter[LoadedModel] = Counter()
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = _FOR_EVER

    async def run(self, model: LoadedModel, grids: Grids, outputs: Sequence[str]) -> Outputs:
        """Runs wafers of like sizes, few enough for one batch, perhaps with those of other calls.

        Args:
            model: The model.
            grids: uint8 (rows, columns) each or one array of them, at least one; their `BatchSize` fits.
            outputs: Names of the outputs wanted.

        Returns:
            float32 outputs by name, a row a wafer.
        """
        (member,) = self.submit(model, [Member(grids, size_of(grids), tuple(outputs))])
        return await member.answer

    def submit(self, model: LoadedModel, members: list[Member], level: int = 0, timeout_us: int = 0) -> list[Member]:
        """Puts the members of one call into the model's queue.

        Args:
            model: The model.
            members: At least one; the first one leads.
            level: Priority of the call; one that the model does not have takes its default.
            timeout_us: Longest wait that the call allows, microseconds; 0 takes the model's.

        Raises:
            ResourceExhaustedError: The queue of this priority is full.
        """
        scheduling = model.session.config.scheduling
        level = level if 0 < level <= scheduling.levels else scheduling.default_level
        policy = scheduling.policy(level)
        queue = self._queue_of.get(model)
        if queue is None:
            queue = self._queue_of[model] = _Queue(model)
        if policy.max_size and queue.waiting(level) >= policy.max_size:
            raise ResourceExhaustedError(
                f"Expected at most {policy.max_size} requests waiting for {model.name}. Received one more. Try again "
                "shortly, or raise max_queue_size in its configuration.",
                retry_after_s=1.0,
                reason="QUEUE_FULL",
            )
        wait_us = _wait_us(policy, timeout_us)
        for member in members:
            member.level = level
            if wait_us:
                member.due = member.arrived + wait_us / 1e6
                if not policy.delays:
                    member.alarm = asyncio.get_running_loop().call_later(wait_us / 1e6, _expire, member, wait_us)
            queue.add(member)
        self._queues.setdefault(model, queue)
        self._begin()
        return members

    def close(self) -> None:
        """Ends the threads."""
        if self._alarm is not None:
            self._alarm.cancel()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _begin(self) -> None:
        """Gives work to free threads."""
        looked, wake = 0, _FOR_EVER
        now = time.perf_counter()
        while self._free and looked < len(self._queues):
            model, queue = self._queues.popitem(last=False)
            batch: list[Member] = []
            if self._instances[model] < (model.session.config.scheduling.instances or self._most):
                batch, again = queue.take(now)
                wake = min(wake, again if not batch else _FOR_EVER)
            if queue:
                self._queues[model] = queue
            if not batch:
                looked += 1
                continue
            looked = 0
            self._free -= 1
            self._instances[model] += 1
            self._jobs.put((asyncio.get_running_loop(), model, batch))
        self._wake_at(wake, now)

    def _wake_at(self, wake: float, now: float) -> None:
        """Looks again when a batch has waited long enough for company."""
        if wake == _FOR_EVER or (self._alarm_at <= wake and self._alarm_at > now):
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = wake
        self._alarm = asyncio.get_running_loop().call_later(max(wake - now, 0), self._ring)

    def _ring(self) -> None:
        self._alarm_at = _FOR_EVER
        self._begin()

    def _work(self) -> None:
        """Runs batch after batch, in a thread."""
        while (job := self._jobs.get()) is not None:
            loop, model, batch = job
            with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits any more
                loop.call_soon_threadsafe(self._ended, model, _results(model, batch))
            # A thread that waits for its next batch must not keep a model that was unloaded.
            del job, model, batch

    def _ended(self, model: LoadedModel, results: list[_Result]) -> None:
        """Deals out what came of a batch, and gives the thread that is free the next one first."""
        self._free += 1
        self._instances[model] -= 1
        if not self._instances[model]:
            del self._instances[model]
        self._begin()
        for result in results:
            _deal_out(model, result)


@dataclass(frozen=True, slots=True)
class _Result:
    """What came of one run.

    Attributes:
        batch: Members.
        begun: When it began, seconds of `time.perf_counter`.
        made: When its inputs were one.
        inferred: When the model had answered.
        values: Outputs of the whole batch by name.
        error: What went wrong instead.
    """

    batch: list[Member]
    begun: float
    made: float = 0.0
    inferred: float = 0.0
    values: Outputs = field(default_factory=dict)
    error: Exception | None = None


def size_of(grids: Grids, most: int = MAX_BATCH_WAFERS) -> BatchSize:
    """Returns the size of a batch of grids."""
    if isinstance(grids, np.ndarray):
        wafers, rows, columns = grids.shape
        return BatchSize(wafers, rows, columns, grids.size, most)
    shapes = [grid.shape for grid in grids]
    return BatchSize(
        len(shapes),
        max((rows for rows, _ in shapes), default=0),
        max((columns for _, columns in shapes), default=0),
        sum(rows * columns for rows, columns in shapes),
        most,
    )


def _results(model: LoadedModel, batch: list[Member]) -> list[_Result]:
    """Runs a batch, in a thread, and its members one by one where one of several spoils it for the others."""
    result = _tried(model, batch)
    if result.error is not None and len(batch) > 1 and isinstance(batch[0].content, Mapping):
        return [_tried(model, [member]) for member in batch]
    return [result]


def _tried(model: LoadedModel, batch: list[Member]) -> _Result:
    """Runs a batch and keeps what goes wrong."""
    begun = time.perf_counter()
    try:
        values, made, inferred = _execute(model, batch)
    except Exception as error:
        return _Result(batch, begun, error=error)
    return _Result(batch, begun, made, inferred, values)


def _deal_out(model: LoadedModel, result: _Result) -> None:
    """Gives each member its rows, or the error."""
    if result.error is not None:
        for member in result.batch:
            if not member.answer.done():
                member.answer.set_exception(result.error)
        return
    start = 0
    run = Run(_items(result.batch), result.begun, result.made, result.inferred, time.perf_counter())
    model.statistics.executed(run)
    for member in result.batch:
        end = start + member.size.items
        member.run = run
        if not member.answer.done():
            # One member has the whole batch, whatever the first dimension of its outputs is.
            whole = len(result.batch) == 1
            values = result.values
            member.answer.set_result(values if whole else {name: each[start:end] for name, each in values.items()})
        start = end


def _items(batch: list[Member]) -> int:
    return sum(member.size.items for member in batch)


def _execute(model: LoadedModel, batch: list[Member]) -> tuple[Outputs, float, float]:
    """Makes one input of a batch and runs it; returns the outputs and when each of both was there."""
    outputs = batch[0].outputs
    contents: list[Any] = [member.content for member in batch]
    if isinstance(contents[0], Mapping):
        inputs = (
            contents[0]
            if len(batch) == 1
            else {name: np.concatenate([each[name] for each in contents]) for name in contents[0]}
        )
        made = time.perf_counter()
        values = model.graph.run_tensors(inputs, outputs)
        size = _items(batch)
        for name, value in values.items() if len(batch) > 1 else ():
            if not value.shape or value.shape[0] != size:
                raise DataLossError(
                    f"Expected {size} rows in the output {name} of {model.name} for as many elements of the batch. "
                    f"Received: the shape {list(value.shape)}. Set max_batch_size to 0 in its configuration.",
                    reason="WRONG_GRAPH",
                )
    else:
        dies = _joined(contents)
        made = time.perf_counter()
        values = model.graph.run(dies, outputs)
    return values, made, time.perf_counter()


def _joined(contents: list[Grids]) -> NDArray[np.uint8]:
    """Returns the grids of all members as one array, padded where they differ."""
    first = contents[0]
    if isinstance(first, np.ndarray) and all(
        isinstance(each, np.ndarray) and each.shape[1:] == first.shape[1:] for each in contents
    ):
        return first if len(contents) == 1 else np.concatenate(contents)
    return pad_grids([grid for content in contents for grid in content])


def _wait_us(policy: QueuePolicy, timeout_us: int) -> int:
    """Returns the longest wait of a call, microseconds; 0 is for ever. A call that may can shorten it."""
    if timeout_us and policy.allow_override and (not policy.timeout_us or timeout_us < policy.timeout_us):
        return timeout_us
    return policy.timeout_us


def _expire(member: Member, wait_us: int) -> None:
    """Refuses a member that has waited too long."""
    if member.run is None and not member.answer.done():
        member.answer.set_exception(
            DeadlineExceededError(
                f"Expected the request to begin within {wait_us} microseconds, the limit of its queue. Received: a "
                "queue that took longer. Send fewer at a time, or allow a longer wait.",
                reason="QUEUE_TIMEOUT",
            )
        )
