"""Rows of projects."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, insert, select, update

from gateway.catalogue.catalogue import new_id, now
from gateway.catalogue.names import checked_name, cleaned, safe_file_name
from gateway.catalogue.tables import CHANGES, MOVES, PROJECTS
from gateway.values import Project, Task, TrashedProject
from services.common.errors import AbortedError, NotFoundError

TRASH_DAYS: Final = 30
"""Days that projects stay in the trash and changes can be taken back."""


def create(connection: Connection, name: str, task: Task, product: str, *, sample: bool = False) -> Project:
    """Adds a project without classes.

    Raises:
        InvalidArgumentError: The name is not a name.
    """
    name, product = checked_name(name), cleaned(product)
    identifier, moment = new_id(), now()
    connection.execute(
        insert(PROJECTS).values(
            id=identifier,
            name=name,
            task=task.value,
            product=product,
            sample=sample,
            model_id=_model_id(name, identifier),
            version=1,
            data_version=1,
            created_at=moment,
            changed_at=moment,
        )
    )
    return get(connection, identifier)


def get(connection: Connection, project_id: str, *, trashed: bool = False) -> Project:
    """Returns a project.

    Args:
        connection: Where to look.
        project_id: Its id.
        trashed: Whether it has to be in the trash, or outside.

    Raises:
        NotFoundError: There is none there.
    """
    return to_project(_row(connection, project_id, trashed=trashed))


def lock(connection: Connection, project_id: str, *, trashed: bool = False) -> Project:
    """Returns a project and holds off all other writers of it until the end of the transaction.

    Raises:
        NotFoundError: There is none, inside or outside the trash as asked for.
    """
    return to_project(_row(connection, project_id, trashed=trashed, locked=True))


def find(connection: Connection, project_id: str) -> Project:
    """Returns a project, in the trash or not.

    Raises:
        NotFoundError: There is none.
    """
    row = connection.execute(select(PROJECTS).where(PROJECTS.c.id == project_id)).one_or_none()
    if row is None:
        raise NotFoundError("project", project_id[:80], reason="PROJECT_NOT_FOUND")
    return to_project(row)


def live(connection: Connection) -> list[Project]:
    """Returns the projects outside the trash, last changed first."""
    query = select(PROJECTS).where(PROJECTS.c.deleted_at.is_(None))
    ordered = query.order_by(PROJECTS.c.changed_at.desc(), PROJECTS.c.id)
    return [to_project(row) for row in connection.execute(ordered)]


def by_model(connection: Connection, model_id: str) -> Project | None:
    """Returns the project of a model, in the trash or not; None for models of others."""
    row = connection.execute(select(PROJECTS).where(PROJECTS.c.model_id == model_id)).one_or_none()
    return None if row is None else to_project(row)


def rename(connection: Connection, project_id: str, name: str, expected_version: int | None) -> tuple[str, str]:
    """Renames a project.

    Returns:
        Old and new name.

    Raises:
        NotFoundError: There is no such project.
        InvalidArgumentError: The name is not a name.
        AbortedError: The version is another one.
    """
    name = checked_name(name)
    project = lock(connection, project_id)
    check_version(project.version, expected_version, project.name)
    touch(connection, project_id, data=False, name=name, version=PROJECTS.c.version + 1)
    return project.name, name


def touch(connection: Connection, project_id: str, *, data: bool, **values: Any) -> None:
    """Marks a project as changed.

    Args:
        connection: Where to write.
        project_id: The project.
        data: Whether what would be taught changed, so that its models are older than its data.
        **values: Further columns to set.
    """
    if data:
        values["data_version"] = PROJECTS.c.data_version + 1
    connection.execute(update(PROJECTS).where(PROJECTS.c.id == project_id).values(changed_at=now(), **values))


def data_version(connection: Connection, project_id: str) -> int:
    """Returns the number that grows with every change of what would be taught."""
    return int(connection.execute(select(PROJECTS.c.data_version).where(PROJECTS.c.id == project_id)).scalar_one())


def trash(connection: Connection, project_id: str) -> None:
    """Moves a project to the trash."""
    lock(connection, project_id)
    touch(connection, project_id, data=False, deleted_at=now())


def restore(connection: Connection, project_id: str) -> Project:
    """Takes a project out of the trash."""
    lock(connection, project_id, trashed=True)
    touch(connection, project_id, data=False, deleted_at=None)
    return get(connection, project_id)


def purge(connection: Connection, project_id: str) -> None:
    """Deletes a project of the trash with everything in it."""
    lock(connection, project_id, trashed=True)
    numbers = select(CHANGES.c.number).where(CHANGES.c.project_id == project_id)
    connection.execute(delete(MOVES).where(MOVES.c.change_number.in_(numbers)))
    connection.execute(delete(PROJECTS).where(PROJECTS.c.id == project_id))


def in_trash(connection: Connection) -> list[TrashedProject]:
    """Returns the trash, last deleted first, without wafer counts."""
    query = select(PROJECTS).where(PROJECTS.c.deleted_at.is_not(None)).order_by(PROJECTS.c.deleted_at.desc())
    return [
        TrashedProject(to_project(row), row.deleted_at, row.deleted_at + timedelta(days=TRASH_DAYS), 0)
        for row in connection.execute(query)
    ]


def check_version(found: int, expected: int | None, name: str) -> None:
    """Refuses a change that was decided on an outdated view.

    Raises:
        AbortedError: Both versions are there and differ.
    """
    if expected is not None and expected != found:
        raise AbortedError(
            f"Expected version {expected} of {name!r}. Received: somebody else changed it in the meantime to version "
            f"{found}. Look at the present state, then try again.",
            reason="CHANGED_BY_OTHERS",
            metadata={"name": name},
        )


def to_project(row: Row[Any]) -> Project:
    """Returns the project of a row."""
    return Project(
        project_id=row.id,
        name=row.name,
        task=Task(row.task),
        product=row.product,
        sample=row.sample,
        version=row.version,
        created_at=row.created_at,
        changed_at=row.changed_at,
        model_id=row.model_id,
    )


def _row(connection: Connection, project_id: str, *, trashed: bool, locked: bool = False) -> Row[Any]:
    query = select(PROJECTS).where(PROJECTS.c.id == cleaned(project_id))
    row = connection.execute(query.with_for_update() if locked else query).one_or_none()
    if row is None or (row.deleted_at is not None) != trashed:
        raise NotFoundError("project", project_id[:80], reason="PROJECT_NOT_FOUND")
    return row


def _model_id(name: str, identifier: str) -> str:
    """Returns a name for the model repository: readable where the project's name is, and never taken."""
    readable = safe_file_name(name).encode("ascii", "ignore").decode().lower().strip("-_ ")[:40].strip("-_")
    return f"{readable or 'model'}-{identifier[:8]}"
