"""Options that several protocols share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from services.common.task import Task
from services.trainer.backbones import BACKBONES, WEIGHTS_FOLDER
from services.trainer.domain import TrainingConfig


def add_network(parser: argparse.ArgumentParser) -> None:
    """Adds which pretrained network is measured."""
    parser.add_argument("--backbone", choices=list(BACKBONES), default="wafer-fast")
    parser.add_argument("--weights", type=Path, default=WEIGHTS_FOLDER, help="folder of the backbone's weights")


def add_sizes(parser: argparse.ArgumentParser, sizes: Sequence[int]) -> None:
    """Adds the numbers of wafers a class."""
    parser.add_argument("--sizes", type=positive, nargs="+", default=list(sizes), help="wafers a class")


def add_draws(parser: argparse.ArgumentParser, draws: int) -> None:
    """Adds draws and their seed."""
    parser.add_argument("--draws", type=positive, default=draws)
    parser.add_argument("--seed", type=int, default=0)


def add_teaching(parser: argparse.ArgumentParser, seeds: int) -> None:
    """Adds the settings of training jobs."""
    config = TrainingConfig()
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(seeds)), help="one job each")
    parser.add_argument("--epochs", type=positive, default=config.epochs)
    parser.add_argument("--batch-size", type=positive, default=config.batch_size)
    parser.add_argument("--no-fine-tune", action="store_true", help="teach the classifier alone")
    parser.add_argument(
        "--wafers-per-class", type=positive, metavar="N", help="teach with N wafers a class, drawn anew for each seed"
    )


def config_of(options: argparse.Namespace, seed: int, task: Task = Task.SINGLE) -> TrainingConfig:
    """Returns the settings of one job."""
    return TrainingConfig(
        epochs=options.epochs,
        batch_size=options.batch_size,
        backbone=options.backbone,
        fine_tune=not options.no_fine_tune,
        seed=seed,
        task=task,
    )


def positive(text: str) -> int:
    """Reads a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, received {text}")
    return value
