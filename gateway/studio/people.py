"""Who does something, what they prefer, what they wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from gateway.values import AuditEntry, Feedback

_person: ContextVar[str] = ContextVar("teachwafer_person", default="local")


@contextmanager
def acting_as(person: str) -> Iterator[None]:
    """Lets everything in the block be done in the name of a person, for undo and audit.

    Args:
        person: Who, at most 256 characters.
    """
    token = _person.set(person[:256])
    try:
        yield
    finally:
        _person.reset(token)


def current_person() -> str:
    """Returns in whose name things are done now; `local` unless told otherwise."""
    return _person.get()


class PeopleRoom:
    """Preferences, feedback, audit."""

    async def preference(self, person: str, key: str, default: str = "") -> str:
        """Returns what a person prefers, as the language under `language`."""
        raise NotImplementedError

    async def set_preference(self, person: str, key: str, value: str) -> None:
        """Keeps what a person prefers.

        Raises:
            InvalidArgumentError: Key or value is too long.
        """
        raise NotImplementedError

    async def send_feedback(self, text: str, *, page: str = "") -> Feedback:
        """Keeps a message to the team.

        Raises:
            InvalidArgumentError: It is empty or longer than 10,000 characters.
        """
        raise NotImplementedError

    async def feedback(self, *, limit: int = 100) -> tuple[Feedback, ...]:
        """Returns the messages to the team, newest first."""
        raise NotImplementedError

    async def audit(self, *, subject: str = "", limit: int = 100) -> tuple[AuditEntry, ...]:
        """Returns what was done, newest first.

        Args:
            subject: Only on this, as `projects/{id}`; "" on everything.
            limit: Most entries to return.
        """
        raise NotImplementedError
