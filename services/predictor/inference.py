"""Runs the work of a call: batched with that of other calls, with a bound on what waits, counted and traced."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.common.errors import ResourceExhaustedError
from services.common.wafer_map import MAX_SIDE
from services.predictor.access import Access
from services.predictor.batching import (
    MAX_BATCH_PLACES,
    MAX_BATCH_WAFERS,
    Batcher,
    BatchSize,
    Grids,
    Member,
    Outputs,
    Tensors,
    TensorSize,
    size_of,
)
from services.predictor.ensemble import Ensemble
from services.predictor.model_config import EnsembleStep
from services.predictor.model_server import LoadedModel
from services.predictor.response_cache import ResponseCache, key_of
from services.predictor.spans import Spans
from services.predictor.statistics import Run
from services.predictor.tensors import LONGEST_SIDE, Tensor, as_received, check_batch_sizes, checked_shape
from services.predictor.tracing import Tracer


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a call may ask for beside its answer.

    Attributes:
        priority: Its priority, 1 is the highest; 0 takes the model's default.
        timeout_us: Longest wait in the queue, microseconds; 0 takes the model's.
        request_id: Identifier that the caller gave, or empty.
    """

    priority: int = 0
    timeout_us: int = 0
    request_id: str = ""


NO_WISHES = Wishes()


@dataclass(frozen=True, slots=True)
class _Served:
    """What came of one call.

    Attributes:
        answer: Outputs by name.
        started: When it came, seconds of `time.perf_counter`.
        runs: Runs that it had a part in; none where the cache had the answer.
    """

    answer: Outputs
    started: float
    runs: Sequence[Run]


