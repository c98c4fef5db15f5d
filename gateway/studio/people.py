"""Who does something, what they prefer, what they wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from gateway.catalogue import people
from gateway.catalogue.names import cleaned
from gateway.studio.desk import Desk
from gateway.values import AuditEntry, Feedback
from services.common.errors import InvalidArgumentError

MAX_FEEDBACK = 10_000
"""Longest message to the team, characters."""

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

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def preference(self, person: str, key: str, default: str = "") -> str:
        """Returns what a person prefers, as the language under `language`."""
        found = await self._desk.read(lambda connection: people.preference(connection, person, key))
        return default if found is None else found

    async def set_preference(self, person: str, key: str, value: str) -> None:
        """Keeps what a person prefers.

        Raises:
            InvalidArgumentError: Key or value is too long.
        """
        _check_length("key", key, 64)
        _check_length("value", value, 1024)
        await self._desk.write(lambda connection: people.set_preference(connection, person, key, value))

    async def send_feedback(self, text: str, *, page: str = "") -> Feedback:
        """Keeps a message to the team.

        Raises:
            InvalidArgumentError: It is empty or longer than 10,000 characters.
        """
        _check_length("text", text, MAX_FEEDBACK)
        message = "\n".join(cleaned(line, MAX_FEEDBACK) for line in text.strip().splitlines())
        person = current_person()
        return await self._desk.write(lambda connection: people.add_feedback(connection, message, page, person))

    async def feedback(self, *, limit: int = 100) -> tuple[Feedback, ...]:
        """Returns the messages to the team, newest first."""
        return tuple(await self._desk.read(lambda connection: people.feedback(connection, max(1, limit))))

    async def audit(self, *, subject: str = "", limit: int = 100) -> tuple[AuditEntry, ...]:
        """Returns what was done, newest first.

        Args:
            subject: Only on this, as `projects/{id}`; "" on everything.
            limit: Most entries to return.
        """
        return tuple(await self._desk.read(lambda connection: people.audit(connection, subject, max(1, limit))))


def _check_length(field: str, text: str, limit: int) -> None:
    if not 1 <= len(text.strip()) <= limit:
        raise InvalidArgumentError(f"Expected 1 to {limit} characters. Received: {len(text)}.", field)
