"""What can go wrong with files of our own, in the words of services.common.errors."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from services.common.errors import NotFoundError, ResourceExhaustedError, UnavailableError


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turns errors of the file system inside the block into ours.

    Args:
        what: What is read or written, for the message.

    Raises:
        ResourceExhaustedError: The disk is full (reason DISK_FULL).
        NotFoundError: A file is gone (reason FILE_NOT_FOUND).
        UnavailableError: Anything else (reason DISK_FAILED).
    """
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError("file", what, reason="FILE_NOT_FOUND") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhaustedError(
                f"Expected room on the disk for {what}. Received: {error.strerror}. Free some space, then try again.",
                reason="DISK_FULL",
            ) from error
        raise UnavailableError(
            f"Expected to read or write {what}. Received: {error.strerror or error}. Check the disk and its rights.",
            reason="DISK_FAILED",
        ) from error
