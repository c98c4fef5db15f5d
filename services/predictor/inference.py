"""Runs the work of a call: batched with that of other calls, with a bound on what waits, counted and traced."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from services.common.errors import ResourceExhaustedError
from services.predictor.access import Access
from services.predictor.batching import (
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
from services.predictor.model_server import LoadedModel
from services.predictor.response_cache import ResponseCache, key_of
from services.predictor.spans import Spans
from services.predictor.statistics import Run
from services.predictor.tensors import Tensor
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
            grids: uint8 (rows, columns) each; none gives empty outputs.
            outputs: Names of the outputs wanted.
            wishes: What else is asked for.

        Returns:
            float32 outputs by name, a row a wafer in the order of `grids`.

        Raises:
            ResourceExhaustedError: Too many wafers wait.
            DeadlineExceededError: They waited longer than the model's configuration allows.
        """
        most = min(MAX_BATCH_WAFERS, model.session.config.max_batch_size or 1)
        chunks = chunks_of([grid.shape for grid in grids], most)
        members = [
            Member(part, size_of(part, most), tuple(outputs), leads=not index)
            for index, part in enumerate([grids[index] for index in chunk] for chunk in chunks)
        ]
        return await self._served(
            model,
            members,
            lambda results: _in_order(chunks, results, outputs),
            len(grids),
            ((str(index), grid) for index, grid in enumerate(grids)),
            wishes,
        )

    async def run_tensors(
        self, model: LoadedModel, inputs: Tensors, outputs: Sequence[str], wishes: Wishes = NO_WISHES
    ) -> Outputs:
        """Runs one request of tensors and counts it in the model's statistics.

        Args:
            model: Any model.
            inputs: All inputs by name, in the shapes of `model.session.config.inputs`.
            outputs: Names of the outputs wanted.
            wishes: What else is asked for.

        Returns:
            Outputs by name.

        Raises:
            ResourceExhaustedError: Too much waits.
            DeadlineExceededError: It waited longer than the model's configuration allows.
            InvalidArgumentError: The graph cannot work with the inputs.
        """
        size = TensorSize.of(inputs, model.session.config.max_batch_size)
        member = Member(inputs, size, tuple(outputs))
        return await self._served(
            model, [member], lambda results: results[0], size.items, sorted(inputs.items()), wishes
        )

    def close(self) -> None:
        """Ends the threads."""
        self._batcher.close()

    async def _served(
        self,
        model: LoadedModel,
        members: list[Member],
        join: Callable[[list[Outputs]], Outputs],
        items: int,
        named: Iterable[tuple[str, Tensor]],
        wishes: Wishes,
    ) -> Outputs:
        """Returns the answer of one call, out of the cache or from the model, and counts it."""
        self._access.admit(model.name, items)
        start = time.perf_counter()
        traced, spanned = self._tracer.wants(model.name), self._spans.wants()
        runs: list[Run] = []
        cached = bool(members) and model.session.config.response_cache and self._cache.keeps
        try:
            key = key_of(model.serial, members[0].outputs, named) if cached else b""
            answer = self._cache.get(key) if cached else None
            looked_s = time.perf_counter() - start
            if answer is not None:
                model.statistics.cache_hits.add(looked_s)
            else:
                with self._admitted(items):
                    if members:
                        self._batcher.submit(model, members, wishes.priority, wishes.timeout_us)
                    # Most calls are one member, which needs nothing that gathers.
                    answer = join(
                        [await members[0].answer]
                        if len(members) == 1
                        else await asyncio.gather(*(member.answer for member in members))
                    )
                runs = [member.run for member in members if member.run is not None]
                if cached:
                    keeping = time.perf_counter()
                    self._cache.put(key, answer)
                    model.statistics.cache_misses.add(looked_s + time.perf_counter() - keeping)
        except BaseException as error:
            model.statistics.failed(time.perf_counter() - start)
            if spanned:
                self._spans.add(model.name, model.version, items, start, runs, error)
            raise
        model.statistics.succeeded(items, time.perf_counter() - start, start, runs)
        if traced:
            self._tracer.write(model.name, model.version, wishes.request_id, start, runs)
        if spanned:
            self._spans.add(model.name, model.version, items, start, runs)
        return answer

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


def _in_order(chunks: list[list[int]], results: Sequence[Outputs], outputs: Sequence[str]) -> Outputs:
    """Puts the rows of the chunks back into the order of the wafers."""
    if not chunks:
        return {name: np.zeros(0, np.float32) for name in outputs}
    if len(chunks) == 1 and chunks[0] == list(range(len(chunks[0]))):
        return results[0]
    order = np.argsort(np.concatenate([np.asarray(chunk) for chunk in chunks]))
    return {name: np.concatenate([result[name] for result in results])[order] for name in outputs}
