"""Files of wafer maps: one module a format, found by what is in the file and not by its name.

To add a format, add a module to this package with a `FORMAT`; nothing else has to change.
"""

from services.common.formats.reading import (
    Format,
    LabelledWafer,
    Reading,
    ReadLimits,
    ReadReport,
    Skipped,
)
from services.common.formats.registry import all_formats, read_wafers, sniff

__all__ = [
    "Format",
    "LabelledWafer",
    "ReadLimits",
    "ReadReport",
    "Reading",
    "Skipped",
    "all_formats",
    "read_wafers",
    "sniff",
]