class InferenceRunner:
    """Runs models in threads, while the event loop stays free. Used from one event loop.

    Args:
        max_waiting_wafers: Wafers, or elements of batches, that may wait or run at a time; a further call is refused
            unless nothing waits.
        threads: Runs at a time. Default: one a core, because each session works with one thread.
        cache: Keeps the answers of models that ask for it. Default: nothing is kept.
        tracer: Traces requests. Default: nothing is traced.
        access: Counts what callers ask for. Default: everybody may ask for everything.
        spans: Sends the spans of requests. Default: there are none.
    """

    def __init__(
        self,
        max_waiting_wafers: int,
        threads: int | None = None,
        cache: ResponseCache | None = None,
        tracer: Tracer | None = None,
        access: Access | None = None,
        spans: Spans | None = None,
    ) -> None:
        self._max_waiting_wafers = max_waiting_wafers
        self._waiting_wafers = 0
        self._batcher = Batcher(threads)
        self._cache = cache or ResponseCache(0)
        self._tracer = tracer or Tracer()
        self._access = access or Access()
        self._spans = spans or Spans()

    async def run(
        self, model: LoadedModel, grids: Grids, outputs: Sequence[str], wishes: Wishes = NO_WISHES
    ) -> Outputs:
        """Runs wafers of any mix of sizes and counts the request in the model's statistics.

        Args:
            model: A model of wafers.
            grids: uint8 (rows, columns) each, or one array of them; none gives empty outputs.
            outputs: Names of the outputs wanted.
            wishes: What else is asked for.

        Returns:
            float32 outputs by name, a row a wafer in the order of `grids`.

        Raises:
            ResourceExhaustedError: Too many wafers wait.
            DeadlineExceededError: They waited longer than the model's configuration allows.
        """
        return (await self._wafers(model, grids, outputs, wishes)).answer

    async def infer(
        self, model: LoadedModel, inputs: Tensors, outputs: Sequence[str], wishes: Wishes = NO_WISHES
    ) -> Outputs:
        """Runs one request of tensors and counts it in the model's statistics, and in those of an ensemble's models.

        Args:
            model: Any model, or an ensemble of some.
            inputs: All inputs by name, in the shapes of `model.session.config.inputs`.
            outputs: Names of the outputs wanted.
            wishes: What else is asked for; the steps of an ensemble ask for the same.

        Returns:
            Outputs by name, in the shapes of `model.session.config.outputs`.

        Raises:
            ResourceExhaustedError: Too much waits.
            DeadlineExceededError: It waited longer than the model's configuration allows.
            InvalidArgumentError: The graph cannot work with the inputs.
            FailedPreconditionError: A model of the ensemble is not loaded.
        """
        return (await self._infer(model, inputs, outputs, wishes)).answer

    def close(self) -> None:
        """Ends the threads."""
        self._batcher.close()

    async def _infer(
        self, model: LoadedModel, inputs: Tensors, outputs: Sequence[str], wishes: Wishes, *, step: bool = False
    ) -> _Served:
        if isinstance(model.session, Ensemble):
            return await self._steps(model, model.session, inputs, outputs, wishes, step=step)
        if model.session.takes_wafers:
            # Wafers share runs with those of other sizes.
            served = await self._wafers(model, inputs[model.session.manifest.input], outputs, wishes, step=step)
            outside = {name: model.session.outside(name, value) for name, value in served.answer.items()}
            return _Served(outside, served.started, served.runs)
        size = TensorSize.of(inputs, model.session.config.max_batch_size)
        member = Member(inputs, size, tuple(outputs))
        return await self._served(
            model,
            size.items,
            outputs,
            sorted(inputs.items()),
            wishes,
            lambda _: self._batched(model, [member], lambda results: results[0], wishes),
            step=step,
        )

    async def _wafers(
        self, model: LoadedModel, grids: Grids, outputs: Sequence[str], wishes: Wishes, *, step: bool = False
    ) -> _Served:
        most = min(MAX_BATCH_WAFERS, model.session.config.max_batch_size or 1)
        chunks = chunks_of([grid.shape for grid in grids], most)
        members = [
            Member(part, size_of(part, most), tuple(outputs), leads=not index)
            for index, part in enumerate(_part(grids, chunk) for chunk in chunks)
        ]
        return await self._served(
            model,
            len(grids),
            outputs,
            ((str(index), grid) for index, grid in enumerate(grids)),
            wishes,
            lambda _: self._batched(model, members, lambda results: _in_order(chunks, results, outputs), wishes),
            step=step,
        )

    async def _steps(
        self,
        model: LoadedModel,
        ensemble: Ensemble,
        inputs: Tensors,
        outputs: Sequence[str],
        wishes: Wishes,
        *,
        step: bool,
    ) -> _Served:
        items = TensorSize.of(inputs, ensemble.config.max_batch_size).items

        async def work(started: float) -> tuple[Outputs, Sequence[Run]]:
            tensors = dict(inputs)
            done: list[_Served] = []
            for stage in ensemble.members():
                taken = [_taken(each, member, tensors) for each, member in stage]
                calls = [
                    self._infer(member, given, list(each.outputs), wishes, step=True)
                    for (each, member), given in zip(stage, taken, strict=True)
                ]
                served = [await calls[0]] if len(calls) == 1 else await _together(calls)
                for (each, _), one in zip(stage, served, strict=True):
                    tensors |= {tensor: as_received(one.answer[theirs]) for theirs, tensor in each.outputs.items()}
                done += served
            run = Run.of_steps(items, started, [(each.started, each.runs) for each in done])
            model.statistics.executed(run)
            return {name: tensors[name] for name in outputs}, [run]

        return await self._served(model, items, outputs, (), wishes, work, step=step)

    async def _batched(
        self,
        model: LoadedModel,
        members: list[Member],
        join: Callable[[list[Outputs]], Outputs],
        wishes: Wishes,
    ) -> tuple[Outputs, Sequence[Run]]:
        """Returns the answer of the members of one call, and their runs."""
        if members:
            self._batcher.submit(model, members, wishes.priority, wishes.timeout_us)
        # Most calls are one member, which needs nothing that gathers.
        answer = join(
            [await members[0].answer]
            if len(members) == 1
            else await asyncio.gather(*(member.answer for member in members))
        )
        return answer, [member.run for member in members if member.run is not None]

    async def _served(
        self,
        model: LoadedModel,
        items: int,
        outputs: Sequence[str],
        named: Iterable[tuple[str, Tensor]],
        wishes: Wishes,
        work: Callable[[float], Awaitable[tuple[Outputs, Sequence[Run]]]],
        *,
        step: bool = False,
    ) -> _Served:
        """Returns the answer of one call, out of the cache or from the model, and counts it.

        Args:
            model: The model.
            items: Elements of the batch.
            outputs: Names of the outputs wanted.
            named: All inputs in an order of their own, for the cache.
            wishes: What else is asked for.
            work: Makes the answer of a request that came at that time.
            step: Whether it is a step of an ensemble, which was admitted as a whole.
        """
        if not step:
            self._access.admit(model.name, items)
        start = time.perf_counter()
        traced, spanned = self._tracer.wants(model.name), self._spans.wants()
        runs: Sequence[Run] = ()
        cached = bool(items) and model.session.config.response_cache and self._cache.keeps
        try:
            key = key_of(model.serial, outputs, named) if cached else b""
            answer = self._cache.get(key) if cached else None
            looked_s = time.perf_counter() - start
            if answer is not None:
                model.statistics.cache_hits.add(looked_s)
            else:
                with contextlib.nullcontext() if step else self._admitted(items):
                    answer, runs = await work(start)
                if cached:
                    keeping = time.perf_counter()
                    self._cache.put(key, answer)
                    model.statistics.cache_misses.add(looked_s + time.perf_counter() - keeping)
        except BaseException as error:
            model.statistics.failed(time.perf_counter() - start)
            if spanned:
                self._spans.add(model.name, model.version, items, start, (), error)
            raise
        model.statistics.succeeded(items, time.perf_counter() - start, start, runs)
        # The parts of an ensemble's run are sums, not moments: its steps tell theirs.
        moments = () if isinstance(model.session, Ensemble) else runs
        if traced:
            self._tracer.write(model.name, model.version, wishes.request_id, start, moments)
        if spanned:
            self._spans.add(model.name, model.version, items, start, moments)
        return _Served(answer, start, runs)

    @contextlib.contextmanager
    def _admitted(self, wafers: int) -> Iterator[None]:
        """Counts wafers as waiting while inside."""
        if self._waiting_wafers and self._waiting_wafers + wafers > self._max_waiting_wafers:
            raise ResourceExhaustedError(
                f"Expected at most {self._max_waiting_wafers} wafers waiting. Received {wafers} more beside "
                f"{self._waiting_wafers}. Try again shortly, or run more predictors.",
                retry_after_s=1.0,
                reason="QUEUE_FULL",
            )
        self._waiting_wafers += wafers
        try:
            yield
        finally:
            self._waiting_wafers -= wafers


