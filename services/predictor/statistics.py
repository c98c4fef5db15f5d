"""What a loaded model has done so far. Written by the event loop alone, read by anyone."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the latency histogram, seconds."""

_REMEMBERED = 1000


@dataclass(slots=True)
class Durations:
    """How often something was done, and how long it took together.

    Attributes:
        count: How often.
        seconds: How long, seconds.
    """

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Counts it once more."""
        self.count += 1
        self.seconds += seconds


@dataclass(frozen=True, slots=True)
class Run:
    """When the parts of one run of a model happened, seconds of `time.perf_counter`.

    Attributes:
        size: Elements of the batch.
        begun: The batch was taken out of the queue.
        made: Its inputs were one.
        inferred: The model had answered.
        ended: The answers were dealt out.
    """

    size: int
    begun: float
    made: float
    inferred: float
    ended: float

    @classmethod
    def of_steps(cls, size: int, started: float, steps: Sequence[tuple[float, Sequence[Run]]]) -> Run:
        """Returns the run of an ensemble: each part is as long as those of its steps together, as Triton counts them.

        Args:
            size: Elements of the batch.
            started: When the request for the ensemble came.
            steps: When the request for each step came, and the runs that it had a part in.
        """
        moments = [started]
        for part in zip(*(_parts(*step) for step in steps), strict=True):
            moments.append(moments[-1] + sum(part))
        return cls(size, *moments[1:])


@dataclass(slots=True)
class BatchDurations:
    """Parts of the runs of one batch size."""

    compute_input: Durations
    compute_infer: Durations
    compute_output: Durations


class ModelStatistics:
    """Counts of one loaded version since it was loaded.

    Attributes:
        successes: Requests answered.
        failures: Requests that ended in an error.
        wafers: Wafers, or elements of batches, that the model answered; those out of the cache are none.
        executions: Runs of the model.
        success_seconds: Time of the answered requests together, seconds.
        failure_seconds: Time of the others together, seconds.
        queue: Waits of the answered requests.
        compute_input: Making of the inputs, of the answered requests.
        compute_infer: Runs of the model, of the answered requests.
        compute_output: Dealing out of the answers, of the answered requests.
        cache_hits: Requests answered out of the cache: looking up.
        cache_misses: Requests that were not in the cache: looking up and keeping.
        batches: Parts of the runs by batch size.
        waiting: Requests that wait now.
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
        self.queue = Durations()
        self.compute_input = Durations()
        self.compute_infer = Durations()
        self.compute_output = Durations()
        self.cache_hits = Durations()
        self.cache_misses = Durations()
        self.batches: dict[int, BatchDurations] = {}
        self.waiting = 0
        self.last_inference_ms = 0
        self.buckets = [0] * (len(LATENCY_BUCKETS_S) + 1)
        self._latencies: deque[float] = deque(maxlen=_REMEMBERED)

    def executed(self, run: Run) -> None:
        """Counts a run of the model; the wafers of several requests may have been in it."""
        self.executions += 1
        size = self.batches.get(run.size)
        if size is None:
            size = self.batches[run.size] = BatchDurations(Durations(), Durations(), Durations())
        size.compute_input.add(run.made - run.begun)
        size.compute_infer.add(run.inferred - run.made)
        size.compute_output.add(run.ended - run.inferred)

    def succeeded(self, wafers: int, seconds: float, started: float = 0.0, runs: Sequence[Run] = ()) -> None:
        """Counts an answered request.

        Args:
            wafers: Wafers in it.
            seconds: Time from its arrival to its answer.
            started: When it arrived, seconds of `time.perf_counter`.
            runs: Runs that it had a part in; none where the cache had the answer.
        """
        self.successes += 1
        self.success_seconds += seconds
        self.last_inference_ms = int(time.time() * 1000)
        self.buckets[bisect_left(LATENCY_BUCKETS_S, seconds)] += 1
        self._latencies.append(seconds)
        if not runs:
            self.queue.add(0.0)
            return
        self.wafers += wafers
        parts = (self.queue, self.compute_input, self.compute_infer, self.compute_output)
        for each, part in zip(parts, _parts(started, runs), strict=True):
            each.add(part)

    def failed(self, seconds: float) -> None:
        """Counts a request that ended in an error."""
        self.failures += 1
        self.failure_seconds += seconds

    @property
    def latency_ms_p50(self) -> float:
        """Median time of the last 1,000 answered requests, milliseconds; 0 before the first."""
        return median(self._latencies) * 1000 if self._latencies else 0.0


def _parts(started: float, runs: Sequence[Run]) -> tuple[float, float, float, float]:
    """Returns how long a request waited, and how long its inputs, its runs and its outputs took, seconds."""
    if not runs:
        return 0.0, 0.0, 0.0, 0.0
    if len(runs) == 1:
        run = runs[0]
        return run.begun - started, run.made - run.begun, run.inferred - run.made, run.ended - run.inferred
    # A large request is several runs, some of them side by side: its parts are those of the longest.
    return (
        min(run.begun for run in runs) - started,
        max(run.made - run.begun for run in runs),
        max(run.inferred - run.made for run in runs),
        max(run.ended - run.inferred for run in runs),
    )
