"""Whether two processes of the predictor serve more than one: `python tests/bench/serving/processes.py HOME`.

Three ways take turns, round after round: one process; two on ports of their own, which get the same load each, the best
that sharing can come to; and a predictor of two (`TEACHWAFER_PREDICTOR_PROCESSES=2`), between which the kernel spreads
the connections. The load comes from two generators with half of the calls in flight each, whatever serves. Medians are
printed, and those of the ratios to one process. On a busy machine two processes also get more of its time than one: the
cores that the servers kept busy and their time for a call tell that apart from what two processes do better.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[3]))
from tests.bench.serving import __main__ as bench
from tests.bench.serving.load import WARM_UP_S, Load
from tests.helpers.processes import service_process

CORES = bench.CORES
ONE, APART, SHARED = "one process", "two processes, load split evenly", "two processes on one port"
IN_FLIGHT = (2, 8, 32)


@dataclass
class Way:
    """A way to serve.

    Attributes:
        addresses: Where each load generator sends to.
        servers: Processes that serve.
        figures: What came of each round, by load: calls a second, cores kept busy.
    """

    addresses: list[str]
    servers: list[psutil.Process]
    figures: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def measure(self, load: Load) -> tuple[float, float]:
        """Returns the calls a second that two load generators get answered together, and the cores kept busy."""
        before = self._busy_s()
        with ThreadPoolExecutor(2) as pool:
            rates = list(pool.map(bench.sent, (replace(load, address=each) for each in self.addresses)))
        return sum(each["per_s"] for each in rates), (self._busy_s() - before) / (load.seconds + WARM_UP_S)

    def _busy_s(self) -> float:
        return sum(sum(each.cpu_times()[:2]) for each in self.servers)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="home with a published model `demo`")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each measurement")
    told = parser.parse_args()
    repository = (told.model / "models").resolve()
    dies = np.random.default_rng(0).integers(1, 3, (bench.LOT, bench.SIDE, bench.SIDE)).astype(np.uint8)
    single, lot = bench.infer_request(dies[:1]), bench.infer_request(dies)
    with tempfile.TemporaryDirectory(prefix="teachwafer-bench-") as folder, contextlib.ExitStack() as stack:
        start = Starter(stack, Path(folder), repository)
        half = max(1, CORES // 2)
        ways = {ONE: start.apart([CORES]), APART: start.apart([half, half]), SHARED: start.shared(2)}
        loads = {f"single wafers, {each} in flight": ("unary", bench.INFER, single, each) for each in IN_FLIGHT}
        loads["single wafers on 32 streams"] = ("stream", bench.STREAM_INFER, single, 32)
        loads[f"lots of {bench.LOT}, {2 * CORES} in flight"] = ("unary", bench.INFER, lot, 2 * CORES)
        for number in range(told.rounds):
            print(f"Round {number + 1} of {told.rounds} ...", file=sys.stderr)
            for name, (kind, path, request, in_flight) in loads.items():
                load = bench.load(kind, "", path, request, in_flight // 2, told.seconds)
                for way in ways.values():
                    way.figures.setdefault(name, []).append(way.measure(load))
    report(ways, told.rounds, told.seconds)


class Starter:
    """Starts predictors that serve one repository.

    Args:
        stack: Ends them.
        folder: Where their homes are made.
        repository: The repository.
    """

    def __init__(self, stack: contextlib.ExitStack, folder: Path, repository: Path) -> None:
        self._stack, self._folder, self._repository, self._number = stack, folder, repository, count()

    def apart(self, threads: list[int]) -> Way:
        """Starts predictors on ports of their own, with so many threads each."""
        services = [
            self._stack.enter_context(
                service_process("services.predictor", self._folder / f"apart-{next(self._number)}", self._told(each))
            )
            for each in threads
        ]
        for service in services:
            service.wait_serving(180)
        addresses = [each.address for each in services]
        return Way([addresses[0], addresses[-1]], [psutil.Process(each.popen.pid) for each in services])

    def shared(self, processes: int) -> Way:
        """Starts a predictor of several processes, with as many threads together as there are cores."""
        told = {**self._told(CORES), "TEACHWAFER_PREDICTOR_PROCESSES": str(processes)}
        service = self._stack.enter_context(service_process("services.predictor", self._folder / "shared", told))
        service.wait_serving(180)
        return Way([service.address] * 2, psutil.Process(service.popen.pid).children())

    def _told(self, threads: int) -> dict[str, str]:
        return {
            "TEACHWAFER_LOG_LEVEL": "WARNING",
            "TEACHWAFER_MODEL_REPOSITORY": str(self._repository),
            "TEACHWAFER_PREDICTOR_THREADS": str(threads),
        }


def report(ways: dict[str, Way], rounds: int, seconds: float) -> None:
    """Prints the medians and what they are to one process, round by round."""
    told = {
        load: {
            name: {
                "calls_per_s": round(statistics.median(rate for rate, _ in figures)),
                "to_one": bench.ratio([rate for rate, _ in figures], [rate for rate, _ in ones]),
                "cores_busy": round(statistics.median(busy for _, busy in figures), 2),
                "server_ms_a_call": round(statistics.median(1000 * busy / rate for rate, busy in figures), 2),
            }
            for name, figures in ((name, way.figures[load]) for name, way in ways.items())
        }
        for load, ones in ways[ONE].figures.items()
    }
    load_average = [round(each, 1) for each in os.getloadavg()]
    kept = {"cores": CORES, "load_average": load_average, "rounds": rounds, "seconds": seconds, **told}
    print(json.dumps(kept, indent=2))


if __name__ == "__main__":
    main()
