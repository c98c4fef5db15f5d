"""What reading a file is given and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

from services.common.errors import InvalidArgumentError
from services.common.wafer_map import WaferMap


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """What a file may ask for at most; checked before it is unpacked.

    Attributes:
        max_file_bytes: size of a file, and of an unpacked archive entry.
        max_unpacked_bytes: size of everything that one file unpacks to.
        max_entries: entries of an archive.
        max_ratio: unpacked to packed size of an archive entry of more than a megabyte.
        max_wafers: wafers read from one file.
        max_pixels: width x height of a picture.
    """

    max_file_bytes: int = 512 << 20
    max_unpacked_bytes: int = 1 << 30
    max_entries: int = 100_000
    max_ratio: float = 200.0
    max_wafers: int = 200_000
    max_pixels: int = 16 << 20


@dataclass(frozen=True, slots=True)
class LabelledWafer:
    """A wafer as it was read.

    Attributes:
        map: the wafer.
        label: class that the file gives it, or None.
        source_name: file, and where it holds several wafers which one of them.
    """

    map: WaferMap
    label: str | None
    source_name: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that was not read.

    Attributes:
        name: file, entry of an archive or wafer.
        reason: why, in a sentence for people.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReadReport:
    """What came out of a file.

    Attributes:
        wafers: wafers in the order of the file.
        skipped: what could not be read, and why.
        warnings: what was guessed or left out, in sentences for people.
        format_name: format in which the file was read, "" when it is none that is known.
    """

    wafers: list[LabelledWafer]
    skipped: list[Skipped]
    warnings: list[str]
    format_name: str


@dataclass(slots=True)
class Reading:
    """A reading in progress: readers add to it what they find.

    Attributes:
        limits: what the file may ask for.
        pass_bins: test bins of dies that passed.
        format_name: format in which the file is read; a reader may say it more exactly.
        wafers: wafers so far.
        skipped: what could not be read so far.
        warnings: what was guessed so far, each sentence once.
        depth: 0 for a file, 1 for an entry of an archive.
    """

    limits: ReadLimits
    pass_bins: frozenset[int]
    format_name: str = ""
    wafers: list[LabelledWafer] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    warnings: dict[str, None] = field(default_factory=dict)
    depth: int = 0

    def add(self, wafer: WaferMap, label: str | None, source_name: str) -> None:
        """Take a wafer.

        Raises:
            InvalidArgumentError: there are more wafers than allowed.
        """
        if len(self.wafers) >= self.limits.max_wafers:
            raise InvalidArgumentError(
                f"Expected at most {self.limits.max_wafers:,} wafers in one file. Received more: split the file.",
                reason="TOO_MANY_WAFERS",
            )
        self.wafers.append(LabelledWafer(wafer, label or None, source_name))

    def skip(self, name: str, reason: str) -> None:
        """Note something that could not be read."""
        self.skipped.append(Skipped(name, reason))

    def warn(self, sentence: str) -> None:
        """Note something that was guessed or left out."""
        self.warnings[sentence] = None


@dataclass(frozen=True, slots=True)
class Format:
    """A format that can be read.

    Attributes:
        name: short name for people.
        extensions: usual endings of its files, for file dialogs only.
        sniff: says from a file's name and first bytes whether it looks like this format.
        read: adds what a file holds to a reading; raises InvalidArgumentError with the reason if it cannot.
        order: formats with a lower number are asked first.
    """

    name: str
    extensions: tuple[str, ...]
    sniff: Callable[[str, bytes], bool]
    read: Callable[[str, IO[bytes], Reading], None]
    order: int = 50
