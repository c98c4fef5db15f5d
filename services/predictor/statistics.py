"""What a loaded model has done so far. Written by the event loop alone, read by anyone."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from statistics import median

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the latency histogram, seconds."""

_REMEMBERED = 1000


class ModelStatistics:
    """Counts of one loaded version since it was loaded.

    Attributes:
        successes: Requests answered.
        failures: Requests that ended in an error.
        wafers: Wafers answered.
        executions: Runs of the model.
        success_seconds: Time of the answered requests together, seconds.
        failure_seconds: Time of the others together, seconds.
        last_inference_ms: When the last request was answered, milliseconds since 1970; 0 before.
        buckets: Answered requests by latency, one count for each bound in LATENCY_BUCKETS_S and one for longer ones.
    """

    def __init__(self) -> None:
        self.successes = 0
        self.failures = 0
        self.wafers = 0
        self.executions = 0
        self.success_seconds = 0.0
        self.failure_seconds = 0.0
        self.last_inference_ms = 0
        self.buckets = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self._latencies: deque[float] = deque(maxlen=_REMEMBERED)

    def executed(self) -> None:
        """Counts a run of the model; the wafers of several requests may have been in it."""
        self.executions += 1

    def succeeded(self, wafers: int, seconds: float) -> None:
        """Counts an answered request.

        Args:
            wafers: Wafers in it.
            seconds: Time from its arrival to its answer.
        """
        self.successes += 1
        self.wafers += wafers
        self.success_seconds += seconds
        self.last_inference_ms = int(time.time() * 1000)
        self.buckets[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        self._latencies.append(seconds)

    def failed(self, seconds: float) -> None:
        """Counts a request that ended in an error."""
        self.failures += 1
        self.failure_seconds += seconds

    @property
    def latency_ms_p50(self) -> float:
        """Median time of the last 1,000 answered requests, milliseconds; 0 before the first."""
        return median(self._latencies) * 1000 if self._latencies else 0.0
