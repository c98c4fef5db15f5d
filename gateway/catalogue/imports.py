"""Rows of uploads that were added."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, insert, select

from gateway.catalogue.catalogue import now
from gateway.catalogue.names import cleaned
from gateway.catalogue.tables import IMPORTS


def result(connection: Connection, import_id: str) -> Any | None:
    """Returns what adding an upload did, as JSON; None when it was not added."""
    query = select(IMPORTS.c.result).where(IMPORTS.c.id == cleaned(import_id))
    return connection.execute(query).scalar_one_or_none()


def add(connection: Connection, import_id: str, project_id: str, change_id: str, done: Any, person: str) -> None:
    """Writes down that an upload was added.

    Args:
        connection: Where to write.
        import_id: Token of the upload.
        project_id: Project that it went to.
        change_id: Change that takes it back, or "".
        done: What it did, as JSON.
        person: Who added it.
    """
    connection.execute(
        insert(IMPORTS).values(
            id=import_id, project_id=project_id, change_id=change_id, result=done, person=person, created_at=now()
        )
    )
