"""How fast wafers are made: simulated, varied, and learned with the learning included. Prints one JSON line.

Rows: all of them, or those named on the command line out of `simulated`, `commands` (2,000 wafers through the command
line), `variations` (wafers of 52 x 52 a second into Parquet), `memory` (peak of 10,000 to 1,000,000 variations) and
`simulated_memory` (peak of 10,000 and of 100,000 wafers simulated into a wafer set through the command line).
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from services.generator.domain import ClassRequest, GenerationSpec, VariationOptions
from tests.helpers.generation_worker import WorkerRun, freeze_parents, run_job

ROUNDS = 5
WAFERS = 2000
VARIATIONS = 100_000
SIZES = (10_000, 100_000, 1_000_000)
SIMULATED_SIZES = (10_000, 100_000)
ROWS = ("simulated", "commands", "variations", "memory", "simulated_memory")


def main(rows: Sequence[str]) -> None:
    """Measures and prints medians."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="teachwafer-bench-") as name:
        folder = Path(name)
        if "simulated" in rows:
            simulated = [simulate(folder / f"{seed}.npz", seed) for seed in range(ROUNDS)]
            figures["simulated_wafers_per_s"] = round(9 * 500 / statistics.median(simulated))
        if "commands" in rows:
            figures |= commands(folder)
        if "variations" in rows or "memory" in rows:
            freeze_parents(folder)
        if "variations" in rows:
            figures |= variations(folder)
        if "memory" in rows:
            figures |= {f"peak_mb_of_{count}": vary(folder, count).peak_bytes // 2**20 for count in SIZES}
        if "simulated_memory" in rows:
            figures |= {f"peak_mb_of_{count}_simulated": simulated_peak(folder, count) for count in SIMULATED_SIZES}
    print(json.dumps(figures))


def commands(folder: Path) -> dict[str, float]:
    """Measures 2,000 wafers of one class through the command line, varied and learned."""
    parents = folder / "parents.npz"
    simulate(parents, 99, patterns=("Center", "Donut"), count=100)
    varied = [generate(folder, parents, f"varied-{each}", ai_use=False) for each in range(ROUNDS)]
    learned = [generate(folder, parents, f"learned-{each}", ai_use=True) for each in range(ROUNDS)]
    return {
        "varied_2000_s": round(statistics.median(varied), 2),
        "learned_2000_s": round(statistics.median(learned), 2),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }


def variations(folder: Path) -> dict[str, float]:
    """Measures wafers a second of a job that varies 100 wafers; on a busy machine, processor time tells more."""
    runs = [vary(folder, VARIATIONS, seed) for seed in range(ROUNDS)]
    return {
        "varied_52x52_per_s": round(VARIATIONS / statistics.median(run.result["seconds"] for run in runs)),
        "varied_52x52_per_cpu_s": round(VARIATIONS / statistics.median(run.cpu_s for run in runs)),
        "varied_52x52_peak_mb": max(run.peak_bytes for run in runs) // 2**20,
    }


def vary(folder: Path, count: int, seed: int = 0) -> WorkerRun:
    """Runs the job that makes so many variations."""
    spec = GenerationSpec("parents", (ClassRequest("c", count, VariationOptions()),), seed)
    return run_job(folder, f"job-{count}-{seed}", spec)


def simulate(path: Path, seed: int, patterns: tuple[str, ...] = (), count: int = 500) -> float:
    """Writes a simulated wafer set; returns seconds, the start of the program included."""
    arguments = ["--out", str(path), "--wafers-per-class", str(count), "--seed", str(seed)]
    if patterns:
        arguments += ["--patterns", *patterns]
    return timed(["-m", "services.generator.simulator", *arguments])


def generate(home: Path, parents: Path, name: str, *, ai_use: bool) -> float:
    """Runs the generate command for one class; returns the seconds of its job."""
    status = json.dumps([{"name": "Donut", "ai_use": ai_use}])
    arguments = ["--generating_dir", str(parents), "--status", status, "--count", str(WAFERS)]
    arguments += ["--out", str(home / name), "--home", str(home)]
    command = [sys.executable, "-m", "gateway.cli", "generate", *arguments, "--local", "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def simulated_peak(home: Path, count: int) -> int:
    """Simulates so many wafers into a wafer set; returns the peak of the command or of its generator, MiB."""
    spec = home / f"spec-{count}.yaml"
    spec.write_text(f"classes: [{{patterns: Donut, count: {count}}}]\ndie_grid: {{rows: 52, columns: 52}}\n")
    command = [sys.executable, "-m", "gateway.cli", "generate", "--simulate", str(spec), "--home", str(home), "--local"]
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise AssertionError(f"Expected a command that ends well. Received: exit code {process.returncode}.")
    return usage.ru_maxrss // 1024


def timed(arguments: list[str]) -> float:
    """Runs Python with arguments; returns seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main(sys.argv[1:] or ROWS)
