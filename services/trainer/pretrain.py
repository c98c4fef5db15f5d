"""Pretrains the shipped backbones on real and simulated wafers: `python -m services.trainer.pretrain`.

One trunk, three tasks, taught side by side: the nine classes of WM-811K (softmax), the patterns of the simulator
(softmax), and the eight patterns of MixedWM38 and of simulated mixtures (one sigmoid each). Each task has a linear head
on the patterns and, with half the weight, another on the evidence, so that both parts of the embedding learn to tell
patterns apart. Cross entropy with label smoothing, AdamW with a cosine, the eight orientations and die noise, classes
drawn in proportion to the square root of their wafers. At the end the evidence is whitened by how much the wafers of
one class, real and simulated, differ (see `services.trainer.embedding`), and a classifier of the nine classes is
learned on the embeddings, from which trainings start (see `services.trainer.known_patterns`).

No leak: the real wafers are split by lot exactly as `teachwafer train` splits the same file (`split_by_lot`, seed 0),
and only lots of the training side are read. Nothing is chosen by the tune or test lots either: the last step's weights
are the ones that are shipped.

Every 200 steps everything is written to the work folder; started again it goes on from there, to the same result.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from numpy.typing import NDArray

from services.common.checkpoint import CHECKPOINT_NAME, read_checkpoint, write_checkpoint
from services.common.files import file_sha256
from services.common.head import LOGIT_SCALE
from services.common.preprocessing import planes_of
from services.common.shipped import write_index
from services.common.splitting import rows_that_teach
from services.common.task import NORMAL_PATTERN
from services.common.wafer_set import WaferSet, read_wafer_set, write_wafer_set
from services.trainer.augmentation import augment
from services.trainer.backbones import BACKBONES, OUTLIERS_NAME, WEIGHTS_FOLDER, Backbone
from services.trainer.embedding import pooled_of, unit_length, whitening_of
from services.trainer.features import embed, embedder
from services.trainer.known_patterns import KnownPatterns, learn_patterns
from services.trainer.outliers import MOST_WAFERS
from services.trainer.trunks import build_trunk, save_weights

PATTERNS = ("Center", "Donut", "Edge-Loc", "Edge-Ring", "Loc", "Near-full", "Random", "Scratch")
"""Patterns of the multi-label head."""

_CHECKPOINT_STEPS = 200
_SMOOTHING = 0.02
_EVIDENCE_WEIGHT = 0.5
_WARMUP_STEPS = 100
_WHITENING_WAFERS = 500


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast.

    Attributes:
        steps: optimiser steps.
        batch: wafers a step; half real, a quarter mixed, a quarter simulated.
        learning_rate: highest step size.
        weight_decay: of AdamW.
        seed: seed of everything random.
    """

    steps: int = 6000
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """One head and its wafers.

    Attributes:
        name: name of the head.
        planes: float16 (N, size, size, 2).
        targets: float32 (N, outputs): one-hot, or 0/1 for each pattern.
        weights: (N,) chance of being drawn, sums up to 1.
        classes: what each output stands for.
        exclusive: softmax if true, else a sigmoid for each output.
        share: share of the batch.
    """

    name: str
    planes: NDArray[np.float16]
    targets: NDArray[np.float32]
    weights: NDArray[np.float64]
    classes: tuple[str, ...]
    exclusive: bool
    share: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    real = read_wafer_set(options.data)
    simulated = [read_wafer_set(path) for path in options.simulated or simulate(real, options.work)]
    write_outliers(options.out)
    for backbone_id in options.backbones:
        backbone = BACKBONES[backbone_id]
        tasks = tasks_of(real, simulated, backbone.size, frozenset(options.leave_out))
        if options.tasks:
            tasks = rebalanced([task for task in tasks if task.name in options.tasks])
        recipe = Recipe(steps=options.steps, seed=options.seed)
        trunk = pretrain(backbone, tasks, recipe, options.work / f"{backbone_id}-{options.seed}")
        whiten(trunk, tasks, recipe.seed)
        known = known_patterns(trunk, next(task for task in tasks if task.exclusive), recipe.seed)
        digest = save_weights(trunk, known, options.out, backbone.weights)
        print(f"{backbone.weights} written, SHA-256 {digest}", flush=True)
    return 0


