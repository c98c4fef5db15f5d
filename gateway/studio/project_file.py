"""A project in one file: a .zip with `project.json`, which says what it is, and `wafers.parquet`."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Connection

from gateway.catalogue import classes, projects, wafers
from gateway.catalogue.classes import MAX_CLASSES, checked_colour, checked_pattern
from gateway.catalogue.names import checked_name, cleaned, name_key
from gateway.catalogue.patterns import NONE
from gateway.catalogue.wafer_rows import NewWafer, to_map
from gateway.values import Task
from services.common.dataset import Origin
from services.common.errors import InvalidArgumentError, TeachwaferError
from services.common.files import file_sha256
from services.common.wafer_map import Notch, WaferGeometry, WaferIdentity, WaferMap

FORMAT: Final = "teachwafer-project"
VERSION: Final = 1
MAX_UNPACKED_BYTES: Final = 4 << 30
"""Most bytes that a project file may unpack to."""
MAX_FILE_WAFERS: Final = 500_000
"""Most wafers of a project file."""

_MANIFEST, _WAFERS, _README = "project.json", "wafers.parquet", "README.txt"
_MAX_MANIFEST_BYTES: Final = 8 << 20
_ROW_GROUP: Final = 2000
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("class", pa.int32()),
        ("also", pa.list_(pa.int32())),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        ("dies", pa.binary()),
        ("bins", pa.binary()),
        ("lot", pa.string()),
        ("wafer", pa.string()),
        ("slot", pa.int32()),
        ("product", pa.string()),
        ("step", pa.string()),
        ("tool", pa.string()),
        ("measured_at", pa.timestamp("us", tz="UTC")),
        ("notch", pa.int32()),
        ("die_pitch_x_mm", pa.float64()),
        ("die_pitch_y_mm", pa.float64()),
        ("origin", pa.string()),
        ("parent", pa.string()),
        ("source_name", pa.string()),
    ]
)
_TEXT = """This is a teachwafer project: classes of wafer maps that a model is taught from.
Open it on the first page of a teachwafer portal, with "Open a project file".

project.json    name, task and classes; the position of a class in the list is the number in the column `class`
wafers.parquet  one row a wafer; also: numbers of further classes that it shows;
                dies: one byte a die, row by row, 0 no die, 1 pass, 2 fail;
                bins: little-endian int32 a die, or nothing
