"""Metrics for Prometheus, under the names that dashboards for Triton read.

They are computed from the statistics of the models when somebody reads them, so that calls pay nothing for them. They
start at 0 when a version is loaded; Prometheus takes that for a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from services.common.errors import FailedPreconditionError
from services.predictor.model_server import ModelServer
from services.predictor.statistics import LATENCY_BUCKETS_S, ModelStatistics

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
)


class ModelCollector(Collector):
    """Reads the statistics of the models in service.

    Args:
        models: The models.
    """

    def __init__(self, models: ModelServer) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics as they are now."""
        loaded = self._models.loaded()
        for name, text, read in _COUNTERS:
            # Of no type, because the client library puts `_total` behind the names of counters.
            metric = Metric(name, text, "untyped")
            for each in loaded:
                metric.add_sample(name, {"model": each.name, "version": str(each.version)}, read(each.statistics))
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


class MetricsServer:
    """Answers Prometheus over HTTP from a thread of its own.

    Args:
        models: The models.
        host: Address to listen on.
        port: Port; 0 takes a free one.

    Attributes:
        port: Port that it listens on.

    Raises:
        FailedPreconditionError: The port is not to be had.
    """

    def __init__(self, models: ModelServer, host: str, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(ModelCollector(models))
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


def _cumulated(statistics: ModelStatistics) -> list[tuple[str, float]]:
    """Returns how many requests took at most as long as each bound."""
    total = 0
    buckets: list[tuple[str, float]] = []
    for bound, count in zip((*LATENCY_BUCKETS_S, float("inf")), statistics.buckets, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
    return buckets
