"""What training and generation jobs share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self in ENDED


ENDED: Final = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED})
"""States in which nothing changes any more."""


@dataclass(frozen=True, slots=True)
class JobStateChanged:
    """The state of a job changed.

    Attributes:
        sequence: Number of the event in its job, from 1.
        when: When it happened.
        state: New state.
        reason: Why, as the service says it; may be empty.
    """

    sequence: int
    when: datetime
    state: JobState
    reason: str = ""
