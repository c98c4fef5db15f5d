"""Projects."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sqlalchemy import Connection

from gateway.catalogue import changes, people, projects, runs, wafers
from gateway.catalogue import classes as class_rows
from gateway.catalogue.catalogue import new_id
from gateway.catalogue.names import safe_file_name
from gateway.catalogue.patterns import NONE, guess_pattern
from gateway.catalogue.wafer_rows import NewWafer
from gateway.studio import health, project_file
from gateway.studio.desk import Desk
from gateway.studio.disk import disk_errors
from gateway.studio.people import current_person
from gateway.studio.project_file import FileContent
from gateway.studio.run_records import score, training_run
from gateway.studio.staging import original_key
from gateway.values import Board, Change, Counts, Project, ProjectSummary, Task, TrashedProject


class ProjectsRoom:
    """Make, list, rename, trash, export and open projects."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def create(
        self, name: str, task: Task = Task.SINGLE, *, product: str = "", classes: Sequence[str] = ()
    ) -> Project:
        """Makes a project with the pinned none class and further ones.

        Args:
            name: Name for people, 1 to 256 characters; others may have the same.
            task: What its model shall tell.
            product: Product whose wafers it is about.
            classes: Names of further classes; canonical pattern names get their pattern.

        Raises:
            InvalidArgumentError: A name is empty or too long.
            AlreadyExistsError: A class name comes twice (reason CLASS_NAME_TAKEN).
        """
        person = current_person()

        def work(connection: Connection) -> Project:
            made = projects.create(connection, name, task, product)
            none_name = next((each for each in classes if guess_pattern(each) == NONE), NONE)
            for each in [none_name, *(each for each in classes if each != none_name)]:
                class_rows.add(connection, made.project_id, each, None)
            people.log(connection, person, "project.create", f"projects/{made.project_id}", {"name": made.name})
            return made

        return await self._desk.write(work)

    async def list(self) -> tuple[ProjectSummary, ...]:
        """Returns all projects outside the trash, last changed first."""
        return await self._desk.read(
            lambda connection: tuple(_summary(connection, each) for each in projects.live(connection))
        )

    async def get(self, project_id: str) -> Project:
        """Returns a project.

        Raises:
            NotFoundError: There is none, or it is in the trash.
        """
        return await self._desk.read(lambda connection: projects.get(connection, project_id))

    async def board(self, project_id: str) -> Board:
        """Returns everything on the canvas of a project, in a few queries whatever its size.

        Raises:
            NotFoundError: There is no such project.
        """
        return await self._desk.read(lambda connection: _board(connection, projects.get(connection, project_id)))

    async def rename(self, project_id: str, name: str, *, expected_version: int | None = None) -> Change:
        """Renames a project.

        Args:
            project_id: The project.
            name: New name.
            expected_version: Version that the person saw; None overwrites whatever there is.

        Raises:
            NotFoundError: There is no such project.
            InvalidArgumentError: The name is empty or too long.
            AbortedError: Somebody changed the project since (reason CHANGED_BY_OTHERS).
        """
        person = current_person()

        def work(connection: Connection) -> Change:
            old, new = projects.rename(connection, project_id, name, expected_version)
            undo = {"table": "projects", "id": project_id, "old": {"name": old}, "new": {"name": new}}
            params = {"name": new, "old_name": old}
            return changes.record(connection, project_id, "rename_project", person, params, undo)[0]

        return await self._desk.write(work)

    async def duplicate(self, project_id: str, name: str) -> Project:
        """Makes a project with the same classes and wafers, without runs and models.

        Raises:
            NotFoundError: There is no such project.
            InvalidArgumentError: The name is empty or too long.
        """
        person = current_person()

        def work(connection: Connection) -> Project:
            source = projects.lock(connection, project_id)
            made = projects.create(connection, name, source.task, source.product)
            new_ids: dict[str, str] = {}
            for each in class_rows.live(connection, project_id):
                copied = class_rows.add(connection, made.project_id, each.name, each.pattern, each.colour)
                new_ids[each.class_id] = copied.class_id
                if not each.enabled:
                    class_rows.alter(connection, copied.class_id, "disable_class", person, None, enabled=False)
            _, number = changes.record(
                connection, made.project_id, "add_wafers", person, {"name": source.name, "count": 0}
            )
            count = wafers.copy_all(connection, project_id, new_ids, made.project_id, number)
            changes.reword(connection, number, {"name": source.name, "count": count})
            people.log(connection, person, "project.create", f"projects/{made.project_id}", {"name": made.name})
            return made

        return await self._desk.write(work)

    async def trash(self, project_id: str) -> TrashedProject:
        """Moves a project to the trash for 30 days. Its published models keep serving.

        Raises:
            NotFoundError: There is no such project.
        """
        person = current_person()

        def work(connection: Connection) -> TrashedProject:
            projects.trash(connection, project_id)
            people.log(connection, person, "project.trash", f"projects/{project_id}")
            return next(each for each in _trashed(connection) if each.project.project_id == project_id)

        return await self._desk.write(work)

    async def trashed(self) -> tuple[TrashedProject, ...]:
        """Returns the trash, last deleted first."""
        return await self._desk.read(_trashed)

    async def restore(self, project_id: str) -> Project:
        """Takes a project out of the trash.

        Raises:
            NotFoundError: It is not in the trash.
        """
        person = current_person()

        def work(connection: Connection) -> Project:
            people.log(connection, person, "project.restore", f"projects/{project_id}")
            return projects.restore(connection, project_id)

        return await self._desk.write(work)

    async def purge(self, project_id: str) -> None:
        """Deletes a project of the trash for good.

        Raises:
            NotFoundError: It is not in the trash.
        """
        person = current_person()

        def work(connection: Connection) -> tuple[list[str], set[str]]:
            originals = wafers.originals(connection, project_id)
            dataset_ids = [each.dataset_id for each in runs.datasets(connection, project_id)]
            dataset_ids += [each.generated_dataset_id for each in runs.datasets(connection, project_id)]
            projects.purge(connection, project_id)
            people.log(connection, person, "project.purge", f"projects/{project_id}")
            return [each for each in dataset_ids if each], wafers.unused(connection, originals)

        dataset_ids, originals = await self._desk.write(work)
        for dataset_id in dataset_ids:
            await asyncio.to_thread(self._desk.store.delete_prefix, f"datasets/{dataset_id}")
        for digest in originals:
            await asyncio.to_thread(self._desk.store.delete, original_key(digest))

    async def export_file(self, project_id: str, target: Path) -> Path:
        """Writes a project into one self-describing .zip file.

        Args:
            project_id: The project.
            target: File to write; appears whole or not at all.

        Returns:
            The file.

        Raises:
            NotFoundError: There is no such project.
        """

        def work(connection: Connection) -> Path:
            with disk_errors("the project file"):
                return project_file.write(connection, project_id, target)

        return await self._desk.read(work)

    async def export_name(self, project_id: str) -> str:
        """Returns a file name for the download, made of the project's name, safe on every system.

        Raises:
            NotFoundError: There is no such project.
        """
        return f"{safe_file_name((await self.get(project_id)).name)}.zip"

    async def open_file(self, source: Path, *, name: str = "") -> Project:
        """Makes a project from a project file. It becomes a project of its own, whatever is there already.

        Args:
            source: A .zip that `export_file` wrote, here or elsewhere. Nothing in it is trusted.
            name: Name of the new project; "" takes that of the file.

        Raises:
            InvalidArgumentError: It is no project file, is damaged or holds too much; nothing was kept.
        """
        content = await asyncio.to_thread(project_file.read, source)
        person = current_person()

        def work(connection: Connection) -> Project:
            made = projects.create(connection, name or content.name, content.task, content.product)
            class_ids = []
            for each in content.classes:
                added = class_rows.add(connection, made.project_id, each.name, each.pattern, each.colour)
                class_ids.append(added.class_id)
                if not each.enabled:
                    class_rows.alter(connection, added.class_id, "disable_class", person, None, enabled=False)
            if not any(each.pattern == NONE for each in content.classes):
                class_rows.add(connection, made.project_id, "", NONE)
            params: dict[str, str | int] = {"name": content.name, "count": len(content.wafers)}
            _, number = changes.record(connection, made.project_id, "add_wafers", person, params)
            wafers.insert_all(connection, made.project_id, _owned(content, class_ids), number)
            people.log(connection, person, "project.open", f"projects/{made.project_id}", params)
            return made

        return await self._desk.write(work)


