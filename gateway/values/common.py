"""Values that several others use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from services.common.errors import TeachwaferError


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something failed, in a form that can be said in any language.

    Attributes:
        reason: Stable UPPER_SNAKE_CASE key.
        message: The server's own words, English.
        metadata: What fills the gaps of the reason's text.
        code: Name of the gRPC status code, as `FAILED_PRECONDITION`.
    """

    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    code: str = "UNKNOWN"

    @classmethod
    def of(cls, error: TeachwaferError) -> Self:
        """Returns the problem that an error tells of."""
        return cls(error.reason, error.message, dict(error.metadata), error.code.name)


@dataclass(frozen=True, slots=True)
class Change:
    """Something that a person changed in a project and can take back.

    Attributes:
        change_id: Token for `Studio.history.undo`.
        project_id: Project that changed.
        kind: `add_wafers`, `delete_wafers`, `move_wafers`, `show_class`, `hide_class`, `add_class`, `rename_class`,
            `recolour_class`, `enable_class`, `disable_class`, `clear_class`, `merge_class`, `delete_class` or
            `rename_project`.
        params: What the text about it needs, as `count`, `name`, `old_name`, `into`.
        when: When it happened.
        person: Who did it.
        undone: Whether it was taken back already.
    """

    change_id: str
    project_id: str
    kind: str
    params: Mapping[str, str | int]
    when: datetime
    person: str = ""
    undone: bool = False
