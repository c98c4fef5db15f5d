"""What the catalogue promises, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, event, update

from gateway.catalogue import changes, classes, imports, people, projects, runs
from gateway.catalogue import wafers as wafer_rows
from gateway.catalogue.catalogue import VERSION_TABLE, Catalogue, new_id, now
from gateway.catalogue.tables import CHANGES, METADATA, WAFERS
from gateway.catalogue.wafer_rows import NewWafer
from gateway.values import FrozenDataset, JobState, Project, Task, WaferClass
from services.common.dataset import Origin
from services.common.errors import AbortedError, AlreadyExistsError, NotFoundError
from services.common.wafer_map import WaferMap
from tests.unit.studio.wafer_makers import grid, wafers


@pytest.fixture
def made(catalogue: Catalogue) -> tuple[Project, WaferClass, WaferClass]:
    """A project with the classes none and Center."""
    with catalogue.write() as connection:
        project = projects.create(connection, "P", Task.SINGLE, "")
        none = classes.add(connection, project.project_id, "none", None)
        center = classes.add(connection, project.project_id, "Center", None)
    return project, none, center


def _new(count: int, first: int = 0) -> list[NewWafer]:
    return [NewWafer(each, "", Origin.UPLOADED) for each in wafers(count, first=first)]


def test_the_migrated_tables_are_those_of_the_code(catalogue: Catalogue) -> None:
    def ours(obj: object, name: str | None, kind: str, reflected: bool, compared: object) -> bool:
        return kind != "table" or name in METADATA.tables

    with catalogue.read() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "include_object": ours})
        assert compare_metadata(context, METADATA) == []


def test_many_processes_may_open_at_once(url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        opened = list(pool.map(Catalogue.open, [url] * 6))
    with opened[0].read() as connection:
        assert projects.live(connection) == []
    for each in opened:
        each.close()


def test_a_wafer_comes_back_as_it_was(catalogue: Catalogue, made: tuple[Project, WaferClass, WaferClass]) -> None:
    _, _, center = made
    (sent,) = wafers(1)
    with catalogue.write() as connection:
        ids, _, change = wafer_rows.add(connection, center.class_id, [NewWafer(sent, "", Origin.DRAWN)], "kim")
    with catalogue.read() as connection:
        (found,) = wafer_rows.details(connection, ids)
    assert (found.map.dies == sent.dies).all()
    assert found.map.identity == sent.identity
    assert found.info.created_at.tzinfo is not None
    assert change is not None
    assert (change.person, change.kind) == ("kim", "add_wafers")


@pytest.mark.parametrize("text", ["한국어 이름", "🎉", "a" * 256, "50 % \\ \" ' ; --", "Ω\u0301"])
def test_any_text_is_kept(catalogue: Catalogue, text: str) -> None:
    with catalogue.write() as connection:
        project = projects.create(connection, text, Task.SINGLE, text)
        people.set_preference(connection, text, "language", "ko")
        people.add_feedback(connection, text, "", text)
    with catalogue.read() as connection:
        found = projects.get(connection, project.project_id)
        assert found.product == text
        assert people.preference(connection, text, "language") == "ko"
        assert people.feedback(connection, 1)[0].text == text


def test_concurrent_renames_lose_nothing(catalogue: Catalogue, made: tuple[Project, WaferClass, WaferClass]) -> None:
    project, _, center = made
    start = threading.Barrier(6)

    def rename(number: int) -> str:
        start.wait()
        try:
            with catalogue.write() as connection:
                classes.alter(connection, center.class_id, "rename_class", "p", center.version, name=f"Name {number}")
        except AbortedError as error:
            return error.reason
        return "done"

    with ThreadPoolExecutor(6) as pool:
        outcomes = sorted(pool.map(rename, range(6)))
    assert outcomes == ["CHANGED_BY_OTHERS"] * 5 + ["done"]
    with catalogue.read() as connection:
        assert classes.get(connection, center.class_id).version == center.version + 1
        assert len(changes.last(connection, project.project_id, 10)) == 1


def test_concurrent_classes_of_one_name_make_one(
    catalogue: Catalogue, made: tuple[Project, WaferClass, WaferClass]
) -> None:
    project, *_ = made
    start = threading.Barrier(5)

    def add(_: int) -> str:
        start.wait()
        try:
            with catalogue.write() as connection:
                projects.lock(connection, project.project_id)
                classes.add(connection, project.project_id, "Donut", None)
        except AlreadyExistsError as error:
            return error.reason
        return "done"

    with ThreadPoolExecutor(5) as pool:
        assert sorted(pool.map(add, range(5))) == ["CLASS_NAME_TAKEN"] * 4 + ["done"]


def test_adding_while_the_class_is_deleted_ends_in_one_order_or_the_other(
    catalogue: Catalogue, made: tuple[Project, WaferClass, WaferClass]
) -> None:
    project, _, center = made
    start = threading.Barrier(4)

    def act(number: int) -> str:
        start.wait()
        try:
            with catalogue.write() as connection:
                if number == 0:
                    classes.delete(connection, center.class_id, "p")
                else:
                    wafer_rows.add(connection, center.class_id, _new(20, number * 1000), "p")
        except NotFoundError as error:
            return error.reason
        return "done"

    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(act, range(4)))
    assert outcomes[0] == "done"
    assert set(outcomes[1:]) <= {"done", "CLASS_NOT_FOUND"}
    with catalogue.read() as connection:
        # Whatever was added before the deletion went with the class.
        assert wafer_rows.counts(connection, project.project_id) == {}


def test_a_failed_transaction_leaves_nothing(
    catalogue: Catalogue, made: tuple[Project, WaferClass, WaferClass]
) -> None:
    project, _, center = made

    def half_way(connection: Connection) -> None:
        wafer_rows.add(connection, center.class_id, _new(600), "p")
        classes.add(connection, project.project_id, "Donut", None)
        # A name that is taken.
        classes.add(connection, project.project_id, "Center", None)

    with pytest.raises(AlreadyExistsError), catalogue.write() as connection:
        half_way(connection)
    with catalogue.read() as connection:
        assert wafer_rows.total(connection) == 0
        assert len(classes.live(connection, project.project_id)) == 2
        assert changes.last(connection, project.project_id, 5) == []


def test_a_process_killed_in_mid_transaction_leaves_nothing(
    url: str, catalogue: Catalogue, made: tuple[Project, WaferClass, WaferClass]
) -> None:
    _, _, center = made
    command = [sys.executable, "-c", _HALF_AN_IMPORT, url, center.class_id]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"inserted\n"
        process.kill()
        process.wait(10)
    # Whoever comes next is not locked out, either.
    with catalogue.write() as connection:
        assert wafer_rows.total(connection) == 0
        wafer_rows.add(connection, center.class_id, _new(1), "p")


_HALF_AN_IMPORT = """
import sys, time
from tests.unit.studio.wafer_makers import wafers
from gateway.catalogue import wafers as rows
from gateway.catalogue.catalogue import Catalogue
from gateway.catalogue.wafer_rows import NewWafer
from services.common.dataset import Origin
catalogue = Catalogue.open(sys.argv[1])
with catalogue.write() as connection:
    rows.add(connection, sys.argv[2], [NewWafer(each, "", Origin.UPLOADED) for each in wafers(600)], "p")
    print("inserted", flush=True)
    time.sleep(600)
