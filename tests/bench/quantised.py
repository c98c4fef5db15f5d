"""What 8-bit convolutions do to a taught graph: size, speed and answers, beside the graph as it was taught.

Teaches each model size and compares, on the locked test wafers and under the thresholds that the teaching chose:

* float: the graph as it was taught.
* quantised: the variant that a teaching makes on request; see `services.trainer.export.quantised`.
* eight_bits: the same with all 8 bits of the weights, which may saturate where a processor has no VNNI instructions.
* dynamic: weights of 8 bits, ranges of the activations taken from each batch while it is answered.
* half: not quantised; weights kept as float16, arithmetic in float32.

    python tests/bench/quantised.py --wafers wafers.npz --sizes fast balanced

Without --wafers, nine simulated classes of 200 wafers. Speed: probabilities and novelty of 52 x 52 dies, processor time
of one thread, which other work on the machine changes little; the kinds take turns. Prints one JSON line a model size.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

sys.path.insert(0, str(Path(__file__).parent))

from services.common.dataset import open_dataset
from services.common.evaluation import evaluate
from services.common.model_manifest import ModelManifest
from services.common.store import open_store
from services.common.task import Task
from services.trainer.export.onnx import Answers, answers_of, open_session
from services.trainer.export.quantised import quantise, same_answers
from services.trainer.publishing import CANDIDATE_FILE, MODEL_FILE
from services.trainer.teaching_set import Side, read_teaching_set

from teaching import LOT, WAFERS_PER_CLASS, disc_wafers, teach  # isort: skip

SPEED_BATCHES = (1, LOT)
ROUNDS = 40
"""Timed calls of each kind and batch size."""
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
"""Instruction sets that 8-bit products gain from, as /proc/cpuinfo names them."""
WANTED = ["probabilities", "novelty"]
"""Outputs that a classification without heat map asks for."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A taught graph and the wafers of its teaching.

    Attributes:
        folder: of its files.
        manifest: its thresholds.
        train: wafers to set ranges by.
        test: locked test wafers.
    """

    folder: Path
    manifest: ModelManifest
    train: Side
    test: Side


def main() -> None:
    """Teaches, quantises, measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wafers", type=Path, help="wafer set; default: simulated wafers")
    parser.add_argument("--sizes", nargs="+", default=["fast", "balanced"], help="model sizes")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="timed calls of each kind and batch size")
    parser.add_argument("--home", type=Path, help="folder to keep the teachings in; a teaching found there is used")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="teachwafer-bench-") as folder:
        home = options.home or Path(folder)
        for size in options.sizes:
            if not list(home.glob(f"{size}/**/{CANDIDATE_FILE}")):
                teach(options.wafers or simulated(Path(folder)), home / size, size)
            print(
                json.dumps({"size": size, "processor": processor(), **measure(home / size, options.rounds)}), flush=True
            )


def simulated(folder: Path) -> Path:
    """Returns a file of simulated wafers."""
    path = folder / "wafers.npz"
    command = [sys.executable, "-m", "services.generator.simulator", "--out", str(path)]
    subprocess.run([*command, "--wafers-per-class", str(WAFERS_PER_CLASS)], check=True)
    return path


def processor() -> str:
    """Returns the processor's name and which instructions it has for 8-bit products."""
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.is_file() else ""
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    known = [each for each in INSTRUCTIONS if each in facts.get("flags", "").split()]
    return f"{facts.get('model name', platform.processor())}: {' '.join(known)}"


def measure(home: Path, rounds: int) -> dict[str, Any]:
    """Quantises the graph taught in a home and compares."""
    lesson = read_lesson(home)
    with tempfile.TemporaryDirectory(prefix="teachwafer-bench-") as folder:
        graphs = {"float": lesson.folder / MODEL_FILE, **quantised(lesson, Path(folder))}
        sessions = {kind: open_session(path, threads=1) for kind, path in graphs.items()}
        answers = {kind: answers_of(each, lesson.test.grids, lambda: None) for kind, each in sessions.items()}
        speeds = wafers_per_second(sessions, rounds)
        return {
            "test_wafers": len(lesson.test),
            "kinds": {
                kind: {
                    "kib": round(graphs[kind].stat().st_size / 1024),
                    **{f"wafers_per_s_{batch}": round(speed) for batch, speed in speeds[kind].items()},
                    **quality(lesson, answers["float"], answers[kind]),
                }
                for kind in graphs
            },
        }


