"""Uploads between the drop zone and the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.values.common import Change
from services.common.wafer_map import WaferMap


@dataclass(frozen=True, slots=True)
class UploadFile:
    """A file that a person sent.

    Attributes:
        name: Name as the browser sends it; a relative path when a folder was dropped. Never used as a path.
        source: Where it lies on this machine, or its content.
    """

    name: str
    source: Path | bytes


@dataclass(frozen=True, slots=True)
class SkippedEntry:
    """Something in an upload that is no wafer or cannot be read.

    Attributes:
        name: File or entry.
        reason: Stable UPPER_SNAKE_CASE key, as `UNKNOWN_FORMAT`, `TOO_LARGE`, `UNSAFE_NAME`, `UNREADABLE`.
        message: The reader's words, English.
    """

    name: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class InOtherClass:
    """Wafers of an upload whose dies are in the project already.

    Attributes:
        class_id: Class that holds them.
        name: Its name.
        count: Wafers.
    """

    class_id: str
    name: str
    count: int


@dataclass(frozen=True, slots=True)
class LabelGroup:
    """Wafers of an upload that carry the same label.

    Attributes:
        label: Label as it stands in the file or folder name; "" for wafers without one.
        count: Wafers that carry it and can be added.
        class_id: Class they go to unless told otherwise; "" makes a new class.
        class_name: Name of that class, or of the new one.
        pattern: Canonical pattern that the label means, or "".
        also: Names of the further classes that its wafers show, where they may show several.
    """

    label: str
    count: int
    class_id: str
    class_name: str
    pattern: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where the wafers of a label go.

    Attributes:
        class_id: An existing class, or "".
        new_name: Name of the class to make when class_id is empty. Both empty: leave the wafers out.
    """

    class_id: str = ""
    new_name: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class ExampleMap:
    """A wafer of an upload as it will be used.

    Attributes:
        map: The die grid.
        label: Its label, or "".
        source_name: File or entry.
    """

    map: WaferMap
    label: str
    source_name: str


@dataclass(frozen=True, slots=True)
class ImportPreview:
    """What an upload holds. Nothing of it is stored yet.

    Attributes:
        import_id: Token for `Studio.uploads.commit` and `discard`; valid for a day.
        project_id: Project it goes to.
        files: Files received.
        formats: Names of the formats found.
        read: Wafers read.
        new: Wafers that can be added.
        duplicates: Wafers that repeat another one of the upload.
        already: Wafers that the project holds already, by class.
        guessed_geometry: Wafers whose grid was guessed from a picture: look at the examples.
        lot_missing: Wafers without lot.
        skipped: What was left out, at most 200 entries.
        skipped_count: All that was left out.
        labels: Wafers by label, the largest first.
        examples: Up to three wafers, as different as the upload allows.
        warnings: Further words of the readers, English, at most 20.
    """

    import_id: str
    project_id: str
    files: int
    formats: tuple[str, ...]
    read: int
    new: int
    duplicates: int
    already: tuple[InOtherClass, ...]
    guessed_geometry: int
    lot_missing: int
    skipped: tuple[SkippedEntry, ...]
    skipped_count: int
    labels: tuple[LabelGroup, ...]
    examples: tuple[ExampleMap, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImportDone:
    """What an upload added.

    Attributes:
        added: New wafers of each class id.
        new_classes: Ids of classes that were made for it.
        left_out: Duplicates and wafers of labels that were left out.
        change: Token to take it back; None when nothing was added.
    """

    added: Mapping[str, int]
    new_classes: tuple[str, ...] = ()
    left_out: int = 0
    change: Change | None = field(default=None)

    @property
    def count(self) -> int:
        """All wafers added."""
        return sum(self.added.values())
