"""Wafers of the catalogue and their pictures."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from gateway.values.common import Change
from services.common.dataset import GENERATED, Origin
from services.common.wafer_map import WaferMap


@dataclass(frozen=True, slots=True)
class WaferInfo:
    """A wafer without its dies.

    Attributes:
        wafer_id: Stable identifier.
        project_id: Its project.
        class_id: Its class.
        lot: Its lot, "" when unknown.
        wafer: Identifier inside the lot, "" when unknown.
        slot: Slot in the carrier, 0 when unknown.
        rows: Die rows.
        columns: Die columns.
        dies: Dies on it.
        failed: Dies that failed.
        origin: How it came into being.
        parent_id: For generated wafers the wafer it was made from, else "".
        source_name: File or entry it was read from, "" for others.
        created_at: When it was added.
        duplicates: Other wafers of the project with exactly the same dies.
        also: Ids of further classes that it shows, in the order of the classes.
    """

    wafer_id: str
    project_id: str
    class_id: str
    lot: str
    wafer: str
    slot: int
    rows: int
    columns: int
    dies: int
    failed: int
    origin: Origin
    parent_id: str
    source_name: str
    created_at: datetime
    duplicates: int = 0
    also: tuple[str, ...] = ()

    @property
    def generated(self) -> bool:
        """Whether the generator made it."""
        return self.origin in GENERATED


@dataclass(frozen=True, slots=True, eq=False)
class WaferDetail:
    """A wafer with its dies.

    Attributes:
        info: What is known about it.
        map: The die grid with identity and geometry.
    """

    info: WaferInfo
    map: WaferMap


@dataclass(frozen=True, slots=True)
class WaferPage:
    """A page of wafers, newest first.

    Attributes:
        wafers: The wafers.
        next_token: `page_token` of the next page; "" on the last.
        total: Wafers on all pages together.
    """

    wafers: tuple[WaferInfo, ...]
    next_token: str
    total: int


@dataclass(frozen=True, slots=True)
class Added:
    """What was added to a class.

    Attributes:
        wafer_ids: New wafers in the order given; duplicates are missing.
        duplicates: Wafers left out because their class holds the same dies already.
        change: Token to take it back; None when nothing was added.
    """

    wafer_ids: tuple[str, ...]
    duplicates: int
    change: Change | None


@dataclass(frozen=True, slots=True)
class Sprite:
    """Thumbnails side by side in one PNG.

    Tile i lies at column i % columns, row i // columns, each `tile` x `tile` pixels; places without die are
    transparent.

    Attributes:
        png: The picture.
        tile: Side of a tile, pixels.
        columns: Tiles side by side.
        wafer_ids: Wafer of each tile.
        etag: Changes with the content.
    """

    png: bytes
    tile: int
    columns: int
    wafer_ids: tuple[str, ...]
    etag: str
