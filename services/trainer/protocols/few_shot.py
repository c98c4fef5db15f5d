"""P2, few-shot: how well few examples teach.

Of each class a few wafers are drawn from the training lots, the classifier of a training job is taught on their
embeddings, and the wafers of the locked test lots are the judges. Unlike a training job there are no tune wafers: the
last epoch counts, and the network itself is not taught. Several draws, because the
luck of a draw is larger than most improvements. Embeddings are computed once for all draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.evaluation import class_f1, confusion_matrix, macro_f1
from services.common.head import Array, Head, normal_offset, teach_head
from services.common.splitting import Split
from services.common.task import NORMAL_PATTERN
from services.trainer.backbones import BackboneLibrary
from services.trainer.domain import TrainingConfig
from services.trainer.known_patterns import KnownPatterns, first_state
from services.trainer.protocols.network import Network
from services.trainer.protocols.numbers import spread
from services.trainer.protocols.options import add_draws, add_network, add_sizes
from services.trainer.protocols.progress import say
from services.trainer.protocols.split_set import Rows, SplitSet, check_judges, first_of_each

SIZES = (5, 10, 20, 50)
"""Wafers a class."""
DRAWS = 10
"""Draws at each number of wafers."""
POOL_WAFERS = 500
"""Most wafers of a class that draws are made from."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Wafers that draws are made from, and those that judge.

    Attributes:
        classes: names of the classes.
        copies: float32 (N, orientations, D), embeddings of wafers of training lots and of their varied copies.
        labels: (N,) their classes.
        judges: float32 (M, D), embeddings of wafers of test lots.
        truth: (M,) their classes.
        known: patterns that the network knows, or None.
    """

    classes: tuple[str, ...]
    copies: Array
    labels: Rows
    judges: Array
    truth: Rows
    known: KnownPatterns | None = None


Teach = Callable[[Pool, Rows, list[int]], Rows]
"""Teaches on some rows of a pool, with a seed, and returns the classes (M,) that the judges are then called."""


@dataclass(frozen=True, slots=True)
class FewShotScore:
    """Scores at one number of wafers a class.

    Attributes:
        wafers_per_class: wafers drawn of each class; all of a class that has fewer.
        draws: draws.
        macro_f1: mean over the draws.
        macro_f1_spread: standard deviation over the draws.
        class_f1: mean F1 of each class by name.
        class_recall: mean share of each class's wafers that is found, by name.
        new_classes_f1: mean F1 of the classes that pretraining did not see; 0 when none is named.
        new_classes_f1_spread: its standard deviation over the draws.
        confusion: counts (classes, classes) of all draws together, row the true class.
    """

    wafers_per_class: int
    draws: int
    macro_f1: float
    macro_f1_spread: float
    class_f1: dict[str, float]
    class_recall: dict[str, float]
    new_classes_f1: float
    new_classes_f1_spread: float
    confusion: list[list[int]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what this protocol can be told."""
    add_network(parser)
    add_sizes(parser, SIZES)
    add_draws(parser, DRAWS)
    parser.add_argument(
        "--new-classes", nargs="+", default=[], metavar="NAME", help="classes that pretraining did not see"
    )


