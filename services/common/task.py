"""What a model tells of a wafer: the three types of project."""

from enum import StrEnum


class Task(StrEnum):
    """What a model tells.

    SINGLE tells the one pattern of a wafer, SEVERAL all its patterns, each by itself, NORMAL whether it is normal.
    """

    SINGLE = "single"
    SEVERAL = "several"
    NORMAL = "normal"


NORMAL_PATTERN = "none"
"""Canonical pattern name of the normal class: the one of wafers that show nothing."""
