"""Dynamic batching: whenever a thread is free, it takes what waits for one model and runs it together.

Nothing waits for company: on a processor a batch saves hops between threads and no arithmetic, so an idle thread begins
at once with what is there, and batches grow by themselves when there is more work than threads.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from services.common.preprocessing import pad_grids
from services.predictor.model_server import LoadedModel

Grids = Sequence[NDArray[np.uint8]]
Outputs = dict[str, NDArray[np.float32]]

MAX_BATCH_WAFERS = 64
"""Most wafers of one run; more bring nothing on a processor."""
MAX_BATCH_PLACES = 4_000_000
"""Places of the grids of one run, padding included: the graph needs some ten bytes for each."""

_MOST_PADDING = 2
"""A batch ends before padding makes it this many times as large as its wafers."""


@dataclass(slots=True)
class BatchSize:
    """How large a batch is, and whether more fits."""

    wafers: int = 0
    rows: int = 0
    columns: int = 0
    places: int = 0

    def with_more(self, other: BatchSize) -> BatchSize:
        """Returns the size of both together."""
        return BatchSize(
            self.wafers + other.wafers,
            max(self.rows, other.rows),
            max(self.columns, other.columns),
            self.places + other.places,
        )

    @property
    def fits(self) -> bool:
        """Whether a batch may be as large; a single wafer always may."""
        padded = self.rows * self.columns * self.wafers
        return self.wafers <= 1 or (
            self.wafers <= MAX_BATCH_WAFERS and padded <= MAX_BATCH_PLACES and padded <= _MOST_PADDING * self.places
        )


@dataclass(slots=True, eq=False)
class _Member:
    """Wafers of one call that are run together, and what came of them."""

    grids: Grids
    size: BatchSize
    answer: asyncio.Future[Outputs] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


_Key = tuple[LoadedModel, tuple[str, ...]]


class Batcher:
    """Runs models on threads of its own. Used from one event loop.

    Calls that ask one model for the same outputs share runs. Models take turns, so that a flood for one does not starve
    another. A member whose caller has gone is left out, and its batch-mates get their answers.

    Args:
        threads: Runs at a time. Default: one a core, because each session works with one thread.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._free = threads or len(os.sched_getaffinity(0))
        self._threads = ThreadPoolExecutor(self._free, thread_name_prefix="inference")
        self._queues: OrderedDict[_Key, deque[_Member]] = OrderedDict()
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, model: LoadedModel, grids: Grids, outputs: Sequence[str]) -> Outputs:
        """Runs wafers of like sizes, few enough for one batch, perhaps with those of other calls.

        Args:
            model: The model.
            grids: uint8 (rows, columns) each, at least one; their `BatchSize` fits.
            outputs: Names of the outputs wanted.

        Returns:
            float32 outputs by name, a row a wafer.
        """
        member = _Member(grids, size_of(grids))
        self._queues.setdefault((model, tuple(outputs)), deque()).append(member)
        self._begin()
        return await member.answer

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(cancel_futures=True)

    def _begin(self) -> None:
        """Gives work to free threads."""
        while self._free and self._queues:
            key, queue = self._queues.popitem(last=False)
            batch = _take(queue)
            if queue:
                self._queues[key] = queue
            if batch:
                self._free -= 1
                task = asyncio.get_running_loop().create_task(self._run(key, batch))
                self._running.add(task)
                task.add_done_callback(self._running.discard)

    async def _run(self, key: _Key, batch: list[_Member]) -> None:
        """Runs a batch and deals out its rows."""
        model, outputs = key
        grids = [grid for member in batch for grid in member.grids]
        try:
            values = await asyncio.get_running_loop().run_in_executor(self._threads, _run_padded, model, grids, outputs)
        except Exception as error:
            for member in batch:
                if not member.answer.done():
                    member.answer.set_exception(error)
        else:
            model.statistics.executed()
            start = 0
            for member in batch:
                end = start + member.size.wafers
                if not member.answer.done():
                    member.answer.set_result({name: value[start:end] for name, value in values.items()})
                start = end
        finally:
            self._free += 1
            self._begin()


def size_of(grids: Grids) -> BatchSize:
    """Returns the size of a batch of grids."""
    size = BatchSize()
    for grid in grids:
        size = size.with_more(BatchSize(1, grid.shape[0], grid.shape[1], grid.size))
    return size


def _take(queue: deque[_Member]) -> list[_Member]:
    """Takes the oldest member whose caller still waits, and all that fit beside it, in their order."""
    batch: list[_Member] = []
    size = BatchSize()
    left: list[_Member] = []
    while queue and size.wafers < MAX_BATCH_WAFERS:
        member = queue.popleft()
        if member.answer.done():
            continue
        together = size.with_more(member.size)
        if not batch or together.fits:
            batch.append(member)
            size = together
        else:
            left.append(member)
    queue.extendleft(reversed(left))
    return batch


def _run_padded(model: LoadedModel, grids: Grids, outputs: Sequence[str]) -> Outputs:
    return model.session.run(pad_grids(grids), outputs)
