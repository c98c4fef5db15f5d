"""Further classes of wafers, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy
from sqlalchemy import Connection, select

from gateway.catalogue import changes, classes, further, projects
from gateway.catalogue import wafers as wafer_rows
from gateway.catalogue.catalogue import MIGRATIONS, VERSION_TABLE, Catalogue, now
from gateway.catalogue.tables import CHANGES, FURTHER
from gateway.catalogue.wafer_rows import NewWafer
from gateway.values import Change, Task
from services.common.database import migrate, open_database
from services.common.dataset import Origin
from services.common.errors import AbortedError, FailedPreconditionError, InvalidArgumentError
from tests.unit.studio.wafer_makers import wafers


@dataclass
class Made:
    """A project of several patterns a wafer with a wafer of each kind.

    Attributes:
        project: Its id.
        none, center, donut, scratch: Ids of its classes.
        both: Wafer of Center that shows Scratch.
        all_three: Wafer of Center that shows Donut and Scratch.
        plain: Wafer of Center.
        alone: Wafer of Scratch.
        clean: Wafer without a pattern.
    """

    catalogue: Catalogue
    project: str
    none: str
    center: str
    donut: str
    scratch: str
    both: str
    all_three: str
    plain: str
    alone: str
    clean: str

    def do(self, work: Callable[[Connection], Change]) -> Change:
        """Changes something."""
        with self.catalogue.write() as connection:
            return work(connection)

    def undo(self, change: Change) -> None:
        """Takes a change back."""
        with self.catalogue.write() as connection:
            changes.undo(connection, change.change_id)

    def shown(self) -> dict[str, list[str]]:
        """What each live wafer shows, its own class first, by name."""
        with self.catalogue.read() as connection:
            names = {each.class_id: each.name for each in classes.live(connection, self.project)}
            page = wafer_rows.page(connection, self.project, "", None, 100, "")
            kinds = {getattr(self, kind): kind for kind in ("both", "all_three", "plain", "alone", "clean")}
            return {
                kinds[each.wafer_id]: [names[class_id] for class_id in (each.class_id, *each.also)]
                for each in page.wafers
            }


START = {
    "both": ["Center", "Scratch"],
    "all_three": ["Center", "Donut", "Scratch"],
    "plain": ["Center"],
    "alone": ["Scratch"],
    "clean": ["none"],
}


@pytest.fixture
def made(catalogue: Catalogue) -> Made:
    with catalogue.write() as connection:
        project = projects.create(connection, "P", Task.SEVERAL, "").project_id
        names = ("none", "Center", "Donut", "Scratch")
        none, center, donut, scratch = (classes.add(connection, project, name, None).class_id for name in names)
        _, number = changes.record(connection, project, "add_wafers", "p", {"count": 5})
        shown = [(center, (scratch,)), (center, (scratch, donut)), (center, ()), (scratch, ()), (none, ())]
        new = [
            NewWafer(wafer, own, Origin.UPLOADED, wafer_id=f"{index:032x}", also=also)
            for index, (wafer, (own, also)) in enumerate(zip(wafers(5), shown, strict=True))
        ]
        wafer_rows.insert_all(connection, project, new, number)
    made = Made(catalogue, project, none, center, donut, scratch, *(each.wafer_id for each in new))
    assert made.shown() == START
    return made


def test_a_class_counts_and_lists_every_wafer_that_shows_it(made: Made) -> None:
    with made.catalogue.read() as connection:
        counts = wafer_rows.counts(connection, made.project)
        # Wafers 0, 1 and 3 lie in lots L0, L1 and L0.
        assert [counts[each].wafers for each in (made.none, made.center, made.donut, made.scratch)] == [1, 3, 1, 3]
        assert [counts[each].lots for each in (made.center, made.scratch)] == [3, 2]
        assert sum(each.wafers for each in wafer_rows.own_counts(connection, made.project).values()) == 5
        page = wafer_rows.page(connection, made.project, made.scratch, None, 2, "")
        assert [each.wafer_id for each in page.wafers] == [made.alone, made.all_three]
        assert page.total == 3
        rest = wafer_rows.page(connection, made.project, made.scratch, None, 2, page.next_token)
        assert ([each.wafer_id for each in rest.wafers], rest.next_token) == ([made.both], "")
        detail = wafer_rows.details(connection, [made.all_three])[0]
        assert detail.info.also == (made.donut, made.scratch)


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (
            lambda made, c: wafer_rows.show(c, [made.plain, made.both], made.donut, True, "p"),
            {"plain": ["Center", "Donut"], "both": ["Center", "Donut", "Scratch"]},
        ),
        (
            lambda made, c: wafer_rows.show(c, [made.both, made.alone], made.scratch, False, "p"),
            {"both": ["Center"]},
        ),
        (
            # The class that a wafer stands in goes as well, as long as there is another one.
            lambda made, c: wafer_rows.show(c, [made.both, made.all_three, made.plain], made.center, False, "p"),
            {"both": ["Scratch"], "all_three": ["Donut", "Scratch"]},
        ),
        (
            lambda made, c: wafer_rows.move(c, [made.all_three], made.scratch, "p"),
            {"all_three": ["Scratch", "Donut"]},
        ),
        (lambda made, c: wafer_rows.move(c, [made.all_three], made.none, "p"), {"all_three": ["none"]}),
        (lambda made, c: wafer_rows.delete(c, [made.both], "p"), {"both": None}),
        (
            lambda made, c: classes.delete(c, made.center, "p"),
            {"both": ["Scratch"], "all_three": ["Donut", "Scratch"], "plain": None},
        ),
        (
            lambda made, c: classes.delete(c, made.scratch, "p"),
            {"both": ["Center"], "all_three": ["Center", "Donut"], "alone": None},
        ),
        (
            lambda made, c: classes.merge(c, made.scratch, made.donut, "p"),
            {"both": ["Center", "Donut"], "all_three": ["Center", "Donut"], "alone": ["Donut"]},
        ),
        (
            lambda made, c: classes.merge(c, made.center, made.scratch, "p"),
            {"both": ["Scratch"], "all_three": ["Scratch", "Donut"], "plain": ["Scratch"]},
        ),
        (
            lambda made, c: classes.merge(c, made.scratch, made.none, "p"),
            {"both": ["Center"], "all_three": ["Center", "Donut"], "alone": ["none"]},
        ),
        (
            lambda made, c: classes.merge(c, made.center, made.none, "p"),
            {"both": ["none"], "all_three": ["none"], "plain": ["none"]},
        ),
        (lambda made, c: classes.clear(c, made.scratch, "p"), {"both": None, "all_three": None, "alone": None}),
    ],
    ids=lambda each: "",
)
def test_a_change_keeps_the_patterns_right_and_can_be_taken_back(
    made: Made, act: Callable[[Made, Connection], Change], expected: dict[str, list[str] | None]
) -> None:
    change = made.do(lambda connection: act(made, connection))
    want = {kind: shown for kind, shown in (START | expected).items() if shown is not None}
    assert made.shown() == want
    with made.catalogue.read() as connection:
        counts = wafer_rows.counts(connection, made.project)
        names = {each.class_id: each.name for each in classes.live(connection, made.project)}
        assert {names[each]: counts[each].wafers for each in counts} == {
            name: sum(name in shown for shown in want.values()) for name in {each for s in want.values() for each in s}
        }
    made.undo(change)
    assert made.shown() == START
    made.undo(change)
    assert made.shown() == START


def test_taking_back_an_upload_takes_its_patterns_and_later_marks_with_it(made: Made) -> None:
    with made.catalogue.read() as connection:
        (upload,) = changes.last(connection, made.project, 5)
    made.do(lambda connection: wafer_rows.show(connection, [made.plain], made.donut, True, "p"))
    made.undo(upload)
    assert made.shown() == {}
    with made.catalogue.read() as connection:
        assert wafer_rows.counts(connection, made.project) == {}
        assert not further.any_in(connection, made.project)


def test_a_mark_made_twice_and_taken_back_once_stays(made: Made) -> None:
    hidden = made.do(lambda connection: wafer_rows.show(connection, [made.both], made.scratch, False, "p"))
    made.do(lambda connection: wafer_rows.show(connection, [made.both], made.scratch, True, "p"))
    made.undo(hidden)
    assert made.shown() == START


def test_a_move_taken_back_leaves_no_class_twice(made: Made) -> None:
    moved = made.do(lambda connection: wafer_rows.move(connection, [made.plain], made.donut, "p"))
    made.do(lambda connection: wafer_rows.show(connection, [made.plain], made.center, True, "p"))
    made.undo(moved)
    assert made.shown() == START
    moved = made.do(lambda connection: wafer_rows.move(connection, [made.clean], made.donut, "p"))
    made.do(lambda connection: wafer_rows.show(connection, [made.clean], made.center, True, "p"))
    made.undo(moved)
    assert made.shown() == START


def test_a_mark_of_a_class_deleted_since_cannot_come_back(made: Made) -> None:
    hidden = made.do(lambda connection: wafer_rows.show(connection, [made.all_three], made.donut, False, "p"))
    deleted = made.do(lambda connection: classes.delete(connection, made.donut, "p"))
    with pytest.raises(AbortedError, match="was deleted"):
        made.undo(hidden)
    made.undo(deleted)
    made.undo(hidden)
    assert made.shown() == START


def test_what_shows_nothing_shows_nothing_else(made: Made) -> None:
    for wafer, class_id in ((made.clean, made.center), (made.plain, made.none)):
        with pytest.raises(FailedPreconditionError) as refused, made.catalogue.write() as connection:
            wafer_rows.show(connection, [wafer], class_id, True, "p")
        assert refused.value.reason == "NONE_SHOWS_NOTHING"


def test_only_projects_of_several_patterns_have_further_classes(made: Made) -> None:
    with made.catalogue.write() as connection:
        single = projects.create(connection, "S", Task.SINGLE, "").project_id
        center = classes.add(connection, single, "Center+Scratch", None).class_id
        other = classes.add(connection, single, "Scratch", None).class_id
        ids, *_ = wafer_rows.add(connection, center, [NewWafer(wafers(1)[0], "", Origin.DRAWN)], "p")
    with pytest.raises(FailedPreconditionError) as refused, made.catalogue.write() as connection:
        wafer_rows.show(connection, ids, other, True, "p")
    assert refused.value.reason == "ONE_PATTERN"
    for act in (
        lambda c: classes.add(c, made.project, "Center+Scratch", None),
        lambda c: classes.alter(c, made.donut, "rename_class", "p", None, name="A+B"),
    ):
        with pytest.raises(InvalidArgumentError) as refused_name, made.catalogue.write() as connection:
            act(connection)
        assert refused_name.value.reason == "NAME_WITH_PLUS"


def test_a_copy_of_a_project_keeps_what_its_wafers_show(made: Made) -> None:
    with made.catalogue.write() as connection:
        copy = projects.create(connection, "Copy", Task.SEVERAL, "").project_id
        ids = {
            each.class_id: classes.add(connection, copy, each.name, each.pattern).class_id
            for each in classes.live(connection, made.project)
        }
        _, number = changes.record(connection, copy, "add_wafers", "p", {"count": 5})
        wafer_rows.copy_all(connection, made.project, ids, copy, number)
        names = {each.class_id: each.name for each in classes.live(connection, copy)}
        page = wafer_rows.page(connection, copy, "", None, 10, "")
    found = sorted([names[class_id] for class_id in (each.class_id, *each.also)] for each in page.wafers)
    assert found == sorted(START.values())


def test_what_is_purged_or_forgotten_leaves_no_row(made: Made) -> None:
    made.do(lambda connection: wafer_rows.delete(connection, [made.both], "p"))
    made.do(lambda connection: wafer_rows.show(connection, [made.all_three], made.donut, False, "p"))
    with made.catalogue.write() as connection:
        old = now().replace(year=now().year - 1)
        connection.execute(sqlalchemy.update(CHANGES).values(created_at=old))
        changes.forget_old(connection)
        left = connection.execute(select(FURTHER.c.class_id)).scalars().all()
    assert left == [made.scratch]
    with made.catalogue.write() as connection:
        projects.trash(connection, made.project)
        projects.purge(connection, made.project)
        assert connection.execute(select(FURTHER)).all() == []


def test_a_catalogue_of_the_first_release_keeps_everything(url: str, tmp_path: Path) -> None:
    history = tmp_path / "history"
    shutil.copytree(MIGRATIONS, history)
    for later in history.glob("versions/*.py"):
        if not later.name.startswith("0001"):
            later.unlink()
    database = open_database(url)
    migrate(database, history, VERSION_TABLE)
    with database.write() as connection:
        project = projects.create(connection, "Old", Task.SINGLE, "").project_id
        center = classes.add(connection, project, "Center", None).class_id
        ids, *_ = wafer_rows.add(connection, center, [NewWafer(each, "", Origin.UPLOADED) for each in wafers(3)], "p")
    database.close()
    opened = Catalogue.open(url)
    try:
        with opened.write() as connection:
            (added,) = changes.last(connection, project, 5)
            assert wafer_rows.counts(connection, project)[center].wafers == 3
            assert {each.info.also for each in wafer_rows.details(connection, ids)} == {()}
            changes.undo(connection, added.change_id)
            assert wafer_rows.counts(connection, project) == {}
    finally:
        opened.close()
