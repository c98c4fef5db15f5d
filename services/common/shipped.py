"""Files that a release ships beside its code: weights, whose hashes stand in an index of their folder."""

from __future__ import annotations

import json
from pathlib import Path

from services.common.errors import DataLossError
from services.common.files import file_sha256

INDEX_NAME = "index.json"
"""File beside the shipped ones: `{file name: sha256}`."""


def shipped_file(folder: Path, name: str, remedy: str) -> Path:
    """Returns a file of a folder after checking that it is the one that was shipped.

    Args:
        folder: Folder of the file and its index.
        name: Name of the file.
        remedy: What to do when it is missing or damaged, a sentence.

    Raises:
        DataLossError: It is missing or damaged.
    """
    path, expected = folder / name, _index(folder).get(name)
    if expected is None or not path.is_file():
        raise DataLossError(f"The file {name} is missing from {folder}. {remedy}")
    found = file_sha256(path)
    if found != expected:
        raise DataLossError(
            f"Expected {name} with SHA-256 {expected}. Received: {found}. The file is damaged. {remedy}"
        )
    return path


def write_index(folder: Path, name: str, digest: str) -> None:
    """Enters a file into the index of its folder."""
    path = folder / INDEX_NAME
    index = json.loads(path.read_text()) if path.is_file() else {}
    index[name] = digest
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _index(folder: Path) -> dict[str, str]:
    try:
        return {str(name): str(digest) for name, digest in json.loads((folder / INDEX_NAME).read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}
