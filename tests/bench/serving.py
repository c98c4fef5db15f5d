"""How near Classify comes to onnxruntime alone: lots of 25 wafers, client and server on the same cores.

Teaches a model on simulated wafers, serves it in a process of its own, and measures in turn: onnxruntime in this
process, one session a core with one thread each; then Classify from as many callers as keep the server busy. Prints
one JSON line with medians and their ratio.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
from teachwafer.predictor.v1 import predictor_pb2, predictor_pb2_grpc

from services.common.client import connect_sync
from services.common.preprocessing import pad_grids
from services.common.wafer_map import WaferMap
from services.common.wafer_map_converter import to_proto
from services.common.wafer_set import read_wafer_set

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.helpers.processes import service_process

LOT = 25
SIDE = 52
ROUNDS = 7
ROUND_S = 3.0
CORES = len(os.sched_getaffinity(0))


def main() -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory(prefix="teachwafer-bench-") as folder:
        home = Path(folder)
        print("Teaching a model to serve ...", file=sys.stderr)
        command = [sys.executable, "-m", "gateway.cli", "demo", "--keep", "--home", folder, "--local"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        grids = simulated_lot(home)
        with service_process("services.predictor", home) as predictor:
            predictor.wait_serving()
            print(json.dumps(measure(home, predictor.address, grids)))


def simulated_lot(home: Path) -> list[np.ndarray]:
    """Returns one lot of wafers of SIDE x SIDE dies."""
    path = home / "lot.npz"
    command = ["--out", str(path), "--wafers-per-class", "3", "--seed", "1"]
    subprocess.run([sys.executable, "-m", "services.generator.simulator", *command], check=True)
    wafers = read_wafer_set(path)
    # Resized by repetition of dies: what is in the wafers does not matter here, their size does.
    index = [np.arange(SIDE) * side // SIDE for side in range(400)]
    return [grid[np.ix_(index[grid.shape[0]], index[grid.shape[1]])] for grid in list(wafers.grids)[:LOT]]


def measure(home: Path, address: str, grids: list[np.ndarray]) -> dict[str, float]:
    """Measures both ways in turn and returns medians."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = next(home.glob("models/demo/*/model.onnx"))
    sessions = [
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]) for _ in range(CORES)
    ]
    dies = pad_grids(grids)
    names = ["probabilities", "novelty"]
    request = predictor_pb2.ClassifyRequest(model="demo", wafers=[to_proto(WaferMap(grid)) for grid in grids])
    alone, served, single = [], [], []
    with connect_sync(address) as channel:
        stub = predictor_pb2_grpc.PredictorServiceStub(channel)
        one = predictor_pb2.ClassifyRequest(model="demo", wafers=request.wafers[:1])
        stub.Classify(request)
        for _ in range(ROUNDS):
            alone.append(LOT * rate(lambda worker: sessions[worker].run(names, {"dies": dies}), CORES))
            served.append(LOT * rate(lambda _: stub.Classify(request), 2 * CORES))
            single.append(rate(lambda _: stub.Classify(one), 32))
    ratios = [with_server / without for with_server, without in zip(served, alone, strict=True)]
    return {
        "cores": CORES,
        "onnxruntime_wafers_per_s": round(statistics.median(alone)),
        "classify_lots_wafers_per_s": round(statistics.median(served)),
        "ratio": round(statistics.median(ratios), 3),
        "classify_single_wafers_per_s": round(statistics.median(single)),
    }


def rate(call: Callable[[int], object], workers: int) -> float:
    """Returns calls a second of some workers that call one after another."""
    end = time.perf_counter() + ROUND_S

    def work(worker: int) -> int:
        done = 0
        while time.perf_counter() < end:
            call(worker)
            done += 1
        return done

    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        done = sum(pool.map(work, range(workers)))
    return done / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
