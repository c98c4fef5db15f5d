"""Undo."""

from __future__ import annotations

from gateway.values import Change


class HistoryRoom:
    """What was changed in a project, and taking it back."""

    async def list(self, project_id: str, *, limit: int = 20) -> tuple[Change, ...]:
        """Returns the last changes of a project, newest first, those taken back included.

        Raises:
            NotFoundError: There is no such project.
        """
        raise NotImplementedError

    async def undo(self, change_id: str) -> Change:
        """Takes a change back. Doing so twice changes nothing more.

        Returns:
            The change, undone.

        Raises:
            NotFoundError: There is no such change, or it is older than 30 days.
            AbortedError: What it changed was changed again since (reason CHANGED_SINCE).
        """
        raise NotImplementedError
