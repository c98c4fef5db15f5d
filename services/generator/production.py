"""Makes the wafers of one class: parents in, checked wafers out, a chunk at a time in flat memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.common.dataset import DatasetClass, DatasetWafer, GeneratedWafers, Origin
from services.common.wafer_set import GridSequence
from services.generator.domain import ClassOutcome, ClassRequest, LearnedOptions, VariationOptions
from services.generator.real_wafers import even_places
from services.generator.realism import Judges, Look, RealismMeter
from services.generator.shards import Chunk, Shards
from services.generator.variations import VariationMaker, settings_for

CHUNK = 2048
"""Most variations made between two looks at whether the job was stopped; more share the work on each die grid."""
CELLS_PER_CHUNK = 6_000_000
"""Most cells of such a chunk, however large the grids."""
SHARD, LEARNED_SHARD = 16_384, 1024
"""Variations and learned wafers of a shard: what takes about a second, or ten."""
LEARNED_CHUNK = 256
"""Learned wafers made between two such looks."""
PREVIEW = 16
"""Most wafers of a preview."""
_RETRIES = 3
_ORDER_STREAM, _VARIATION_STREAM = 21, 22


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the work on a class stands.

    Attributes:
        stage: `learning`, `making`, `checking` or `proving`.
        done: Steps learned, wafers made or draws proved.
        total: Steps to learn, wafers to make or draws to prove.
        share: Share of the work on this class that is done, 0 to 1.
        loss: Loss of the generator while learning, else 0.
        device: Device in use.
    """

    stage: str
    done: int
    total: int
    share: float
    loss: float = 0.0
    device: str = "CPU"


class Listener(Protocol):
    """What production tells while it works. Each call may raise to stop the work."""

    def progressed(self, progress: Progress) -> None:
        """Says how far the work is."""

    def previewed(self, grids: Sequence[NDArray[np.uint8]]) -> None:
        """Shows some wafers."""


Make = Callable[[int, NDArray[np.intp], int], Sequence[NDArray[np.uint8]]]
"""Makes a wafer for each given parent: number of the first wafer, (n,) positions of parents, number of the attempt."""
_Made = tuple[NDArray[np.intp], GridSequence]
"""Positions of parents, and a wafer made from each."""


@dataclass(frozen=True, slots=True)
class _Maker:
    """A method that is ready to make wafers.

    Attributes:
        make: Makes them; safe to call from several threads where `threads` is above 1.
        eligible: Positions of the parents that it can use.
        arranged: Puts parents of a chunk into the order in which it works fastest.
        threads: Chunks to make at once.
    """

    make: Make
    eligible: NDArray[np.intp]
    arranged: Callable[[NDArray[np.intp]], NDArray[np.intp]] = lambda parents: parents
    threads: int = 1


