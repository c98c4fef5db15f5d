"""Permissions to upload, and the files that came with them.

A page asks for a ticket; the browser sends files to the ticket's address; the page takes them. A ticket belongs to one
session and dies with its page, so that nobody can fill the disk without a page open, and files that no page takes are
removed with their ticket.
"""

from __future__ import annotations

import re
import secrets
import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from services.common.errors import InvalidArgumentError, PermissionDeniedError, ResourceExhaustedError

MAX_NAME = 200
"""Longest name of a file that is kept, characters; longer ones lose their beginning."""


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What may be uploaded.

    Attributes:
        max_bytes: Largest file, bytes.
        max_files: Most files of one ticket that wait to be taken.
    """

    max_bytes: int
    max_files: int


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A file that has arrived.

    Attributes:
        name: Its name as the sender had it, folders included, made safe; for reading the format and for people.
        path: Where it lies. Its name there says nothing.
    """

    name: str
    path: Path


@dataclass(slots=True)
class _Ticket:
    session: str
    folder: Path
    files: dict[str, UploadedFile] = field(default_factory=dict)


class Tickets:
    """All tickets of this process.

    Args:
        folder: Where files land; emptied, because after a restart no page waits for them.
        limits: What may be uploaded.
    """

    def __init__(self, folder: Path, limits: UploadLimits) -> None:
        self.limits = limits
        self._folder = folder
        self._tickets: dict[str, _Ticket] = {}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)

    def issue(self, session: str) -> str:
        """Makes a ticket for a session."""
        name = secrets.token_urlsafe(24)
        self._tickets[name] = _Ticket(session, self._folder / name)
        return name

    def place(self, ticket: str, session: str) -> Path:
        """Checks a ticket and says where its next file goes.

        Args:
            ticket: Name of the ticket.
            session: Session of the request that brings the file.

        Returns:
            Path of a file that does not exist yet, in a folder that does.

        Raises:
            PermissionDeniedError: There is no such ticket, or it is another session's.
            ResourceExhaustedError: Too many files wait already.
        """
        entry = self._tickets.get(ticket)
        if entry is None or not session or not secrets.compare_digest(entry.session.encode(), session.encode()):
            raise PermissionDeniedError(
                "Expected the upload address of a page that is open. Received another one. Load the page again.",
                reason="UPLOAD_NOT_ALLOWED",
            )
        if len(entry.files) >= self.limits.max_files:
            raise ResourceExhaustedError(
                f"Expected at most {self.limits.max_files} files at once. Use what was sent, or put them into a .zip.",
                reason="TOO_MANY_FILES",
            )
        entry.folder.mkdir(mode=0o700, exist_ok=True)
        return entry.folder / secrets.token_hex(16)

    def add(self, ticket: str, path: Path, name: str) -> str:
        """Notes a file that has arrived; returns its id."""
        entry = self._tickets.get(ticket)
        if entry is None:
            path.unlink(missing_ok=True)
            raise PermissionDeniedError("The page was closed while the file travelled.", reason="UPLOAD_NOT_ALLOWED")
        entry.files[path.name] = UploadedFile(safe_name(name), path)
        return path.name

    def take(self, ticket: str, ids: Sequence[str]) -> list[UploadedFile]:
        """Hands files over to whoever removes them when done; ids that are not there are left out."""
        entry = self._tickets.get(ticket)
        if entry is None:
            return []
        return [entry.files.pop(each) for each in ids if each in entry.files]

    def revoke(self, ticket: str) -> None:
        """Ends a ticket and removes its files."""
        entry = self._tickets.pop(ticket, None)
        if entry is not None:
            shutil.rmtree(entry.folder, ignore_errors=True)


def safe_name(name: str) -> str:
    """Makes a file's name safe to show and to read an ending from: no way out of a folder, no control characters.

    Args:
        name: Name as sent, possibly with folders.

    Raises:
        InvalidArgumentError: Nothing is left of it.
    """
    text = unicodedata.normalize("NFC", name.replace("\\", "/"))
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", "", text)
    parts = [part for part in PurePosixPath(text).parts if part not in ("/", ".", "..")]
    kept = "/".join(parts)[-MAX_NAME:].strip("/ ")
    if not kept:
        raise InvalidArgumentError(
            f"Expected a file with a name. Received: {name[:80]!r}.", field="name", reason="BAD_FILE_NAME"
        )
    return kept
