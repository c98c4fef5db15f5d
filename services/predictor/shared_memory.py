"""Regions of system shared memory that callers on this machine register and then name instead of sending tensors."""

from __future__ import annotations

import mmap
import os
import re
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)

FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open has its objects on Linux
MAX_REGIONS = 1024

_KEY = re.compile(r"/?[A-Za-z0-9_][A-Za-z0-9_.-]{0,250}")


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A registered region.

    Attributes:
        name: Name that callers use.
        key: Name of the shared memory object, as shm_open takes it.
        offset: Where the region begins in the object, bytes.
        byte_size: Its length, bytes.
        memory: The object from its beginning to the end of the region.
        descriptor: The object, to see whether it was cut since.
    """

    name: str
    key: str
    offset: int
    byte_size: int
    memory: mmap.mmap
    descriptor: int

    def view(self, offset: int, byte_size: int, field: str) -> memoryview:
        """Returns a part of the region, to be read and written.

        Args:
            offset: Where the part begins in the region, bytes.
            byte_size: Its length, bytes.
            field: Where in the request it is.

        Raises:
            InvalidArgumentError: It is not inside the region, or the object was cut since.
        """
        if not 0 <= offset <= self.byte_size or not 0 <= byte_size <= self.byte_size - offset:
            raise InvalidArgumentError(
                f"Expected a part of the region {self.name!r} of {self.byte_size} bytes. Received: {byte_size} bytes "
                f"from {offset}.",
                field,
            )
        start = self.offset + offset
        # Memory behind the end of a cut object kills the process that touches it.
        if os.fstat(self.descriptor).st_size < start + byte_size:
            raise InvalidArgumentError(
                f"Expected the object of the region {self.name!r} as it was registered. Received: a shorter one. "
                "Register it again.",
                field,
            )
        return memoryview(self.memory)[start : start + byte_size]

    def __del__(self) -> None:
        os.close(self.descriptor)


class SharedMemory:
    """The registered regions. Used from one event loop.

    Args:
        allowed: Whether callers may register any.
    """

    def __init__(self, *, allowed: bool = True) -> None:
        self._allowed = allowed
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Registers a region.

        Args:
            name: Name that callers use from now on.
            key: Name of the shared memory object, as shm_open takes it.
            offset: Where the region begins in the object, bytes.
            byte_size: Its length, bytes.

        Raises:
            AlreadyExistsError: The name is taken.
            FailedPreconditionError: There are too many.
            InvalidArgumentError: Name, key or lengths are wrong, or the object is shorter.
            NotFoundError: There is no such object on this machine.
            PermissionDeniedError: The server does not take shared memory, or may not open this object.
        """
        if not self._allowed:
            raise PermissionDeniedError(
                "Expected tensors in the message. Received: shared memory, which this server does not take. Set "
                "TEACHWAFER_PREDICTOR_SHARED_MEMORY=true where all callers are trusted.",
                reason="SHARED_MEMORY_OFF",
            )
        if not name:
            raise InvalidArgumentError("Expected a name of the region. Received: none.", "name")
        if name in self._regions:
            raise AlreadyExistsError(
                "shared memory region", name, f"The region {name[:100]!r} is registered. Unregister it before."
            )
        if len(self._regions) >= MAX_REGIONS:
            raise FailedPreconditionError(
                f"Expected at most {MAX_REGIONS} regions. Received one more. Unregister some.", subject=name
            )
        if not _KEY.fullmatch(key):
            raise InvalidArgumentError(
                f"Expected the key of a shared memory object without a folder in it. Received: {key[:100]!r}.", "key"
            )
        if byte_size < 1:
            raise InvalidArgumentError(f"Expected at least 1 byte. Received: {byte_size}.", "byte_size")
        self._regions[name] = _opened(name, key, offset, byte_size)

    def unregister(self, name: str = "") -> None:
        """Forgets a region, or all; one that is not there is forgotten already."""
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def regions(self, name: str = "") -> list[Region]:
        """Returns all regions, or the one of a name.

        Raises:
            NotFoundError: There is no such region.
        """
        if not name:
            return list(self._regions.values())
        return [self.region(name)]

    def region(self, name: str) -> Region:
        """Returns a region.

        Raises:
            NotFoundError: There is no such region.
        """
        region = self._regions.get(name)
        if region is None:
            raise NotFoundError(
                "shared memory region",
                name,
                f"Expected a registered region of shared memory. Received: {name[:100]!r}. Register it before.",
            )
        return region


def _opened(name: str, key: str, offset: int, byte_size: int) -> Region:
    try:
        descriptor = os.open(FOLDER / key.removeprefix("/"), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(
            "shared memory object",
            key,
            f"Expected a shared memory object of this machine. Received: {key!r}. Create it before; in containers, "
            "share the IPC namespace.",
        ) from None
    except OSError as error:
        raise PermissionDeniedError(
            f"Expected a shared memory object that the server may read and write. Received from {key!r}: "
            f"{error.strerror}. Create it for the server's user."
        ) from None
    try:
        memory = _mapped(descriptor, key, offset, byte_size)
    except BaseException:
        os.close(descriptor)
        raise
    return Region(name, key, offset, byte_size, memory, descriptor)


def _mapped(descriptor: int, key: str, offset: int, byte_size: int) -> mmap.mmap:
    size = os.fstat(descriptor).st_size
    if offset + byte_size > size:
        raise InvalidArgumentError(
            f"Expected a region inside the {size} bytes of {key!r}. Received: {byte_size} bytes from {offset}.",
            "byte_size",
        )
    return mmap.mmap(descriptor, offset + byte_size)