class ClassProduction:
    """Makes the wafers of one class.

    Args:
        request: What to make.
        class_: The class.
        parents: Its real training wafers; enough of them for the method.
        seed: Seed of everything random of this class.
        shards: Where finished shards lie.
        checkpoint: File that a learned generator is saved to.
        listener: Hears how it goes.
        judges: What looks at the wafers as trained networks do; None: nothing does.

    Attributes:
        shards_wanted: Shards that the wafers come in.
    """

    def __init__(
        self,
        request: ClassRequest,
        class_: DatasetClass,
        parents: Sequence[DatasetWafer],
        *,
        seed: int,
        shards: Shards,
        checkpoint: Path,
        listener: Listener,
        judges: Judges | None = None,
    ) -> None:
        self._request = request
        self._class = class_
        self._parents = parents
        self._grids = [parent.dies for parent in parents]
        self._seed = seed
        self._shards = shards
        self._prefix = f"{shards.key[:16]}-"
        self._learned = isinstance(request.method, LearnedOptions)
        self._shard_size = LEARNED_SHARD if self._learned else SHARD
        self.shards_wanted = -(-request.count // self._shard_size)
        self._checkpoint = checkpoint
        self._listener = listener
        self._learning_share = 0.0
        self._device = "CPU"
        self._rejected = 0
        self._meter = RealismMeter(self._grids, request.count, judges)

    def wafers(self, shards: Iterable[int] | None = None) -> Iterator[GeneratedWafers]:
        """Makes the wafers, or takes them from finished shards, and yields them, a chunk at a time.

        Args:
            shards: Numbers of the shards wanted, growing; all by default.
        """
        wanted = list(range(self.shards_wanted) if shards is None else shards)
        if self._learned and not all(self._shards.finished(index) for index in wanted):
            # Before the first wafer, so that progress never goes back.
            _ = self._maker
        ids, lots = [parent.wafer_id for parent in self._parents], [parent.lot for parent in self._parents]
        origin = Origin.LEARNED if self._learned else Origin.VARIATION
        for index in wanted:
            first = index * self._shard_size
            for chunk, look in self._shard(index, first, min(first + self._shard_size, self._request.count)):
                self._meter.add(chunk.grids, look)
                if first == 0:
                    self._listener.previewed(
                        [chunk.grids[place] for place in even_places(len(chunk.grids), PREVIEW).tolist()]
                    )
                yield GeneratedWafers(
                    self._prefix, first, chunk.grids, self._class.class_id, origin, chunk.parents, ids, lots
                )
                first += len(chunk.grids)
                share = self._learning_share + (1 - self._learning_share) * first / self._request.count
                self._listener.progressed(Progress("making", first, self._request.count, share, device=self._device))

    def _shard(self, index: int, first: int, stop: int) -> Iterator[tuple[Chunk, Look | None]]:
        """Yields the chunks of a shard: finished ones as they lie in the store, others as they are made."""
        with self._shards.reading(index) as finished:
            if finished is not None:
                self._rejected += finished.rejected
                for chunk in finished.chunks():
                    yield chunk, None
                return
        before = self._rejected
        with self._shards.writing(index) as writer:
            for chunk, look in self._make(first, stop):
                writer.add(chunk)
                yield chunk, look
            writer.rejected = self._rejected - before

    def _make(self, first: int, stop: int) -> Iterator[tuple[Chunk, Look]]:
        """Makes the wafers of a range of numbers."""
        maker = self._maker
        order = maker.eligible[np.random.default_rng((self._seed, _ORDER_STREAM)).permutation(len(maker.eligible))]
        largest = max(grid.size for grid in self._grids)
        chunk = LEARNED_CHUNK if self._learned else max(1, min(CHUNK, CELLS_PER_CHUNK // largest))

        def make(begin: int) -> tuple[NDArray[np.intp], GridSequence]:
            numbers = np.arange(begin, min(begin + chunk, stop))
            chosen = maker.arranged(order[numbers % len(order)])
            return chosen, GridSequence.of(maker.make(begin, chosen, 0))

        for begin, (chosen, made) in _ahead(make, range(first, stop, chunk), maker.threads):
            look = self._checked(maker.make, begin, chosen, made)
            yield Chunk(made, chosen), look

    @cached_property
    def _maker(self) -> _Maker:
        # Made only for shards that are not finished: teaching takes time.
        return self._learned_maker() if self._learned else self._variation_maker()

    def embeddings(self) -> NDArray[np.float32]:
        """Returns the embeddings (n, 384) of an even sample of the wafers made, 500 at most; judges must be there."""
        return self._meter.embeddings()

    def outcome(self) -> ClassOutcome:
        """Compares what was made with the real wafers."""
        count = self._request.count
        self._listener.progressed(Progress("checking", count, count, 1.0, device=self._device))
        return ClassOutcome(self._class.class_id, count, len(self._parents), self._rejected, self._meter.result())

    def _checked(self, make: Make, first: int, parents: NDArray[np.intp], grids: GridSequence) -> Look:
        """Throws out wafers that fail a check and puts others into their places, three times at most.

        What fails then still stays, and shows in the figures: a copy, say, of a class whose wafers all fail completely.
        Variations are not shown to the classifier: it is slower than they are made, and they are wafers of the class.

        Returns:
            What was seen in the wafers that are there at the end.
        """
        recognise, look = self._learned, self._meter.look(grids)
        wrong = self._meter.failing(grids, recognise=recognise, look=look)
        for attempt in range(1, _RETRIES + 1):
            if not wrong.size:
                break
            self._rejected += len(wrong)
            others = GridSequence.of(make(first, parents[wrong], attempt))
            for index, grid in zip(wrong.tolist(), others, strict=True):
                grids[index][:] = grid
            fresh = self._meter.look(others)
            look.put(wrong, fresh)
            wrong = wrong[self._meter.failing(others, recognise=recognise, look=fresh)]
        return look

    def _variation_maker(self) -> _Maker:
        options = self._request.method
        assert isinstance(options, VariationOptions)  # noqa: S101 - the only other method
        variations = VariationMaker(self._grids, settings_for(options, self._class.pattern))

        def make(first: int, parents: NDArray[np.intp], attempt: int) -> GridSequence:
            return variations.make(parents, np.random.default_rng((self._seed, _VARIATION_STREAM, first, attempt)))

        return _Maker(make, np.arange(len(self._grids)), variations.arranged, threads=2)

    def _learned_maker(self) -> _Maker:
        # Only here, so that variations do without TensorFlow, its memory and its seconds.
        from services.generator.learned import LearnedGenerator, Taught, default_steps, device_name

        options = self._request.method
        assert isinstance(options, LearnedOptions)  # noqa: S101 - the only other method
        steps = options.steps or default_steps(len(self._parents))
        self._device = device_name()
        self._learning_share = 0.8
        generator = LearnedGenerator(self._grids, self._seed, self._class.pattern)
        looks = {steps * quarter // 4 for quarter in (1, 2, 3)}

        def report(taught: Taught) -> None:
            share = self._learning_share * taught.step / steps
            self._listener.progressed(Progress("learning", taught.step, steps, share, taught.loss, self._device))
            if looks and taught.step >= min(looks):
                looks.difference_update([look for look in looks if look <= taught.step])
                self._listener.previewed(generator.make(0, np.arange(PREVIEW) % len(generator.parents)))

        generator.teach(steps, report, self._checkpoint)

        def make(first: int, parents: NDArray[np.intp], attempt: int) -> list[NDArray[np.uint8]]:
            return generator.make(first, np.searchsorted(generator.parents, parents), attempt)

        return _Maker(make, generator.parents)


def _ahead(make: Callable[[int], _Made], firsts: Iterable[int], threads: int) -> Iterator[tuple[int, _Made]]:
    """Yields what `make` makes of each number, in order; while one is used, the next ones are under way."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[int, Future[_Made]]] = deque()
        try:
            for first in firsts:
                waiting.append((first, pool.submit(make, first)))
                if len(waiting) > threads:
                    number, future = waiting.popleft()
                    yield number, future.result()
            for number, future in waiting:
                yield number, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
