"""Wafers of one sprite sheet as a strip of small pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nicegui.element import Element


@dataclass(frozen=True, slots=True)
class Thumb:
    """One small picture.

    Attributes:
        id: What the picture stands for.
        label: What it shows, for screen readers.
        badge: A few letters over the picture; empty for none.
        note: What is said below the enlarged picture; empty for nothing.
    """

    id: str
    label: str
    badge: str = ""
    note: str = ""


class WaferStrip(Element, component="wafer_strip.js"):
    """Wafers of one sprite sheet, in the order of the sheet.

    Args:
        thumbs: The pictures.
        sheet: Address of the sprite sheet.
        columns: Pictures in a row of the sheet.
        label: What the strip shows, for screen readers.
        on_pick: Called with the id of a picture that is clicked.
        on_remove: Called with the id of a picture whose cross is clicked; absent: no crosses.
        delete_label: Name of the cross.
        one_line: Whether to scroll sideways instead of wrapping.
        marking: Whether clicking marks pictures (see `mark_only`).
        crossing: Whether marked pictures are crossed out instead of framed.
    """

    def __init__(
        self,
        thumbs: Sequence[Thumb],
        sheet: str,
        columns: int,
        label: str,
        *,
        on_pick: Callable[[str], Any],
        on_remove: Callable[[str], Any] | None = None,
        delete_label: str = "",
        one_line: bool = False,
        marking: bool = False,
        crossing: bool = False,
    ) -> None:
        super().__init__()
        self.props.update(
            {
                "items": [
                    {"id": each.id, "label": each.label, "badge": each.badge, "note": each.note} for each in thumbs
                ],
                "sheet": sheet,
                "columns": columns,
                "rows": -(-len(thumbs) // columns),
                "label": label,
                "delete-label": delete_label if on_remove else "",
                "one-line": one_line,
                "marking": marking,
                "crossing": crossing,
                "marked": [],
            }
        )
        self.on("pick", lambda event: on_pick(str(event.args["id"])))
        if on_remove is not None:
            self.on("remove", lambda event: on_remove(str(event.args["id"])))

    def mark_only(self, ids: Sequence[str]) -> None:
        """Marks exactly these pictures."""
        self.props["marked"] = list(ids)
        self.update()