def simulate(real: WaferSet, work: Path) -> list[Path]:
    """Has the simulator write wafers into the work folder, unless they are there already, and returns the files.

    Two sets: wafers that are simulated altogether, and simulated patterns on real normal wafers of training lots, so
    that no pattern is told by what its background looks like.

    A command and not an import: the trainer runs without the generator's code.
    """
    work.mkdir(parents=True, exist_ok=True)
    alone, laid_over, backgrounds = (work / f"{name}.npz" for name in ("simulated", "laid-over", "backgrounds"))
    if not backgrounds.is_file():
        rows = [row for row in _rows_of(real, "WM-811K", frozenset()) if (real.labels or [])[row] == NORMAL_PATTERN]
        write_wafer_set(
            backgrounds, [real.grids[row] for row in rows], groups=[(real.groups or [])[row] for row in rows]
        )
    for path, options in (
        (alone, ["--wafers-per-class", "1500", "--mixed", "5800"]),
        (laid_over, ["--wafers-per-class", "1000", "--mixed", "4000", "--onto", str(backgrounds)]),
    ):
        if not path.is_file():
            _run_simulator(path, 7, *options)
    return [alone, laid_over]


def write_outliers(folder: Path) -> None:
    """Has the simulator write the patterns from which trainings learn what is unknown; see `outliers`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / OUTLIERS_NAME
    _run_simulator(path, 8, "--wafers-per-class", str(MOST_WAFERS))
    write_index(folder, OUTLIERS_NAME, file_sha256(path))


def _run_simulator(path: Path, seed: int, *options: str) -> None:
    command = [sys.executable, "-m", "services.generator.simulator", "--out", str(path), "--seed", str(seed)]
    subprocess.run([*command, *options], check=True)  # noqa: S603


def tasks_of(
    real: WaferSet, simulated: Sequence[WaferSet], size: int, leave_out: frozenset[str] = frozenset()
) -> list[Task]:
    """Returns the heads and their wafers; of the real ones only those of training lots.

    Args:
        real: WM-811K and MixedWM38 with labels, sources and lots.
        simulated: sets with labels.
        size: cells along each side.
        leave_out: patterns of which no real wafer is read, to measure how classes nobody knew are taught.
    """
    wm = _rows_of(real, "WM-811K", leave_out)
    mixed = _rows_of(real, "MixedWM38", leave_out)
    real_labels = real.labels or []
    known = {NORMAL_PATTERN, *PATTERNS}
    many_labels, many_planes = [real_labels[index] for index in mixed], [_planes(real, mixed, size)]
    single_labels, single_planes = [], []
    for wafers in simulated:
        labels = wafers.labels or []
        single = [index for index, label in enumerate(labels) if "+" not in label]
        mixable = [index for index, label in enumerate(labels) if set(label.split("+")) <= known]
        single_labels += [labels[index] for index in single]
        single_planes.append(_planes(wafers, single, size))
        many_labels += [labels[index] for index in mixable]
        many_planes.append(_planes(wafers, mixable, size))
    return [
        _exclusive_task("real", _planes(real, wm, size), [real_labels[index] for index in wm], 0.5),
        _exclusive_task("simulated", np.concatenate(single_planes), single_labels, 0.25),
        Task(
            "mixed",
            np.concatenate(many_planes),
            np.array([[pattern in label.split("+") for pattern in PATTERNS] for label in many_labels], np.float32),
            _chances(many_labels, 0.5),
            PATTERNS,
            exclusive=False,
            share=0.25,
        ),
    ]


def _exclusive_task(name: str, planes: NDArray[np.float16], labels: Sequence[str], share: float) -> Task:
    classes = tuple(sorted(set(labels)))
    targets = np.eye(len(classes), dtype=np.float32)[[classes.index(label) for label in labels]]
    return Task(name, planes, targets, _chances(labels, 0.5), classes, exclusive=True, share=share)


def rebalanced(tasks: Sequence[Task]) -> list[Task]:
    """Returns tasks with shares that sum up to 1."""
    whole = sum(task.share for task in tasks)
    return [dataclasses.replace(task, share=task.share / whole) for task in tasks]


def _rows_of(real: WaferSet, source: str, leave_out: frozenset[str]) -> list[int]:
    """Returns the wafers of one source that lie in training lots and show no pattern that is left out."""
    labels = real.labels or []
    return [row for row in rows_that_teach(real, source) if leave_out.isdisjoint(labels[row].split("+"))]


def _planes(wafers: WaferSet, rows: Sequence[int], size: int) -> NDArray[np.float16]:
    parts = [
        planes_of([wafers.grids[index] for index in rows[start : start + 2000]], size).astype(np.float16)
        for start in range(0, len(rows), 2000)
    ]
    return np.concatenate(parts)


def _chances(labels: Sequence[str], power: float) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(np.array(labels), return_inverse=True, return_counts=True)
    weights = counts[inverse].astype(np.float64) ** (power - 1.0)
    return np.asarray(weights / weights.sum())


def pretrain(backbone: Backbone, tasks: Sequence[Task], recipe: Recipe, work: Path) -> keras.Model:
    """Teaches a trunk and returns it.

    Args:
        backbone: what to teach.
        tasks: heads and wafers.
        recipe: how long and how fast.
        work: folder of the checkpoint; what is there is continued.
    """
    keras.utils.set_random_seed(recipe.seed)
    trunk = build_trunk(backbone)
    evidence, patterns = (unit_length(each) for each in pooled_of(trunk.outputs[:-1]))
    heads = [
        keras.layers.Dense(task.targets.shape[1], name=f"{part}_{task.name}")(features)
        for part, features in (("patterns", patterns), ("evidence", evidence))
        for task in tasks
    ]
    model = keras.Model(trunk.inputs[0], heads)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, recipe.steps - _WARMUP_STEPS, warmup_target=recipe.learning_rate, warmup_steps=_WARMUP_STEPS
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=recipe.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    optimizer.build(model.trainable_variables)
    variables = [*model.weights, *optimizer.variables]
    step = _restore(work, variables)
    train_step = _train_step(model, optimizer, tasks)
    started, losses = time.perf_counter(), []
    while step < recipe.steps:
        losses.append(train_step(*_batch(tasks, recipe, step)))
        step += 1
        if step % _CHECKPOINT_STEPS == 0 or step == recipe.steps:
            _save(work, variables, step)
            means = np.mean([[float(value) for value in each] for each in losses], axis=0)
            text = ", ".join(f"{task.name} {value:.4f}" for task, value in zip(tasks, means, strict=True))
            print(
                f"{backbone.backbone_id} step {step}/{recipe.steps} {time.perf_counter() - started:.0f} s: {text}",
                flush=True,
            )
            losses.clear()
    return trunk


def whiten(trunk: keras.Model, tasks: Sequence[Task], seed: int) -> None:
    """Gives a taught trunk the whitening of its embedding, from the wafers of the tasks with exclusive classes.

    Args:
        trunk: changed in place.
        tasks: as for `pretrain`.
        seed: seed of the choice of wafers and of their orientations.
    """
    evidence = keras.Model(trunk.inputs[0], unit_length(pooled_of(trunk.outputs[:-1])[0]))
    random = np.random.default_rng([seed, 1])
    features, labels, classes = [], [], 0
    for task in tasks:
        if not task.exclusive:
            continue
        for each in range(task.targets.shape[1]):
            rows = random.permutation(np.flatnonzero(task.targets[:, each]))[:_WHITENING_WAFERS]
            copies = augment(task.planes[rows].astype(np.float32), 1.0, random)
            features.append(evidence.predict(copies, batch_size=64, verbose=0))
            labels += [classes] * len(rows)
            classes += 1
    layer = trunk.get_layer("embedding")
    for weight, value in zip(
        (layer.mean, layer.matrix), whitening_of(np.concatenate(features), np.array(labels)), strict=True
    ):
        weight.assign(value)


def known_patterns(trunk: keras.Model, task: Task, seed: int) -> KnownPatterns:
    """Returns what a taught and whitened trunk knows of the classes of a task.

    Args:
        trunk: the network.
        task: one whose classes exclude each other.
        seed: seed of the order of learning.
    """
    embedding = embedder(keras.Model(trunk.inputs[0], trunk.outputs[-1]))
    embeddings = embed(embedding, task.planes, lambda _: None, 1)
    return learn_patterns(embeddings, task.targets.argmax(axis=1), task.classes, seed)


def _train_step(model: keras.Model, optimizer: Any, tasks: Sequence[Task]) -> Any:
    @tf.function  # type: ignore[untyped-decorator]
    def step(planes: Any, targets: Any) -> Any:
        with tf.GradientTape() as tape:
            outputs = model(planes, training=True)
            losses, total, start = [], 0.0, 0
            for index, (task, target) in enumerate(zip(tasks, targets, strict=True)):
                rows = slice(start, start + target.shape[0])
                by_patterns, by_evidence = (
                    _loss(task, target, outputs[place][rows] * LOGIT_SCALE) for place in (index, index + len(tasks))
                )
                losses.append(by_patterns)
                total += task.share * (by_patterns + _EVIDENCE_WEIGHT * by_evidence)
                start = rows.stop
        gradients = tape.gradient(total, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return losses

    return step


def _loss(task: Task, target: Any, logits: Any) -> Any:
    if task.exclusive:
        smooth = target * (1.0 - _SMOOTHING) + _SMOOTHING / target.shape[1]
        return ops.mean(ops.categorical_crossentropy(smooth, logits, from_logits=True))
    smooth = target * (1.0 - _SMOOTHING) + _SMOOTHING / 2
    # The sum over patterns weighs a wafer with eight answers like one with a single answer of eight.
    return ops.mean(ops.sum(ops.binary_crossentropy(smooth, logits, from_logits=True), axis=-1))


def _batch(tasks: Sequence[Task], recipe: Recipe, step: int) -> tuple[Any, list[Any]]:
    random = np.random.default_rng([recipe.seed, step])
    planes, targets = [], []
    for task in tasks:
        rows = random.choice(len(task.planes), round(recipe.batch * task.share), p=task.weights)
        planes.append(task.planes[rows])
        targets.append(tf.constant(task.targets[rows]))
    return tf.constant(augment(np.concatenate(planes), 1.0, random)), targets


def _save(work: Path, variables: Sequence[Any], step: int) -> None:
    arrays = {f"v{index:04d}": np.asarray(variable) for index, variable in enumerate(variables)}
    write_checkpoint(work / CHECKPOINT_NAME, {"step": step}, arrays)


def _restore(work: Path, variables: Sequence[Any]) -> int:
    saved = read_checkpoint(work / CHECKPOINT_NAME)
    if saved is None:
        return 0
    for index, variable in enumerate(variables):
        variable.assign(saved.arrays[f"v{index:04d}"])
    return int(saved.facts["step"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.trainer.pretrain", description=__doc__.split("\n")[0])
    data = Path(os.environ.get("TEACHWAFER_DATA", "../shared/data"))
    if data.is_dir():
        data /= "wafers_dev.npz"
    home = Path(os.environ.get("TEACHWAFER_HOME", ".teachwafer"))
    parser.add_argument(
        "--data", type=Path, default=data, help="real wafers, a wafer set with labels, group and source"
    )
    parser.add_argument(
        "--simulated", type=Path, nargs="+", help="simulated wafers; default: let the simulator make them"
    )
    parser.add_argument("--work", type=Path, default=home / "pretraining", help="folder of checkpoints")
    parser.add_argument("--out", type=Path, default=WEIGHTS_FOLDER, help="folder that the weights are written to")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument(
        "--leave-out", nargs="*", choices=PATTERNS, default=[], help="patterns of which no real wafer is read"
    )
    parser.add_argument("--tasks", nargs="*", choices=("real", "simulated", "mixed"), help="default: all three")
    names = [each.backbone_id for each in BACKBONES.values() if each.weights and each.orientations == 1]
    parser.add_argument("--backbones", nargs="+", choices=names, default=names)
    return parser


if __name__ == "__main__":
    sys.exit(main())
