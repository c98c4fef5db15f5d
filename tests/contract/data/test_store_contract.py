"""What every blob store must do, on a local folder and on a real S3 server."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.common.errors import InvalidArgumentError, NotFoundError, PermissionDeniedError, UnavailableError
from services.common.store import BlobStore, open_store
from tests.contract.data.conftest import S3Server


def test_put_get_replace_delete(store: BlobStore, another: BlobStore) -> None:
    store.put("a/b.bin", b"one")
    assert another.get("a/b.bin") == b"one"
    store.put("a/b.bin", b"two, longer")
    assert another.get("a/b.bin") == b"two, longer"
    assert another.info("a/b.bin").size == 11
    another.delete("a/b.bin")
    assert not store.exists("a/b.bin")
    store.delete("a/b.bin")


def test_what_is_not_there(store: BlobStore) -> None:
    assert not store.exists("a")
    assert store.list("a") == []
    assert store.delete_prefix("a") == 0
    for ask in (store.get, store.info, store.open_read, lambda key: list(store.stream(key))):
        with pytest.raises(NotFoundError) as caught:
            ask("a/b")
        assert caught.value.name == "a/b"


def test_files_and_streams_of_several_parts(store: BlobStore, tmp_path: Path) -> None:
    content = bytes(range(256)) * (48 << 10)
    (tmp_path / "big").write_bytes(content)
    store.put("big", tmp_path / "big")
    assert store.info("big").size == len(content)
    assert b"".join(store.stream("big", chunk_bytes=1 << 20)) == content
    with (tmp_path / "big").open("rb") as file:
        store.put("big2", file)
    assert store.get("big2") == content


def test_empty_blob(store: BlobStore) -> None:
    store.put("empty", b"")
    assert store.get("empty") == b""
    assert store.info("empty").size == 0
    assert b"".join(store.stream("empty")) == b""


def test_ranges(store: BlobStore) -> None:
    store.put("r", b"0123456789")
    assert store.open_read("r", 2, 3) == b"234"
    assert store.open_read("r", 7) == b"789"
    assert store.open_read("r", 8, 100) == b"89"
    for start, length in ((10, 1), (-1, 2), (0, 0)):
        with pytest.raises(InvalidArgumentError):
            store.open_read("r", start, length)


def test_lists_are_ordered_and_end_at_slashes(store: BlobStore) -> None:
    for key in ("b/2", "b/1", "b/c/3", "bb/4", "a"):
        store.put(key, key.encode())
    assert [blob.key for blob in store.list()] == ["a", "b/1", "b/2", "b/c/3", "bb/4"]
    assert [blob.key for blob in store.list("b")] == ["b/1", "b/2", "b/c/3"]
    assert [blob.key for blob in store.list("b/")] == ["b/1", "b/2", "b/c/3"]
    assert store.delete_prefix("b") == 3
    assert [blob.key for blob in store.list()] == ["a", "bb/4"]


def test_a_long_list_is_complete(store: BlobStore) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: store.put(f"many/{number:04}", b"x"), range(230)))
    assert [blob.key for blob in store.list("many")] == [f"many/{number:04}" for number in range(230)]


def test_put_if_absent(store: BlobStore, another: BlobStore, tmp_path: Path) -> None:
    assert store.put_if_absent("once", b"first")
    assert not another.put_if_absent("once", b"second")
    (tmp_path / "file").write_bytes(b"third")
    assert not store.put_if_absent("once", tmp_path / "file")
    assert store.get("once") == b"first"
    assert store.put_if_absent("other", tmp_path / "file")
    assert store.get("other") == b"third"


def test_one_of_many_creators_wins(store: BlobStore, another: BlobStore) -> None:
    for round_ in range(5):
        with ThreadPoolExecutor(8) as pool:
            won = list(
                pool.map(
                    lambda n, key=f"race/{round_}": (another if n % 2 else store).put_if_absent(key, f"{n}".encode()),
                    range(8),
                )
            )
        assert won.count(True) == 1
        assert store.get(f"race/{round_}") == f"{won.index(True)}".encode()


def test_one_of_many_creators_from_large_files_wins(store: BlobStore, another: BlobStore, tmp_path: Path) -> None:
    files = [tmp_path / f"{n}" for n in range(3)]
    for n, file in enumerate(files):
        file.write_bytes(bytes([n]) * (9 << 20))
    with ThreadPoolExecutor(3) as pool:
        won = list(pool.map(lambda n: (another if n % 2 else store).put_if_absent("large", files[n]), range(3)))
    assert won.count(True) == 1
    assert store.get("large") == files[won.index(True)].read_bytes()
    assert not store.put_if_absent("large", files[0])
    assert [blob.key for blob in store.list()] == ["large"]


# What it writes down at the end is kilobytes.
_PEAK_OF_PUT = """
import json, resource, sys
from pathlib import Path
from services.common.store import open_store
store = open_store(sys.argv[1], json.loads(sys.argv[2]))
store.put("small", b"opens the connection")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert store.put_if_absent("large", Path(sys.argv[3]))
assert not store.put_if_absent("large", Path(sys.argv[3]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_file_is_put_without_being_in_memory(s3_server: S3Server, tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as opened:
        opened.truncate(96 << 20)
    url = f"s3://{s3_server.bucket}/memory"
    command = [sys.executable, "-c", _PEAK_OF_PUT, url, json.dumps(s3_server.options), str(file)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    # Parts on their way take some.
    assert int(done.stdout) < 64 << 10
    assert open_store(url, s3_server.options).info("large").size == file.stat().st_size


def test_put_if_match(store: BlobStore, another: BlobStore) -> None:
    assert not store.put_if_match("m", b"x", '"nothing"')
    etag = store.put("m", b"1")
    assert etag == store.info("m").etag
    assert another.put_if_match("m", b"2", etag)
    assert not store.put_if_match("m", b"3", etag)
    assert store.get("m") == b"2"


def test_counting_together_loses_nothing(store: BlobStore, another: BlobStore) -> None:
    store.put("counter", b"0")

    def count(mine: BlobStore) -> None:
        for _ in range(5):
            while True:
                etag, value = mine.info("counter").etag, int(mine.get("counter"))
                if mine.info("counter").etag == etag and mine.put_if_match("counter", f"{value + 1}".encode(), etag):
                    break

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(count, (store, another, store)))
    assert store.get("counter") == b"15"


def test_probe_finds_an_honest_store_and_leaves_nothing(store: BlobStore) -> None:
    probe = store.probe()
    assert probe.put_if_absent
    assert probe.put_if_match
    assert store.list() == []


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a/..", "a\\b", "a b", "a\0", "ä", "a" * 513, "a:b", "%2e"]
)
def test_keys_that_are_no_clean_paths(store: BlobStore, key: str) -> None:
    for use in (store.get, store.exists, store.delete, store.local_path, store.info, store.open_read):
        with pytest.raises(InvalidArgumentError):
            use(key)
    for write in (store.put, store.put_if_absent):
        with pytest.raises(InvalidArgumentError):
            write(key, b"x")
    with pytest.raises(InvalidArgumentError):
        store.put_if_match(key, b"x", "e")


def test_everything_cannot_be_deleted_by_an_empty_prefix(store: BlobStore) -> None:
    store.put("a", b"x")
    for prefix in ("", "/", "..", "a/.."):
        with pytest.raises(InvalidArgumentError):
            store.delete_prefix(prefix)
    assert store.exists("a")


def test_local_path(store: BlobStore) -> None:
    store.put("p/q", b"x")
    path = store.local_path("p/q")
    if store.url.startswith("file:"):
        assert path is not None
        assert path.read_bytes() == b"x"
        with pytest.raises(NotFoundError):
            store.local_path("p/none")
    else:
        assert path is None


def test_local_store_keeps_to_its_folder(tmp_path: Path) -> None:
    store = open_store((tmp_path / "deep" / "store").as_uri())
    assert store.url == (tmp_path / "deep" / "store").as_uri()
    store.put("a/b/c", b"x")
    store.delete_prefix("a")
    assert list((tmp_path / "deep" / "store").iterdir()) == []
    assert open_store(f"file://{tmp_path}/with%20space").url == (tmp_path / "with space").as_uri()


@pytest.mark.parametrize("url", ["", "ftp://x/y", "s3://", "file://host/x", "https://bucket.example"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="Expected a path"):
        open_store(url)


def test_wrong_credentials_are_told(s3_server: S3Server) -> None:
    store = open_store("s3://wafers/x", {**s3_server.options, "secret_access_key": "wrong"})
    with pytest.raises(PermissionDeniedError, match="credentials"):
        store.put("a", b"x")


def test_a_store_that_is_away_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(str(tmp_path / "store"))
    store.put("a", b"x")
    with pytest.raises(UnavailableError):
        store.put("a/b", b"below a blob")
