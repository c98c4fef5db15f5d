"""Taught wafers in the feature space of a model: which are nearest to an answered one."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gateway.catalogue import runs
from gateway.studio.desk import Desk
from gateway.values import Neighbour, PredictorAnswer
from services.common.dataset import DatasetWafer, Split, open_dataset
from services.common.wafer_map import WaferMap

MAX_NEIGHBOURS: Final = 10
"""Most neighbours of an answer."""
MAX_TAUGHT: Final = 5000
"""Most taught wafers that are searched; of more, an even choice."""

_KEPT_MODELS: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class _Index:
    """Taught wafers of one version: wafer and class ids, and embeddings, float32 (n, D) of unit length."""

    wafer_ids: list[str]
    class_ids: list[str]
    embeddings: NDArray[np.float32]


class TaughtWafers:
    """Embeddings of the taught wafers of the models that were asked last.

    Args:
        desk: What the studio works with.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._indexes: OrderedDict[tuple[str, int], _Index] = OrderedDict()
        self._lock = asyncio.Lock()

    async def of(
        self, model_id: str, version: int, answers: Sequence[PredictorAnswer], count: int
    ) -> list[tuple[Neighbour, ...]]:
        """Returns the nearest taught wafers of each answer, nearest first; () where nothing is known.

        Args:
            model_id: Model that answered.
            version: Its version.
            answers: Answers with embeddings.
            count: Neighbours of each.
        """
        index = await self._index(model_id, version)
        if index is None:
            return [()] * len(answers)
        return [_nearest(index, answer, count) for answer in answers]

    async def _index(self, model_id: str, version: int) -> _Index | None:
        async with self._lock:
            key = (model_id, version)
            if key not in self._indexes:
                made = await self._make(model_id, version)
                if made is None:
                    return None
                self._indexes[key] = made
            self._indexes.move_to_end(key)
            while len(self._indexes) > _KEPT_MODELS:
                self._indexes.popitem(last=False)
            return self._indexes[key]

    async def _make(self, model_id: str, version: int) -> _Index | None:
        known = await self._desk.read(lambda connection: runs.versions(connection, model_id))
        published = next((each for each in known if each.version == version), None)
        if published is None:
            return None
        run = await self._desk.read(lambda connection: runs.run(connection, published.run_id, "training"))
        taught = await asyncio.to_thread(self._taught, run.dataset_id)
        maps = [WaferMap(each.dies) for each in taught]
        _, told = await self._desk.clients.predictor.classify(model_id, maps, version=version, embed=True)
        kept = [(w, a.embedding) for w, a in zip(taught, told, strict=True) if a.embedding is not None]
        if not kept:
            return None
        embeddings = np.stack([embedding for _, embedding in kept])
        return _Index([w.wafer_id for w, _ in kept], [w.class_id for w, _ in kept], embeddings)

    def _taught(self, dataset_id: str) -> list[DatasetWafer]:
        found = open_dataset(self._desk.store, dataset_id)
        total = sum(sides.get(Split.TRAIN, 0) for sides in found.manifest.counts.values())
        step = max(1, -(-total // MAX_TAUGHT))
        return [wafer for index, wafer in enumerate(found.iter_wafers(Split.TRAIN)) if index % step == 0]


def _nearest(index: _Index, answer: PredictorAnswer, count: int) -> tuple[Neighbour, ...]:
    if answer.embedding is None or answer.embedding.shape != index.embeddings.shape[1:]:
        return ()
    similarity = index.embeddings @ answer.embedding
    best = np.argsort(-similarity, kind="stable")[:count]
    return tuple(Neighbour(index.wafer_ids[i], index.class_ids[i], float(similarity[i])) for i in best)
