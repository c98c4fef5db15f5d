"""Rows about people: preferences, feedback, the audit log."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, insert, select, update

from gateway.catalogue.catalogue import now
from gateway.catalogue.names import cleaned
from gateway.catalogue.tables import AUDIT, FEEDBACK, PREFERENCES
from gateway.values import AuditEntry, Feedback


def preference(connection: Connection, person: str, key: str) -> str | None:
    """Returns what a person prefers, or None."""
    query = select(PREFERENCES.c.value).where(
        PREFERENCES.c.person == cleaned(person), PREFERENCES.c.key == cleaned(key)
    )
    value: str | None = connection.execute(query).scalar_one_or_none()
    return value


def set_preference(connection: Connection, person: str, key: str, value: str) -> None:
    """Keeps what a person prefers."""
    of_key = (PREFERENCES.c.person == cleaned(person), PREFERENCES.c.key == cleaned(key))
    if connection.execute(update(PREFERENCES).where(*of_key).values(value=value)).rowcount == 0:
        connection.execute(insert(PREFERENCES).values(person=cleaned(person), key=cleaned(key), value=value))


def add_feedback(connection: Connection, text: str, page: str, person: str) -> Feedback:
    """Keeps a message to the team."""
    moment = now()
    values = {"text": text, "page": cleaned(page), "person": cleaned(person), "created_at": moment}
    (number,) = connection.execute(insert(FEEDBACK).values(**values)).inserted_primary_key or (0,)
    return Feedback(number, text, cleaned(page), cleaned(person), moment)


def feedback(connection: Connection, limit: int) -> list[Feedback]:
    """Returns the messages to the team, newest first."""
    query = select(FEEDBACK).order_by(FEEDBACK.c.number.desc()).limit(limit)
    return [Feedback(row.number, row.text, row.page, row.person, row.created_at) for row in connection.execute(query)]


def log(
    connection: Connection, person: str, action: str, subject: str, params: Mapping[str, str | int] | None = None
) -> None:
    """Writes into the audit log what somebody does, in the transaction that does it."""
    connection.execute(
        insert(AUDIT).values(
            created_at=now(), person=cleaned(person), action=action, subject=cleaned(subject), params=dict(params or {})
        )
    )


def audit(connection: Connection, subject: str, limit: int) -> list[AuditEntry]:
    """Returns the audit log, newest entry first."""
    query = select(AUDIT).order_by(AUDIT.c.number.desc()).limit(limit)
    if subject:
        query = query.where(AUDIT.c.subject == subject)
    return [
        AuditEntry(row.number, row.created_at, row.person, row.action, row.subject, row.params)
        for row in connection.execute(query)
    ]
