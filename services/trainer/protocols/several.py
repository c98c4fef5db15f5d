"""P3, several: several patterns a wafer, by a training job for such projects, judged by the locked test wafers.

Labels join patterns by `+`. What is told is the F1 of each pattern as a yes-or-no question and their mean, and the
exact match: the share of wafers whose whole set of patterns is right. MixedWM38, on which others report, was balanced
by a generative network: it says whether patterns are told apart, not how good a model is in a factory.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.head import Array
from services.common.splitting import Split
from services.common.task import Task
from services.trainer.backbones import BackboneLibrary
from services.trainer.protocols.full import settings_of
from services.trainer.protocols.jobs import patterns_of, teach_job, thinned
from services.trainer.protocols.numbers import mean, spread
from services.trainer.protocols.options import add_network, add_teaching, config_of
from services.trainer.protocols.progress import say
from services.trainer.protocols.split_set import NORMAL, SplitSet, check_judges

_MEANS = ("macro_f1", "exact_match", "accepted_share", "accepted_error", "parity_max_difference", "seconds")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what this protocol can be told."""
    add_network(parser)
    add_teaching(parser, seeds=1)


def measure(wafers: SplitSet, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the scores of one training job a seed, their means and their spreads.

    Raises:
        InvalidArgumentError: a combination has no wafers in lots that can be held back.
    """
    check_judges(wafers)
    test, patterns = wafers.rows(Split.TEST), patterns_of(wafers.classes)
    names = [wafers.names[row] for row in test]
    runs: list[dict[str, Any]] = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory(prefix="teachwafer-protocol-") as folder:
            taught = thinned(wafers, options.wafers_per_class, seed)
            config = config_of(options, seed, Task.SEVERAL)
            model = teach_job(Path(folder), taught, config, BackboneLibrary(options.weights))
            told = shown_sets(model.answers(wafers.grids_of(test)).probabilities, patterns)
        evaluation = model.outcome.test
        assert evaluation is not None  # noqa: S101 - there are test wafers
        scores = dict(zip(patterns, evaluation.classes, strict=True))
        runs.append(
            {
                "seed": seed,
                "macro_f1": evaluation.macro_f1,
                "macro_f1_interval": list(evaluation.macro_f1_interval),
                "exact_match": evaluation.accuracy,
                "accepted_share": evaluation.accepted_share,
                "accepted_error": evaluation.accepted_error,
                "class_f1": {name: score.f1 for name, score in scores.items()},
                "class_recall": {name: score.recall for name, score in scores.items()},
                "class_precision": {name: score.precision for name, score in scores.items()},
                "exact_by_count": exact_by_count(names, told),
                "exact_by_combination": exact_by_combination(names, told),
                "parity_max_difference": model.outcome.parity_max_difference,
                "training_wafers": model.outcome.training_wafers,
                "seconds": model.outcome.seconds,
            }
        )
        say(f"seed {seed}: macro-F1 {evaluation.macro_f1:.3f}, exact match {evaluation.accuracy:.3f}")
    return {
        "backbone": options.backbone,
        "patterns": list(patterns),
        "combinations": len(wafers.classes),
        "settings": settings_of(options),
        "training_wafers": runs[0]["training_wafers"],
        "test_wafers": len(test),
        "runs": runs,
        "mean": {name: mean([run[name] for run in runs]) for name in _MEANS},
        "spread": {name: spread([run[name] for run in runs]) for name in _MEANS},
    }


def shown_sets(probabilities: Array, patterns: tuple[str, ...]) -> list[frozenset[str]]:
    """Returns the patterns that each wafer is told to show: those with a probability of at least one half.

    Args:
        probabilities: (N, patterns).
        patterns: names; the normal class among them is no pattern.
    """
    columns = [index for index, name in enumerate(patterns) if name != NORMAL]
    return [frozenset(patterns[index] for index in columns if row[index] >= 0.5) for row in probabilities]


def exact_by_count(names: list[str], told: list[frozenset[str]]) -> dict[str, float]:
    """Returns the exact match of the wafers with 0, 1, 2, ... patterns."""
    truth = [_set_of(name) for name in names]
    counts = np.array([len(each) for each in truth])
    right = _right(truth, told)
    return {str(count): float(right[counts == count].mean()) for count in np.unique(counts)}


def exact_by_combination(names: list[str], told: list[frozenset[str]]) -> dict[str, float]:
    """Returns the exact match of each combination."""
    right, labels = _right([_set_of(name) for name in names], told), np.array(names)
    return {str(name): float(right[labels == name].mean()) for name in np.unique(labels)}


def _right(truth: list[frozenset[str]], told: list[frozenset[str]]) -> NDArray[np.bool_]:
    return np.array([left == right for left, right in zip(truth, told, strict=True)])


def _set_of(name: str) -> frozenset[str]:
    return frozenset(name.split("+")) - {NORMAL}
