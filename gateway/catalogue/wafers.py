"""Rows of wafers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, case, func, insert, literal, select, update

from gateway.catalogue import changes, classes, projects
from gateway.catalogue.catalogue import new_id, now
from gateway.catalogue.names import cleaned
from gateway.catalogue.tables import MOVES, WAFERS
from gateway.catalogue.wafer_rows import NewWafer, to_info, to_map, to_row
from gateway.values import Change, Counts, WaferDetail, WaferInfo, WaferPage
from services.common.errors import InvalidArgumentError, NotFoundError
from services.common.pagination import decode_page_token, encode_page_token
from services.common.wafer_map import WaferMap

# Databases limit the parameters of a statement (SQLite 32,766).
_CHUNK: Final = 500
_PLAIN = [column for column in WAFERS.c if column.name not in ("dies", "bins")]


def insert_all(
    connection: Connection, project_id: str, wafers: Iterable[NewWafer], number: int
) -> dict[str, list[str]]:
    """Adds wafers to classes of a locked project.

    Args:
        connection: Where to write.
        project_id: The project.
        wafers: The wafers.
        number: Number of the change that adds them.

    Returns:
        Ids of the new wafers by class id, in the order given.
    """
    added: dict[str, list[str]] = {}
    rows: list[dict[str, Any]] = []
    moment = now()
    for wafer in wafers:
        row = to_row(wafer, project_id, number) | {"created_at": moment}
        added.setdefault(wafer.class_id, []).append(row["id"])
        rows.append(row)
        if len(rows) == _CHUNK:
            connection.execute(insert(WAFERS), rows)
            rows.clear()
    if rows:
        connection.execute(insert(WAFERS), rows)
    if added:
        projects.touch(connection, project_id, data=True)
    return added


def add(
    connection: Connection, class_id: str, wafers: Sequence[NewWafer], person: str
) -> tuple[list[str], int, Change | None]:
    """Adds wafers to one class, those out whose dies it holds already.

    Returns:
        Ids of the new wafers, the number left out, and the change; None when nothing was added.
    """
    found = classes.lock(connection, class_id)
    known = holders(connection, found.project_id, [wafer.map.sha256() for wafer in wafers])
    seen = {digest for digest, class_ids in known.items() if class_id in class_ids}
    fresh = []
    for wafer in wafers:
        digest = wafer.map.sha256()
        if digest not in seen:
            seen.add(digest)
            fresh.append(replace(wafer, class_id=class_id))
    if not fresh:
        return [], len(wafers), None
    params: dict[str, str | int] = {"name": found.name, "class_id": class_id, "count": len(fresh)}
    change, number = changes.record(connection, found.project_id, "add_wafers", person, params)
    return insert_all(connection, found.project_id, fresh, number)[class_id], len(wafers) - len(fresh), change


def holders(connection: Connection, project_id: str, digests: Sequence[str]) -> dict[str, set[str]]:
    """Returns the classes that hold wafers with these dies already, by digest."""
    found: dict[str, set[str]] = {}
    for chunk in _chunks(list(dict.fromkeys(digests))):
        query = (
            select(WAFERS.c.sha256, WAFERS.c.class_id)
            .where(WAFERS.c.project_id == project_id, WAFERS.c.sha256.in_(chunk), WAFERS.c.deleted_change.is_(None))
            .distinct()
        )
        for digest, class_id in connection.execute(query):
            found.setdefault(digest, set()).add(class_id)
    return found


def counts(connection: Connection, project_id: str) -> dict[str, Counts]:
    """Returns what the classes of a project hold; empty classes are missing."""
    real, known = WAFERS.c.generated.is_(False), WAFERS.c.lot != ""
    query = (
        select(
            WAFERS.c.class_id,
            func.count(),
            func.count(func.distinct(case((real & known, WAFERS.c.lot)))),
            func.count(case((WAFERS.c.generated, 1))),
            func.count(case((real & ~known, 1))),
        )
        .where(WAFERS.c.project_id == project_id, WAFERS.c.deleted_change.is_(None))
        .group_by(WAFERS.c.class_id)
    )
    return {class_id: Counts(*numbers) for class_id, *numbers in connection.execute(query)}


def lots(connection: Connection, project_id: str) -> int:
    """Returns the number of different known lots of the real wafers of a project."""
    query = select(func.count(func.distinct(WAFERS.c.lot))).where(
        WAFERS.c.project_id == project_id,
        WAFERS.c.deleted_change.is_(None),
        WAFERS.c.generated.is_(False),
        WAFERS.c.lot != "",
    )
    return int(connection.execute(query).scalar_one())


def page(
    connection: Connection, project_id: str, class_id: str, generated: bool | None, size: int, token: str
) -> WaferPage:
    """Returns a page of wafers, newest first.

    Raises:
        NotFoundError: There is no such project or class.
        InvalidArgumentError: The token is not one of this list.
    """
    projects.get(connection, project_id)
    if class_id and classes.get(connection, class_id).project_id != project_id:
        raise NotFoundError("class", class_id[:80], reason="CLASS_NOT_FOUND")
    where = [WAFERS.c.project_id == project_id, WAFERS.c.deleted_change.is_(None)]
    if class_id:
        where.append(WAFERS.c.class_id == class_id)
    if generated is not None:
        where.append(WAFERS.c.generated.is_(generated))
    total = int(connection.execute(select(func.count()).select_from(WAFERS).where(*where)).scalar_one())
    cursor = decode_page_token("wafers", token)
    if cursor is not None:
        where.append(WAFERS.c.number < int(cursor[0]))
    query = select(*_PLAIN).where(*where).order_by(WAFERS.c.number.desc()).limit(size + 1)
    rows = connection.execute(query).all()
    more = len(rows) > size
    rows = rows[:size]
    return WaferPage(
        wafers=tuple(_with_duplicates(connection, project_id, rows)),
        next_token=encode_page_token("wafers", [rows[-1].number]) if more else "",
        total=total,
    )


def details(connection: Connection, wafer_ids: Sequence[str]) -> list[WaferDetail]:
    """Returns wafers with their dies, in the order of the ids; deleted ones, too.

    Raises:
        NotFoundError: One does not exist.
    """
    found: dict[str, WaferDetail] = {}
    for chunk in _chunks(wafer_ids):
        for row in connection.execute(select(WAFERS).where(WAFERS.c.id.in_([cleaned(each) for each in chunk]))):
            found[row.id] = WaferDetail(to_info(row, 0), to_map(row))
    missing = next((each for each in wafer_ids if each not in found), None)
    if missing is not None:
        raise NotFoundError("wafer", missing[:80], reason="WAFER_NOT_FOUND")
    return [found[each] for each in wafer_ids]


def walk(connection: Connection, project_id: str, class_ids: Sequence[str], *, dies: bool = True) -> Iterator[Row[Any]]:
    """Yields the rows of wafers of some classes in order of arrival, with flat memory.

    Args:
        connection: Where to look.
        project_id: The project.
        class_ids: The classes.
        dies: Whether the rows hold dies and bins.
    """
    last = 0
    while True:
        query: Select[Any] = (
            select(*(WAFERS.c if dies else _PLAIN))
            .where(
                WAFERS.c.project_id == project_id,
                WAFERS.c.deleted_change.is_(None),
                WAFERS.c.class_id.in_(class_ids),
                WAFERS.c.number > last,
            )
            .order_by(WAFERS.c.number)
            .limit(_CHUNK)
        )
        rows = connection.execute(query).all()
        if not rows:
            return
        yield from rows
        last = rows[-1].number


def delete(connection: Connection, wafer_ids: Sequence[str], person: str) -> Change:
    """Deletes wafers of one project.

    Raises:
        InvalidArgumentError: None was given, or they are of several projects.
        NotFoundError: One does not exist.
    """
    project_id, numbers = _lock_of(connection, wafer_ids)
    _, number = changes.record(connection, project_id, "delete_wafers", person, {"count": 0})
    count = 0
    for chunk in _chunks(numbers):
        live = (WAFERS.c.number.in_(chunk), WAFERS.c.deleted_change.is_(None))
        count += connection.execute(update(WAFERS).where(*live).values(deleted_change=number)).rowcount
    projects.touch(connection, project_id, data=True)
    return changes.reword(connection, number, {"count": count})


def move(connection: Connection, wafer_ids: Sequence[str], class_id: str, person: str) -> Change:
    """Moves wafers to another class of their project.

    Raises:
        InvalidArgumentError: None was given, or they are of another project than the class.
        NotFoundError: A wafer or the class does not exist.
    """
    project_id, numbers = _lock_of(connection, wafer_ids)
    into = classes.get(connection, class_id)
    if into.project_id != project_id:
        raise InvalidArgumentError("Expected a class of the wafers' own project. Received: another one's.", "class_id")
    params: dict[str, str | int] = {"into": into.name, "class_id": class_id}
    _, number = changes.record(connection, project_id, "move_wafers", person, params)
    count = 0
    for chunk in _chunks(numbers):
        moving = (WAFERS.c.number.in_(chunk), WAFERS.c.deleted_change.is_(None), WAFERS.c.class_id != class_id)
        before = select(literal(number), WAFERS.c.number, WAFERS.c.class_id).where(*moving)
        connection.execute(insert(MOVES).from_select(["change_number", "wafer_number", "from_class"], before))
        count += connection.execute(update(WAFERS).where(*moving).values(class_id=class_id)).rowcount
    projects.touch(connection, project_id, data=True)
    return changes.reword(connection, number, {**params, "count": count})


def newest_map(connection: Connection, project_id: str) -> WaferMap | None:
    """Returns the newest real wafer of a project, or None."""
    query = (
        select(WAFERS)
        .where(WAFERS.c.project_id == project_id, WAFERS.c.deleted_change.is_(None), WAFERS.c.generated.is_(False))
        .order_by(WAFERS.c.number.desc())
        .limit(1)
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else to_map(row)


def originals(connection: Connection, project_id: str) -> set[str]:
    """Returns the content addresses of the files from which the wafers of a project were read."""
    query = select(WAFERS.c.source_sha256).where(WAFERS.c.project_id == project_id, WAFERS.c.source_sha256 != "")
    return set(connection.execute(query.distinct()).scalars())


def unused(connection: Connection, digests: set[str]) -> set[str]:
    """Returns those of some originals from which no wafer of any project was read."""
    used: set[str] = set()
    for chunk in _chunks(sorted(digests)):
        query = select(WAFERS.c.source_sha256).where(WAFERS.c.source_sha256.in_(chunk)).distinct()
        used |= set(connection.execute(query).scalars())
    return digests - used


def total(connection: Connection) -> int:
    """Returns the number of wafers of all projects."""
    live = WAFERS.c.deleted_change.is_(None)
    return int(connection.execute(select(func.count()).select_from(WAFERS).where(live)).scalar_one())


def copy_all(connection: Connection, from_project: str, class_ids: dict[str, str], to_project: str, number: int) -> int:
    """Copies wafers into classes of another project.

    Args:
        connection: Where to write.
        from_project: Project to copy from.
        class_ids: New class id of each old one.
        to_project: Project to copy to; must be locked.
        number: Number of the change that adds them.

    Returns:
        Number of wafers copied.
    """
    new_ids: dict[str, str] = {}
    batch: list[dict[str, Any]] = []
    for row in walk(connection, from_project, list(class_ids)):
        values = dict(row._mapping)
        del values["number"]
        new_ids[row.id] = new_id()
        values |= {
            "id": new_ids[row.id],
            "project_id": to_project,
            "class_id": class_ids[row.class_id],
            "parent_id": new_ids.get(row.parent_id, ""),
            "added_change": number,
        }
        batch.append(values)
        if len(batch) == _CHUNK:
            connection.execute(insert(WAFERS), batch)
            batch.clear()
    if batch:
        connection.execute(insert(WAFERS), batch)
    return len(new_ids)


def _lock_of(connection: Connection, wafer_ids: Sequence[str]) -> tuple[str, list[int]]:
    """Locks the project of some wafers and returns its id and their numbers."""
    ids = list(dict.fromkeys(cleaned(each) for each in wafer_ids))
    rows: list[Row[Any]] = []
    for chunk in _chunks(ids):
        query = select(WAFERS.c.id, WAFERS.c.number, WAFERS.c.project_id).where(WAFERS.c.id.in_(chunk))
        rows.extend(connection.execute(query))
    owners = {row.project_id for row in rows}
    if len(rows) < len(ids):
        known = {row.id for row in rows}
        raise NotFoundError("wafer", next(each for each in ids if each not in known)[:80], reason="WAFER_NOT_FOUND")
    if len(owners) != 1:
        raise InvalidArgumentError(
            f"Expected wafers of one project. Received: wafers of {len(owners)}.",
            "wafer_ids",
            reason="NO_WAFERS_CHOSEN",
        )
    (project_id,) = owners
    projects.lock(connection, project_id)
    return project_id, [row.number for row in rows]


def _with_duplicates(connection: Connection, project_id: str, rows: Sequence[Row[Any]]) -> Iterator[WaferInfo]:
    copies: dict[str, int] = {}
    for chunk in _chunks(list({row.sha256 for row in rows})):
        query = (
            select(WAFERS.c.sha256, func.count())
            .where(WAFERS.c.project_id == project_id, WAFERS.c.sha256.in_(chunk), WAFERS.c.deleted_change.is_(None))
            .group_by(WAFERS.c.sha256)
        )
        copies |= {row[0]: row[1] for row in connection.execute(query)}
    return (to_info(row, copies.get(row.sha256, 1) - 1) for row in rows)


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
