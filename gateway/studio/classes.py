"""Classes of a project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from gateway.catalogue import changes, classes, projects
from gateway.studio.desk import Desk
from gateway.studio.people import current_person
from gateway.values import Change, WaferClass


class ClassesRoom:
    """Add, rename, recolour, switch, clear, merge and delete classes.

    Everything that takes `expected_version` raises AbortedError (reason CHANGED_BY_OTHERS) when somebody changed the
    class since; without it the last one wins. Everything raises NotFoundError when there is no such class or project.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def list(self, project_id: str) -> tuple[WaferClass, ...]:
        """Returns the classes in order, the none class first."""

        def work(connection: Connection) -> tuple[WaferClass, ...]:
            projects.get(connection, project_id)
            return tuple(classes.live(connection, project_id))

        return await self._desk.read(work)

    async def suggestions(self, project_id: str) -> tuple[str, ...]:
        """Returns canonical pattern names that the project has no class for."""

        def work(connection: Connection) -> tuple[str, ...]:
            projects.get(connection, project_id)
            return tuple(classes.suggestions(connection, project_id))

        return await self._desk.read(work)

    async def add(self, project_id: str, name: str = "", *, pattern: str | None = None) -> tuple[WaferClass, Change]:
        """Adds a class at the end, in a colour that no other class has as long as there is one.

        Args:
            project_id: The project.
            name: Name, 1 to 256 characters; "" takes the first free `Class n`.
            pattern: Canonical pattern; None guesses it from the name, "" says it is the fab's own.

        Raises:
            InvalidArgumentError: The name is too long or the pattern is not a canonical one.
            AlreadyExistsError: Another class has the name, capitals apart (reason CLASS_NAME_TAKEN).
        """

        def work(connection: Connection) -> tuple[WaferClass, Change]:
            projects.lock(connection, project_id)
            added = classes.add(connection, project_id, name, pattern)
            params: dict[str, str | int] = {"name": added.name, "class_ids": added.class_id}
            projects.touch(connection, project_id, data=False)
            return added, changes.record(connection, project_id, "add_class", current_person(), params)[0]

        return await self._desk.write(work)

    async def rename(self, class_id: str, name: str, *, expected_version: int | None = None) -> Change:
        """Renames a class. Its id, wafers and models stay what they are.

        Raises:
            InvalidArgumentError: The name is empty or too long.
            AlreadyExistsError: Another class has the name (reason CLASS_NAME_TAKEN).
        """
        return await self._alter(class_id, "rename_class", expected_version, name=name)

    async def recolour(self, class_id: str, colour: str, *, expected_version: int | None = None) -> Change:
        """Changes the colour of a class.

        Raises:
            InvalidArgumentError: The colour is not `#rrggbb`.
        """
        return await self._alter(class_id, "recolour_class", expected_version, colour=colour)

    async def enable(self, class_id: str, enabled: bool, *, expected_version: int | None = None) -> Change:
        """Lets a class take part in training, or not."""
        kind = "enable_class" if enabled else "disable_class"
        return await self._alter(class_id, kind, expected_version, enabled=enabled)

    async def reorder(self, project_id: str, class_ids: Sequence[str]) -> None:
        """Puts the classes in this order; the none class stays first.

        Raises:
            InvalidArgumentError: These are not exactly the classes of the project.
        """
        await self._desk.write(lambda connection: classes.reorder(connection, project_id, class_ids))

    async def clear(self, class_id: str) -> Change:
        """Removes all wafers that show a class."""
        return await self._desk.write(lambda connection: classes.clear(connection, class_id, current_person()))

    async def merge(self, class_id: str, into_class_id: str) -> Change:
        """Moves all wafers of a class into another one of the project and deletes the empty class.

        Wafers that show the class beside their own show the other one in its place.

        Raises:
            InvalidArgumentError: Both are the same, of different projects, or the first is the none class.
        """
        return await self._desk.write(
            lambda connection: classes.merge(connection, class_id, into_class_id, current_person())
        )

    async def delete(self, class_id: str) -> Change:
        """Deletes a class with its wafers. Those that show further classes stay in the first of these.

        Raises:
            FailedPreconditionError: It is the none class (reason NONE_CLASS_PINNED).
        """
        return await self._desk.write(lambda connection: classes.delete(connection, class_id, current_person()))

    async def _alter(self, class_id: str, kind: str, expected_version: int | None, **new: Any) -> Change:
        person = current_person()
        return await self._desk.write(
            lambda connection: classes.alter(connection, class_id, kind, person, expected_version, **new)
        )
