"""Changes that people can take back."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, delete, exists, insert, select, update
from sqlalchemy.exc import IntegrityError

from gateway.catalogue import further, projects
from gateway.catalogue.catalogue import new_id, now
from gateway.catalogue.names import cleaned, name_key
from gateway.catalogue.tables import CHANGES, CLASSES, FURTHER, MOVES, PROJECTS, WAFERS
from gateway.values import Change
from services.common.errors import AbortedError, NotFoundError


def record(
    connection: Connection,
    project_id: str,
    kind: str,
    person: str,
    params: Mapping[str, str | int],
    undo: Mapping[str, Any] | None = None,
) -> tuple[Change, int]:
    """Writes a change down.

    Args:
        connection: Where to write.
        project_id: Project that changes; must be locked.
        kind: Kind of the change.
        person: Who does it.
        params: What a text about it needs.
        undo: `{"table", "id", "old", "new"}` for changed columns.

    Returns:
        The change, and the number with which to mark classes and wafers.
    """
    identifier = new_id()
    result = connection.execute(
        insert(CHANGES).values(
            id=identifier,
            project_id=project_id,
            kind=kind,
            params=dict(params),
            undo=dict(undo or {}),
            person=person,
            created_at=now(),
            undone=False,
        )
    )
    (number,) = result.inserted_primary_key or (0,)
    return get(connection, identifier), int(number)


def reword(connection: Connection, number: int, params: Mapping[str, str | int]) -> Change:
    """Replaces the params of a change that has just been recorded, once its numbers are known."""
    connection.execute(update(CHANGES).where(CHANGES.c.number == number).values(params=dict(params)))
    return to_change(connection.execute(select(CHANGES).where(CHANGES.c.number == number)).one())


def get(connection: Connection, change_id: str) -> Change:
    """Returns a change.

    Raises:
        NotFoundError: There is none, or it is too old.
    """
    return to_change(_row(connection, change_id))


def last(connection: Connection, project_id: str, limit: int) -> list[Change]:
    """Returns the last changes of a project, newest first."""
    query = select(CHANGES).where(CHANGES.c.project_id == project_id).order_by(CHANGES.c.number.desc()).limit(limit)
    return [to_change(row) for row in connection.execute(query)]


def undo(connection: Connection, change_id: str) -> Change:
    """Takes a change back; nothing happens when it was taken back already.

    Raises:
        NotFoundError: There is none.
        AbortedError: What it changed was changed again since.
    """
    project_id = _row(connection, change_id).project_id
    projects.lock(connection, project_id)
    row = _row(connection, change_id)
    if row.undone:
        return to_change(row)
    try:
        _restore_columns(connection, row.undo)
        _restore_deleted(connection, row.number)
    except IntegrityError:
        raise _changed_since("the name of the class was given to another one") from None
    _move_back(connection, row.number)
    _check_classes_live(connection, select(FURTHER.c.class_id).where(FURTHER.c.deleted_change == row.number).distinct())
    _remove_added(connection, row)
    further.restore(connection, row.number)
    connection.execute(update(CHANGES).where(CHANGES.c.number == row.number).values(undone=True))
    projects.touch(connection, project_id, data=True)
    return get(connection, change_id)


def forget_old(connection: Connection) -> int:
    """Deletes changes that are too old to be taken back, and for good what they had deleted.

    Returns:
        Number of changes forgotten.
    """
    limit = now() - timedelta(days=projects.TRASH_DAYS)
    numbers = select(CHANGES.c.number).where(CHANGES.c.created_at < limit)
    connection.execute(delete(FURTHER).where(FURTHER.c.deleted_change.in_(numbers)))
    connection.execute(delete(WAFERS).where(WAFERS.c.deleted_change.in_(numbers)))
    connection.execute(delete(CLASSES).where(CLASSES.c.deleted_change.in_(numbers)))
    connection.execute(delete(MOVES).where(MOVES.c.change_number.in_(numbers)))
    return connection.execute(delete(CHANGES).where(CHANGES.c.created_at < limit)).rowcount


def to_change(row: Row[Any]) -> Change:
    """Returns the change of a row."""
    return Change(
        change_id=row.id,
        project_id=row.project_id,
        kind=row.kind,
        params=row.params,
        when=row.created_at,
        person=row.person,
        undone=row.undone,
    )


def _row(connection: Connection, change_id: str) -> Row[Any]:
    row = connection.execute(select(CHANGES).where(CHANGES.c.id == cleaned(change_id))).one_or_none()
    if row is None:
        raise NotFoundError("change", change_id[:80], reason="CHANGE_NOT_FOUND")
    return row


def _restore_columns(connection: Connection, undo: Mapping[str, Any]) -> None:
    """Sets columns back that still hold what the change put there."""
    if not undo:
        return
    table = {"projects": PROJECTS, "classes": CLASSES}[undo["table"]]
    row = connection.execute(select(table).where(table.c.id == undo["id"])).one_or_none()
    if row is None or any(getattr(row, column) != value for column, value in undo["new"].items()):
        raise _changed_since("it was changed again")
    old = dict(undo["old"])
    if undo["table"] == "classes" and "name" in old:
        old["name_key"] = name_key(old["name"])
    connection.execute(update(table).where(table.c.id == undo["id"]).values(version=table.c.version + 1, **old))


def _restore_deleted(connection: Connection, number: int) -> None:
    """Brings back classes and wafers that the change deleted, but no wafer whose addition was taken back."""
    connection.execute(update(CLASSES).where(CLASSES.c.deleted_change == number).values(deleted_change=None))
    addition_undone = exists().where(CHANGES.c.number == WAFERS.c.added_change, CHANGES.c.undone)
    of_change = (WAFERS.c.deleted_change == number, ~addition_undone)
    _check_classes_live(connection, select(WAFERS.c.class_id).where(*of_change).distinct())
    connection.execute(update(WAFERS).where(*of_change).values(deleted_change=None))


def _move_back(connection: Connection, number: int) -> None:
    """Moves wafers back to the classes from which the change took them."""
    _check_classes_live(connection, select(MOVES.c.from_class).where(MOVES.c.change_number == number).distinct())
    origin = (
        select(MOVES.c.from_class)
        .where(MOVES.c.change_number == number, MOVES.c.wafer_number == WAFERS.c.number)
        .scalar_subquery()
    )
    moved = select(MOVES.c.wafer_number).where(MOVES.c.change_number == number)
    connection.execute(update(WAFERS).where(WAFERS.c.number.in_(moved)).values(class_id=origin))


def _remove_added(connection: Connection, row: Row[Any]) -> None:
    """Deletes wafers and the classes that the change added; classes only when nothing of others is in them."""
    added = (WAFERS.c.added_change == row.number, WAFERS.c.deleted_change.is_(None))
    connection.execute(update(WAFERS).where(*added).values(deleted_change=row.number))
    further.drop_of_deleted(connection, row.number)
    for class_id in row.params.get("class_ids", "").split():
        holds_more = exists().where(WAFERS.c.class_id == class_id, WAFERS.c.deleted_change.is_(None))
        shown_more = exists().where(
            FURTHER.c.class_id == class_id,
            FURTHER.c.deleted_change.is_(None),
            FURTHER.c.added_change != row.number,
        )
        if connection.execute(select(holds_more | shown_more)).scalar():
            raise _changed_since("the class holds wafers that came later")
        connection.execute(
            update(CLASSES)
            .where(CLASSES.c.id == class_id, CLASSES.c.deleted_change.is_(None))
            .values(deleted_change=row.number)
        )


def _check_classes_live(connection: Connection, class_ids: Any) -> None:
    dead = select(CLASSES.c.name).where(CLASSES.c.id.in_(class_ids), CLASSES.c.deleted_change.is_not(None))
    name = connection.execute(dead.limit(1)).scalar()
    if name is not None:
        raise _changed_since(f"the class {name!r} was deleted", name=name)


def _changed_since(what: str, **metadata: str) -> AbortedError:
    return AbortedError(
        f"This can no longer be undone: {what} since. Undo that first.", reason="CHANGED_SINCE", metadata=metadata
    )
