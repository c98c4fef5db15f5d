"""Zip archives with a folder a class: each entry is read by the reader of its own format."""

import io
import re
import stat
import unicodedata
import zipfile
from pathlib import PurePosixPath
from typing import IO

from services.common.errors import InvalidArgumentError
from services.common.formats.reading import Format, LabelledWafer, Reading
from services.common.formats.registry import read_file
from services.common.npz import DAMAGED_ZIP

_IGNORED = ("__MACOSX", "Thumbs.db", "desktop.ini")
_UTF8_FLAG = 0x800
_ENCRYPTED_FLAG = 0x1
_RATIO_FREE_BYTES = 1 << 20


def _sniff(name: str, head: bytes) -> bool:
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def _read(name: str, file: IO[bytes], reading: Reading) -> None:
    if reading.depth:
        raise InvalidArgumentError("An archive inside an archive is not opened. Unpack it first.")
    try:
        archive = zipfile.ZipFile(file)
    except DAMAGED_ZIP as error:
        raise InvalidArgumentError(f"The archive is damaged or cut off ({error}).") from error
    with archive:
        # `is_dir` looks at the name up to its first NUL, which hides what follows and may leave nothing.
        entries = [entry for entry in archive.infolist() if not entry.orig_filename.endswith("/")]
        _check_total(entries, reading)
        reading.depth = 1
        try:
            for entry in entries:
                path = _entry_path(entry)
                if not _is_housekeeping(path):
                    _read_entry(archive, entry, path, reading)
        finally:
            reading.depth = 0
        if not reading.wafers and not reading.skipped:
            raise InvalidArgumentError("Expected files with wafer maps. Received: an archive without any.")


def _check_total(entries: list[zipfile.ZipInfo], reading: Reading) -> None:
    limits = reading.limits
    if len(entries) > limits.max_entries:
        raise InvalidArgumentError(f"Expected at most {limits.max_entries:,} entries. Received: {len(entries):,}.")
    total = sum(entry.file_size for entry in entries)
    if total > limits.max_unpacked_bytes:
        raise InvalidArgumentError(
            f"Expected at most {limits.max_unpacked_bytes:,} bytes unpacked. Received: {total:,}."
        )


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: str, reading: Reading) -> None:
    reason = _refusal(entry, path, reading)
    if reason:
        reading.skip(path, reason)
        return
    try:
        with archive.open(entry) as member:
            data = member.read(entry.file_size + 1)
    except DAMAGED_ZIP as error:
        reading.skip(path, f"The entry is damaged ({error}).")
        return
    before = len(reading.wafers)
    read_file(path, io.BytesIO(data), reading)
    label = PurePosixPath(path).parent.name
    if label:
        # What a file says about itself goes before where it lies.
        reading.wafers[before:] = [
            LabelledWafer(each.map, each.label or label, each.source_name) for each in reading.wafers[before:]
        ]


def _refusal(entry: zipfile.ZipInfo, path: str, reading: Reading) -> str:
    """Return why an entry is not unpacked, or ""."""
    limits = reading.limits
    if path.startswith("/") or ".." in path.split("/") or re.match(r"[A-Za-z]:", path):
        return "Its name leads out of the archive."
    if any(unicodedata.category(character) == "Cc" for character in path):
        return "Its name holds control characters."
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "It is a link."
    if entry.flag_bits & _ENCRYPTED_FLAG:
        return "It is encrypted. Save the archive without a password."
    if entry.file_size > limits.max_file_bytes:
        return f"Expected at most {limits.max_file_bytes:,} bytes. Received: {entry.file_size:,}."
    if entry.file_size > _RATIO_FREE_BYTES and entry.file_size > limits.max_ratio * max(entry.compress_size, 1):
        return f"It unpacks to more than {limits.max_ratio:g} times its size."
    return ""


def _is_housekeeping(path: str) -> bool:
    """Say whether an entry was put there by an operating system and not by a person."""
    return any(part in _IGNORED or (part.startswith(".") and part != "..") for part in PurePosixPath(path).parts)


def _entry_path(entry: zipfile.ZipInfo) -> str:
    """Return the name of an entry with slashes between its folders.

    Names of Korean Windows, which does not mark its encoding, are decoded as such.
    """
    name = entry.orig_filename
    if not entry.flag_bits & _UTF8_FLAG and not name.isascii():
        raw = name.encode("cp437")
        for encoding in ("utf-8", "cp949"):
            try:
                name = raw.decode(encoding)
                break
            except UnicodeDecodeError:
                continue
    return unicodedata.normalize("NFC", name).replace("\\", "/")


FORMAT = Format(name="zip with a folder a class", extensions=(".zip",), sniff=_sniff, read=_read, order=20)
