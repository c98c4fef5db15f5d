"""Finds the format of a file and reads it."""

import functools
import importlib
import io
import os
import pkgutil
from pathlib import Path
from typing import IO

from services.common.errors import InvalidArgumentError, NotFoundError
from services.common.formats.reading import Format, Reading, ReadLimits, ReadReport

HEAD_BYTES = 65_536
"""First bytes of a file from which its format is told."""

_PACKAGE = "services.common.formats"


@functools.cache
def all_formats() -> tuple[Format, ...]:
    """Return every format of this package, in the order in which they are asked."""
    package = importlib.import_module(_PACKAGE)
    modules = (importlib.import_module(f"{_PACKAGE}.{each.name}") for each in pkgutil.iter_modules(package.__path__))
    formats = [module.FORMAT for module in modules if hasattr(module, "FORMAT")]
    return tuple(sorted(formats, key=lambda each: (each.order, each.name)))


def sniff(name: str, head: bytes) -> Format | None:
    """Return the format of a file, or None when it is none that is known.

    Args:
        name: its name; only told from where the content leaves a doubt.
        head: its first `HEAD_BYTES` bytes, or all of them.
    """
    return next((each for each in all_formats() if each.sniff(name, head)), None)


def read_wafers(
    name: str,
    source: IO[bytes] | bytes | Path,
    limits: ReadLimits | None = None,
    pass_bins: frozenset[int] = frozenset({1}),
) -> ReadReport:
    """Read the wafers of a file of any known format.

    What is wrong with the content never raises: it is in the report's `skipped`, with a reason.

    Args:
        name: name of the file, for the report.
        source: path, bytes or an open, seekable binary file.
        limits: what the file may ask for.
        pass_bins: test bins of dies that passed, for formats with bins.

    Raises:
        NotFoundError: `source` is a path without a file.
    """
    reading = Reading(limits=limits or ReadLimits(), pass_bins=pass_bins)
    if isinstance(source, Path):
        try:
            with source.open("rb") as file:
                read_file(name, file, reading)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise NotFoundError("file", name) from error
    else:
        read_file(name, io.BytesIO(source) if isinstance(source, bytes) else source, reading)
    return ReadReport(
        wafers=reading.wafers,
        skipped=reading.skipped,
        warnings=list(reading.warnings),
        format_name=reading.format_name,
    )


def read_file(name: str, file: IO[bytes], reading: Reading) -> None:
    """Add the wafers of an open file, or the reason why there are none, to a reading."""
    before = len(reading.wafers)
    try:
        _check_size(file, reading.limits)
        head = file.read(HEAD_BYTES)
        file.seek(0)
        found = _known_format(name, head)
        if reading.depth == 0:
            reading.format_name = found.name
        found.read(name, file, reading)
    except InvalidArgumentError as error:
        if error.reason == "TOO_MANY_WAFERS" and reading.depth:
            raise
        # A file is taken whole or not at all, so that nobody wonders which half of it is there.
        del reading.wafers[before:]
        reading.skip(name, error.message)


def _known_format(name: str, head: bytes) -> Format:
    found = sniff(name, head)
    if found is None:
        known = ", ".join(each.name for each in all_formats())
        raise InvalidArgumentError(f"Expected a file of a known format ({known}). Received something else.")
    return found


def _check_size(file: IO[bytes], limits: ReadLimits) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size == 0:
        raise InvalidArgumentError("The file is empty.")
    if size > limits.max_file_bytes:
        raise InvalidArgumentError(f"Expected at most {limits.max_file_bytes:,} bytes. Received: {size:,}.")