def _board(connection: Connection, project: Project) -> Board:
    """Returns everything on a canvas."""
    own = wafers.own_counts(connection, project.project_id)
    counts = wafers.shown_counts(connection, project.project_id, own)
    cards = health.cards(project.task, class_rows.live(connection, project.project_id), counts)
    rows = runs.runs(connection, project.project_id, "training")
    latest = training_run(connection, rows[0]) if rows else None
    published = runs.versions(connection, project.model_id)
    gate = health.gate(project.task, cards, latest)
    present = projects.data_version(connection, project.project_id)
    # Outdated is judged against the training whose model serves, and the state against the newest training.
    taught = {row.run_id: row.data_version for row in rows}
    outdated = bool(published) and taught.get(published[0].run_id) != present
    changed_since = bool(rows) and rows[0].data_version != present
    # Each wafer counts once, however many classes it shows.
    total = Counts(
        wafers=sum(each.wafers for each in own.values()),
        lots=wafers.lots(connection, project.project_id),
        generated=sum(each.generated for each in own.values()),
        without_lot=sum(each.without_lot for each in own.values()),
    )
    return Board(
        project=project,
        cards=cards,
        counts=total,
        state=health.state(total.wafers, gate, latest, bool(published), changed_since if not published else outdated),
        training=gate,
        latest_run=latest,
        model_version=published[0].version if published else 0,
        outdated=outdated,
    )


def _summaries(connection: Connection) -> tuple[ProjectSummary, ...]:
    """Returns the rows of the list."""
    return tuple(_summary(connection, each) for each in projects.live(connection))


def _summary(connection: Connection, project: Project) -> ProjectSummary:
    """Returns the row of a project in the list."""
    board = _board(connection, project)
    published = runs.versions(connection, project.model_id)
    found = published[0].score if published else score(board.latest_run.result if board.latest_run else None)
    return ProjectSummary(project, len(board.cards), board.counts.wafers, board.state, found)


def _trashed(connection: Connection) -> tuple[TrashedProject, ...]:
    """Returns the trash."""
    return tuple(
        replace(each, wafers=sum(held.wafers for held in own.values()))
        for each in projects.in_trash(connection)
        for own in (wafers.own_counts(connection, each.project.project_id),)
    )


def _owned(content: FileContent, class_ids: Sequence[str]) -> Iterator[NewWafer]:
    """Yields the wafers of a project file with new ids, parents and children still together."""
    new_ids = {each.file_id: new_id() for each in content.wafers}
    for each in content.wafers:
        yield replace(
            each.wafer,
            class_id=class_ids[each.position],
            wafer_id=new_ids[each.file_id],
            parent_id=new_ids.get(each.wafer.parent_id, ""),
            also=tuple(class_ids[position] for position in each.also),
        )
