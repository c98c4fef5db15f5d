"""The metrics of several processes as those of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

SAME_IN_ALL = frozenset(
    {
        "nv_cpu_memory_total_bytes",
        "nv_cpu_memory_used_bytes",
        "teachwafer_predictor_canary_percent",
        "teachwafer_predictor_canary_trials",
    }
)
"""Metrics of the machine, or of what all processes do together; all others are sums."""
OF_THE_LIVING = frozenset({"nv_inference_pending_request_count"})
"""Sums that a process takes along when it ends; all others count what was done."""

_Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class SumCollector(Collector):
    """Adds up the metrics of all processes.

    What a process had counted when it was last asked stays in the sums after its end, as long as another one serves the
    same: a counter that fell would look as if it had begun anew, and what is left of it would count twice.

    Args:
        ask: Returns the metrics of each process in the text format of Prometheus, by a number that no other one has.
    """

    def __init__(self, ask: Callable[[], Mapping[int, bytes]]) -> None:
        self._ask = ask
        self._last: dict[int, _Samples] = {}
        self._of_the_ended: _Samples = {}

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics as they are now."""
        families: dict[str, Metric] = {}
        totals: dict[str, _Samples] = {}
        now: dict[int, _Samples] = {}
        for number, text in self._ask().items():
            counted = now[number] = {}
            for family in text_string_to_metric_families(text.decode()):
                families.setdefault(family.name, family)
                samples = totals.setdefault(family.name, {})
                for each in family.samples:
                    key = (each.name, tuple(sorted(each.labels.items())))
                    if family.name in SAME_IN_ALL:
                        samples[key] = max(samples.get(key, each.value), each.value)
                        continue
                    samples[key] = samples.get(key, 0.0) + each.value
                    if family.name not in OF_THE_LIVING:
                        counted[key] = each.value
        for number in self._last.keys() - now.keys():
            for key, value in self._last[number].items():
                self._of_the_ended[key] = self._of_the_ended.get(key, 0.0) + value
        self._last = now
        served = {key for counted in now.values() for key in counted}
        self._of_the_ended = {key: value for key, value in self._of_the_ended.items() if key in served}
        for name, family in families.items():
            metric = Metric(name, family.documentation, family.type)
            metric.samples = [
                Sample(key[0], dict(key[1]), value + self._of_the_ended.get(key, 0.0))
                for key, value in totals[name].items()
            ]
            yield metric
