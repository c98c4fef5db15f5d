"""Runs the wafers of a call: in chunks of like size, batched with those of other calls, with a bound on what waits."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence

import numpy as np

from services.common.errors import ResourceExhaustedError
from services.predictor.batching import Batcher, BatchSize, Grids, Outputs
from services.predictor.model_server import LoadedModel


class InferenceRunner:
    """Runs models in threads, while the event loop stays free.

    Args:
        max_waiting_wafers: Wafers that may wait or run at a time; a further call is refused unless nothing waits.
        threads: Runs at a time. Default: one a core, because each session works with one thread.
    """

    def __init__(self, max_waiting_wafers: int, threads: int | None = None) -> None:
        self._max_waiting_wafers = max_waiting_wafers
        self._waiting_wafers = 0
        self._batcher = Batcher(threads)

    async def run(self, model: LoadedModel, grids: Grids, outputs: Sequence[str]) -> Outputs:
        """Runs wafers of any mix of sizes and counts the request in the model's statistics.

        Args:
            model: The model.
            grids: uint8 (rows, columns) each; none gives empty outputs.
            outputs: Names of the outputs wanted.

        Returns:
            float32 outputs by name, a row a wafer in the order of `grids`.

        Raises:
            ResourceExhaustedError: Too many wafers wait.
        """
        start = time.perf_counter()
        try:
            with self._admitted(len(grids)):
                chunks = chunks_of([grid.shape for grid in grids])
                results = await asyncio.gather(
                    *(self._batcher.run(model, [grids[index] for index in chunk], outputs) for chunk in chunks)
                )
        except BaseException:
            model.statistics.failed(time.perf_counter() - start)
            raise
        model.statistics.succeeded(len(grids), time.perf_counter() - start)
        return _in_order(chunks, results, outputs)

    def close(self) -> None:
        """Ends the threads."""
        self._batcher.close()

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


def chunks_of(shapes: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Returns which grids to run together: like sizes, so that padding costs little, few enough for flat memory.

    Args:
        shapes: Rows and columns of each grid.
    """
    chunks: list[list[int]] = []
    size = BatchSize()
    for index in sorted(range(len(shapes)), key=lambda each: shapes[each]):
        rows, columns = shapes[index]
        wafer = BatchSize(1, rows, columns, rows * columns)
        if not chunks or not size.with_more(wafer).fits:
            chunks.append([])
            size = BatchSize()
        chunks[-1].append(index)
        size = size.with_more(wafer)
    return chunks


def _in_order(chunks: list[list[int]], results: Sequence[Outputs], outputs: Sequence[str]) -> Outputs:
    """Puts the rows of the chunks back into the order of the wafers."""
    if not chunks:
        return {name: np.zeros(0, np.float32) for name in outputs}
    order = np.argsort(np.concatenate([np.asarray(chunk) for chunk in chunks]))
    return {name: np.concatenate([result[name] for result in results])[order] for name in outputs}
