"""Rows of the further classes that wafers show, in projects with several patterns a wafer.

A wafer stands in one class, its own one, and may show further ones. A live row belongs to a live wafer and a live
class other than the wafer's own: what ends one of these deletes the row under the number of the same change, and taking
that change back brings it back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, exists, func, insert, literal, select, update

from gateway.catalogue.tables import CLASSES, FURTHER, MOVES, WAFERS
from gateway.values import Counts

# Databases limit the parameters of a statement (SQLite 32,766).
_CHUNK: Final = 500
_LIVE = FURTHER.c.deleted_change.is_(None)
_COLUMNS: Final = ["project_id", "wafer_number", "class_id", "generated", "lot", "added_change"]


def any_in(connection: Connection, project_id: str) -> bool:
    """Returns whether a wafer of a project shows a further class."""
    return bool(connection.execute(select(exists().where(FURTHER.c.project_id == project_id, _LIVE))).scalar())


def of(connection: Connection, numbers: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """Returns ids of the further classes of wafers, in the order of the classes; wafers without are missing.

    Args:
        connection: Where to look.
        numbers: Numbers of the wafers.
    """
    found: dict[int, list[str]] = {}
    for chunk in _chunks(numbers):
        query = (
            select(FURTHER.c.wafer_number, FURTHER.c.class_id)
            .join(CLASSES, CLASSES.c.id == FURTHER.c.class_id)
            .where(FURTHER.c.wafer_number.in_(chunk), _LIVE)
            .order_by(FURTHER.c.wafer_number, CLASSES.c.position, CLASSES.c.created_at)
        )
        for number, class_id in connection.execute(query):
            found.setdefault(number, []).append(class_id)
    return {number: tuple(class_ids) for number, class_ids in found.items()}


def counts(connection: Connection, project_id: str) -> dict[str, Counts]:
    """Returns by how much the counts of classes grow by wafers that show them beside their own; others are missing.

    `lots` counts lots of which no real wafer stands in the class itself.
    """
    of_project = (FURTHER.c.project_id == project_id, _LIVE)
    real = FURTHER.c.generated.is_(False)
    query = (
        select(
            FURTHER.c.class_id,
            func.count(),
            func.count().filter(FURTHER.c.generated),
            func.count().filter(real & (FURTHER.c.lot == "")),
        )
        .where(*of_project)
        .group_by(FURTHER.c.class_id)
    )
    pairs = (
        select(FURTHER.c.class_id, FURTHER.c.lot)
        .where(*of_project, real, FURTHER.c.lot != "")
        .distinct()
        .subquery("pairs")
    )
    known = exists().where(
        WAFERS.c.project_id == project_id,
        WAFERS.c.class_id == pairs.c.class_id,
        WAFERS.c.generated.is_(False),
        WAFERS.c.lot == pairs.c.lot,
        WAFERS.c.deleted_change.is_(None),
    )
    new_lots = select(pairs.c.class_id, func.count()).where(~known).group_by(pairs.c.class_id)
    lots: dict[str, int] = dict(tuple(row) for row in connection.execute(new_lots))
    return {
        class_id: Counts(wafers, lots.get(class_id, 0), generated, without_lot)
        for class_id, wafers, generated, without_lot in connection.execute(query)
    }


def insert_all(connection: Connection, class_ids: Mapping[str, Sequence[str]], number: int) -> None:
    """Adds the further classes of wafers that have just been added.

    Args:
        connection: Where to write.
        class_ids: Further classes of each wafer id.
        number: Number of the change that adds them.
    """
    for chunk in _chunks(list(class_ids)):
        query = select(WAFERS.c.id, WAFERS.c.number, WAFERS.c.project_id, WAFERS.c.generated, WAFERS.c.lot)
        rows = [
            dict(zip(_COLUMNS, (row.project_id, row.number, class_id, row.generated, row.lot, number), strict=True))
            for row in connection.execute(query.where(WAFERS.c.id.in_(chunk)))
            for class_id in class_ids[row.id]
        ]
        for part in _chunks(rows):
            connection.execute(insert(FURTHER), part)


def add(connection: Connection, class_id: str, number: int, *where: ColumnElement[bool]) -> int:
    """Lets live wafers show a class; those that do already are passed over.

    Args:
        connection: Where to write.
        class_id: The class.
        number: Number of the change.
        *where: Which wafers.

    Returns:
        Number of wafers that show it now and did not before.
    """
    shown = exists().where(FURTHER.c.wafer_number == WAFERS.c.number, FURTHER.c.class_id == class_id, _LIVE)
    chosen = select(
        WAFERS.c.project_id, WAFERS.c.number, literal(class_id), WAFERS.c.generated, WAFERS.c.lot, literal(number)
    ).where(WAFERS.c.deleted_change.is_(None), WAFERS.c.class_id != class_id, ~shown, *where)
    return connection.execute(insert(FURTHER).from_select(_COLUMNS, chosen)).rowcount


def drop(connection: Connection, number: int, *where: ColumnElement[bool]) -> int:
    """Deletes live rows.

    Args:
        connection: Where to write.
        number: Number of the change.
        *where: Which rows.

    Returns:
        Number of rows deleted.
    """
    return connection.execute(update(FURTHER).where(_LIVE, *where).values(deleted_change=number)).rowcount


def drop_of_deleted(connection: Connection, number: int) -> None:
    """Deletes the rows of all wafers that a change deleted."""
    gone = select(WAFERS.c.number).where(WAFERS.c.deleted_change == number)
    drop(connection, number, FURTHER.c.wafer_number.in_(gone))


def merge(connection: Connection, class_id: str, into_class_id: str, number: int) -> None:
    """Lets wafers that show one class beside their own show another one in its place."""
    showing = select(FURTHER.c.wafer_number).where(FURTHER.c.class_id == class_id, _LIVE)
    add(connection, into_class_id, number, WAFERS.c.number.in_(showing))
    drop(connection, number, FURTHER.c.class_id == class_id)


def promote(connection: Connection, class_id: str, number: int, *where: ColumnElement[bool]) -> int:
    """Moves wafers of a class that show a further one into the first of these; the others stay where they are.

    Args:
        connection: Where to write.
        class_id: Class that they leave.
        number: Number of the change.
        *where: Which wafers of it.

    Returns:
        Number of wafers moved.
    """
    query = (
        select(FURTHER.c.wafer_number, FURTHER.c.class_id)
        .join(WAFERS, WAFERS.c.number == FURTHER.c.wafer_number)
        .join(CLASSES, CLASSES.c.id == FURTHER.c.class_id)
        .where(WAFERS.c.class_id == class_id, WAFERS.c.deleted_change.is_(None), _LIVE, *where)
        .order_by(CLASSES.c.position.desc(), CLASSES.c.created_at.desc())
    )
    target: dict[int, str] = dict(tuple(row) for row in connection.execute(query))
    by_target: dict[str, list[int]] = {}
    for wafer, into in target.items():
        by_target.setdefault(into, []).append(wafer)
    for into, wafers in by_target.items():
        for chunk in _chunks(wafers):
            moves = [{"change_number": number, "wafer_number": each, "from_class": class_id} for each in chunk]
            connection.execute(insert(MOVES), moves)
            connection.execute(update(WAFERS).where(WAFERS.c.number.in_(chunk)).values(class_id=into))
            drop(connection, number, FURTHER.c.class_id == into, FURTHER.c.wafer_number.in_(chunk))
    return len(target)


def restore(connection: Connection, number: int) -> None:
    """Takes back what a change did to rows, once its wafers and classes are back where they were."""
    shown = FURTHER.alias("shown")
    already = exists().where(
        shown.c.wafer_number == FURTHER.c.wafer_number,
        shown.c.class_id == FURTHER.c.class_id,
        shown.c.deleted_change.is_(None),
    )
    wafer_fits = exists().where(
        WAFERS.c.number == FURTHER.c.wafer_number,
        WAFERS.c.deleted_change.is_(None),
        WAFERS.c.class_id != FURTHER.c.class_id,
    )
    of_change = (FURTHER.c.deleted_change == number, ~already, wafer_fits)
    connection.execute(update(FURTHER).where(*of_change).values(deleted_change=None))
    drop(connection, number, FURTHER.c.added_change == number)
    # Rows of wafers that the change had moved may have come since: none beside its own class, and none at all in the
    # class of wafers without a pattern.
    moved = select(MOVES.c.wafer_number).where(MOVES.c.change_number == number)
    own = exists().where(WAFERS.c.number == FURTHER.c.wafer_number, WAFERS.c.class_id == FURTHER.c.class_id)
    without = exists().where(
        WAFERS.c.number == FURTHER.c.wafer_number, CLASSES.c.id == WAFERS.c.class_id, CLASSES.c.pattern == "none"
    )
    drop(connection, number, FURTHER.c.wafer_number.in_(moved), own | without)


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
