"""Measures how well few examples teach: `python -m services.trainer.protocols few-shot --wafers SET.npz`.

Of each class a few wafers are drawn from the training lots, the classifier of a training job is taught on their
embeddings, and the wafers of the locked test lots are the judges. Unlike a training job there are no tune wafers: the
learning rate stays constant, the last epoch counts, and the network itself is not taught. Several draws, because the
luck of a draw is larger than most improvements. Embeddings are computed once for all draws.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgumentError, TeachwaferError
from services.common.evaluation import class_f1, confusion_matrix, macro_f1
from services.common.preprocessing import planes_of
from services.common.splitting import Split, split_by_lot
from services.common.wafer_map import dies_sha256
from services.common.wafer_set import WaferSet, read_wafer_set
from services.trainer.backbones import BACKBONES, ORIENTATIONS, WEIGHTS_FOLDER, BackboneLibrary, find_backbone
from services.trainer.domain import TrainingConfig
from services.trainer.features import embed, embed_copies, embedder
from services.trainer.head import Array, HeadState, class_weights, prototype_head, train_epoch_on_copies
from services.trainer.network import embedding_model
from services.trainer.trunks import load_trunk

SIZES = (5, 10, 20, 50)
"""Wafers a class."""
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
    """

    classes: tuple[str, ...]
    copies: Array
    labels: NDArray[np.int64]
    judges: Array
    truth: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FewShotScore:
    """Scores at one number of wafers a class.

    Attributes:
        wafers_per_class: wafers drawn of each class; all of a class that has fewer.
        draws: draws.
        macro_f1: mean over the draws.
        macro_f1_spread: standard deviation over the draws.
        class_f1: mean F1 of each class by name.
    """

    wafers_per_class: int
    draws: int
    macro_f1: float
    macro_f1_spread: float
    class_f1: dict[str, float]


def read_pool(wafers: WaferSet, source: str, backbone_id: str, library: BackboneLibrary) -> Pool:
    """Splits a wafer set by lot and computes the embeddings of what is needed.

    Args:
        wafers: wafers with labels; lots where they are known.
        source: only wafers of this source; "" takes all.
        backbone_id: pretrained network.
        library: where its weights lie.

    Raises:
        InvalidArgumentError: there are no labels, fewer than two classes, or no lots to hold back.
    """
    sources = wafers.sources or [""] * len(wafers.grids)
    rows = [row for row, each in enumerate(sources) if source in ("", each)]
    if wafers.labels is None or len({wafers.labels[row] for row in rows}) < 2:
        raise InvalidArgumentError(
            f"Expected wafers of at least two classes. Received: {len(rows)} wafers"
            f"{f' of source {source!r}' if source else ''}, {'with one class or none' if rows else 'none to read'}."
        )
    names = [wafers.labels[row] for row in rows]
    groups = wafers.groups or [""] * len(wafers.grids)
    digests = [dies_sha256(wafers.grids[row]) for row in rows]
    sides = split_by_lot(names, [groups[row] for row in rows], seed=0, digests=digests)
    classes = tuple(sorted(set(names)))
    labels = np.array([classes.index(name) for name in names], np.int64)
    train, test = np.flatnonzero(sides == Split.TRAIN.value), np.flatnonzero(sides == Split.TEST.value)
    missing = [name for index, name in enumerate(classes) if index not in set(labels[test].tolist())]
    if missing:
        raise InvalidArgumentError(
            f"Expected wafers of each class in lots that can be held back. Received: none of {', '.join(missing)}. "
            "Add wafers of these classes from other lots, or leave the classes out."
        )
    shuffled = np.random.default_rng(0).permutation(train)
    train = np.sort(_first_of_each(shuffled, labels, len(classes), POOL_WAFERS))
    backbone = find_backbone(backbone_id)
    model = embedder(embedding_model(load_trunk(backbone, library), backbone.orientations))

    def planes(chosen: NDArray[np.int64]) -> NDArray[np.float16]:
        return planes_of([wafers.grids[rows[row]] for row in chosen], backbone.size).astype(np.float16)

    count = 1 if backbone.orientations > 1 else ORIENTATIONS
    copies = embed_copies(model, planes(train), count, 1.0, 0, _unheard, backbone.orientations)
    judges = embed(model, planes(test), _unheard, backbone.orientations)
    return Pool(classes, copies, labels[train], judges, labels[test])


