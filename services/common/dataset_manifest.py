"""What a data set version consists of, its manifest, and the rules that its wafers keep together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from services.common.errors import DataLossError, InvalidArgumentError
from services.common.splitting import Split
from services.common.task import NORMAL_PATTERN
from services.common.wafer_set import GridSequence

FORMAT_VERSION = 1
"""Version of the layout that is written and read."""


class Origin(StrEnum):
    """How a wafer came into being."""

    UPLOADED = "uploaded"
    DRAWN = "drawn"
    SIMULATED = "simulated"
    VARIATION = "variation"
    LEARNED = "learned"


GENERATED = (Origin.VARIATION, Origin.LEARNED)
"""Origins of wafers that are made from others; they may teach and never judge."""


@dataclass(frozen=True, slots=True)
class DatasetClass:
    """A class of a data set.

    Attributes:
        class_id: stable identifier; never changes.
        display_name: name for people; may change from version to version.
        pattern: canonical pattern name (Center, Donut, Edge-Loc, Edge-Ring, Loc, Near-full, Random, Scratch, none),
            or "" for a class of the fab's own.
    """

    class_id: str
    display_name: str
    pattern: str = ""

    @property
    def normal(self) -> bool:
        """Whether it is the class of wafers that show nothing; it excludes every other."""
        return self.pattern == NORMAL_PATTERN


@dataclass(frozen=True, slots=True, eq=False)
class DatasetWafer:
    """A wafer of a data set.

    Attributes:
        wafer_id: unique inside the data set.
        dies: uint8 (rows, columns): 0 no die, 1 pass, 2 fail.
        class_id: its class.
        lot: its lot, "" when unknown.
        origin: how it came into being.
        parent_id: for generated wafers the wafer it was made from, else "".
        split: side on which it stands.
        also: further classes that it shows, in any order; never the normal one.
    """

    wafer_id: str
    dies: NDArray[np.uint8]
    class_id: str
    lot: str
    origin: Origin
    parent_id: str = ""
    split: Split = Split.TRAIN
    also: tuple[str, ...] = ()

    @property
    def class_ids(self) -> tuple[str, ...]:
        """All classes that it shows."""
        return (self.class_id, *self.also)


@dataclass(frozen=True, slots=True, eq=False)
class GeneratedWafers:
    """Wafers made from others of one class, a column each: no object a wafer, however many there are.

    They stand in training, with the lots of their parents.

    Attributes:
        series: beginning of their ids, which goes on with their number; ends with no digit.
        first: number of the first one; within a series numbers only grow.
        grids: their dies.
        class_id: their class.
        origin: how they came into being, one of `GENERATED`.
        parents: position in `parent_ids` and `lots` of each one's parent, int (n,).
        parent_ids: ids of possible parents.
        lots: lot of each of them, "" when unknown.
    """

    series: str
    first: int
    grids: GridSequence
    class_id: str
    origin: Origin
    parents: NDArray[np.integer]
    parent_ids: Sequence[str]
    lots: Sequence[str]

    def __len__(self) -> int:
        return len(self.grids)


@dataclass(frozen=True, slots=True)
class DatasetManifest:
    """What is known of a data set version without reading it.

    Attributes:
        dataset_id: its identifier.
        classes: its classes, in the order of their indices.
        wafers: number of wafers.
        counts: wafers that show each class id on each side; one that shows several counts for each of them.
        origins: wafers of each origin.
        lots: number of different known lots.
        parent: data set version that it continues, or "".
        sha256: hash of the Parquet file.
        size_bytes: size of the Parquet file.
        created_at: when it was finished, UTC.
        format_version: version of the layout.
    """

    dataset_id: str
    classes: tuple[DatasetClass, ...]
    wafers: int
    counts: Mapping[str, Mapping[Split, int]]
    origins: Mapping[Origin, int]
    lots: int
    parent: str
    sha256: str
    size_bytes: int
    created_at: datetime
    format_version: int = FORMAT_VERSION

    @property
    def name(self) -> str:
        """Resource name, `datasetVersions/{id}`."""
        return f"datasetVersions/{self.dataset_id}"

    def to_json(self) -> str:
        """Return the manifest as it is stored."""
        return json.dumps(
            {
                "format_version": self.format_version,
                "dataset_id": self.dataset_id,
                "parent": self.parent,
                "created_at": self.created_at.isoformat(),
                "wafers": self.wafers,
                "lots": self.lots,
                "classes": [
                    {"class_id": each.class_id, "display_name": each.display_name, "pattern": each.pattern}
                    for each in self.classes
                ],
                "counts": {
                    class_id: {side.value: count for side, count in sides.items()}
                    for class_id, sides in self.counts.items()
                },
                "origins": {origin.value: count for origin, count in self.origins.items()},
                "file": {"name": "wafers.parquet", "sha256": self.sha256, "size_bytes": self.size_bytes},
            },
            indent=2,
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> "DatasetManifest":
        """Return the manifest that `to_json` wrote.

        Raises:
            DataLossError: it is damaged or of a layout that this version does not read.
        """
        try:
            data = json.loads(text)
            if data["format_version"] != FORMAT_VERSION:
                raise DataLossError(
                    f"Expected a data set of layout {FORMAT_VERSION}. Received: {data['format_version']!r}. "
                    f"Read it with the release that wrote it, or freeze it again."
                )
            return cls(
                dataset_id=data["dataset_id"],
                classes=tuple(DatasetClass(**each) for each in data["classes"]),
                wafers=data["wafers"],
                counts={
                    class_id: {Split(side): count for side, count in sides.items()}
                    for class_id, sides in data["counts"].items()
                },
                origins={Origin(origin): count for origin, count in data["origins"].items()},
                lots=data["lots"],
                parent=data["parent"],
                sha256=data["file"]["sha256"],
                size_bytes=data["file"]["size_bytes"],
                created_at=datetime.fromisoformat(data["created_at"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataLossError(
                f"The manifest of the data set is damaged ({error!r}). Freeze the data set again."
            ) from error


@dataclass(slots=True)
class DatasetTally:
    """What a writer has seen so far; holds the rules that concern more than one wafer.

    Attributes:
        counts: wafers that show each class id on each side.
        normal: ids of normal classes.
        origins: wafers of each origin.
        side_of_lot: side of each known lot.
        side_of_wafer: side of each wafer id, but for those of series.
        parents: parent of each child, but for those of series.
        next_of_series: number after the last one of each series of generated wafers. A series is all that is kept of
            its wafers, so that memory does not grow with them.
        parents_of_series: ids of the parents of all series.
        wafers: wafers so far.
    """

    counts: dict[str, dict[Split, int]]
    normal: frozenset[str] = frozenset()
    origins: dict[Origin, int] = field(default_factory=dict)
    side_of_lot: dict[str, Split] = field(default_factory=dict)
    side_of_wafer: dict[str, Split] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    next_of_series: dict[str, int] = field(default_factory=dict)
    parents_of_series: set[str] = field(default_factory=set)
    wafers: int = 0

    def add(self, wafer: DatasetWafer) -> None:
        """Count a wafer.

        Raises:
            InvalidArgumentError: it breaks a rule together with those before it; see `DatasetWriter.add`.
        """
        if not wafer.wafer_id or wafer.wafer_id in self.side_of_wafer or self._in_series(wafer.wafer_id):
            raise InvalidArgumentError(
                f"Expected a wafer_id that no other wafer of the data set has. Received: {wafer.wafer_id!r}.",
                field="wafer_id",
            )
        self._check_class(wafer.class_id, wafer.wafer_id)
        self._check_also(wafer)
        if wafer.origin in GENERATED and wafer.split is not Split.TRAIN:
            raise InvalidArgumentError(
                f"Expected generated wafers in training only. Received: {wafer.wafer_id!r} in {wafer.split}.",
                field="split",
            )
        self._put_lot(wafer.lot, wafer.split)
        self.wafers += 1
        self.side_of_wafer[wafer.wafer_id] = wafer.split
        if wafer.parent_id:
            self.parents[wafer.wafer_id] = wafer.parent_id
        self.origins[wafer.origin] = self.origins.get(wafer.origin, 0) + 1
        for class_id in wafer.class_ids:
            self.counts[class_id][wafer.split] += 1

    def add_generated(self, wafers: GeneratedWafers) -> None:
        """Count generated wafers.

        Raises:
            InvalidArgumentError: they break a rule together with those before them; see `DatasetWriter.add_generated`.
        """
        if not len(wafers):
            return
        first = f"{wafers.series}{wafers.first}"
        if wafers.origin not in GENERATED:
            raise InvalidArgumentError(
                f"Expected an origin out of {', '.join(GENERATED)}. Received: {wafers.origin} for wafer {first!r}.",
                field="origin",
            )
        self._check_class(wafers.class_id, first)
        self._extend_series(wafers.series, wafers.first, len(wafers))
        used = np.unique(wafers.parents)
        if len(wafers.parents) != len(wafers) or not 0 <= used[0] <= used[-1] < len(wafers.parent_ids):
            raise InvalidArgumentError(
                f"Expected one position below {len(wafers.parent_ids)} for each of {len(wafers)} wafers. "
                f"Received: {len(wafers.parents)} from {used[0]} to {used[-1]}.",
                field="parents",
            )
        for place in used.tolist():
            self._put_lot(wafers.lots[place], Split.TRAIN)
            self.parents_of_series.add(wafers.parent_ids[place])
        self.wafers += len(wafers)
        self.origins[wafers.origin] = self.origins.get(wafers.origin, 0) + len(wafers)
        self.counts[wafers.class_id][Split.TRAIN] += len(wafers)

    def check_families(self) -> None:
        """Compare the sides of children and parents.

        Raises:
            InvalidArgumentError: a child stands on another side than its parent.
        """
        for parent in self.parents_of_series:
            if (side := self.side_of_wafer.get(parent, Split.TRAIN)) is not Split.TRAIN:
                raise InvalidArgumentError(
                    f"Expected parents of generated wafers in training. Received: {parent!r} in {side}.", field="split"
                )
        for child, parent in self.parents.items():
            if self.side_of_wafer.get(parent, Split.TRAIN) is not self.side_of_wafer[child]:
                raise InvalidArgumentError(
                    f"Expected parents and children on one side. Received: {parent!r} in {self.side_of_wafer[parent]} "
                    f"and its child {child!r} in {self.side_of_wafer[child]}.",
                    field="split",
                )

    def _check_class(self, class_id: str, wafer_id: str) -> None:
        if class_id not in self.counts:
            raise InvalidArgumentError(
                f"Expected one of the classes {', '.join(self.counts)}. Received: {class_id!r} for wafer {wafer_id!r}.",
                field="class_id",
            )

    def _put_lot(self, lot: str, side: Split) -> None:
        if lot and self.side_of_lot.setdefault(lot, side) is not side:
            raise InvalidArgumentError(
                f"Expected each lot on one side. Received: lot {lot!r} in {self.side_of_lot[lot]} and in {side}. "
                f"Split by lot.",
                field="split",
            )

    def _in_series(self, wafer_id: str) -> bool:
        """Say whether an id is one of a series; one that ends with no digit is numbered in one way only."""
        head = wafer_id.rstrip("0123456789")
        number = wafer_id[len(head) :]
        return bool(number) and str(int(number)) == number and int(number) < self.next_of_series.get(head, 0)

    def _extend_series(self, series: str, first: int, count: int) -> None:
        if not series or series[-1].isdigit():
            raise InvalidArgumentError(
                f"Expected the beginning of ids, without a digit at its end. Received: {series!r}.", field="series"
            )
        if first < self.next_of_series.get(series, 0):
            raise InvalidArgumentError(
                f"Expected numbers from {self.next_of_series[series]} on in series {series!r}. Received: {first}.",
                field="first",
            )
        new = series not in self.next_of_series
        self.next_of_series[series] = first + count
        if new and (taken := next(filter(self._in_series, self.side_of_wafer), None)) is not None:
            raise InvalidArgumentError(
                f"Expected a series whose ids no other wafer of the data set has. Received: {series!r}, but there is "
                f"{taken!r}.",
                field="series",
            )

    def _check_also(self, wafer: DatasetWafer) -> None:
        unknown = [each for each in wafer.also if each not in self.counts]
        if unknown or len(set(wafer.class_ids)) != len(wafer.class_ids):
            raise InvalidArgumentError(
                f"Expected further classes out of {', '.join(self.counts)}, each once. "
                f"Received: {', '.join(wafer.class_ids)} for wafer {wafer.wafer_id!r}.",
                field="also",
            )
        if wafer.also and not self.normal.isdisjoint(wafer.class_ids):
            raise InvalidArgumentError(
                f"Expected a normal wafer to show nothing else. Received: {', '.join(wafer.class_ids)} for wafer "
                f"{wafer.wafer_id!r}. Leave the normal class or the patterns out.",
                field="also",
            )
