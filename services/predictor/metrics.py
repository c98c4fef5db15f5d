"""Metrics for Prometheus, under the names that dashboards for Triton read.

They are computed from the statistics of the models when somebody reads them, so that calls pay nothing for them. They
start at 0 when a version is loaded; Prometheus takes that for a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.errors import FailedPreconditionError
from services.predictor.access import Access
from services.predictor.model_server import LoadedModel, ModelServer
from services.predictor.statistics import LATENCY_BUCKETS_S, ModelStatistics

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Upper bounds of the histogram of batch sizes."""

_COUNTERS: tuple[tuple[str, str, Callable[[ModelStatistics], float]], ...] = (
    ("nv_inference_request_success", "Requests answered", lambda done: done.successes),
    ("nv_inference_request_failure", "Requests that ended in an error", lambda done: done.failures),
    ("nv_inference_count", "Wafers answered", lambda done: done.wafers),
    ("nv_inference_exec_count", "Runs of the model", lambda done: done.executions),
    (
        "nv_inference_request_duration_us",
        "Time of the answered requests together, microseconds",
        lambda done: done.success_seconds * 1e6,
    ),
    (
        "nv_inference_queue_duration_us",
        "Time that the answered requests waited, microseconds",
        lambda done: done.queue.seconds * 1e6,
    ),
    (
        "nv_inference_compute_input_duration_us",
        "Time that the inputs of the answered requests took, microseconds",
        lambda done: done.compute_input.seconds * 1e6,
    ),
    (
        "nv_inference_compute_infer_duration_us",
        "Time that the model took for the answered requests, microseconds",
        lambda done: done.compute_infer.seconds * 1e6,
    ),
    (
        "nv_inference_compute_output_duration_us",
        "Time that the outputs of the answered requests took, microseconds",
        lambda done: done.compute_output.seconds * 1e6,
    ),
    ("nv_inference_pending_request_count", "Requests that wait now", lambda done: done.waiting),
    (
        "nv_cache_num_hits_per_model",
        "Requests answered out of the response cache",
        lambda done: done.cache_hits.count,
    ),
    (
        "nv_cache_num_misses_per_model",
        "Requests that the response cache had no answer for",
        lambda done: done.cache_misses.count,
    ),
    (
        "nv_cache_hit_duration_per_model",
        "Time that answers out of the response cache took, microseconds",
        lambda done: done.cache_hits.seconds * 1e6,
    ),
    (
        "nv_cache_miss_duration_per_model",
        "Time that the response cache took for what it had no answer for, microseconds",
        lambda done: done.cache_misses.seconds * 1e6,
    ),
)


class ModelCollector(Collector):
    """Reads the statistics of the models in service.

    Args:
        models: The models.
        access: What callers asked for.
    """

    def __init__(self, models: ModelServer, access: Access) -> None:
        self._models = models
        self._access = access

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics as they are now."""
        loaded = self._models.loaded()
        for name, text, read in _COUNTERS:
            # Of no type, because the client library puts `_total` behind the names of counters.
            metric = Metric(name, text, "untyped")
            for each in loaded:
                metric.add_sample(name, _labels(each), read(each.statistics))
            yield metric
        latency = HistogramMetricFamily(
            "teachwafer_predictor_request_seconds",
            "Time of the answered requests, seconds",
            labels=("model", "version"),
        )
        for each in loaded:
            latency.add_metric(
                [each.name, str(each.version)], _cumulated(each.statistics), each.statistics.success_seconds
            )
        yield latency
        batches = HistogramMetricFamily(
            "teachwafer_predictor_batch_size", "Elements of a run of the model", labels=("model", "version")
        )
        for each in loaded:
            batches.add_metric([each.name, str(each.version)], *_batch_sizes(each.statistics))
        yield batches
        percent = Metric(
            "teachwafer_predictor_canary_percent", "Share of the requests on which a new version proves itself", "gauge"
        )
        for name, trial in sorted(dict(self._models.trials).items()):
            labels = {"model": name, "version": str(trial.candidate.version)}
            percent.add_sample(percent.name, labels, trial.rules.percent)
        yield percent
        trials = Metric("teachwafer_predictor_canary_trials", "New versions promoted or rolled back", "untyped")
        for (name, outcome), count in sorted(dict(self._models.outcomes).items()):
            trials.add_sample(trials.name, {"model": name, "outcome": outcome.value}, count)
        yield trials
        if self._access.guarded:
            keys = Metric("teachwafer_predictor_key_requests", "Requests by key, let through or refused", "untyped")
            for (key, model, let_through), count in sorted(self._access.counts.items()):
                labels = {"key": key, "model": model, "outcome": "admitted" if let_through else "refused"}
                keys.add_sample(keys.name, labels, count)
            yield keys
        yield from _machine()


class CollectorServer:
    """Answers Prometheus over HTTP from a thread of its own.

    Args:
        collector: What is answered.
        host: Address to listen on.
        port: Port; 0 takes a free one.

    Attributes:
        port: Port that it listens on.

    Raises:
        FailedPreconditionError: The port is not to be had.
    """

    def __init__(self, collector: Collector, host: str, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise FailedPreconditionError(
                f"Expected to listen on {host}:{port} for metrics. Received: {error.strerror}. Stop what listens "
                "there, or set another TEACHWAFER_PREDICTOR_METRICS_PORT; 0 takes any free one.",
                reason="PORT_IN_USE",
            ) from None
        self.port: int = self._server.server_port

    def close(self) -> None:
        """Stops answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class MetricsServer(CollectorServer):
    """Answers with the statistics of the models in service.

    Args:
        models: The models.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        access: What callers asked for. Default: nobody needs a key.

    Raises:
        FailedPreconditionError: The port is not to be had.
    """

    def __init__(self, models: ModelServer, host: str, port: int, access: Access | None = None) -> None:
        super().__init__(ModelCollector(models, access or Access()), host, port)


def _labels(model: LoadedModel) -> dict[str, str]:
    return {**model.session.config.metric_tags, "model": model.name, "version": str(model.version)}


def _batch_sizes(statistics: ModelStatistics) -> tuple[list[tuple[str, float]], float]:
    """Returns how many runs had at most as many elements as each power of two, and all elements together."""
    sizes = {size: each.compute_infer.count for size, each in list(statistics.batches.items())}
    buckets = [(str(bound), float(sum(n for size, n in sizes.items() if size <= bound))) for bound in BATCH_BUCKETS]
    return [*buckets, ("+Inf", float(sum(sizes.values())))], float(sum(size * n for size, n in sizes.items()))


def _machine() -> Iterator[Metric]:
    """Yields the memory of the machine, where the kernel tells it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    kib = {line.split(":")[0]: float(line.split()[1]) for line in lines if len(line.split()) > 1}
    total, available = kib.get("MemTotal", 0.0) * 1024, kib.get("MemAvailable", 0.0) * 1024
    for name, text, value in (
        ("nv_cpu_memory_total_bytes", "Memory of the machine, bytes", total),
        ("nv_cpu_memory_used_bytes", "Memory of the machine in use, bytes", total - available),
    ):
        metric = Metric(name, text, "gauge")
        metric.add_sample(name, {}, value)
        yield metric


def _cumulated(statistics: ModelStatistics) -> list[tuple[str, float]]:
    """Returns how many requests took at most as long as each bound."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*LATENCY_BUCKETS_S, float("inf")), statistics.buckets, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
    return buckets
