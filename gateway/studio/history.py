"""Undo."""

from __future__ import annotations

from sqlalchemy import Connection

from gateway.catalogue import changes, projects
from gateway.studio.desk import Desk
from gateway.values import Change


class HistoryRoom:
    """What was changed in a project, and taking it back."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def list(self, project_id: str, *, limit: int = 20) -> tuple[Change, ...]:
        """Returns the last changes of a project, newest first, those taken back included.

        Raises:
            NotFoundError: There is no such project.
        """

        def work(connection: Connection) -> tuple[Change, ...]:
            projects.get(connection, project_id)
            return tuple(changes.last(connection, project_id, max(1, min(limit, 1000))))

        return await self._desk.read(work)

    async def undo(self, change_id: str) -> Change:
        """Takes a change back. Doing so twice changes nothing more.

        Returns:
            The change, undone.

        Raises:
            NotFoundError: There is no such change, or it is older than 30 days.
            AbortedError: What it changed was changed again since (reason CHANGED_SINCE).
        """
        return await self._desk.write(lambda connection: changes.undo(connection, change_id))