def read_lesson(home: Path) -> Lesson:
    """Returns the only teaching of a home."""
    (candidate,) = home.glob(f"**/{CANDIDATE_FILE}")
    manifest = ModelManifest.from_json(candidate.read_bytes())
    dataset = open_dataset(open_store((home / "store").as_uri()), manifest.dataset_version.split("/")[1])
    wafers = read_teaching_set(dataset, [], manifest.size, seed=0)
    return Lesson(candidate.parent, manifest, wafers.train, wafers.test)


def quantised(lesson: Lesson, folder: Path) -> dict[str, Path]:
    """Writes the graph in each kind; returns the files."""
    source, prepared = lesson.folder / MODEL_FILE, folder / "prepared.onnx"
    paths = {kind: folder / f"{kind}.onnx" for kind in ("quantised", "eight_bits", "dynamic", "half")}
    quantise(source, paths["quantised"], lesson.train.grids, lambda: None)
    quantise(source, paths["eight_bits"], lesson.train.grids, lambda: None, bits=8)
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_dynamic(prepared, paths["dynamic"], op_types_to_quantize=["Conv"], weight_type=QuantType.QInt8)
    half_weights(source, paths["half"])
    return paths


def half_weights(source: Path, target: Path) -> None:
    """Writes a graph whose large float32 weights are kept as float16 and cast when it is loaded."""
    model = onnx.load(source)
    casts = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= 1024:
            name = tensor.name
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
            casts.append(onnx.helper.make_node("Cast", [f"{name}_half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target)


def quality(lesson: Lesson, plain: Answers, found: Answers) -> dict[str, float]:
    """Returns scores on the test wafers and how far the answers are from those of the plain graph."""
    known, rule = found.novelty <= 1.0, lesson.manifest.accept_threshold
    accepted = (found.probabilities.max(axis=1) >= rule) & known
    scores = evaluate(found.probabilities, lesson.test.labels, lesson.test.lots, accepted, draws=0)
    moved = np.abs(found.probabilities - plain.probabilities).max(axis=1)
    same_class = found.probabilities.argmax(axis=1) == plain.probabilities.argmax(axis=1)
    return {
        "macro_f1": round(scores.macro_f1, 4),
        "accuracy": round(scores.accuracy, 4),
        "calibration_error": round(scores.expected_calibration_error, 4),
        "accepted_share": round(scores.accepted_share, 4),
        "accepted_error": round(scores.accepted_error, 4),
        "same_class": round(float(same_class.mean()), 4),
        "same_answers": round(float(same_answers(plain, found, Task.SINGLE).mean()), 4),
        "max_difference": round(float(moved.max()), 4),
        "difference_p99": round(float(np.quantile(moved, 0.99)), 4),
        "novelty_decisions_changed": int((known != (plain.novelty <= 1.0)).sum()),
    }


def wafers_per_second(sessions: Mapping[str, onnxruntime.InferenceSession], rounds: int) -> dict[str, dict[int, float]]:
    """Returns the median speed of each graph at each batch size."""
    times: dict[str, dict[int, list[float]]] = {kind: {batch: [] for batch in SPEED_BATCHES} for kind in sessions}
    for each in range(rounds + 1):
        for batch in SPEED_BATCHES:
            dies = disc_wafers(batch)
            for kind, session in sessions.items():
                started = time.thread_time()
                session.run(WANTED, {"dies": dies})
                if each:
                    times[kind][batch].append(time.thread_time() - started)
    return {
        kind: {batch: batch / statistics.median(taken) for batch, taken in by_batch.items()}
        for kind, by_batch in times.items()
    }


if __name__ == "__main__":
    main()
