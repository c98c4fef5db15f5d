"""P1, P5 and P7, full: a training job on all training lots, judged by the locked lots.

The job is the one that the service runs: teaching, calibration, export and evaluation are its own code, and what is
scored is the exported file. P1 is macro-F1 with its bootstrap over lots; P5 the share of answers that are accepted and
their real error, with the threshold that the tune lots fixed; P7 the largest difference between the exported graph and
what was taught.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.evaluation import Evaluation, accepted_error
from services.common.head import Array
from services.common.splitting import Split
from services.trainer.backbones import BackboneLibrary
from services.trainer.protocols.jobs import TaughtModel, teach_job, thinned
from services.trainer.protocols.numbers import mean, spread
from services.trainer.protocols.options import add_network, add_teaching, config_of
from services.trainer.protocols.progress import say
from services.trainer.protocols.split_set import NORMAL, Rows, SplitSet, check_judges

CURVE_SHARES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.98, 1.0)
"""Shares of the most confident wafers at which the error is told."""
_MEANS = (
    "macro_f1", "accuracy", "expected_calibration_error", "accepted_share", "accepted_error",
    "defects_accepted_share", "defects_accepted_error", "parity_max_difference", "seconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Accepted:
    """P5 among the wafers that are called a defect.

    Attributes:
        wafers: wafers called so.
        share: share of them that is accepted.
        error: share of those accepted whose class is wrong.
    """

    wafers: int
    share: float
    error: float


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what this protocol can be told."""
    add_network(parser)
    add_teaching(parser, seeds=1)
    parser.add_argument("--normal", default=NORMAL, metavar="NAME", help="class of wafers without a defect")


def measure(wafers: SplitSet, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the scores of one training job a seed, their means and their spreads.

    Raises:
        InvalidArgumentError: a class has no wafers in lots that can be held back.
    """
    check_judges(wafers)
    runs = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory(prefix="teachwafer-protocol-") as folder:
            taught = thinned(wafers, options.wafers_per_class, seed)
            model = teach_job(Path(folder), taught, config_of(options, seed), BackboneLibrary(options.weights))
            runs.append(_run(model, wafers, seed, options.normal))
        say(f"seed {seed}: macro-F1 {runs[-1]['macro_f1']:.3f} after {runs[-1]['seconds']:.0f} s")
    test = wafers.rows(Split.TEST)
    return {
        "backbone": options.backbone,
        "classes": list(wafers.classes),
        "settings": settings_of(options),
        "training_wafers": runs[0]["training_wafers"],
        "test_wafers": len(test),
        "test_lots": runs[0]["test_lots"],
        "runs": runs,
        "mean": {name: mean([run[name] for run in runs]) for name in _MEANS},
        "spread": {name: spread([run[name] for run in runs]) for name in _MEANS},
    }


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings of the jobs, for the report."""
    return {
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "fine_tune": not options.no_fine_tune,
        "wafers_per_class": options.wafers_per_class,
    }


def _run(model: TaughtModel, wafers: SplitSet, seed: int, normal: str) -> dict[str, Any]:
    test = wafers.rows(Split.TEST)
    answers, evaluation = model.answers(wafers.grids_of(test)), model.outcome.test
    assert evaluation is not None  # noqa: S101 - there are test wafers
    labels, sure = wafers.labels[test], answers.probabilities.max(axis=1)
    accepted = (sure >= model.manifest.accept_threshold) & (answers.novelty <= 1.0)
    defects = among_defects(answers.probabilities, labels, accepted, wafers.classes, normal)
    return {
        "seed": seed,
        **scores_of(evaluation, wafers.classes),
        "defects_accepted_share": defects.share,
        "defects_accepted_error": defects.error,
        "defects_called": defects.wafers,
        "curve": error_curve(answers.probabilities, labels),
        "parity_max_difference": model.outcome.parity_max_difference,
        "parity_wafers": model.outcome.parity_wafers,
        "training_wafers": model.outcome.training_wafers,
        "best_epoch": model.outcome.best_epoch,
        "epochs": model.outcome.epochs,
        "seconds": model.outcome.seconds,
        "warnings": list(model.outcome.warnings),
    }


def scores_of(evaluation: Evaluation, classes: tuple[str, ...]) -> dict[str, Any]:
    """Returns the scores of an evaluation as JSON values, by class name."""
    named = list(zip(classes, evaluation.classes, strict=True))
    return {
        "macro_f1": evaluation.macro_f1,
        "macro_f1_interval": list(evaluation.macro_f1_interval),
        "accuracy": evaluation.accuracy,
        "expected_calibration_error": evaluation.expected_calibration_error,
        "accepted_share": evaluation.accepted_share,
        "accepted_error": evaluation.accepted_error,
        "test_lots": evaluation.lots,
        "class_wafers": {name: score.wafers for name, score in named},
        "class_recall": {name: score.recall for name, score in named},
        "class_recall_interval": {name: list(score.recall_interval) for name, score in named},
        "class_precision": {name: score.precision for name, score in named},
        "class_f1": {name: score.f1 for name, score in named},
        "confusion": [list(row) for row in evaluation.confusion],
    }


def among_defects(
    probabilities: Array, labels: Rows, accepted: NDArray[np.bool_], classes: tuple[str, ...], normal: str
) -> Accepted:
    """Returns P5 among the wafers that are called another class than the normal one; among all without such a class.

    Args:
        probabilities: (N, classes).
        labels: (N,) true classes.
        accepted: (N,) whether the answer is accepted.
        classes: names of the classes.
        normal: name of the normal class.
    """
    predicted = probabilities.argmax(axis=1)
    called = predicted != classes.index(normal) if normal in classes else np.ones(len(labels), np.bool_)
    share = float(accepted[called].mean()) if called.any() else 0.0
    return Accepted(int(called.sum()), share, accepted_error((predicted == labels)[called], accepted[called]))


def error_curve(probabilities: Array, labels: Rows) -> list[list[float]]:
    """Returns [share, error]: how many of the most confident answers are wrong, at each of CURVE_SHARES."""
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    wrong = np.cumsum(probabilities.argmax(axis=1)[order] != labels[order])
    counts = [max(1, round(share * len(labels))) for share in CURVE_SHARES]
    return [[share, float(wrong[count - 1] / count)] for share, count in zip(CURVE_SHARES, counts, strict=True)]
