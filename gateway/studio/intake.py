"""Reading the files that people send, with all limits in force. Blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from gateway.catalogue.names import cleaned
from gateway.settings import GatewaySettings
from gateway.studio.disk import disk_errors
from gateway.values import SkippedEntry, UploadFile
from services.common.errors import InvalidArgumentError, ResourceExhaustedError, TeachwaferError
from services.common.formats import ReadLimits, read_wafers
from services.common.wafer_map import WaferMap

_PICTURES: Final = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, slots=True, eq=False)
class ReadWafer:
    """A wafer of an upload.

    Attributes:
        map: The wafer.
        label: Class that the file or its folder gives it, or "".
        source_name: File, and where it holds several wafers which one.
        file: Position of the file in the upload.
        guessed: Whether its grid was guessed from a picture.
    """

    map: WaferMap
    label: str
    source_name: str
    file: int
    guessed: bool


@dataclass(slots=True)
class Intake:
    """What the files of an upload hold.

    Attributes:
        wafers: Wafers in the order of the files.
        skipped: What could not be read.
        warnings: What was guessed, in the readers' words.
        formats: Formats found.
    """

    wafers: list[ReadWafer] = field(default_factory=list)
    skipped: list[SkippedEntry] = field(default_factory=list)
    warnings: dict[str, None] = field(default_factory=dict)
    formats: dict[str, None] = field(default_factory=dict)


def read_files(files: Sequence[UploadFile], settings: GatewaySettings) -> Intake:
    """Reads files. One that cannot be read does not sink the others.

    Args:
        files: The files.
        settings: Limits on size and number.

    Raises:
        InvalidArgumentError: There is no file (reason NO_FILES), or too many (TOO_MANY_FILES).
        ResourceExhaustedError: They are larger than allowed (UPLOAD_TOO_LARGE).
    """
    check_limits(files, settings)
    intake = Intake()
    limits = ReadLimits(max_file_bytes=settings.gateway_upload_max_bytes)
    for position, file in enumerate(files):
        name, folder = _name_and_folder(file.name)
        try:
            report = read_wafers(name, file.source, limits)
        except TeachwaferError as error:
            intake.skipped.append(SkippedEntry(name, error.reason, error.message))
            continue
        if report.format_name:
            intake.formats[report.format_name] = None
        intake.warnings |= dict.fromkeys(report.warnings)
        intake.skipped += [SkippedEntry(cleaned(each.name), "UNREADABLE", each.reason) for each in report.skipped]
        for each in report.wafers:
            source_name = cleaned(each.source_name, 512)
            guessed = PurePosixPath(source_name).suffix.lower() in _PICTURES
            intake.wafers.append(ReadWafer(each.map, cleaned(each.label or folder), source_name, position, guessed))
    return intake


def check_limits(files: Sequence[UploadFile], settings: GatewaySettings) -> None:
    """Refuses too many or too large files before they are read; raises as `read_files`."""
    if not files:
        raise InvalidArgumentError("Expected at least one file. Received: none.", "files", reason="NO_FILES")
    if len(files) > settings.gateway_upload_max_files:
        raise InvalidArgumentError(
            f"Expected at most {settings.gateway_upload_max_files:,} files at once. Received: {len(files):,}. "
            "Pack them into one .zip, or send them in parts.",
            "files",
            reason="TOO_MANY_FILES",
            metadata={"max": str(settings.gateway_upload_max_files), "files": str(len(files))},
        )
    with disk_errors("the upload"):
        size = sum(_size(file) for file in files)
    if size > settings.gateway_upload_max_bytes:
        raise ResourceExhaustedError(
            f"Expected at most {settings.gateway_upload_max_bytes:,} bytes at once. Received: {size:,}. "
            "Send the wafers in parts, or let an administrator raise TEACHWAFER_GATEWAY_UPLOAD_MAX_BYTES.",
            reason="UPLOAD_TOO_LARGE",
            metadata={"max_bytes": str(settings.gateway_upload_max_bytes), "bytes": str(size)},
        )


def _size(file: UploadFile) -> int:
    return len(file.source) if isinstance(file.source, bytes) else Path(file.source).stat().st_size


def _name_and_folder(name: str) -> tuple[str, str]:
    """Returns the last part of a name that is never used as a path, and the folder before it, or ""."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    if not parts:
        return "file", ""
    return cleaned(parts[-1]) or "file", cleaned(parts[-2]) if len(parts) > 1 else ""
