"""How long teaching takes and how fast the taught graph answers, for each model size. Prints one JSON line.

Teaching: nine simulated classes of 200 wafers, from the request to the verified ONNX file, and the whole command with
the start of its programs. Answering: the graph alone in onnxruntime, one thread, lots of 25 wafers of 52 x 52 dies; the
sizes take turns, so that a busy moment hits all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

SIZES = ("fast", "balanced", "best")
WAFERS_PER_CLASS = 200
LOT = 25
ROUNDS = 15


def main() -> None:
    """Measures and prints medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="trainings of each size")
    rounds = parser.parse_args().rounds
    jobs: dict[str, list[float]] = {size: [] for size in SIZES}
    commands: dict[str, list[float]] = {size: [] for size in SIZES}
    with tempfile.TemporaryDirectory(prefix="teachwafer-bench-") as folder:
        wafers = Path(folder) / "wafers.npz"
        simulate = ["-m", "services.generator.simulator", "--out", str(wafers)]
        subprocess.run([sys.executable, *simulate, "--wafers-per-class", str(WAFERS_PER_CLASS)], check=True)
        for each in range(rounds):
            for size in SIZES:
                started = time.perf_counter()
                jobs[size].append(teach(wafers, Path(folder) / f"{size}-{each}", size))
                commands[size].append(time.perf_counter() - started)
        speeds = wafers_per_second({size: next(Path(folder, f"{size}-0").rglob("model.onnx")) for size in SIZES})
    print(
        json.dumps(
            {
                size: {
                    "job_s": round(statistics.median(jobs[size]), 1),
                    "command_s": round(statistics.median(commands[size]), 1),
                    "wafers_per_s_one_thread": round(speeds[size]),
                }
                for size in SIZES
            }
        )
    )


def teach(wafers: Path, home: Path, size: str) -> float:
    """Teaches one model; returns the seconds of its job."""
    command = [sys.executable, "-m", "gateway.cli", "train", str(wafers), "--home", str(home), "--model-size", size]
    done = subprocess.run([*command, "--local", "--json"], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def wafers_per_second(graphs: dict[str, Path]) -> dict[str, float]:
    """Returns the median speed of each graph on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = {size: onnxruntime.InferenceSession(os.fspath(path), options) for size, path in graphs.items()}
    dies = disc_wafers(LOT)
    times: dict[str, list[float]] = {size: [] for size in sessions}
    for each in range(ROUNDS + 1):
        for size, session in sessions.items():
            started = time.perf_counter()
            session.run(None, {"dies": dies})
            if each:
                times[size].append(time.perf_counter() - started)
    return {size: LOT / statistics.median(taken) for size, taken in times.items()}


def disc_wafers(count: int) -> NDArray[np.uint8]:
    """Returns wafers (count, 52, 52) with a tenth of the dies failed at random."""
    axis = (np.arange(52) + 0.5) / 26 - 1
    disc = np.hypot(axis[:, None], axis[None, :]) <= 1
    failed = np.random.default_rng(0).random((count, 52, 52)) < 0.1
    return np.where(disc, 1 + failed, 0).astype(np.uint8)


if __name__ == "__main__":
    main()
