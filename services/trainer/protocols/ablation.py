"""Ablation: the few-shot table of several weights side by side, on the same draws and judges."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from services.common.errors import InvalidArgumentError
from services.trainer.backbones import BACKBONES, BackboneLibrary
from services.trainer.protocols.few_shot import DRAWS, SIZES, lots_that_judge, pool_of, scores_of
from services.trainer.protocols.network import Network
from services.trainer.protocols.options import add_draws, add_sizes
from services.trainer.protocols.progress import say
from services.trainer.protocols.split_set import SplitSet


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what this protocol can be told."""
    parser.add_argument("--backbone", choices=list(BACKBONES), default="wafer-fast")
    parser.add_argument(
        "--rows", nargs="+", required=True, metavar="NAME=FOLDER", help="name of a row and folder of its weights"
    )
    add_sizes(parser, SIZES)
    add_draws(parser, DRAWS)
    parser.add_argument("--new-classes", nargs="+", default=[], metavar="NAME", help="classes told apart")


def measure(wafers: SplitSet, options: argparse.Namespace) -> dict[str, Any]:
    """Returns a few-shot table for each row.

    Raises:
        InvalidArgumentError: a row is not NAME=FOLDER, or a class has no wafers in lots that can be held back.
        FailedPreconditionError: the weights of a row are missing or damaged.
    """
    rows = []
    for name, folder in [_row(text) for text in options.rows]:
        say(name)
        pool = pool_of(wafers, Network(options.backbone, BackboneLibrary(folder)))
        rows.append({"name": name, "scores": scores_of(pool, options)})
    return {
        "backbone": options.backbone,
        "classes": list(wafers.classes),
        "new_classes": list(options.new_classes),
        "test_lots": lots_that_judge(wafers),
        "seed": options.seed,
        "rows": rows,
    }


def _row(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise InvalidArgumentError(f"Expected NAME=FOLDER. Received: {text[:100]!r}.", field="rows")
    return name, Path(folder)
