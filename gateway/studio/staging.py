"""Uploads that were looked at and not yet added: a folder each in the home folder. Blocks.

A staged upload is only its files; they are read again when it is added. So a process that dies in between leaves
nothing half-stored, and the next one goes on where it stood.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.catalogue.catalogue import new_id
from gateway.studio.disk import disk_errors
from gateway.values import UploadFile
from services.common.errors import NotFoundError

KEEP_SECONDS: Final = 24 * 3600
"""Age from which staged uploads are removed."""

_MANIFEST: Final = "upload.json"


@dataclass(frozen=True, slots=True)
class Staged:
    """A staged upload.

    Attributes:
        import_id: Its token.
        project_id: Project that it goes to.
        class_id: Class that all its wafers go to, or "".
        files: Its files, by the names that people gave them.
        folder: Where they lie.
    """

    import_id: str
    project_id: str
    class_id: str
    files: tuple[UploadFile, ...]
    folder: Path

    def path(self, position: int) -> Path:
        """Returns where a file lies."""
        return _path(self.folder, position)


class Staging:
    """The folder of staged uploads.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, project_id: str, class_id: str, files: Sequence[UploadFile]) -> Staged:
        """Keeps copies of files until they are added, discarded or a day old.

        Raises:
            ResourceExhaustedError: The disk is full; nothing was kept.
        """
        self.remove_old()
        import_id = new_id()
        folder = self._folder / import_id
        manifest = {"project_id": project_id, "class_id": class_id, "names": [file.name for file in files]}
        try:
            with disk_errors("the upload"):
                folder.mkdir(parents=True)
                for index, file in enumerate(files):
                    _copy(file.source, _path(folder, index))
                # Written last: without it, the upload does not exist.
                (folder / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return self.get(import_id)

    def get(self, import_id: str) -> Staged:
        """Returns a staged upload.

        Raises:
            NotFoundError: There is none (reason IMPORT_NOT_FOUND).
        """
        folder = self._folder_of(import_id)
        try:
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        except OSError:
            raise NotFoundError("upload", import_id[:80], reason="IMPORT_NOT_FOUND") from None
        files = tuple(UploadFile(name, _path(folder, index)) for index, name in enumerate(manifest["names"]))
        return Staged(import_id, manifest["project_id"], manifest["class_id"], files, folder)

    def remove(self, import_id: str) -> None:
        """Removes a staged upload; nothing happens when there is none."""
        with contextlib.suppress(NotFoundError):
            shutil.rmtree(self._folder_of(import_id), ignore_errors=True)

    def remove_old(self) -> None:
        """Removes uploads that nobody added for a day."""
        limit = time.time() - KEEP_SECONDS
        for folder in self._folder.glob("*"):
            with contextlib.suppress(OSError):
                if folder.stat().st_mtime < limit:
                    shutil.rmtree(folder)

    def _folder_of(self, import_id: str) -> Path:
        if len(import_id) != 32 or not set(import_id) <= set("0123456789abcdef"):
            raise NotFoundError("upload", import_id[:80], reason="IMPORT_NOT_FOUND")
        return self._folder / import_id


def original_key(sha256: str) -> str:
    """Returns the place of an original file in the store."""
    return f"originals/{sha256[:2]}/{sha256}"


def _path(folder: Path, position: int) -> Path:
    return folder / f"{position:06d}"


def _copy(source: Path | bytes, target: Path) -> None:
    if isinstance(source, bytes):
        target.write_bytes(source)
        return
    try:
        # A second name costs nothing, and the file stays when the first one is removed.
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
