"""The store: named blobs in a local folder or in an S3 bucket, behind one interface.

A blob is written whole or not at all, and replaced whole. Names are slash-separated keys such as
`datasets/0d3f/manifest.json`.
"""

import contextlib
import fcntl
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions
from obstore.store import LocalStore, S3Store

from services.common.errors import (
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from obstore.store import S3Config

MAX_KEY = 512
"""Largest number of characters of a key."""

_SEGMENT = re.compile(r"[A-Za-z0-9_=@+.-]+")
_LOCK_FILE = ".lock"
_PROBE_PREFIX = "probe"
_MOST_IN_MEMORY = 8 << 20
_PARTS_AT_ONCE = 4  # Of 5 MB each.


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """One blob.

    Attributes:
        key: its name.
        size: bytes.
        etag: opaque; changes with every write.
    """

    key: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class StoreProbe:
    """What a store was seen to honour.

    Attributes:
        put_if_absent: a second creation of the same key is refused.
        put_if_match: a replacement with an outdated etag is refused.
    """

    put_if_absent: bool
    put_if_match: bool


def open_store(url: str, options: Mapping[str, str] | None = None) -> "BlobStore":
    """Open a store. A local folder is created when it is missing; an S3 bucket must exist.

    Args:
        url: a path, `file:///folder` or `s3://bucket/prefix`.
        options: settings of obstore's S3 client (`endpoint`, `region`, `access_key_id`, ...); what is not given is
            taken from the AWS_* environment variables.

    Raises:
        InvalidArgumentError: the address is of another kind.
    """
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        folder = Path(unquote(parts.path) if parts.scheme else url)
        if parts.netloc or not str(folder) or url == "":
            raise InvalidArgumentError(
                f"Expected a path, file:///folder or s3://bucket/prefix. Received: {url!r}.", field="store_url"
            )
        folder = folder.absolute()
        folder.mkdir(parents=True, exist_ok=True)
        return BlobStore(LocalStore(folder), url=folder.as_uri(), folder=folder)
    if parts.scheme == "s3" and parts.netloc:
        prefix = parts.path.strip("/")
        settings: dict[str, Any] = dict(options or {})
        if settings.get("endpoint", "").startswith("http:"):
            settings.setdefault("allow_http", "true")
        settings.setdefault("copy_if_not_exists", "multipart")
        client = S3Store(parts.netloc, prefix=prefix or None, config=cast("S3Config", settings))
        return BlobStore(client, url=url, folder=None)
    raise InvalidArgumentError(
        f"Expected a path, file:///folder or s3://bucket/prefix. Received: {url!r}.", field="store_url"
    )


class BlobStore:
    """Blobs by key. Every method blocks; instances are safe to share between threads.

    All methods raise `InvalidArgumentError` for a key that is no clean relative path, `PermissionDeniedError` when
    the store refuses the credentials and `UnavailableError` when it does not answer or fails.
    """

    def __init__(self, client: LocalStore | S3Store, url: str, folder: Path | None) -> None:
        self._client = client
        self._folder = folder
        self.url = url

    def get(self, key: str) -> bytes:
        """Return the content of a blob.

        Raises:
            NotFoundError: there is no such blob.
        """
        with _errors(key):
            return bytes(obstore.get(self._client, checked_key(key)).bytes())

    def open_read(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes from `start` on, or all that follow it.

        Raises:
            NotFoundError: there is no such blob.
            InvalidArgumentError: the range begins behind the end or is empty.
        """
        size = self.info(key).size
        end = size if length is None else min(size, start + length)
        if not 0 <= start < end:
            raise InvalidArgumentError(
                f"Expected a range inside the {size} bytes of {key!r}. Received: start {start}, length {length}.",
                field="range",
            )
        with _errors(key):
            return bytes(obstore.get_range(self._client, checked_key(key), start=start, end=end))

    def stream(self, key: str, chunk_bytes: int = 8 << 20) -> Iterator[bytes]:
        """Yield the content of a blob piece by piece.

        Raises:
            NotFoundError: there is no such blob.
        """
        with _errors(key):
            for chunk in obstore.get(self._client, checked_key(key)).stream(min_chunk_size=chunk_bytes):
                yield bytes(chunk)

    def info(self, key: str) -> BlobInfo:
        """Return size and etag of a blob.

        Raises:
            NotFoundError: there is no such blob.
        """
        with _errors(key):
            meta = obstore.head(self._client, checked_key(key))
        return BlobInfo(key=key, size=meta["size"], etag=meta["e_tag"] or "")

    def exists(self, key: str) -> bool:
        """Say whether there is a blob of this name."""
        try:
            self.info(key)
        except NotFoundError:
            return False
        return True

    def put(self, key: str, data: bytes | Path | IO[bytes]) -> str:
        """Write or replace a blob from bytes, a local file or an open one, and return its etag."""
        with _errors(key):
            return obstore.put(self._client, checked_key(key), data)["e_tag"] or ""

    def put_if_absent(self, key: str, data: bytes | Path) -> bool:
        """Write a blob unless there is one of this name; say whether it was written.

        Of several writers at a time one wins. Some S3 servers ignore the condition: see `probe`.
        """
        if isinstance(data, Path) and (self._folder is not None or data.stat().st_size > _MOST_IN_MEMORY):
            return self._copy_if_absent(key, data)
        try:
            with _errors(key):
                obstore.put(self._client, checked_key(key), data, mode="create")
        except _PreconditionFailed:
            return False
        return True

    def put_if_match(self, key: str, data: bytes, etag: str) -> bool:
        """Replace a blob if it still has this etag; say whether it was replaced."""
        checked_key(key)
        if self._folder is not None:
            return self._put_if_match_locally(self._folder, key, data, etag)
        try:
            with _errors(key):
                obstore.put(self._client, key, data, mode={"e_tag": etag})
        except (_PreconditionFailed, NotFoundError):
            return False
        return True

    def list(self, prefix: str = "") -> list[BlobInfo]:
        """Return the blobs whose keys are `prefix` or lie below it, ordered by key."""
        if prefix:
            checked_key(prefix.rstrip("/"))
        with _errors(prefix):
            found = [
                BlobInfo(key=meta["path"], size=meta["size"], etag=meta["e_tag"] or "")
                for page in obstore.list(self._client, prefix.rstrip("/") or None)
                for meta in page
            ]
        return sorted((blob for blob in found if blob.key != _LOCK_FILE), key=lambda blob: blob.key)

    def delete(self, key: str) -> None:
        """Remove a blob; nothing happens when there is none."""
        with _errors(key), contextlib.suppress(FileNotFoundError, exceptions.NotFoundError):
            obstore.delete(self._client, checked_key(key))

    def delete_prefix(self, prefix: str) -> int:
        """Remove all blobs below a prefix and return how many there were.

        Raises:
            InvalidArgumentError: the prefix is empty, which would empty the store.
        """
        keys = [blob.key for blob in self.list(checked_key(prefix.rstrip("/")))]
        for key in keys:
            self.delete(key)
        if self._folder is not None:
            _remove_empty_folders(self._folder / prefix)
        return len(keys)

    def download(self, key: str, path: Path) -> None:
        """Write a blob to a local file; its size in memory does not matter.

        Raises:
            NotFoundError: there is no such blob.
        """
        with path.open("wb") as file:
            for chunk in self.stream(key):
                file.write(chunk)

    def local_path(self, key: str) -> Path | None:
        """Return the file that holds a blob, or None when the store is not a local folder.

        Raises:
            NotFoundError: the store is local and there is no such blob.
        """
        checked_key(key)
        if self._folder is None:
            return None
        path = self._folder / key
        if not path.is_file():
            raise NotFoundError("blob", key)
        return path

    def probe(self) -> StoreProbe:
        """Write, compare and remove a blob to learn which conditions the store honours.

        Raises:
            UnavailableError: the store does not give back what was written.
        """
        key = f"{_PROBE_PREFIX}/{uuid.uuid4().hex}"
        try:
            created = self.put_if_absent(key, b"1")
            refused = not self.put_if_absent(key, b"2")
            if self.get(key) not in (b"1", b"2"):
                raise UnavailableError(f"The store at {self.url} does not give back what was written to it.")
            old = self.info(key).etag
            replaced = self.put_if_match(key, b"3", old)
            stale_refused = not self.put_if_match(key, b"4", old)
        finally:
            self.delete(key)
        return StoreProbe(put_if_absent=created and refused, put_if_match=replaced and stale_refused)

    def _copy_if_absent(self, key: str, file: Path) -> bool:
        # A conditional write takes the whole file into memory; a plain one is streamed, and its copy, a hard link or
        # one inside the S3 server, is as conditional.
        staged = f"{checked_key(key)}.{uuid.uuid4().hex}"
        try:
            with _errors(key):
                obstore.put(self._client, staged, file, max_concurrency=_PARTS_AT_ONCE)
                obstore.copy(self._client, staged, key, overwrite=False)
        except _PreconditionFailed:
            return False
        finally:
            self.delete(staged)
        return True

    def _put_if_match_locally(self, folder: Path, key: str, data: bytes, etag: str) -> bool:
        # A local folder has no conditional replacement of its own: one lock file for the whole store gives it.
        with (folder / _LOCK_FILE).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                if self.info(key).etag != etag:
                    return False
            except NotFoundError:
                return False
            self.put(key, data)
            return True


def checked_key(key: str) -> str:
    """Return `key` if it is a clean relative path.

    Raises:
        InvalidArgumentError: it is empty, absolute, too long, has an empty, `.` or `..` segment or a character other
            than letters, digits and `_=@+.-`.
    """
    segments = key.split("/")
    if len(key) > MAX_KEY or not all(
        _SEGMENT.fullmatch(segment) and segment not in (".", "..") for segment in segments
    ):
        raise InvalidArgumentError(
            f"Expected a relative path of letters, digits and _=@+.- with at most {MAX_KEY} characters, "
            f"without '.' or '..' segments. Received: {key[:200]!r}.",
            field="key",
        )
    return key


class _PreconditionFailed(Exception):
    """The store refused a conditional write."""


@contextlib.contextmanager
def _errors(key: str) -> Iterator[None]:
    """Turn what obstore raises into the project's errors."""
    try:
        yield
    except (exceptions.NotFoundError, FileNotFoundError) as error:
        raise NotFoundError("blob", key) from error
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError, exceptions.NotModifiedError) as error:
        raise _PreconditionFailed from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError, PermissionError) as error:
        raise PermissionDeniedError(
            f"The store refused access to {key!r}. Check the credentials and rights of this service."
        ) from error
    except (exceptions.BaseError, OSError) as error:
        raise UnavailableError(
            f"The store failed on {key!r}: {_first_line(error)}. Check that it runs and has room, then try again."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _remove_empty_folders(folder: Path) -> None:
    if not folder.is_dir():
        return
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            path.rmdir()
    with contextlib.suppress(OSError):
        folder.rmdir()
