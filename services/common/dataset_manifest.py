"""What a data set version consists of, and its manifest."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from services.common.errors import DataLossError
from services.common.splitting import Split

FORMAT_VERSION = 1
"""Version of the layout that is written and read."""


class Origin(StrEnum):
    """How a wafer came into being."""

    UPLOADED = "uploaded"
    DRAWN = "drawn"
    SIMULATED = "simulated"
    VARIATION = "variation"
    LEARNED = "learned"


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
    """

    wafer_id: str
    dies: NDArray[np.uint8]
    class_id: str
    lot: str
    origin: Origin
    parent_id: str = ""
    split: Split = Split.TRAIN


@dataclass(frozen=True, slots=True)
class DatasetManifest:
    """What is known of a data set version without reading it.

    Attributes:
        dataset_id: its identifier.
        classes: its classes, in the order of their indices.
        wafers: number of wafers.
        counts: wafers of each class id on each side.
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
