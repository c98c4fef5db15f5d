"""Classes of a project."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.values import Change, WaferClass


class ClassesRoom:
    """Add, rename, recolour, switch, clear, merge and delete classes.

    Everything that takes `expected_version` raises AbortedError (reason CHANGED_BY_OTHERS) when somebody changed the
    class since; without it the last one wins. Everything raises NotFoundError when there is no such class or project.
    """

    async def list(self, project_id: str) -> tuple[WaferClass, ...]:
        """Returns the classes in order, the none class first."""
        raise NotImplementedError

    async def suggestions(self, project_id: str) -> tuple[str, ...]:
        """Returns canonical pattern names that the project has no class for."""
        raise NotImplementedError

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
        raise NotImplementedError

    async def rename(self, class_id: str, name: str, *, expected_version: int | None = None) -> Change:
        """Renames a class. Its id, wafers and models stay what they are.

        Raises:
            InvalidArgumentError: The name is empty or too long.
            AlreadyExistsError: Another class has the name (reason CLASS_NAME_TAKEN).
        """
        raise NotImplementedError

    async def recolour(self, class_id: str, colour: str, *, expected_version: int | None = None) -> Change:
        """Changes the colour of a class.

        Raises:
            InvalidArgumentError: The colour is not `#rrggbb`.
        """
        raise NotImplementedError

    async def enable(self, class_id: str, enabled: bool, *, expected_version: int | None = None) -> Change:
        """Lets a class take part in training, or not."""
        raise NotImplementedError

    async def reorder(self, project_id: str, class_ids: Sequence[str]) -> None:
        """Puts the classes in this order; the none class stays first.

        Raises:
            InvalidArgumentError: These are not exactly the classes of the project.
        """
        raise NotImplementedError

    async def clear(self, class_id: str) -> Change:
        """Removes all wafers of a class."""
        raise NotImplementedError

    async def merge(self, class_id: str, into_class_id: str) -> Change:
        """Moves all wafers of a class into another one of the project and deletes the empty class.

        Raises:
            InvalidArgumentError: Both are the same, of different projects, or the first is the none class.
        """
        raise NotImplementedError

    async def delete(self, class_id: str) -> Change:
        """Deletes a class with its wafers.

        Raises:
            FailedPreconditionError: It is the none class (reason NONE_CLASS_PINNED).
        """
        raise NotImplementedError