def few_shot(pool: Pool, sizes: Sequence[int], draws: int, seed: int) -> Iterator[FewShotScore]:
    """Yields the score at each number of wafers a class.

    Args:
        pool: wafers.
        sizes: wafers a class.
        draws: draws for each of them.
        seed: seed of the draws.
    """
    count = len(pool.classes)
    for size in sizes:
        matrices = np.stack([_draw(pool, size, [seed, size, draw]) for draw in range(draws)])
        scores = np.array([macro_f1(matrix) for matrix in matrices])
        by_class = class_f1(matrices).mean(axis=0)
        yield FewShotScore(
            wafers_per_class=size,
            draws=draws,
            macro_f1=float(scores.mean()),
            macro_f1_spread=float(scores.std(ddof=1)) if draws > 1 else 0.0,
            class_f1={pool.classes[index]: float(by_class[index]) for index in range(count)},
        )


def _draw(pool: Pool, size: int, seed: list[int]) -> NDArray[np.int64]:
    """Teaches one draw and returns its confusion matrix on the judges."""
    random, config, count = np.random.default_rng(seed), TrainingConfig(), len(pool.classes)
    rows = _first_of_each(random.permutation(len(pool.labels)), pool.labels, count, size)
    copies, labels = pool.copies[rows], pool.labels[rows]
    state = HeadState.at(prototype_head(copies.mean(axis=1), labels, count))
    weights = class_weights(labels, count)
    for _ in range(config.epochs):
        rates = itertools.repeat(config.learning_rate)
        train_epoch_on_copies(state, copies, labels, weights, config.batch_size, rates, random)
    return confusion_matrix(pool.truth, state.head.logits(pool.judges).argmax(axis=1), count)


def _first_of_each(rows: NDArray[np.int64], labels: NDArray[np.int64], classes: int, most: int) -> NDArray[np.int64]:
    """Returns the first rows of each class, at most `most` of each, class after class."""
    return np.concatenate([rows[labels[rows] == index][:most] for index in range(classes)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        library = BackboneLibrary(options.weights)
        pool = read_pool(read_wafer_set(options.wafers), options.source, options.backbone, library)
    except (TeachwaferError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    scores = []
    for score in few_shot(pool, options.sizes, options.draws, options.seed):
        scores.append(asdict(score))
        text = "  ".join(f"{name} {value:.2f}" for name, value in score.class_f1.items())
        if not options.json:
            print(
                f"{score.wafers_per_class:4d} wafers a class: macro-F1 {score.macro_f1:.3f} +- "
                f"{score.macro_f1_spread:.3f} ({score.draws} draws)  {text}",
                flush=True,
            )
    if options.json:
        report: dict[str, Any] = {
            "protocol": "few-shot",
            "backbone": options.backbone,
            "test_wafers": len(pool.truth),
            "seed": options.seed,
            "scores": scores,
        }
        print(json.dumps(report, ensure_ascii=False))
    return 0


def _unheard(_: float) -> None:
    """Hears how far embeddings have come and does nothing with it."""


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, received {text}")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.trainer.protocols", description=__doc__.split("\n")[0])
    parser.add_argument("protocol", choices=["few-shot"])
    parser.add_argument("--wafers", type=Path, required=True, help="wafer set with labels, and group for the lots")
    parser.add_argument("--source", default="", help="only wafers of this source")
    parser.add_argument("--backbone", choices=list(BACKBONES), default="wafer-fast")
    parser.add_argument("--weights", type=Path, default=WEIGHTS_FOLDER, help="folder of the backbone's weights")
    parser.add_argument("--sizes", type=_positive, nargs="+", default=list(SIZES), help="wafers a class")
    parser.add_argument("--draws", type=_positive, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
