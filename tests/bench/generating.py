"""How fast wafers are made: simulated, varied, and learned with the learning included. Prints one JSON line."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 5
WAFERS = 2000


def main() -> None:
    """Measures and prints medians."""
    with tempfile.TemporaryDirectory(prefix="teachwafer-bench-") as folder:
        simulated = [simulate(Path(folder) / f"{seed}.npz", seed) for seed in range(ROUNDS)]
        parents = Path(folder) / "parents.npz"
        simulate(parents, 99, patterns=("Center", "Donut"), count=100)
        varied = [generate(Path(folder), parents, f"varied-{each}", ai_use=False) for each in range(ROUNDS)]
        learned = [generate(Path(folder), parents, f"learned-{each}", ai_use=True) for each in range(ROUNDS)]
    print(
        json.dumps(
            {
                "simulated_wafers_per_s": round(9 * 500 / statistics.median(simulated)),
                "varied_2000_s": round(statistics.median(varied), 2),
                "learned_2000_s": round(statistics.median(learned), 2),
                "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
            }
        )
    )


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


def timed(arguments: list[str]) -> float:
    """Runs Python with arguments; returns seconds."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
