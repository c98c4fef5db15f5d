"""Rows of classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, literal, select, update

from gateway.catalogue import changes, further, projects
from gateway.catalogue.catalogue import new_id, now
from gateway.catalogue.names import checked_name, cleaned, name_key
from gateway.catalogue.patterns import NONE, NONE_COLOUR, PATTERNS, guess_pattern, next_colour
from gateway.catalogue.tables import CLASSES, FURTHER, MOVES, WAFERS
from gateway.values import Change, Task, WaferClass
from services.common.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)

MAX_CLASSES: Final = 500
"""Most classes of a project."""

_COLOUR: Final = re.compile(r"#[0-9a-f]{6}")


def live(connection: Connection, project_id: str) -> list[WaferClass]:
    """Returns the classes of a project in order, the none class first."""
    query = select(CLASSES).where(CLASSES.c.project_id == project_id, CLASSES.c.deleted_change.is_(None))
    found = [_to_class(row) for row in connection.execute(query.order_by(CLASSES.c.position, CLASSES.c.created_at))]
    return sorted(found, key=lambda each: not each.none)


def get(connection: Connection, class_id: str) -> WaferClass:
    """Returns a class of a project outside the trash.

    Raises:
        NotFoundError: There is none, or it was deleted.
    """
    found = _to_class(_row(connection, class_id))
    projects.get(connection, found.project_id)
    return found


def lock(connection: Connection, class_id: str) -> WaferClass:
    """Returns a class and holds off all other writers of its project until the end of the transaction."""
    projects.lock(connection, _row(connection, class_id).project_id)
    # It may have been deleted while this waited.
    return _to_class(_row(connection, class_id))


def suggestions(connection: Connection, project_id: str) -> list[str]:
    """Returns the canonical patterns without a class."""
    taken = {each.pattern for each in live(connection, project_id)}
    return [pattern for pattern in PATTERNS if pattern not in taken]


def add(connection: Connection, project_id: str, name: str, pattern: str | None, colour: str = "") -> WaferClass:
    """Adds a class to a locked project.

    Args:
        connection: Where to write.
        project_id: The project.
        name: Its name; "" takes the first free `Class n`.
        pattern: Canonical pattern, "" for none of them, None to guess it from the name.
        colour: Its colour; "" takes the next one.

    Raises:
        InvalidArgumentError: Name, pattern or colour are not valid.
        AlreadyExistsError: The name is taken.
        ResourceExhaustedError: The project has too many classes.
    """
    present = live(connection, project_id)
    if len(present) >= MAX_CLASSES:
        raise ResourceExhaustedError(
            f"Expected at most {MAX_CLASSES} classes in a project. Received: one more. Merge or delete some first.",
            reason="TOO_MANY_CLASSES",
            metadata={"max": str(MAX_CLASSES)},
        )
    name = checked_name(name) if name else free_name(present)
    _check_one_name(connection, project_id, name)
    _check_free(present, name)
    pattern = guess_pattern(name) if pattern is None else checked_pattern(pattern)
    if any(each.pattern == pattern for each in present if pattern == NONE):
        pattern = ""
    standard = NONE_COLOUR if pattern == NONE else next_colour(each.colour for each in present)
    identifier = new_id()
    connection.execute(
        insert(CLASSES).values(
            id=identifier,
            project_id=project_id,
            name=name,
            name_key=name_key(name),
            colour=checked_colour(colour) if colour else standard,
            pattern=pattern,
            position=1 + max((each.position for each in present), default=-1),
            enabled=True,
            version=1,
            created_at=now(),
        )
    )
    return _to_class(_row(connection, identifier))


def alter(
    connection: Connection, class_id: str, kind: str, person: str, expected_version: int | None, **new: Any
) -> Change:
    """Changes columns of a class so that it can be taken back.

    Args:
        connection: Where to write.
        class_id: The class.
        kind: Kind of the change.
        person: Who does it.
        expected_version: Version that the person saw, or None.
        **new: New values of `name`, `colour` or `enabled`.

    Raises:
        NotFoundError: There is no such class.
        InvalidArgumentError: A value is not valid.
        AlreadyExistsError: The name is taken.
        AbortedError: The version is another one.
    """
    found = lock(connection, class_id)
    projects.check_version(found.version, expected_version, found.name)
    values = dict(new)
    if "name" in new:
        new["name"] = values["name"] = checked_name(new["name"])
        _check_one_name(connection, found.project_id, new["name"])
        _check_free([each for each in live(connection, found.project_id) if each.class_id != class_id], new["name"])
        values["name_key"] = name_key(new["name"])
    if "colour" in new:
        new["colour"] = values["colour"] = checked_colour(new["colour"])
    connection.execute(update(CLASSES).where(CLASSES.c.id == class_id).values(version=CLASSES.c.version + 1, **values))
    projects.touch(connection, found.project_id, data="enabled" in new)
    old = {column: getattr(found, column) for column in new}
    params: dict[str, str | int] = {"name": new.get("name", found.name), "class_id": class_id}
    if "name" in new:
        params["old_name"] = found.name
    undo = {"table": "classes", "id": class_id, "old": old, "new": new}
    return changes.record(connection, found.project_id, kind, person, params, undo)[0]


def reorder(connection: Connection, project_id: str, class_ids: Sequence[str]) -> None:
    """Puts classes in an order.

    Raises:
        InvalidArgumentError: These are not exactly the classes of the project.
    """
    projects.lock(connection, project_id)
    present = {each.class_id for each in live(connection, project_id)}
    if sorted(class_ids) != sorted(present):
        raise InvalidArgumentError(
            f"Expected each of the {len(present)} classes once. Received: {len(class_ids)} ids. "
            "Read the classes again, then sort them.",
            "class_ids",
            reason="CLASSES_CHANGED",
        )
    for position, class_id in enumerate(class_ids):
        connection.execute(update(CLASSES).where(CLASSES.c.id == class_id).values(position=position))
    projects.touch(connection, project_id, data=False)


def clear(connection: Connection, class_id: str, person: str) -> Change:
    """Removes all wafers that show a class."""
    found = lock(connection, class_id)
    return _remove(connection, found, "clear_class", person, with_class=False)


def delete(connection: Connection, class_id: str, person: str) -> Change:
    """Deletes a class with its wafers. Those that show further classes stay in the first of these.

    Raises:
        FailedPreconditionError: It is the none class.
    """
    found = lock(connection, class_id)
    _check_not_pinned(found)
    return _remove(connection, found, "delete_class", person, with_class=True)


def merge(connection: Connection, class_id: str, into_class_id: str, person: str) -> Change:
    """Moves the wafers of a class into another one, lets those that show it show the other, and deletes the class.

    Raises:
        InvalidArgumentError: Both are the same, or of different projects.
        FailedPreconditionError: The first is the none class.
    """
    found = lock(connection, class_id)
    into = get(connection, into_class_id)
    if found.class_id == into.class_id or found.project_id != into.project_id:
        raise InvalidArgumentError(
            f"Expected another class of the same project. Received: {into.name!r}.", "into_class_id"
        )
    _check_not_pinned(found)
    params: dict[str, str | int] = {"name": found.name, "into": into.name, "class_id": class_id}
    _, number = changes.record(connection, found.project_id, "merge_class", person, params)
    of_class = (WAFERS.c.class_id == class_id, WAFERS.c.deleted_change.is_(None))
    chosen = select(literal(number), WAFERS.c.number, WAFERS.c.class_id).where(*of_class)
    connection.execute(insert(MOVES).from_select(["change_number", "wafer_number", "from_class"], chosen))
    standing = FURTHER.c.wafer_number.in_(select(WAFERS.c.number).where(*of_class))
    if into.none:
        further.drop(connection, number, standing | (FURTHER.c.class_id == class_id))
    else:
        further.drop(connection, number, standing, FURTHER.c.class_id == into_class_id)
        further.merge(connection, class_id, into_class_id, number)
    moved = connection.execute(update(WAFERS).where(*of_class).values(class_id=into_class_id)).rowcount
    connection.execute(update(CLASSES).where(CLASSES.c.id == class_id).values(deleted_change=number))
    projects.touch(connection, found.project_id, data=True)
    return changes.reword(connection, number, {**params, "count": moved})


def checked_colour(colour: str) -> str:
    """Returns a colour as `#rrggbb` in small letters.

    Raises:
        InvalidArgumentError: It is none.
    """
    if not _COLOUR.fullmatch(colour.lower()):
        raise InvalidArgumentError(f"Expected a colour as #0072b2. Received: {colour[:40]!r}.", "colour")
    return colour.lower()


def checked_pattern(pattern: str) -> str:
    """Returns a canonical pattern or "".

    Raises:
        InvalidArgumentError: It is none.
    """
    if pattern and pattern not in PATTERNS:
        raise InvalidArgumentError(
            f"Expected one of {', '.join(PATTERNS)}, or nothing. Received: {pattern[:40]!r}.", "pattern"
        )
    return pattern


def _remove(connection: Connection, found: WaferClass, kind: str, person: str, *, with_class: bool) -> Change:
    params: dict[str, str | int] = {"name": found.name, "class_id": found.class_id}
    _, number = changes.record(connection, found.project_id, kind, person, params)
    showing = select(FURTHER.c.wafer_number).where(
        FURTHER.c.class_id == found.class_id, FURTHER.c.deleted_change.is_(None)
    )
    gone = WAFERS.c.class_id == found.class_id
    if with_class:
        further.promote(connection, found.class_id, number)
        further.drop(connection, number, FURTHER.c.class_id == found.class_id)
    else:
        gone |= WAFERS.c.number.in_(showing)
    of_class = (WAFERS.c.project_id == found.project_id, gone, WAFERS.c.deleted_change.is_(None))
    count = connection.execute(update(WAFERS).where(*of_class).values(deleted_change=number)).rowcount
    further.drop_of_deleted(connection, number)
    if with_class:
        connection.execute(update(CLASSES).where(CLASSES.c.id == found.class_id).values(deleted_change=number))
    projects.touch(connection, found.project_id, data=True)
    return changes.reword(connection, number, {**params, "count": count})


def _check_free(present: Sequence[WaferClass], name: str) -> None:
    if any(name_key(each.name) == name_key(name) for each in present):
        raise AlreadyExistsError("class", name, reason="CLASS_NAME_TAKEN", metadata={"name": name})


def _check_one_name(connection: Connection, project_id: str, name: str) -> None:
    """Refuses a name that labels of several classes could not be told from, as `Center+Scratch`."""
    if "+" in name and projects.get(connection, project_id).task is Task.SEVERAL:
        raise InvalidArgumentError(
            f"Expected a class name without +, which joins the classes of a wafer in this project. Received: {name!r}.",
            "name",
            reason="NAME_WITH_PLUS",
        )


def _check_not_pinned(found: WaferClass) -> None:
    if found.none:
        raise FailedPreconditionError(
            f"Expected a class other than {found.name!r}. Received: the class of wafers without a pattern, which every "
            "project keeps. Disable it instead.",
            reason="NONE_CLASS_PINNED",
            metadata={"name": found.name},
        )


def free_name(present: Sequence[WaferClass]) -> str:
    """Returns the first `Class n` that no class is called."""
    taken = {name_key(each.name) for each in present}
    return next(name for n in range(1, MAX_CLASSES + 2) if name_key(name := f"Class {n}") not in taken)


def _row(connection: Connection, class_id: str) -> Row[Any]:
    query = select(CLASSES).where(CLASSES.c.id == cleaned(class_id), CLASSES.c.deleted_change.is_(None))
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFoundError("class", class_id[:80], reason="CLASS_NOT_FOUND")
    return row


def _to_class(row: Row[Any]) -> WaferClass:
    return WaferClass(
        class_id=row.id,
        project_id=row.project_id,
        name=row.name,
        colour=row.colour,
        pattern=row.pattern,
        position=row.position,
        enabled=row.enabled,
        version=row.version,
    )