"""


@dataclass(frozen=True, slots=True)
class FileClass:
    """A class of a project file."""

    name: str
    colour: str
    pattern: str
    enabled: bool


@dataclass(frozen=True, slots=True, eq=False)
class FileWafer:
    """A wafer of a project file.

    Attributes:
        position: Position of its class.
        also: Positions of the further classes that it shows.
        file_id: Its id in the file.
        wafer: The wafer; its class_id is empty.
    """

    position: int
    also: tuple[int, ...]
    file_id: str
    wafer: NewWafer


@dataclass(slots=True)
class FileContent:
    """What a project file holds, checked.

    Attributes:
        name: Name of the project.
        task: What its model tells.
        product: Its product.
        classes: Its classes in order.
        wafers: Its wafers.
    """

    name: str
    task: Task
    product: str
    classes: list[FileClass]
    wafers: list[FileWafer] = field(default_factory=list)


def write(connection: Connection, project_id: str, target: Path) -> Path:
    """Writes a project into a file, which appears whole or not at all.

    Args:
        connection: Reading transaction.
        project_id: The project.
        target: The file.

    Raises:
        NotFoundError: There is no such project.
    """
    project = projects.get(connection, project_id)
    present = classes.live(connection, project_id)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".project-") as folder:
        table = Path(folder) / _WAFERS
        position = {each.class_id: index for index, each in enumerate(present)}
        count = _write_wafers(connection, project_id, position, table)
        manifest = {
            "format": FORMAT,
            "format_version": VERSION,
            "name": project.name,
            "task": project.task.value,
            "product": project.product,
            "created_at": project.created_at.isoformat(),
            "wafers": count,
            "classes": [
                {"name": each.name, "colour": each.colour, "pattern": each.pattern, "enabled": each.enabled}
                for each in present
            ],
            "files": {_WAFERS: {"sha256": file_sha256(table), "size": table.stat().st_size}},
        }
        packed = Path(folder) / "project.zip"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(_MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=2))
            archive.writestr(_README, _TEXT)
            # Its columns are compressed already.
            archive.write(table, _WAFERS, compress_type=zipfile.ZIP_STORED)
        packed.replace(target)
    return target


def read(source: Path) -> FileContent:
    """Reads and checks a project file. Nothing in it is trusted.

    Raises:
        InvalidArgumentError: It is none (reason NOT_A_PROJECT_FILE), is damaged (PROJECT_FILE_DAMAGED), was written by
            a newer release (PROJECT_FILE_NEWER) or holds too much (PROJECT_FILE_TOO_LARGE).
    """
    try:
        with zipfile.ZipFile(source) as archive, tempfile.TemporaryDirectory(prefix="teachwafer-project-") as folder:
            manifest = _manifest(archive)
            content = _content(manifest)
            table = Path(folder) / _WAFERS
            _unpack(archive, table, manifest)
            content.wafers = list(_read_wafers(table, content))
            return content
    except TeachwaferError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, NotImplementedError) as error:
        raise _refused("NOT_A_PROJECT_FILE", f"no readable .zip ({error})") from None
    except (pa.ArrowException, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _refused("PROJECT_FILE_DAMAGED", f"a damaged one ({type(error).__name__}: {str(error)[:200]})") from None


def _write_wafers(connection: Connection, project_id: str, position: dict[str, int], path: Path) -> int:
    count = 0
    batch: list[dict[str, Any]] = []
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(batch, schema=_SCHEMA))
            batch.clear()

        for row, also in wafers.walk(connection, project_id, list(position)):
            found = to_map(row)
            batch.append(
                {
                    **{name: getattr(row, name) for name in _SCHEMA.names if hasattr(row, name)},
                    "class": position[row.class_id],
                    "also": [position[each] for each in also],
                    "dies": found.dies.tobytes(),
                    "bins": None if found.bins is None else found.bins.astype("<i4").tobytes(),
                    "parent": row.parent_id,
                }
            )
            count += 1
            if len(batch) == _ROW_GROUP:
                flush()
        flush()
    return count


def _manifest(archive: zipfile.ZipFile) -> dict[str, Any]:
    names = {info.filename: info for info in archive.infolist()}
    if len(names) > 100 or _MANIFEST not in names or _WAFERS not in names:
        raise _refused("NOT_A_PROJECT_FILE", "a .zip without project.json and wafers.parquet")
    if names[_MANIFEST].file_size > _MAX_MANIFEST_BYTES or names[_WAFERS].file_size > MAX_UNPACKED_BYTES:
        raise _refused("PROJECT_FILE_TOO_LARGE", "one that unpacks to too much")
    with archive.open(_MANIFEST) as file:
        manifest = json.loads(file.read(_MAX_MANIFEST_BYTES + 1))
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise _refused("NOT_A_PROJECT_FILE", "a .zip of another kind")
    if manifest.get("format_version") != VERSION:
        raise _refused("PROJECT_FILE_NEWER", f"layout {str(manifest.get('format_version'))[:20]} of another release")
    return manifest


def _content(manifest: dict[str, Any]) -> FileContent:
    found = [
        FileClass(
            name=checked_name(str(each["name"])),
            colour=checked_colour(str(each["colour"])),
            pattern=checked_pattern(str(each["pattern"])),
            enabled=bool(each["enabled"]),
        )
        for each in manifest["classes"]
    ]
    if len(found) > MAX_CLASSES or len({name_key(each.name) for each in found}) < len(found):
        raise _refused("PROJECT_FILE_DAMAGED", "one with too many classes, or the same one twice")
    return FileContent(
        name=checked_name(str(manifest["name"])),
        task=Task(manifest["task"]),
        product=cleaned(str(manifest["product"])),
        classes=found,
    )


def _unpack(archive: zipfile.ZipFile, table: Path, manifest: dict[str, Any]) -> None:
    """Unpacks the wafers to a file of our own name and compares its hash."""
    written = 0
    digest = hashlib.sha256()
    with archive.open(_WAFERS) as packed, table.open("wb") as file:
        while chunk := packed.read(1 << 20):
            written += len(chunk)
            if written > MAX_UNPACKED_BYTES:
                raise _refused("PROJECT_FILE_TOO_LARGE", "one that unpacks to too much")
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != manifest["files"][_WAFERS]["sha256"]:
        raise _refused("PROJECT_FILE_DAMAGED", "one whose wafers are not those that were written")


def _read_wafers(table: Path, content: FileContent) -> Iterator[FileWafer]:
    with pq.ParquetFile(table) as file:
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        if (
            file.metadata.num_rows > MAX_FILE_WAFERS
            or sum(each.total_byte_size for each in groups) > MAX_UNPACKED_BYTES
        ):
            raise _refused("PROJECT_FILE_TOO_LARGE", f"one with {file.metadata.num_rows:,} wafers")
        present = [name for name in _SCHEMA.names if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=_ROW_GROUP, columns=present):
            for row in batch.to_pylist():
                if not 0 <= row["class"] < len(content.classes):
                    raise _refused("PROJECT_FILE_DAMAGED", f"a wafer of class {row['class']}, which is none")
                # Files of earlier releases have no such column.
                also = tuple(row.get("also") or ())
                _check_also(content, row["class"], also)
                yield FileWafer(row["class"], also, str(row["id"]), _wafer(row))


def _check_also(content: FileContent, own: int, also: tuple[int, ...]) -> None:
    """Refuses further classes that no portal would have written."""
    if not also:
        return
    shown = (own, *also)
    fit = len(set(shown)) == len(shown) and all(0 <= each < len(content.classes) for each in shown)
    if content.task is not Task.SEVERAL or not fit or any(content.classes[each].pattern == NONE for each in shown):
        raise _refused("PROJECT_FILE_DAMAGED", f"a wafer that shows the classes {shown!r} together"[:200])


def _wafer(row: dict[str, Any]) -> NewWafer:
    shape = (row["rows"], row["columns"])
    identity = WaferIdentity(
        lot=cleaned(row["lot"]),
        wafer=cleaned(row["wafer"]),
        slot=row["slot"],
        product=cleaned(row["product"]),
        step=cleaned(row["step"]),
        tool=cleaned(row["tool"]),
        measure_time=row["measured_at"],
    )
    found = WaferMap(
        dies=np.frombuffer(row["dies"], np.uint8).reshape(shape),
        identity=identity,
        geometry=WaferGeometry(Notch(row["notch"]), row["die_pitch_x_mm"], row["die_pitch_y_mm"]),
        bins=None if row["bins"] is None else np.frombuffer(row["bins"], "<i4").astype(np.int32).reshape(shape),
    )
    origin = Origin(row["origin"])
    return NewWafer(found, "", origin, parent_id=str(row["parent"]), source_name=cleaned(row["source_name"], 512))


def _refused(reason: str, received: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"Expected a project file as a teachwafer portal writes it. Received: {received}. Download it again.",
        "source",
        reason=reason,
    )
