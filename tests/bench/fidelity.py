"""How true made wafers are: the learned generator, variations, and the DCGAN of the original research, side by side.

Same parents, same judges: wafers of WM-811K's training lots are the parents, and what each method makes of them is
compared with them and with wafers of the class from other lots, which no method and no prior has seen. Each cell runs
in a process of its own; its memory is that of the whole process, and its seconds hold learning, making and checking.

    python tests/bench/fidelity.py --classes Scratch Donut --methods learned dcgan --epochs 150

Prints one JSON line a cell. Needs `wafers_dev.npz` in TEACHWAFER_DATA, default ../shared/data; says so and ends well
where there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from services.common.dataset import DatasetClass, DatasetWafer, Origin
from services.common.splitting import Split, split_by_lot
from services.common.store import open_store
from services.common.wafer_set import read_wafer_set
from services.generator.domain import ClassRequest, LearnedOptions, VariationOptions
from services.generator.embedding import WaferEmbedding
from services.generator.production import ClassProduction
from services.generator.real_wafers import even_places
from services.generator.realism import Judges, RealismMeter
from services.generator.recognition import MOST_TAUGHT, Recogniser
from services.generator.shards import Shards

CLASSES = ("Center", "Donut", "Edge-Loc", "Edge-Ring", "Loc", "Near-full", "Random", "Scratch")
METHODS = ("variations", "learned", "dcgan")
SEED = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the cells one after the other; returns the exit code."""
    options = _parser().parse_args(arguments)
    if not options.data.is_file():
        print(f"left out: no {options.data}")
        return 0
    if options.cell:
        print(json.dumps(measure(*options.cell, options)))
        return 0
    for class_ in options.classes:
        for method in options.methods:
            command = [sys.executable, __file__, "--cell", class_, method, "--data", str(options.data)]
            command += ["--count", str(options.count), "--parents", str(options.parents)]
            command += ["--epochs", str(options.epochs)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            print(done.stdout.splitlines()[-1] if done.returncode == 0 else done.stderr[-2000:], flush=True)
    return 0


def measure(name: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    """Returns seconds, memory and figures of one method on one class."""
    grids, labels, lots, sides = _wafers(options.data)
    train = sides == Split.TRAIN.value
    started = time.perf_counter()
    mine = np.flatnonzero(train & (labels == name))
    mine = mine[even_places(len(mine), options.parents)]
    parents = [
        DatasetWafer(str(row), grids[row], "c", lots[row], Origin.UPLOADED, split=Split.TRAIN) for row in mine.tolist()
    ]
    judges = _judges(grids, labels, lots, train, name)
    made, rejected, learned_s = _make(method, name, parents, judges, options)
    seconds = time.perf_counter() - started
    figures = {}
    unseen = np.flatnonzero(~train & (labels == name))
    for against, real in (("parents", [each.dies for each in parents]), ("unseen", [grids[row] for row in unseen])):
        meter = RealismMeter(real, len(made), judges)
        meter.add(made)
        figures[against] = {key: _rounded(value) for key, value in asdict(meter.result()).items()} | {"n": len(real)}
    return {
        "class": name,
        "method": method,
        "made": len(made),
        "rejected": rejected,
        "seconds": round(seconds, 1),
        "learning_s": round(learned_s, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        **({"epochs": options.epochs} if method == "dcgan" else {}),
        **figures,
    }


def _make(
    method: str, name: str, parents: list[DatasetWafer], judges: Judges, options: argparse.Namespace
) -> tuple[list[np.ndarray], int, float]:
    """Returns wafers made of parents, how many were thrown out, and the seconds of learning."""
    if method == "dcgan":
        from dcgan import wafers_of_dcgan

        made, learned_s = wafers_of_dcgan([each.dies for each in parents], options.count, options.epochs, SEED)
        return made, 0, learned_s
    started, learned = time.perf_counter(), [0.0]

    class Listener:
        def progressed(self, progress: Any) -> None:
            if progress.stage == "learning":
                learned[0] = time.perf_counter() - started

        def previewed(self, grids: Any) -> None:
            pass

    with tempfile.TemporaryDirectory() as folder:
        production = ClassProduction(
            ClassRequest("c", options.count, LearnedOptions() if method == "learned" else VariationOptions()),
            DatasetClass("c", name, name),
            parents,
            seed=SEED,
            shards=Shards(open_store(folder), {}),
            checkpoint=Path(folder) / "learned.npz",
            listener=Listener(),
            judges=judges,
        )
        made = [grid.copy() for chunk in production.wafers() for grid in chunk.grids]
        return made, production.outcome().rejected, learned[0]


def _judges(grids: Any, labels: np.ndarray, lots: list[str], train: np.ndarray, name: str) -> Judges:
    embedding, names = WaferEmbedding(), sorted(set(labels))
    rows = [
        rows[even_places(len(rows), MOST_TAUGHT)]
        for rows in (np.flatnonzero(train & (labels == each)) for each in names)
    ]
    numbers = np.repeat(np.arange(len(names)), [len(each) for each in rows])
    joined = np.concatenate(rows).tolist()
    embeddings = embedding.embed([grids[row] for row in joined])
    recogniser = Recogniser(embeddings, numbers, [lots[row] for row in joined], len(names), seed=SEED)
    return Judges(embedding, recogniser, names.index(name))


def _wafers(path: Path) -> tuple[list[np.ndarray], np.ndarray, list[str], np.ndarray]:
    """Returns grids, labels, lots and sides of WM-811K, split as `teachwafer train` splits it."""
    real = read_wafer_set(path)
    rows = [row for row, each in enumerate(real.sources or []) if each == "WM-811K"]
    labels = [(real.labels or [])[row] for row in rows]
    lots = [(real.groups or [])[row] for row in rows]
    return [real.grids[row] for row in rows], np.array(labels), lots, split_by_lot(labels, lots, seed=0)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    data = Path(os.environ.get("TEACHWAFER_DATA", "../shared/data")) / "wafers_dev.npz"
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--classes", nargs="+", choices=CLASSES, default=["Scratch"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--count", type=int, default=2000, help="wafers to make of a class")
    parser.add_argument("--parents", type=int, default=400, help="most parents of a class")
    parser.add_argument("--epochs", type=int, default=1, help="of the DCGAN; the research used 150")
    parser.add_argument("--cell", nargs=2, metavar=("CLASS", "METHOD"), help="measure one cell in this process")
    return parser


if __name__ == "__main__":
    sys.exit(main())
