"""Pretrains the prior of the learned generator: `python -m services.generator.pretrain`.

One network learns to fill in dies of wafers of all classes and products: production wafers of WM-811K, wafers with
several patterns of MixedWM38, and wafers of the simulator. For a tenth of the wafers it is not told which
patterns they show, so that it also serves classes whose pattern has no canonical name.

No leak: the real wafers are split by lot exactly as `teachwafer train` splits the same file (`split_by_lot`, seed 0),
and only lots of the training side are read. Nothing is chosen by the other lots either: what is shipped is the
running mean of the weights at the end.

Every 200 steps everything is written to the work folder; started again it goes on from there, to the same result.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from numpy.typing import NDArray

from services.common.checkpoint import CHECKPOINT_NAME, read_checkpoint, write_checkpoint
from services.common.splitting import rows_that_teach
from services.common.wafer_set import WaferSet, read_wafer_set
from services.generator.canvas import ORIENTATIONS, Canvas, oriented
from services.generator.network import PRIOR_FOLDER, die_network, question, save_prior, shown_patterns, train_step
from services.generator.simulator import PATTERNS, SimulatedClass, simulate

_CHECKPOINT_STEPS = 200
_WARMUP_STEPS = 100
_UNTOLD = 0.1
_SHARES = {"WM-811K": 0.65, "MixedWM38": 0.1, "simulated": 0.25}
_SIMULATED = 500
_MEAN_DECAY = 0.995


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast.

    Attributes:
        steps: Optimiser steps.
        batch: Wafers a step.
        learning_rate: Highest step size.
        seed: Seed of everything random.
    """

    steps: int = 2400
    batch: int = 32
    learning_rate: float = 2e-3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Wafers:
    """Wafers whose canvas has one size.

    Attributes:
        drawn: (n, side, side) die grids on the canvas.
        shown: (n, patterns) what they show; see `shown_patterns`.
        chances: (n,) chance of being drawn among all wafers of all sizes.
    """

    drawn: NDArray[np.uint8]
    shown: NDArray[np.float32]
    chances: NDArray[np.float64]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    recipe = Recipe(steps=options.steps, seed=options.seed)
    wafers = wafers_of(read_wafer_set(options.data), recipe.seed)
    digest = save_prior(pretrain(wafers, recipe, options.work), options.out)
    print(f"prior written to {options.out}, SHA-256 {digest}", flush=True)
    return 0


def wafers_of(real: WaferSet, seed: int) -> list[Wafers]:
    """Returns real wafers of training lots and simulated ones, by the size of their canvas.

    Classes of a source are drawn in proportion to the square root of their wafers.

    Args:
        real: WM-811K and MixedWM38 with labels, sources and lots.
        seed: Seed of the simulator.
    """
    grids, labels, chances = [], [], []
    for source, share in _SHARES.items():
        if source == "simulated":
            some = _simulated(seed)
        else:
            some = [(real.grids[row], (real.labels or [])[row]) for row in training_rows(real, source)]
        names = np.array([label for _, label in some])
        _, inverse, counts = np.unique(names, return_inverse=True, return_counts=True)
        weights = counts[inverse] ** -0.5
        grids += [dies for dies, _ in some]
        labels += list(names)
        chances.append(share * weights / weights.sum())
    all_chances = np.concatenate(chances)
    sides = np.array([Canvas([grid]).side for grid in grids])
    result = []
    for side in np.unique(sides):
        rows = np.flatnonzero(sides == side)
        drawn = Canvas([grids[rows[0]]]).draw([grids[row] for row in rows])
        shown = np.stack([shown_patterns(labels[row].split("+")) for row in rows])
        result.append(Wafers(drawn, shown, all_chances[rows]))
    return result


def training_rows(real: WaferSet, source: str) -> list[int]:
    """Returns the wafers of a source that lie in training lots and have a die."""
    return [row for row in rows_that_teach(real, source) if real.grids[row].any()]


def _simulated(seed: int) -> list[tuple[NDArray[np.uint8], str]]:
    classes = [SimulatedClass((name,), _SIMULATED) for name in PATTERNS]
    return [
        (dies, classes[batch.class_index].label) for batch in simulate(classes, seed=seed + 17) for dies in batch.dies
    ]


