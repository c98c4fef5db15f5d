"""Files on the local disk: hashes, and writing whole or not at all."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, 64 hexadecimal digits; its size in memory does not matter.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Path, content: bytes, temporary_prefix: str = "") -> None:
    """Writes a file so that readers see all of it or nothing, and so that it survives a power cut.

    Args:
        path: File to write or replace.
        content: What it holds afterwards.
        temporary_prefix: How the name of the temporary file beside it begins, which a killed writer leaves behind.
            Default: a dot and the name of the file.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f"{temporary_prefix or f'.{path.name}.'}{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Returns when a file, or the names in a folder, survive a power cut.

    Raises:
        OSError: The disk is full or failing.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
