"""Rows of wafers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Final

from sqlalchemy import Connection, Row, Select, case, func, insert, literal, select, update

from gateway.catalogue import changes, classes, further, projects
from gateway.catalogue.catalogue import new_id, now
from gateway.catalogue.names import cleaned
from gateway.catalogue.tables import FURTHER, MOVES, WAFERS
from gateway.catalogue.wafer_rows import NewWafer, to_info, to_map, to_row
from gateway.values import Change, Counts, Task, WaferClass, WaferDetail, WaferInfo, WaferPage
from services.common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from services.common.pagination import decode_page_token, encode_page_token
from services.common.wafer_map import WaferMap

# Databases limit the parameters of a statement (SQLite 32,766).
_CHUNK: Final = 500
_PLAIN = [column for column in WAFERS.c if column.name not in ("dies", "bins")]


def insert_all(connection: Connection, project_id: str, wafers: Iterable[NewWafer], number: int) -> dict[str, int]:
    """Adds wafers to classes of a locked project, some at a time: they need not be in memory together.

    Args:
        connection: Where to write.
        project_id: The project.
        wafers: The wafers.
        number: Number of the change that adds them.

    Returns:
        Number of new wafers by class id.
    """
    added: Counter[str] = Counter()
    moment = now()
    rest = iter(wafers)
    while some := list(islice(rest, _CHUNK)):
        rows = [to_row(wafer, project_id, number) | {"created_at": moment} for wafer in some]
        connection.execute(insert(WAFERS), rows)
        also = {row["id"]: wafer.also for row, wafer in zip(rows, some, strict=True) if wafer.also}
        further.insert_all(connection, also, number)
        added.update(wafer.class_id for wafer in some)
    if added:
        projects.touch(connection, project_id, data=True)
    return dict(added)


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
            fresh.append(replace(wafer, class_id=class_id, wafer_id=wafer.wafer_id or new_id()))
    if not fresh:
        return [], len(wafers), None
    params: dict[str, str | int] = {"name": found.name, "class_id": class_id, "count": len(fresh)}
    change, number = changes.record(connection, found.project_id, "add_wafers", person, params)
    insert_all(connection, found.project_id, fresh, number)
    return [wafer.wafer_id for wafer in fresh], len(wafers) - len(fresh), change


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


def own_counts(connection: Connection, project_id: str) -> dict[str, Counts]:
    """Returns what stands in the classes of a project, each wafer in one of them; empty classes are missing."""
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


def counts(connection: Connection, project_id: str) -> dict[str, Counts]:
    """Returns what the classes of a project hold: every wafer that shows them; empty classes are missing."""
    return shown_counts(connection, project_id, own_counts(connection, project_id))


def shown_counts(connection: Connection, project_id: str, own: Mapping[str, Counts]) -> dict[str, Counts]:
    """Returns what `counts` returns, from what stands in the classes."""
    found = dict(own)
    for class_id, more in further.counts(connection, project_id).items():
        found[class_id] = found.get(class_id, Counts()) + more
    return found


def lots(connection: Connection, project_id: str) -> int:
    """Returns the number of different known lots of the real wafers of a project."""
    # Grouped like the index of the cards, which then answers alone; the rows themselves are many and large.
    of_classes = (
        select(WAFERS.c.lot)
        .where(
            WAFERS.c.project_id == project_id,
            WAFERS.c.deleted_change.is_(None),
            WAFERS.c.generated.is_(False),
            WAFERS.c.lot != "",
        )
        .group_by(WAFERS.c.class_id, WAFERS.c.generated, WAFERS.c.lot)
        .subquery()
    )
    return int(connection.execute(select(func.count(func.distinct(of_classes.c.lot)))).scalar_one())


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
    cursor = decode_page_token("wafers", token)
    before = None if cursor is None else int(cursor[0])
    chosen = [_of_project(project_id, generated)]
    if class_id:
        chosen = [_in_class(class_id, generated), _showing(class_id, generated)]
    counted = [select(func.count()).select_from(each.subquery()) for each in chosen]
    total = sum(int(connection.execute(each).scalar_one()) for each in counted)
    numbers = sorted(
        (number for each in chosen for number in _newest(connection, each, before, size + 1)), reverse=True
    )
    query = select(*_PLAIN).where(WAFERS.c.number.in_(numbers[:size])).order_by(WAFERS.c.number.desc())
    rows = connection.execute(query).all()
    return WaferPage(
        wafers=tuple(_with_duplicates(connection, project_id, rows)),
        next_token=encode_page_token("wafers", [rows[-1].number]) if len(numbers) > size else "",
        total=total,
    )


def _of_project(project_id: str, generated: bool | None) -> Select[Any]:
    """Selects the numbers of the wafers of a project."""
    query = select(WAFERS.c.number).where(WAFERS.c.project_id == project_id, WAFERS.c.deleted_change.is_(None))
    return query if generated is None else query.where(WAFERS.c.generated.is_(generated))


def _in_class(class_id: str, generated: bool | None) -> Select[Any]:
    """Selects the numbers of the wafers that stand in a class."""
    query = select(WAFERS.c.number).where(WAFERS.c.class_id == class_id, WAFERS.c.deleted_change.is_(None))
    return query if generated is None else query.where(WAFERS.c.generated.is_(generated))


def _showing(class_id: str, generated: bool | None) -> Select[Any]:
    """Selects the numbers of the wafers that show a class beside their own."""
    number = FURTHER.c.wafer_number.label("number")
    query = select(number).where(FURTHER.c.class_id == class_id, FURTHER.c.deleted_change.is_(None))
    return query if generated is None else query.where(FURTHER.c.generated.is_(generated))


def _newest(connection: Connection, chosen: Select[Any], before: int | None, limit: int) -> Sequence[int]:
    """Returns the highest numbers of a selection below a number; each selection walks an index of its own."""
    (number,) = chosen.selected_columns
    query = chosen if before is None else chosen.where(number < before)
    return connection.execute(query.order_by(number.desc()).limit(limit)).scalars().all()


def details(connection: Connection, wafer_ids: Sequence[str]) -> list[WaferDetail]:
    """Returns wafers with their dies, in the order of the ids; deleted ones, too.

    Raises:
        NotFoundError: One does not exist.
    """
    found: dict[str, WaferDetail] = {}
    number_of: dict[str, int] = {}
    for chunk in _chunks(wafer_ids):
        for row in connection.execute(select(WAFERS).where(WAFERS.c.id.in_([cleaned(each) for each in chunk]))):
            found[row.id] = WaferDetail(to_info(row, 0, ()), to_map(row))
            number_of[row.id] = row.number
    missing = next((each for each in wafer_ids if each not in found), None)
    if missing is not None:
        raise NotFoundError("wafer", missing[:80], reason="WAFER_NOT_FOUND")
    also = further.of(connection, list(number_of.values()))
    return [
        replace(found[each], info=replace(found[each].info, also=also.get(number_of[each], ()))) for each in wafer_ids
    ]


def walk(
    connection: Connection, project_id: str, class_ids: Sequence[str], *, dies: bool = True
) -> Iterator[tuple[Row[Any], tuple[str, ...]]]:
    """Yields the rows of wafers that stand in some classes, in order of arrival, with flat memory.

    Args:
        connection: Where to look.
        project_id: The project.
        class_ids: The classes.
        dies: Whether the rows hold dies and bins.

    Yields:
        The row of a wafer, and the ids of the further classes that it shows, in the order of the classes.
    """
    several = further.any_in(connection, project_id)
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
        also = further.of(connection, [row.number for row in rows]) if several else {}
        yield from ((row, also.get(row.number, ())) for row in rows)
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
    further.drop_of_deleted(connection, number)
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
        shown = [FURTHER.c.wafer_number.in_(chunk)] if into.none else [FURTHER.c.class_id == class_id]
        further.drop(connection, number, FURTHER.c.wafer_number.in_(chunk), *shown)
    projects.touch(connection, project_id, data=True)
    return changes.reword(connection, number, {**params, "count": count})


def show(connection: Connection, wafer_ids: Sequence[str], class_id: str, shown: bool, person: str) -> Change:
    """Lets wafers show a class beside their own, or show it no longer.

    A wafer that shall no longer show the class that it stands in goes to the next one that it shows; where there is
    none, it stays.

    Raises:
        InvalidArgumentError: None was given, or they are of another project than the class.
        NotFoundError: A wafer or the class does not exist.
        FailedPreconditionError: A wafer of the project shows one pattern (reason ONE_PATTERN), or the class, or the one
            of a wafer, is that of wafers without a pattern (reason NONE_SHOWS_NOTHING).
    """
    project_id, numbers = _lock_of(connection, wafer_ids)
    found = classes.get(connection, class_id)
    if found.project_id != project_id:
        raise InvalidArgumentError("Expected a class of the wafers' own project. Received: another one's.", "class_id")
    _check_several(connection, found, numbers)
    params: dict[str, str | int] = {"name": found.name, "class_id": class_id}
    _, number = changes.record(connection, project_id, "show_class" if shown else "hide_class", person, params)
    count = 0
    for chunk in _chunks(numbers):
        if shown:
            count += further.add(connection, class_id, number, WAFERS.c.number.in_(chunk))
        else:
            of_chunk = FURTHER.c.wafer_number.in_(chunk)
            count += further.drop(connection, number, FURTHER.c.class_id == class_id, of_chunk)
            count += further.promote(connection, class_id, number, of_chunk)
    projects.touch(connection, project_id, data=True)
    return changes.reword(connection, number, {**params, "count": count})


def _check_several(connection: Connection, found: WaferClass, numbers: Sequence[int]) -> None:
    """Refuses further classes where wafers can have none; raises as `show`."""
    if projects.get(connection, found.project_id).task is not Task.SEVERAL:
        raise FailedPreconditionError(
            "Expected a project with several patterns per wafer. Received: one whose wafers show one. Move the wafers.",
            subject=f"projects/{found.project_id}",
            reason="ONE_PATTERN",
        )
    without = next((each.class_id for each in classes.live(connection, found.project_id) if each.none), "")
    in_none = any(
        connection.execute(
            select(WAFERS.c.number).where(WAFERS.c.number.in_(chunk), WAFERS.c.class_id == without).limit(1)
        ).scalar()
        is not None
        for chunk in _chunks(numbers)
    )
    if found.none or in_none:
        raise FailedPreconditionError(
            "Expected wafers and a class with a pattern. Received: the class of wafers without one, which show nothing "
            "else. Move the wafers to another class first.",
            subject=f"classes/{found.class_id}",
            reason="NONE_SHOWS_NOTHING",
        )


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
    further_ids: dict[str, list[str]] = {}
    for row, also in walk(connection, from_project, list(class_ids)):
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
        if also:
            further_ids[new_ids[row.id]] = [class_ids[each] for each in also]
        batch.append(values)
        if len(batch) == _CHUNK:
            connection.execute(insert(WAFERS), batch)
            batch.clear()
    if batch:
        connection.execute(insert(WAFERS), batch)
    further.insert_all(connection, further_ids, number)
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
    also = further.of(connection, [row.number for row in rows])
    return (to_info(row, copies.get(row.sha256, 1) - 1, also.get(row.number, ())) for row in rows)


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
