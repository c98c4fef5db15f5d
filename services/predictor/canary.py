"""A new version proves itself on a share of the requests before it gets all, and goes back by itself if it fails.

Both versions get the same mix of requests, so their shares of errors and their mean times can be compared; a fault of a
caller counts against both alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from services.predictor.model_config import CanaryRules
from services.predictor.statistics import ModelStatistics


class Served(Protocol):
    """A version in service, as far as a trial looks at it."""

    @property
    def version(self) -> int:
        """Its version."""

    @property
    def statistics(self) -> ModelStatistics:
        """What it has done."""


class Outcome(StrEnum):
    """How a trial ended."""

    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a trial ended, and why.

    Attributes:
        outcome: How.
        reason: What was expected and what came; empty for a version that proved itself.
    """

    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Tally:
    """Counts of a version at one moment."""

    successes: int
    failures: int
    seconds: float

    @classmethod
    def of(cls, done: ModelStatistics) -> _Tally:
        return cls(done.successes, done.failures, done.success_seconds)

    def since(self, before: _Tally) -> _Tally:
        return _Tally(self.successes - before.successes, self.failures - before.failures, self.seconds - before.seconds)

    @property
    def requests(self) -> int:
        return self.successes + self.failures

    @property
    def errors_percent(self) -> float:
        return 100 * self.failures / self.requests if self.requests else 0.0

    @property
    def mean_ms(self) -> float:
        return 1000 * self.seconds / self.successes if self.successes else 0.0


class Trial:
    """One version beside the one that it is to replace.

    Args:
        stable: What serves so far.
        candidate: What is to replace it.
        rules: How it proves itself.

    Attributes:
        stable: What serves so far.
        candidate: What is to replace it.
        rules: How it proves itself.
        judged: Whether somebody was told the verdict and has not ended the trial yet.
    """

    def __init__(self, stable: Served, candidate: Served, rules: CanaryRules) -> None:
        self.stable = stable
        self.candidate = candidate
        self.rules = rules
        self.judged = False
        self._before = _Tally.of(stable.statistics), _Tally.of(candidate.statistics)
        self._due = 0

    def pick(self) -> int:
        """Returns the version that a request goes to: the candidate's share is spread evenly."""
        self._due += self.rules.percent
        if self._due < 100:
            return self.stable.version
        self._due -= 100
        return self.candidate.version

    def verdict(self) -> Verdict | None:
        """Returns how the trial ended; None while it goes on."""
        stable = _Tally.of(self.stable.statistics).since(self._before[0])
        candidate = _Tally.of(self.candidate.statistics).since(self._before[1])
        if candidate.requests < self.rules.min_requests:
            return None
        most = stable.errors_percent + self.rules.max_errors_percent
        if candidate.errors_percent > most:
            return self._rolled_back(f"at most {most:.1f} % of errors", f"{candidate.errors_percent:.1f} %")
        slowest = stable.mean_ms * (1 + self.rules.max_slowdown_percent / 100)
        if stable.successes and candidate.mean_ms > slowest:
            return self._rolled_back(f"at most {slowest:.2f} ms a request", f"{candidate.mean_ms:.2f} ms")
        return Verdict(Outcome.PROMOTED) if candidate.requests >= self.rules.requests else None

    def _rolled_back(self, expected: str, received: str) -> Verdict:
        return Verdict(
            Outcome.ROLLED_BACK,
            f"Rolled back to version {self.stable.version}. Expected on its share of the requests: {expected}. "
            f"Received: {received}. Correct it and publish it again, or load it to try it anew.",
        )
