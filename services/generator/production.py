"""Makes the wafers of one class: parents in, checked wafers out, a chunk at a time in flat memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.common.dataset import Dataset, DatasetClass, DatasetWafer, Origin, Split
from services.generator.domain import ClassOutcome, ClassRequest, LearnedOptions, VariationOptions
from services.generator.realism import RealismMeter
from services.generator.variations import VariationMaker, settings_for

CHUNK = 2048
"""Variations made between two looks at whether the job was stopped; more share the work on each die grid."""
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
        stage: `learning`, `making` or `checking`.
        done: Steps learned or wafers made.
        total: Steps to learn or wafers to make.
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


Maker = Callable[[int, NDArray[np.intp], int], list[NDArray[np.uint8]]]
"""Makes a wafer for each given parent: number of the first wafer, (n,) positions of parents, number of the attempt."""


def real_parents(dataset: Dataset, class_id: str) -> list[DatasetWafer]:
    """Returns the wafers of a class that others may be made from: training wafers that were not generated.

    They show no other class: which of its patterns a wafer made from a mixture shows is not known.
    """
    return [
        wafer
        for wafer in dataset.iter_wafers(Split.TRAIN)
        if wafer.class_ids == (class_id,) and wafer.origin not in (Origin.VARIATION, Origin.LEARNED)
    ]


class ClassProduction:
    """Makes the wafers of one class.

    Args:
        request: What to make.
        class_: The class.
        parents: Its real training wafers; enough of them for the method.
        seed: Seed of everything random of this class.
        prefix: Beginning of the ids of the wafers made.
        checkpoint: File that a learned generator is saved to.
        listener: Hears how it goes.
    """

    def __init__(
        self,
        request: ClassRequest,
        class_: DatasetClass,
        parents: Sequence[DatasetWafer],
        *,
        seed: int,
        prefix: str,
        checkpoint: Path,
        listener: Listener,
    ) -> None:
        self._request = request
        self._class = class_
        self._parents = parents
        self._grids = [parent.dies for parent in parents]
        self._seed = seed
        self._prefix = prefix
        self._checkpoint = checkpoint
        self._listener = listener
        self._learning_share = 0.0
        self._device = "CPU"
        self._rejected = 0
        self._meter = RealismMeter(self._grids, request.count)

    def wafers(self) -> Iterator[list[DatasetWafer]]:
        """Makes the wafers and yields them, a chunk at a time."""
        learned = isinstance(self._request.method, LearnedOptions)
        maker, eligible = self._learned_maker() if learned else self._variation_maker()
        origin = Origin.LEARNED if learned else Origin.VARIATION
        order = eligible[np.random.default_rng((self._seed, _ORDER_STREAM)).permutation(len(eligible))]
        count = self._request.count
        chunk = LEARNED_CHUNK if learned else CHUNK
        for first in range(0, count, chunk):
            numbers = np.arange(first, min(first + chunk, count))
            chosen = order[numbers % len(order)]
            grids = self._without_copies(maker, first, chosen)
            self._meter.add(grids)
            if first == 0:
                self._listener.previewed(grids[:PREVIEW])
            done = int(numbers[-1]) + 1
            share = self._learning_share + (1 - self._learning_share) * done / count
            self._listener.progressed(Progress("making", done, count, share, device=self._device))
            yield [
                DatasetWafer(
                    wafer_id=f"{self._prefix}{number}",
                    dies=grid,
                    class_id=self._class.class_id,
                    lot=self._parents[parent].lot,
                    origin=origin,
                    parent_id=self._parents[parent].wafer_id,
                )
                for number, parent, grid in zip(numbers, chosen, grids, strict=True)
            ]

    def outcome(self) -> ClassOutcome:
        """Compares what was made with the real wafers."""
        count = self._request.count
        self._listener.progressed(Progress("checking", count, count, 1.0, device=self._device))
        return ClassOutcome(self._class.class_id, count, len(self._parents), self._rejected, self._meter.result())

    def _without_copies(self, maker: Maker, first: int, parents: NDArray[np.intp]) -> list[NDArray[np.uint8]]:
        """Makes wafers; throws out those that equal a real one and makes others, three times at most.

        What still is a copy then (of a class whose wafers all fail completely, say) stays and shows as copied share.
        """
        grids = maker(first, parents, 0)
        for attempt in range(1, _RETRIES + 1):
            copies = [index for index, grid in enumerate(grids) if self._meter.is_copy(grid)]
            if not copies:
                break
            self._rejected += len(copies)
            for index, grid in zip(copies, maker(first, parents[copies], attempt), strict=True):
                grids[index] = grid
        return grids

    def _variation_maker(self) -> tuple[Maker, NDArray[np.intp]]:
        options = self._request.method
        assert isinstance(options, VariationOptions)  # noqa: S101 - the only other method
        variations = VariationMaker(self._grids, settings_for(options, self._class.pattern))

        def make(first: int, parents: NDArray[np.intp], attempt: int) -> list[NDArray[np.uint8]]:
            return variations.make(parents, np.random.default_rng((self._seed, _VARIATION_STREAM, first, attempt)))

        return make, np.arange(len(self._grids))

    def _learned_maker(self) -> tuple[Maker, NDArray[np.intp]]:
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

        return make, generator.parents
