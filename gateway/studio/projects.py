"""Projects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gateway.values import Board, Change, Project, ProjectSummary, Task, TrashedProject


class ProjectsRoom:
    """Make, list, rename, trash, export and open projects."""

    async def create(
        self, name: str, task: Task = Task.SINGLE, *, product: str = "", classes: Sequence[str] = ()
    ) -> Project:
        """Makes a project with the pinned none class and further ones.

        Args:
            name: Name for people, 1 to 256 characters; others may have the same.
            task: What its model shall tell.
            product: Product whose wafers it is about.
            classes: Names of further classes; canonical pattern names get their pattern.

        Raises:
            InvalidArgumentError: The name is empty or too long, or a class name comes twice.
            UnimplementedError: The task is not supported yet.
        """
        raise NotImplementedError

    async def list(self) -> tuple[ProjectSummary, ...]:
        """Returns all projects outside the trash, last changed first."""
        raise NotImplementedError

    async def get(self, project_id: str) -> Project:
        """Returns a project.

        Raises:
            NotFoundError: There is none, or it is in the trash.
        """
        raise NotImplementedError

    async def board(self, project_id: str) -> Board:
        """Returns everything on the canvas of a project, in a few queries whatever its size.

        Raises:
            NotFoundError: There is no such project.
        """
        raise NotImplementedError

    async def rename(self, project_id: str, name: str, *, expected_version: int | None = None) -> Change:
        """Renames a project.

        Args:
            project_id: The project.
            name: New name.
            expected_version: Version that the person saw; None overwrites whatever there is.

        Raises:
            NotFoundError: There is no such project.
            InvalidArgumentError: The name is empty or too long.
            AbortedError: Somebody changed the project since (reason CHANGED_BY_OTHERS).
        """
        raise NotImplementedError

    async def duplicate(self, project_id: str, name: str) -> Project:
        """Makes a project with the same classes and wafers, without runs and models.

        Raises:
            NotFoundError: There is no such project.
            InvalidArgumentError: The name is empty or too long.
        """
        raise NotImplementedError

    async def trash(self, project_id: str) -> TrashedProject:
        """Moves a project to the trash for 30 days. Its published models keep serving.

        Raises:
            NotFoundError: There is no such project.
        """
        raise NotImplementedError

    async def trashed(self) -> tuple[TrashedProject, ...]:
        """Returns the trash, last deleted first."""
        raise NotImplementedError

    async def restore(self, project_id: str) -> Project:
        """Takes a project out of the trash.

        Raises:
            NotFoundError: It is not in the trash.
        """
        raise NotImplementedError

    async def purge(self, project_id: str) -> None:
        """Deletes a project of the trash for good.

        Raises:
            NotFoundError: It is not in the trash.
        """
        raise NotImplementedError

    async def export_file(self, project_id: str, target: Path) -> Path:
        """Writes a project into one self-describing .zip file.

        Args:
            project_id: The project.
            target: File to write; appears whole or not at all.

        Returns:
            The file.

        Raises:
            NotFoundError: There is no such project.
        """
        raise NotImplementedError

    async def export_name(self, project_id: str) -> str:
        """Returns a file name for the download, made of the project's name, safe on every system.

        Raises:
            NotFoundError: There is no such project.
        """
        raise NotImplementedError

    async def open_file(self, source: Path, *, name: str = "") -> Project:
        """Makes a project from a project file. It becomes a project of its own, whatever is there already.

        Args:
            source: A .zip that `export_file` wrote, here or elsewhere. Nothing in it is trusted.
            name: Name of the new project; "" takes that of the file.

        Raises:
            InvalidArgumentError: It is no project file, is damaged or holds too much; nothing was kept.
        """
        raise NotImplementedError
