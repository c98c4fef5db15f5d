"""Shards of generated wafers: what one class of a job makes, in pieces of fixed size that any process may make.

A shard is two blobs of the store, `shards/{key}/{index}.arrow` with the wafers and `shards/{key}/{index}.json`, written
last, which says that it is finished. The key is a hash of all that the wafers depend on: a job that was killed, or the
same request once more, finds the finished shards and makes the others only. Nothing refers to shards; those older than
a week are removed.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from services.common.dataset import grid_columns
from services.common.errors import NotFoundError
from services.common.files import file_sha256
from services.common.store import BlobStore
from services.common.wafer_set import GridSequence

KEPT = timedelta(days=7)
"""How long a shard may be found again."""
_PREFIX = "shards"
_MAKING = 3  # To be raised when the same request makes other wafers than before.
_SCHEMA = pa.schema([("dies", pa.binary()), ("rows", pa.int32()), ("columns", pa.int32()), ("parent", pa.int32())])


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Some wafers of a shard.

    Attributes:
        grids: Their dies.
        parents: Position of each one's parent, int (n,).
    """

    grids: GridSequence
    parents: NDArray[np.integer]


class ShardWriter:
    """Writes the chunks of one shard.

    Attributes:
        rejected: Wafers thrown out on the way; to be set before the end.
    """

    def __init__(self, writer: pa.RecordBatchFileWriter) -> None:
        self._writer = writer
        self.rejected = 0

    def add(self, chunk: Chunk) -> None:
        """Appends a chunk."""
        parents = pa.array(chunk.parents.astype(np.int32))
        self._writer.write_batch(pa.RecordBatch.from_arrays([*grid_columns(chunk.grids), parents], schema=_SCHEMA))


@dataclass(frozen=True, slots=True)
class Shard:
    """A finished shard.

    Attributes:
        rejected: Wafers thrown out when it was made.
        path: Its file on this machine.
    """

    rejected: int
    path: Path

    def chunks(self) -> Iterator[Chunk]:
        """Yields its chunks, as they were written."""
        with pa.memory_map(str(self.path)) as file:
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                yield _chunk_of(reader.get_batch(number))


class Shards:
    """The shards of one class of a request.

    Args:
        store: Where they lie.
        request: All that the wafers depend on; JSON values.

    Attributes:
        key: Hash of the request, 64 hexadecimal digits.
    """

    def __init__(self, store: BlobStore, request: Mapping[str, Any]) -> None:
        self._store = store
        content = {"making": _MAKING, "release": version("teachwafer"), **request}
        self.key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def finished(self, index: int) -> bool:
        """Says whether a shard is finished."""
        return self._store.exists(self._name(index, "json"))

    @contextmanager
    def reading(self, index: int) -> Iterator[Shard | None]:
        """Opens a finished shard; None when there is none, or when its file is missing or damaged."""
        with tempfile.TemporaryDirectory(prefix="teachwafer-shard-") as folder:
            try:
                note = json.loads(self._store.get(self._name(index, "json")))
                path = self._fetch(index, Path(folder))
            except NotFoundError:
                yield None
                return
            yield Shard(note["rejected"], path) if file_sha256(path) == note["sha256"] else None

    @contextmanager
    def writing(self, index: int) -> Iterator[ShardWriter]:
        """Writes a shard, which is finished when the block ends well and does not exist otherwise."""
        with tempfile.TemporaryDirectory(prefix="teachwafer-shard-") as folder:
            path = Path(folder) / "shard.arrow"
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            with pa.ipc.new_file(str(path), _SCHEMA, options=options) as file:
                writer = ShardWriter(file)
                yield writer
            note = {
                "rejected": writer.rejected,
                "sha256": file_sha256(path),
                "made_at": datetime.now(UTC).isoformat(),
            }
            self._store.put(self._name(index, "arrow"), path)
            self._store.put(self._name(index, "json"), json.dumps(note).encode())

    def _fetch(self, index: int, folder: Path) -> Path:
        name = self._name(index, "arrow")
        if (local := self._store.local_path(name)) is not None:
            return local
        path = folder / "shard.arrow"
        self._store.download(name, path)
        return path

    def _name(self, index: int, ending: str) -> str:
        return f"{_PREFIX}/{self.key}/{index:06d}.{ending}"


def remove_old_shards(store: BlobStore, now: datetime | None = None) -> None:
    """Removes the shards that are older than a week.

    Args:
        store: Where they lie.
        now: Present time; the clock's by default.
    """
    oldest = (now or datetime.now(UTC)) - KEPT
    for blob in store.list(_PREFIX):
        if not blob.key.endswith(".json"):
            continue
        with suppress(NotFoundError):
            if datetime.fromisoformat(json.loads(store.get(blob.key))["made_at"]) < oldest:
                # The note first: a shard without it does not exist.
                store.delete(blob.key)
                store.delete(f"{blob.key.removesuffix('json')}arrow")


def _chunk_of(batch: pa.RecordBatch) -> Chunk:
    dies, rows, columns, parents = batch.columns
    shapes = np.stack([rows.to_numpy(), columns.to_numpy()], axis=1).astype(np.int64)
    flat = np.frombuffer(dies.buffers()[2], np.uint8, int(shapes.prod(axis=1).sum()))
    return Chunk(GridSequence(flat, shapes), parents.to_numpy())