def chunks_of(shapes: Sequence[tuple[int, ...]], most: int = MAX_BATCH_WAFERS) -> list[list[int]]:
    """Returns which grids to run together: like sizes, so that padding costs little, few enough for flat memory.

    Args:
        shapes: Rows and columns of each grid.
        most: Most wafers of a chunk.
    """
    if len(set(shapes)) == 1:  # as those of a lot are
        rows, columns = shapes[0]
        most = max(1, min(most, MAX_BATCH_PLACES // (rows * columns)))
        return [list(range(start, min(start + most, len(shapes)))) for start in range(0, len(shapes), most)]
    chunks: list[list[int]] = []
    size = BatchSize(most=most)
    for index in sorted(range(len(shapes)), key=lambda each: shapes[each]):
        rows, columns = shapes[index]
        wafer = BatchSize(1, rows, columns, rows * columns)
        if not chunks or not size.with_more(wafer).fits:
            chunks.append([])
            size = BatchSize(most=most)
        chunks[-1].append(index)
        size = size.with_more(wafer)
    return chunks


def _part(grids: Grids, chunk: list[int]) -> Grids:
    """Returns the grids of a chunk; those of one array, which are alike, lie side by side and stay one."""
    if isinstance(grids, np.ndarray):
        return grids[chunk[0] : chunk[-1] + 1]
    return [grids[index] for index in chunk]


def _taken(step: EnsembleStep, model: LoadedModel, tensors: Tensors) -> Tensors:
    """Returns the inputs of a step, checked as those of a caller are: a graph may have answered in any shape."""
    most = model.session.config.max_batch_size
    longest = MAX_SIDE if model.session.takes_wafers else LONGEST_SIDE
    inputs = {theirs: tensors[tensor] for theirs, tensor in step.inputs.items()}
    for name, tensor in inputs.items():
        checked_shape(
            tensor.shape, model.session.taken[name], most, longest, f"ensemble_scheduling.{model.name}.{name}"
        )
    if most:
        check_batch_sizes(inputs.values())
    return inputs


async def _together(calls: Sequence[Coroutine[Any, Any, _Served]]) -> list[_Served]:
    """Returns the answers of calls that run side by side; when one fails, the others end with it."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _in_order(chunks: list[list[int]], results: Sequence[Outputs], outputs: Sequence[str]) -> Outputs:
    """Puts the rows of the chunks back into the order of the wafers."""
    if not chunks:
        return {name: np.zeros(0, np.float32) for name in outputs}
    if len(chunks) == 1 and chunks[0] == list(range(len(chunks[0]))):
        return results[0]
    order = np.argsort(np.concatenate([np.asarray(chunk) for chunk in chunks]))
    return {name: np.concatenate([result[name] for result in results])[order] for name in outputs}
