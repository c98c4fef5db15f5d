from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from services.common.store import BlobStore, open_store
from services.common.wafer_set import GridSequence
from services.generator.shards import KEPT, Chunk, Shards, remove_old_shards


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return open_store(str(tmp_path))


def chunk(seed: int) -> Chunk:
    rng = np.random.default_rng(seed)
    grids = [rng.integers(0, 3, shape).astype(np.uint8) for shape in ((4, 5), (4, 5), (7, 2))]
    return Chunk(GridSequence.of(grids), rng.integers(0, 9, 3))


def write(shards: Shards, index: int = 0) -> None:
    with shards.writing(index) as writer:
        writer.add(chunk(1))
        writer.add(chunk(2))
        writer.rejected = 7


def test_what_was_written_is_read_again(store: BlobStore) -> None:
    write(Shards(store, {"seed": 1}))
    with Shards(store, {"seed": 1}).reading(0) as shard:
        assert shard is not None
        assert shard.rejected == 7
        read = list(shard.chunks())
    for back, given in zip(read, (chunk(1), chunk(2)), strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(back.grids, given.grids, strict=True))
        assert back.parents.tolist() == given.parents.tolist()


def test_other_requests_and_other_indexes_find_nothing(store: BlobStore) -> None:
    write(Shards(store, {"seed": 1}))
    for request, index in (({"seed": 2}, 0), ({"seed": 1}, 1)):
        other = Shards(store, request)
        assert not other.finished(index)
        with other.reading(index) as shard:
            assert shard is None


def test_a_shard_that_failed_in_the_middle_does_not_exist(store: BlobStore) -> None:
    shards = Shards(store, {})

    def fail() -> None:
        with shards.writing(0) as writer:
            writer.add(chunk(1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not shards.finished(0)
    assert store.list() == []


@pytest.mark.parametrize("damage", [b"", b"changed", None])
def test_a_damaged_or_missing_file_counts_as_not_finished(store: BlobStore, damage: bytes | None) -> None:
    shards = Shards(store, {})
    write(shards)
    name = f"shards/{shards.key}/000000.arrow"
    store.delete(name) if damage is None else store.put(name, damage)
    with shards.reading(0) as shard:
        assert shard is None


def test_only_old_shards_are_removed(store: BlobStore) -> None:
    shards = Shards(store, {})
    write(shards)
    store.put("shards/other", b"no shard")
    remove_old_shards(store, datetime.now(UTC) + KEPT - timedelta(hours=1))
    assert shards.finished(0)
    remove_old_shards(store, datetime.now(UTC) + KEPT + timedelta(hours=1))
    assert [blob.key for blob in store.list()] == ["shards/other"]
