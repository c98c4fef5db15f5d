"""P6, generated: what generated wafers add to few real ones.

Paired: each draw of few-shot is taught twice, with its real wafers alone and with wafers that the generator made from
them, and judged by the same real test wafers. What is told is the mean difference over the draws and its 95 % interval
(Student's t); an interval with 0 in it is no gain. The generator's own worker program makes the wafers. A learned
generator needs 20 wafers of a class, so that smaller sizes have variations alone.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgumentError
from services.common.evaluation import class_f1, confusion_matrix, macro_f1
from services.common.head import Array
from services.trainer.backbones import BackboneLibrary
from services.trainer.protocols.few_shot import (
    SIZES,
    Pool,
    drawn_rows,
    lots_that_judge,
    pool_of,
    pool_rows,
    taught_head,
)
from services.trainer.protocols.jobs import generate_job
from services.trainer.protocols.network import Network
from services.trainer.protocols.numbers import mean, mean_interval, spread
from services.trainer.protocols.options import add_draws, add_network, add_sizes, positive
from services.trainer.protocols.progress import say
from services.trainer.protocols.split_set import NORMAL, Rows, SplitSet

METHODS = ("variations", "learned")
LEARNED_FLOOR = 20
"""Fewest wafers of a class that the generator learns from."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What generated wafers changed, over the draws.

    Attributes:
        without: mean F1 with real wafers alone.
        with_generated: mean F1 with generated wafers as well.
        difference: mean of the paired differences.
        spread: standard deviation of the paired differences.
        interval: 95 % interval of their mean; None with a single draw.
    """

    without: float
    with_generated: float
    difference: float
    spread: float
    interval: tuple[float, float] | None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what this protocol can be told."""
    add_network(parser)
    add_sizes(parser, SIZES)
    add_draws(parser, 10)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--count", type=positive, default=100, help="wafers generated of each class")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="classes to generate; default: all but the normal")
    parser.add_argument(
        "--others", type=positive, metavar="N", help="real wafers of each class that is not generated; default: as many"
    )
    parser.add_argument("--normal", default=NORMAL, metavar="NAME", help="class of wafers without a defect")


def measure(wafers: SplitSet, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the difference at each number of wafers a class, for each method and class.

    Raises:
        InvalidArgumentError: a class is not there, or has no wafers in lots that can be held back.
        InternalError: the generator failed.
    """
    targets = options.classes or [name for name in wafers.classes if name != options.normal]
    for name in targets:
        wafers.index(name)
    cells = [(m, size) for m in options.methods for size in options.sizes if m != "learned" or size >= LEARNED_FLOOR]
    if not cells:
        raise InvalidArgumentError(
            f"Expected a size of at least {LEARNED_FLOOR}: a learned generator needs as many wafers of a class. "
            f"Received: {options.sizes}.",
            field="sizes",
        )
    network = Network(options.backbone, BackboneLibrary(options.weights))
    pool, rows = pool_of(wafers, network), pool_rows(wafers)
    results = []
    for method, size in cells:
        pairs = []
        for draw in range(options.draws):
            most = [size if name in targets else options.others or size for name in wafers.classes]
            seed = [options.seed, size, draw]
            chosen = drawn_rows(pool.labels, len(pool.classes), most, seed)
            made, labels = _generated(wafers, rows[chosen], targets, method, options.count, seed, network)
            pairs.append(pair(pool, chosen, made, labels, seed))
            scores = [macro_f1(matrix) for matrix in pairs[-1]]
            say(f"{method}, {size} wafers a class, draw {draw + 1}: {scores[0]:.3f} -> {scores[1]:.3f}")
        results.append({"method": method, "wafers_per_class": size, **differences(pairs, wafers.classes, targets)})
    return {
        "backbone": options.backbone,
        "classes": list(wafers.classes),
        "targets": targets,
        "others": options.others,
        "count": options.count,
        "draws": options.draws,
        "seed": options.seed,
        "test_wafers": len(pool.truth),
        "test_lots": lots_that_judge(wafers),
        "scores": results,
    }


def _generated(
    wafers: SplitSet, parents: Rows, targets: list[str], method: str, count: int, seed: list[int], network: Network
) -> tuple[Array, Rows]:
    """Returns the embeddings (N, D) of wafers made from some wafers, and their classes."""
    job_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    of_targets = parents[np.isin(wafers.labels[parents], [wafers.index(name) for name in targets])]
    with tempfile.TemporaryDirectory(prefix="teachwafer-protocol-") as folder:
        counts = dict.fromkeys(targets, count)
        with generate_job(Path(folder), wafers, of_targets, method, counts, job_seed) as dataset:
            grids, names = dataset.grids(), dataset.texts("class_id")
        return network.embed(grids, "generated wafers"), np.array([wafers.index(name) for name in names], np.int64)


def pair(
    pool: Pool, rows: Rows, made: Array, labels: Rows, seed: list[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Teaches one draw without and with generated wafers; returns both confusion matrices on the same judges.

    Args:
        pool: wafers to draw from and judges.
        rows: the draw.
        made: (N, D) embeddings of generated wafers.
        labels: (N,) their classes.
        seed: seed of teaching.
    """
    count, copies = len(pool.classes), pool.copies[rows]
    # Generated wafers are varied already: each stands for its own copies.
    both = np.concatenate([copies, np.repeat(made[:, None], copies.shape[1], axis=1)])
    heads = (
        taught_head(copies, pool.labels[rows], pool.classes, seed, pool.known),
        taught_head(both, np.concatenate([pool.labels[rows], labels]), pool.classes, seed, pool.known),
    )
    without, with_generated = (
        confusion_matrix(pool.truth, head.logits(pool.judges).argmax(axis=1), count) for head in heads
    )
    return without, with_generated


def differences(
    pairs: list[tuple[NDArray[np.int64], NDArray[np.int64]]], classes: tuple[str, ...], targets: list[str]
) -> dict[str, Any]:
    """Returns what generated wafers changed: macro-F1, the mean over the generated classes, and each class."""
    without, with_generated = (np.stack([matrices[side] for matrices in pairs]) for side in (0, 1))
    before, after = class_f1(without), class_f1(with_generated)
    places = [classes.index(name) for name in targets]
    whole = [np.array([macro_f1(matrix) for matrix in matrices]) for matrices in (without, with_generated)]
    return {
        "macro_f1": asdict(_difference(whole[0], whole[1])),
        "targets_f1": asdict(_difference(before[:, places].mean(axis=1), after[:, places].mean(axis=1))),
        "class_f1": {
            name: asdict(_difference(before[:, index], after[:, index])) for index, name in enumerate(classes)
        },
    }


def _difference(without: NDArray[np.float64], with_generated: NDArray[np.float64]) -> Difference:
    changes = with_generated - without
    return Difference(mean(without), mean(with_generated), mean(changes), spread(changes), mean_interval(changes))