def pretrain(wafers: Sequence[Wafers], recipe: Recipe, work: Path) -> keras.Model:
    """Teaches the prior and returns it with the running mean of its weights.

    Args:
        wafers: What it learns from.
        recipe: How long and how fast.
        work: Folder of the checkpoint; what is there is continued.
    """
    keras.utils.set_random_seed(recipe.seed)
    network = die_network()
    optimizer = keras.optimizers.Adam(recipe.learning_rate)
    optimizer.build(network.trainable_variables)
    variables = [*network.trainable_variables, *optimizer.variables]
    means = [weight.value.numpy() for weight in network.trainable_variables]
    step = _restore(work, variables, means)
    teach = train_step(network, optimizer)
    started, losses = time.perf_counter(), []
    while step < recipe.steps:
        losses.append(teach(*_batch(wafers, recipe, step), _rate(recipe, step)))
        step += 1
        if step % 5 == 0:
            for mean, weight in zip(means, network.trainable_variables, strict=True):
                mean += (1 - _MEAN_DECAY**5) * (weight.value.numpy() - mean)
        if step % _CHECKPOINT_STEPS == 0 or step == recipe.steps:
            _save(work, variables, means, step)
            seconds = time.perf_counter() - started
            print(f"step {step}/{recipe.steps} {seconds:.0f} s: {np.mean(losses):.4f} nats a die", flush=True)
            losses.clear()
    for mean, weight in zip(means, network.trainable_variables, strict=True):
        weight.assign(mean)
    return network


def _batch(
    wafers: Sequence[Wafers], recipe: Recipe, step: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Returns planes, shown patterns, failed dies and dies asked for of one step; all have one canvas size."""
    rng = np.random.default_rng([recipe.seed, step])
    totals = np.array([each.chances.sum() for each in wafers])
    some = wafers[rng.choice(len(wafers), p=totals / totals.sum())]
    rows = rng.choice(len(some.drawn), recipe.batch, p=some.chances / some.chances.sum())
    shown = some.shown[rows] * (rng.random((recipe.batch, 1)) >= _UNTOLD)
    drawn = oriented(some.drawn[rows], rng.integers(0, ORIENTATIONS, recipe.batch))
    seen, failed, asked = question(drawn, rng)
    return seen, shown.astype(np.float32), failed, asked


def _rate(recipe: Recipe, step: int) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
    return recipe.learning_rate * min(1.0, (step + 1) / _WARMUP_STEPS) * (0.02 + 0.98 * cosine)


def _save(work: Path, variables: Sequence[keras.Variable], means: Sequence[NDArray[np.float32]], step: int) -> None:
    arrays = {f"v{index:04d}": variable.value.numpy() for index, variable in enumerate(variables)}
    averages = {f"m{index:04d}": mean for index, mean in enumerate(means)}
    write_checkpoint(work / CHECKPOINT_NAME, {"step": step}, {**arrays, **averages})


def _restore(work: Path, variables: Sequence[keras.Variable], means: list[NDArray[np.float32]]) -> int:
    saved = read_checkpoint(work / CHECKPOINT_NAME)
    if saved is None:
        return 0
    for index, variable in enumerate(variables):
        variable.assign(saved.arrays[f"v{index:04d}"])
    means[:] = [saved.arrays[f"m{index:04d}"] for index in range(len(means))]
    return int(saved.facts["step"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.generator.pretrain", description=__doc__.split("\n")[0])
    data = Path(os.environ.get("TEACHWAFER_DATA", "../shared/data"))
    if data.is_dir():
        data /= "wafers_dev.npz"
    home = Path(os.environ.get("TEACHWAFER_HOME", ".teachwafer"))
    parser.add_argument(
        "--data", type=Path, default=data, help="real wafers, a wafer set with labels, group and source"
    )
    parser.add_argument("--work", type=Path, default=home / "generator-pretraining", help="folder of the checkpoint")
    parser.add_argument("--out", type=Path, default=PRIOR_FOLDER, help="folder that the prior is written to")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    return parser


if __name__ == "__main__":
    sys.exit(main())
