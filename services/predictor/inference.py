"""Runs wafers through models: in chunks of like size, on one thread a core, with a bound on what waits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from services.common.errors import ResourceExhaustedError
from services.common.preprocessing import pad_grids
from services.predictor.model_server import LoadedModel

Grids = Sequence[NDArray[np.uint8]]
Outputs = dict[str, NDArray[np.float32]]

MAX_CHUNK_WAFERS = 64
MAX_CHUNK_PLACES = 4_000_000
"""Places of the grids of one run, padding included: the graph needs some ten bytes for each."""

_MOST_PADDING = 2
"""A chunk ends before padding makes it this many times as large as its wafers."""


class InferenceRunner:
    """Runs models in threads, while the event loop stays free.

    Args:
        max_waiting_wafers: Wafers that may wait or run at a time; a further call is refused unless nothing waits.
        threads: Runs at a time. Default: one a core, because each session works with one thread.
    """

    def __init__(self, max_waiting_wafers: int, threads: int | None = None) -> None:
        self._max_waiting_wafers = max_waiting_wafers
        self._waiting_wafers = 0
        self._threads = ThreadPoolExecutor(threads or len(os.sched_getaffinity(0)), thread_name_prefix="inference")

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
                loop = asyncio.get_running_loop()
                results = await asyncio.gather(
                    *(
                        loop.run_in_executor(self._threads, _run, model, [grids[index] for index in chunk], outputs)
                        for chunk in chunks
                    )
                )
        except BaseException:
            model.statistics.failed(time.perf_counter() - start)
            raise
        model.statistics.succeeded(len(grids), len(chunks), time.perf_counter() - start)
        return _in_order(chunks, results, outputs)

    def close(self) -> None:
        """Ends the threads."""
        self._threads.shutdown(cancel_futures=True)

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
    rows = columns = own = 0
    for index in sorted(range(len(shapes)), key=lambda each: shapes[each]):
        height, width = shapes[index]
        padded = max(rows, height) * max(columns, width) * (len(chunks[-1]) + 1) if chunks else 0
        fits = (
            chunks
            and len(chunks[-1]) < MAX_CHUNK_WAFERS
            and padded <= MAX_CHUNK_PLACES
            and padded <= _MOST_PADDING * (own + height * width)
        )
        if not fits:
            chunks.append([])
            rows = columns = own = 0
        chunks[-1].append(index)
        rows, columns, own = max(rows, height), max(columns, width), own + height * width
    return chunks


def _run(model: LoadedModel, grids: Grids, outputs: Sequence[str]) -> Outputs:
    return model.session.run(pad_grids(grids), outputs)


def _in_order(chunks: list[list[int]], results: Sequence[Outputs], outputs: Sequence[str]) -> Outputs:
    """Puts the rows of the chunks back into the order of the wafers."""
    if not chunks:
        return {name: np.zeros(0, np.float32) for name in outputs}
    order = np.argsort(np.concatenate([np.asarray(chunk) for chunk in chunks]))
    return {name: np.concatenate([result[name] for result in results])[order] for name in outputs}
