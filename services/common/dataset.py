"""Data set versions: immutable, hashed sets of labelled wafers on which models are taught and measured.

A version is two blobs of the store: `datasets/{id}/wafers.parquet` and `datasets/{id}/manifest.json`.
The manifest is written last and once: what has no manifest does not exist.
"""

import hashlib
import re
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from services.common.dataset_manifest import (
    GENERATED,
    DatasetClass,
    DatasetManifest,
    DatasetTally,
    DatasetWafer,
    GeneratedWafers,
    Origin,
)
from services.common.errors import AlreadyExistsError, DataLossError, InvalidArgumentError, NotFoundError
from services.common.files import file_sha256
from services.common.splitting import Split
from services.common.store import BlobStore
from services.common.wafer_map import checked_dies
from services.common.wafer_set import GridSequence, check_grids

__all__ = [
    "GENERATED",
    "Dataset",
    "DatasetClass",
    "DatasetManifest",
    "DatasetWafer",
    "DatasetWriter",
    "GeneratedWafers",
    "Origin",
    "Split",
    "new_dataset_id",
    "open_dataset",
    "read_manifest",
]

ROW_GROUP = 1024
"""Most wafers in a row group, the unit in which a data set is written and read."""

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SCHEMA = pa.schema(
    [
        pa.field("wafer_id", pa.string(), nullable=False),
        pa.field("dies", pa.binary(), nullable=False),
        pa.field("rows", pa.int32(), nullable=False),
        pa.field("columns", pa.int32(), nullable=False),
        pa.field("class_id", pa.string(), nullable=False),
        pa.field("lot", pa.string(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("parent_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("also", pa.list_(pa.string()), nullable=False),
    ]
)


def new_dataset_id() -> str:
    """Return an identifier that no data set has: date and time for people, random digits for uniqueness."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:12]}"


class DatasetWriter:
    """Writes a data set version with flat memory; a context manager.

    Left without `finish`, nothing of it is visible.

    Args:
        store: where the version goes.
        dataset_id: its identifier, from `new_dataset_id`.
        classes: its classes, in the order of their indices.
        parent: data set version that it continues, or "".

    Raises:
        InvalidArgumentError: the identifier or the classes are no valid ones.
    """

    def __init__(self, store: BlobStore, dataset_id: str, classes: Sequence[DatasetClass], parent: str = "") -> None:
        self._store = store
        self._id = _checked_id(dataset_id)
        self._classes = _checked_classes(classes)
        self._parent = parent
        self._tally = DatasetTally(
            counts={each.class_id: dict.fromkeys(Split, 0) for each in classes},
            normal=frozenset(each.class_id for each in classes if each.normal),
        )
        self._rows: list[tuple[DatasetWafer, NDArray[np.uint8]]] = []
        self._folder = tempfile.TemporaryDirectory(prefix="teachwafer-dataset-")
        self._path = Path(self._folder.name) / "wafers.parquet"
        # Dictionaries would grow over the whole file for identifiers; short repeated texts gain from them. Statistics
        # of dies would only store two of them a row group.
        self._writer = pq.ParquetWriter(
            self._path,
            _SCHEMA,
            compression="zstd",
            use_dictionary=["class_id", "lot", "origin", "split"],
            write_statistics=[name for name in _SCHEMA.names if name not in ("dies", "also")],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def add(self, wafers: Iterable[DatasetWafer]) -> None:
        """Append wafers.

        Raises:
            InvalidArgumentError: a wafer is invalid, its identifier is taken, one of its classes is unknown or comes
                twice, it is normal and shows something, it is generated and not in training, or its lot stands on
                another side already.
        """
        for wafer in wafers:
            dies = checked_dies(wafer.dies)
            self._tally.add(wafer)
            self._rows.append((wafer, dies))
            if len(self._rows) == ROW_GROUP:
                self._flush()

    def add_generated(self, wafers: GeneratedWafers) -> None:
        """Append generated wafers, column by column; memory does not grow with their number.

        Raises:
            InvalidArgumentError: a grid is invalid, the origin is none of generated wafers, the class is unknown, the
                ids are taken, a parent's position is out of range, or its lot stands on another side than training.
        """
        check_grids(wafers.grids)
        self._tally.add_generated(wafers)
        self._flush()
        self._writer.write_batch(_columns_of(wafers), row_group_size=ROW_GROUP)

    def finish(self) -> DatasetManifest:
        """Make the version visible and return its manifest.

        Raises:
            InvalidArgumentError: it holds no wafer, or a child stands on another side than its parent.
            AlreadyExistsError: there is a version of this identifier already.
        """
        self._flush()
        self._tally.check_families()
        if not self._tally.wafers:
            raise InvalidArgumentError("Expected a data set with at least one wafer. Received: none.", field="wafers")
        self._writer.close()
        manifest = DatasetManifest(
            dataset_id=self._id,
            classes=self._classes,
            wafers=self._tally.wafers,
            counts=self._tally.counts,
            origins=self._tally.origins,
            lots=len(self._tally.side_of_lot),
            parent=self._parent,
            sha256=file_sha256(self._path),
            size_bytes=self._path.stat().st_size,
            created_at=datetime.now(UTC),
        )
        self._publish(manifest)
        self._close()
        return manifest

    def _publish(self, manifest: DatasetManifest) -> None:
        taken = AlreadyExistsError("data set version", self._id, f"Data set version {self._id!r} exists already.")
        # Never overwrite: another writer with the same identifier may have finished a moment ago.
        if not self._store.put_if_absent(_parquet_key(self._id), self._path) and (
            _stored_sha256(self._store, self._id) != manifest.sha256
        ):
            raise taken
        if not self._store.put_if_absent(_manifest_key(self._id), manifest.to_json().encode()):
            raise taken

    def _flush(self) -> None:
        if not self._rows:
            return
        wafers = [wafer for wafer, _ in self._rows]
        columns = {
            "wafer_id": [wafer.wafer_id for wafer in wafers],
            "dies": [dies.tobytes() for _, dies in self._rows],
            "rows": [dies.shape[0] for _, dies in self._rows],
            "columns": [dies.shape[1] for _, dies in self._rows],
            "class_id": [wafer.class_id for wafer in wafers],
            "lot": [wafer.lot for wafer in wafers],
            "origin": [wafer.origin.value for wafer in wafers],
            "parent_id": [wafer.parent_id for wafer in wafers],
            "split": [wafer.split.value for wafer in wafers],
            "also": [list(wafer.also) for wafer in wafers],
        }
        self._writer.write_table(pa.Table.from_pydict(columns, schema=_SCHEMA), row_group_size=ROW_GROUP)
        self._rows.clear()

    def _close(self) -> None:
        self._rows.clear()
        self._writer.close()
        self._folder.cleanup()


class Dataset:
    """A data set version that was verified when it was opened. Reading is streamed and never changes it.

    A version from another machine is downloaded first; its copy goes with `close`, at the end of a `with`, or with this
    object.

    Attributes:
        manifest: what is known of it.
        path: its Parquet file on this machine.
    """

    def __init__(self, manifest: DatasetManifest, path: Path, temporary: Path | None) -> None:
        self.manifest = manifest
        self.path = path
        self._remove = None if temporary is None else weakref.finalize(self, shutil.rmtree, temporary, True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the downloaded copy, if there is one; nothing can be read any more then."""
        if self._remove is not None:
            self._remove()

    @property
    def classes(self) -> tuple[DatasetClass, ...]:
        """Classes in the order of their indices."""
        return self.manifest.classes

    def iter_batches(
        self, columns: Sequence[str] | None = None, split: Split | None = None, batch_size: int = ROW_GROUP
    ) -> Iterator[pa.RecordBatch]:
        """Yield record batches in the order of writing.

        Args:
            columns: names of the columns to read, None for all: wafer_id, dies (bytes), rows, columns, class_id, lot,
                origin, parent_id, split, also (list of texts; data sets written before it existed have none).
            split: only wafers of this side; None for all.
            batch_size: most wafers in a batch.
        """
        read = None if columns is None else list(dict.fromkeys([*columns, "split"]))
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(batch_size=batch_size, columns=read):
                chosen = batch
                if split is not None:
                    chosen = batch.filter(pc.equal(batch.column("split"), split.value))
                if chosen.num_rows:
                    yield chosen if columns is None else chosen.select(list(columns))

    def iter_wafers(self, split: Split | None = None) -> Iterator[DatasetWafer]:
        """Yield the wafers one by one, in the order of writing; their dies are read-only."""
        for batch in self.iter_batches(split=split):
            for row, dies in zip(batch.drop_columns(["dies"]).to_pylist(), _grids(batch), strict=True):
                yield DatasetWafer(
                    wafer_id=row["wafer_id"],
                    dies=dies,
                    class_id=row["class_id"],
                    lot=row["lot"],
                    origin=Origin(row["origin"]),
                    parent_id=row["parent_id"],
                    split=Split(row["split"]),
                    also=tuple(row.get("also", ())),
                )

    def grids(self, split: Split | None = None) -> list[NDArray[np.uint8]]:
        """Return the die grids, uint8 (rows, columns) each, read-only, in the order of writing."""
        return [dies for batch in self.iter_batches(["dies", "rows", "columns"], split) for dies in _grids(batch)]

    def labels(self, split: Split | None = None) -> NDArray[np.int64]:
        """Return the index of each wafer's `class_id` in `classes`, int64 (n,), in the order of writing."""
        index = {each.class_id: position for position, each in enumerate(self.classes)}
        return np.array([index[class_id] for class_id in self.texts("class_id", split)], np.int64)

    def lots(self, split: Split | None = None) -> list[str]:
        """Return the lot of each wafer, "" when unknown, in the order of writing."""
        return self.texts("lot", split)

    def texts(self, column: str, split: Split | None = None) -> list[str]:
        """Return one text column: wafer_id, class_id, lot, origin, parent_id or split."""
        return [text for batch in self.iter_batches([column], split) for text in batch.column(column).to_pylist()]


def open_dataset(store: BlobStore, dataset_id: str) -> Dataset:
    """Open a data set version after comparing its file with the manifest's hash.

    Args:
        store: where it lies.
        dataset_id: its identifier, or its name `datasetVersions/{id}`.

    Raises:
        NotFoundError: there is no such version.
        DataLossError: its file is missing or differs from what was written.
    """
    identifier = _checked_id(dataset_id.removeprefix("datasetVersions/"))
    manifest = read_manifest(store, identifier)
    dataset = _fetch(store, manifest)
    found = file_sha256(dataset.path)
    if found != manifest.sha256:
        dataset.close()
        raise DataLossError(
            f"Expected data set {identifier!r} with SHA-256 {manifest.sha256}. Received: {found}. "
            f"Its file was changed or damaged; restore it from a backup or freeze the data set again."
        )
    return dataset


def read_manifest(store: BlobStore, dataset_id: str) -> DatasetManifest:
    """Return the manifest of a data set version without opening the version.

    Raises:
        NotFoundError: there is no such version.
        DataLossError: its manifest is damaged.
    """
    identifier = _checked_id(dataset_id.removeprefix("datasetVersions/"))
    try:
        text = store.get(_manifest_key(identifier))
    except NotFoundError as error:
        raise NotFoundError("data set version", f"datasetVersions/{identifier}") from error
    return DatasetManifest.from_json(text)


def _fetch(store: BlobStore, manifest: DatasetManifest) -> Dataset:
    """Return the data set with its file in reach, not verified yet."""
    key = _parquet_key(manifest.dataset_id)
    try:
        path = store.local_path(key)
        if path is not None:
            return Dataset(manifest, path, temporary=None)
        folder = Path(tempfile.mkdtemp(prefix="teachwafer-dataset-"))
        dataset = Dataset(manifest, folder / "wafers.parquet", temporary=folder)
        store.download(key, dataset.path)
    except NotFoundError as error:
        raise DataLossError(
            f"Data set {manifest.dataset_id!r} has a manifest but no wafers.parquet. Restore it from a backup."
        ) from error
    return dataset


def grid_columns(grids: GridSequence) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Return dies (binary), rows and columns (int32) of grids as Arrow arrays; the dies are not copied."""
    offsets, dies = pa.py_buffer(grids.offsets.astype(np.int32)), pa.py_buffer(np.ascontiguousarray(grids.dies))
    rows, columns = (pa.array(grids.shapes[:, axis].astype(np.int32)) for axis in (0, 1))
    return pa.Array.from_buffers(pa.binary(), len(grids), [None, offsets, dies]), rows, columns


def _columns_of(wafers: GeneratedWafers) -> pa.RecordBatch:
    """Return generated wafers as Parquet stores them; their dies are not copied."""
    count = len(wafers)
    numbers = pa.array(np.arange(wafers.first, wafers.first + count)).cast(pa.string())
    parents = pa.array(wafers.parents)
    dies, rows, widths = grid_columns(wafers.grids)
    columns = {
        "wafer_id": pc.binary_join_element_wise(wafers.series, numbers, ""),
        "dies": dies,
        "rows": rows,
        "columns": widths,
        "class_id": pa.repeat(wafers.class_id, count),
        "lot": pa.array(wafers.lots, pa.string()).take(parents),
        "origin": pa.repeat(wafers.origin.value, count),
        "parent_id": pa.array(wafers.parent_ids, pa.string()).take(parents),
        "split": pa.repeat(Split.TRAIN.value, count),
        "also": pa.ListArray.from_arrays(pa.array(np.zeros(count + 1, np.int32)), pa.array([], pa.string())),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in _SCHEMA.names], schema=_SCHEMA)


def _grids(batch: pa.RecordBatch) -> Iterator[NDArray[np.uint8]]:
    sizes = zip(batch.column("rows").to_numpy(), batch.column("columns").to_numpy(), strict=True)
    for dies, (rows, columns) in zip(batch.column("dies"), sizes, strict=True):
        yield np.frombuffer(dies.as_buffer(), np.uint8).reshape(rows, columns)


def _stored_sha256(store: BlobStore, dataset_id: str) -> str:
    digest = hashlib.sha256()
    for chunk in store.stream(_parquet_key(dataset_id)):
        digest.update(chunk)
    return digest.hexdigest()


def _checked_id(dataset_id: str) -> str:
    if not _ID.fullmatch(dataset_id):
        raise InvalidArgumentError(
            f"Expected 1 to 63 lower-case letters, digits and hyphens. Received: {dataset_id[:100]!r}.",
            field="dataset_id",
        )
    return dataset_id


def _checked_classes(classes: Sequence[DatasetClass]) -> tuple[DatasetClass, ...]:
    ids = [each.class_id for each in classes]
    if not ids or "" in ids or len(set(ids)) != len(ids):
        raise InvalidArgumentError(f"Expected classes with different ids. Received: {ids}.", field="classes")
    return tuple(classes)


def _manifest_key(dataset_id: str) -> str:
    return f"datasets/{dataset_id}/manifest.json"


def _parquet_key(dataset_id: str) -> str:
    return f"datasets/{dataset_id}/wafers.parquet"
