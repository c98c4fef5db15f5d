"""Data set versions of projects."""

from __future__ import annotations

import asyncio

from sqlalchemy import Connection

from gateway.catalogue import projects, runs
from gateway.studio.desk import Desk
from gateway.studio.freezing import freeze
from gateway.values import FrozenDataset


class DatasetsRoom:
    """Frozen, immutable copies of a project's wafers, split by lot."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def freeze(self, project_id: str, *, seed: int = 0) -> FrozenDataset:
        """Freezes the enabled classes of a project. The same wafers and seed give the same version again.

        Args:
            project_id: The project.
            seed: Another seed, another split.

        Raises:
            NotFoundError: There is no such project.
            FailedPreconditionError: Fewer than two classes have a wafer (reason TOO_FEW_CLASSES).
        """
        frozen, _ = await asyncio.to_thread(freeze, self._desk.catalogue, self._desk.store, project_id, seed)
        return frozen

    async def list(self, project_id: str) -> tuple[FrozenDataset, ...]:
        """Returns the versions of a project, newest first."""

        def work(connection: Connection) -> tuple[FrozenDataset, ...]:
            projects.get(connection, project_id)
            return tuple(runs.datasets(connection, project_id))

        return await self._desk.read(work)

    async def get(self, dataset_id: str) -> FrozenDataset:
        """Returns a version.

        Raises:
            NotFoundError: There is none.
        """
        return await self._desk.read(lambda connection: runs.dataset(connection, dataset_id))