"""


def test_counts_tell_lots_generated_and_unknown(
    catalogue: Catalogue, made: tuple[Project, WaferClass, WaferClass]
) -> None:
    project, none, center = made
    child = [NewWafer(each, "", Origin.VARIATION) for each in wafers(4, first=500, lots=1)]
    with catalogue.write() as connection:
        wafer_rows.add(connection, center.class_id, _new(9), "p")
        wafer_rows.add(connection, center.class_id, child, "p")
        wafer_rows.add(connection, none.class_id, [NewWafer(WaferMap(grid(900)), "", Origin.DRAWN)], "p")
    with catalogue.read() as connection:
        found = wafer_rows.counts(connection, project.project_id)
        lots = wafer_rows.lots(connection, project.project_id)
    held = found[center.class_id]
    assert (held.wafers, held.lots, held.generated, held.without_lot, held.real) == (13, 3, 4, 0, 9)
    assert (found[none.class_id].lots, found[none.class_id].without_lot, lots) == (0, 1, 3)


def test_merge_moves_large_classes_in_few_statements_and_comes_back(
    catalogue: Catalogue, made: tuple[Project, WaferClass, WaferClass]
) -> None:
    project, none, center = made
    with catalogue.write() as connection:
        wafer_rows.add(connection, center.class_id, _new(1300), "p")
    statements: list[str] = []

    def note(*arguments: object) -> None:
        statements.append(str(arguments[2]))

    event.listen(catalogue.database.engine, "before_cursor_execute", note)
    with catalogue.write() as connection:
        change = classes.merge(connection, center.class_id, none.class_id, "p")
    event.remove(catalogue.database.engine, "before_cursor_execute", note)
    assert change.params["count"] == 1300
    assert len(statements) < 25
    with catalogue.write() as connection:
        changes.undo(connection, change.change_id)
    with catalogue.read() as connection:
        assert {key: each.wafers for key, each in wafer_rows.counts(connection, project.project_id).items()} == {
            center.class_id: 1300
        }


def test_old_changes_are_forgotten_with_what_they_deleted_and_nothing_else(
    catalogue: Catalogue, made: tuple[Project, WaferClass, WaferClass]
) -> None:
    project, _, center = made
    with catalogue.write() as connection:
        ids, _, _ = wafer_rows.add(connection, center.class_id, _new(10), "p")
        wafer_rows.delete(connection, ids[:4], "p")
        connection.execute(update(CHANGES).values(created_at=now() - timedelta(days=31)))
        recent = wafer_rows.delete(connection, ids[4:6], "p")
    with catalogue.write() as connection:
        assert changes.forget_old(connection) == 2
    with catalogue.write() as connection:
        changes.undo(connection, recent.change_id)
    with catalogue.read() as connection:
        assert wafer_rows.total(connection) == 6
        assert connection.execute(sqlalchemy.select(sqlalchemy.func.count()).select_from(WAFERS)).scalar() == 6
        assert [each.change_id for each in changes.last(connection, project.project_id, 9)] == [recent.change_id]


def test_purging_takes_everything_of_the_project_and_nothing_of_others(
    catalogue: Catalogue, made: tuple[Project, WaferClass, WaferClass]
) -> None:
    project, none, center = made
    with catalogue.write() as connection:
        other = projects.create(connection, "Other", Task.SINGLE, "")
        kept = classes.add(connection, other.project_id, "Kept", None)
        wafer_rows.add(connection, kept.class_id, _new(3), "p")
        wafer_rows.add(connection, center.class_id, _new(3), "p")
        classes.merge(connection, center.class_id, none.class_id, "p")
        imports.add(connection, new_id(), project.project_id, "", {"count": 3}, "p")
        _dataset(connection, project.project_id, "d1")
        runs.add_run(connection, "run", "training", project.project_id, "d1", 1, {}, "request")
        projects.trash(connection, project.project_id)
        projects.purge(connection, project.project_id)
    with catalogue.read() as connection:
        left = {
            table.name: connection.execute(sqlalchemy.select(sqlalchemy.func.count()).select_from(table)).scalar()
            for table in METADATA.sorted_tables
        }
    assert left == dict.fromkeys(left, 0) | {"projects": 1, "classes": 1, "wafers": 3, "changes": 1}


def test_the_audit_log_cannot_be_changed(catalogue: Catalogue) -> None:
    with catalogue.write() as connection:
        people.log(connection, "kim", "model.publish", "models/m", {"version": 1})
    for statement in ("UPDATE audit SET person = 'lee'", "DELETE FROM audit"):
        with pytest.raises(sqlalchemy.exc.DBAPIError, match="append-only"), catalogue.write() as connection:
            connection.execute(sqlalchemy.text(statement))
    with catalogue.read() as connection:
        (entry,) = people.audit(connection, "models/m", 5)
    assert (entry.person, entry.action, entry.params) == ("kim", "model.publish", {"version": 1})


def test_runs_end_once(catalogue: Catalogue, made: tuple[Project, WaferClass, WaferClass]) -> None:
    project, *_ = made

    def row(connection: Connection) -> runs.RunRow:
        return runs.run(connection, "run", "training")

    with catalogue.write() as connection:
        _dataset(connection, project.project_id, "d1")
        first = runs.add_run(connection, "run", "training", project.project_id, "d1", 1, {"a": 1}, "r")
        assert runs.add_run(connection, "run", "training", project.project_id, "d1", 1, {"a": 2}, "r") == first
        runs.see(connection, "run", JobState.SUCCEEDED, {"x": 1})
        runs.see(connection, "run", JobState.RUNNING, {"x": 2})
        assert (row(connection).state, row(connection).seen) == (JobState.SUCCEEDED, {"x": 1})
        assert [each.run_id for each in runs.unsettled(connection)] == ["run"]
        runs.settle(connection, "run")
        assert runs.unsettled(connection) == []
        published = runs.Published("m", 1, project.project_id, "run", 0.5, now())
        runs.add_version(connection, published)
        runs.add_version(connection, published)
    with catalogue.read() as connection:
        assert runs.run_by_request(connection, "r") == row(connection)
        assert runs.versions(connection, "m") == [published]
        with pytest.raises(NotFoundError):
            runs.run(connection, "run", "generation")


def test_hostile_ids_are_not_found(catalogue: Catalogue) -> None:
    looks: list[Callable[[Connection, str], object]] = [
        projects.get,
        classes.get,
        lambda connection, text: wafer_rows.details(connection, [text]),
        changes.get,
        runs.dataset,
        lambda connection, text: runs.run(connection, text, "training"),
    ]
    for look in looks:
        for text in ("", "../..", "a\x00b", "\ud800", "x" * 10_000, "' OR 1=1 --"):
            with pytest.raises(NotFoundError), catalogue.read() as connection:
                look(connection, text)


def _dataset(connection: Connection, project_id: str, dataset_id: str) -> None:
    frozen = FrozenDataset(dataset_id, project_id, {"train": 1}, "", 0, 0, (), now())
    runs.add_dataset(connection, frozen, "f", 1, ["lot:한글"])
    assert runs.dataset(connection, dataset_id) == frozen
    assert runs.training_lots(connection, dataset_id) == {"lot:한글"}
