"""Data set versions of projects."""

from __future__ import annotations

from gateway.values import FrozenDataset


class DatasetsRoom:
    """Frozen, immutable copies of a project's wafers, split by lot."""

    async def freeze(self, project_id: str, *, seed: int = 0) -> FrozenDataset:
        """Freezes the enabled classes of a project. The same wafers and seed give the same version again.

        Args:
            project_id: The project.
            seed: Another seed, another split.

        Raises:
            NotFoundError: There is no such project.
            FailedPreconditionError: Fewer than two classes have a wafer (reason TOO_FEW_CLASSES).
        """
        raise NotImplementedError

    async def list(self, project_id: str) -> tuple[FrozenDataset, ...]:
        """Returns the versions of a project, newest first."""
        raise NotImplementedError

    async def get(self, dataset_id: str) -> FrozenDataset:
        """Returns a version.

        Raises:
            NotFoundError: There is none.
        """
        raise NotImplementedError