def measure(wafers: SplitSet, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the scores at each number of wafers a class.

    Raises:
        InvalidArgumentError: a class has no wafers in lots that can be held back.
    """
    for name in options.new_classes:
        wafers.index(name)
    pool = pool_of(wafers, Network(options.backbone, BackboneLibrary(options.weights)))
    return {
        "backbone": options.backbone,
        "classes": list(pool.classes),
        "new_classes": list(options.new_classes),
        "test_wafers": len(pool.truth),
        "test_lots": lots_that_judge(wafers),
        "seed": options.seed,
        "scores": scores_of(pool, options),
    }


def scores_of(pool: Pool, options: argparse.Namespace, teach: Teach | None = None) -> list[dict[str, Any]]:
    """Returns the scores of a pool as JSON values, telling each as it comes; see `few_shot`."""
    scores = []
    for score in few_shot(pool, options.sizes, options.draws, options.seed, options.new_classes, teach):
        say(f"{score.wafers_per_class:4d} wafers a class: macro-F1 {score.macro_f1:.3f} ± {score.macro_f1_spread:.3f}")
        scores.append(asdict(score))
    return scores


def pool_of(wafers: SplitSet, network: Network) -> Pool:
    """Computes the embeddings of what is needed.

    Raises:
        InvalidArgumentError: a class has no wafers in lots that can be held back.
    """
    check_judges(wafers)
    train, test = pool_rows(wafers), wafers.rows(Split.TEST)
    copies = network.embed_copies(wafers.grids_of(train), "wafers to teach")
    judges = network.embed(wafers.grids_of(test), "wafers that judge")
    return Pool(wafers.classes, copies, wafers.labels[train], judges, wafers.labels[test], network.known)


def pool_rows(wafers: SplitSet) -> Rows:
    """Returns the wafers that draws are made from: of each class at most POOL_WAFERS of the training lots."""
    shuffled = np.random.default_rng(0).permutation(wafers.rows(Split.TRAIN))
    return np.sort(first_of_each(shuffled, wafers.labels, len(wafers.classes), POOL_WAFERS))


def lots_that_judge(wafers: SplitSet) -> int:
    """Returns the number of locked test lots; a wafer without lot counts as one."""
    lots = wafers.lots_of(wafers.rows(Split.TEST))
    return len(set(lots) - {""}) + lots.count("")


def few_shot(
    pool: Pool, sizes: Sequence[int], draws: int, seed: int, new: Collection[str] = (), teach: Teach | None = None
) -> Iterator[FewShotScore]:
    """Yields the score at each number of wafers a class.

    Args:
        pool: wafers.
        sizes: wafers a class.
        draws: draws for each of them.
        seed: seed of the draws.
        new: classes whose F1 is told apart.
        teach: what is taught; the classifier of a training job when not given.
    """
    count = len(pool.classes)
    places = [pool.classes.index(name) for name in new]
    for size in sizes:
        matrices = []
        for draw in range(draws):
            rows = drawn_rows(pool.labels, count, size, [seed, size, draw])
            called = (teach or call_judges)(pool, rows, [seed, size, draw])
            matrices.append(confusion_matrix(pool.truth, called, count))
        yield score_of(pool.classes, size, np.stack(matrices), places)


def score_of(classes: Sequence[str], size: int, matrices: NDArray[np.int64], new: Sequence[int]) -> FewShotScore:
    """Returns the score of some draws.

    Args:
        classes: names of the classes.
        size: wafers a class.
        matrices: confusion (draws, classes, classes).
        new: indices of the classes whose F1 is told apart.
    """
    by_class = class_f1(matrices)
    found = np.diagonal(matrices, axis1=1, axis2=2) / np.maximum(matrices.sum(axis=2), 1)
    scores = np.array([macro_f1(matrix) for matrix in matrices])
    of_new = by_class[:, new].mean(axis=1) if new else np.zeros(len(matrices))
    return FewShotScore(
        wafers_per_class=size,
        draws=len(matrices),
        macro_f1=float(scores.mean()),
        macro_f1_spread=spread(scores),
        class_f1={name: float(by_class[:, index].mean()) for index, name in enumerate(classes)},
        class_recall={name: float(found[:, index].mean()) for index, name in enumerate(classes)},
        new_classes_f1=float(of_new.mean()),
        new_classes_f1_spread=spread(of_new),
        confusion=matrices.sum(axis=0).tolist(),
    )


def drawn_rows(labels: Rows, classes: int, most: int | Sequence[int], seed: list[int]) -> Rows:
    """Returns the wafers of one draw: `most` of each class, one number for all or one a class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return first_of_each(order, labels, classes, most)


def call_judges(pool: Pool, rows: Rows, seed: list[int]) -> Rows:
    """Teaches the classifier of a training job on some rows and returns the classes that the judges are called."""
    head = taught_head(pool.copies[rows], pool.labels[rows], pool.classes, seed, pool.known)
    return np.asarray(head.logits(pool.judges).argmax(axis=1), np.int64)


def taught_head(
    copies: Array, labels: Rows, classes: Sequence[str], seed: list[int], known: KnownPatterns | None = None
) -> Head:
    """Returns the classifier of a training job, taught without tune wafers.

    Args:
        copies: float32 (N, copies, D) embeddings.
        labels: (N,) their classes.
        classes: names of the classes.
        seed: seed of order and copies.
        known: patterns that the network knows, or None.
    """
    random, config, count = np.random.default_rng([*seed, 1]), TrainingConfig(), len(classes)
    state, _ = first_state(copies.mean(axis=1), labels, count, known)
    head = teach_head(state, copies, labels, config.epochs, config.batch_size, config.learning_rate, random)
    normal = classes.index(NORMAL_PATTERN) if NORMAL_PATTERN in classes else None
    return head.shifted(normal_offset(labels, count, normal))
