"""P4, unknown: whether wafers of a pattern that nobody taught are noticed.

Each class in turn is left out of teaching, by a training job of its own, and its wafers in the locked test lots are
the unknown ones. What is measured is the area under the ROC curve of the exported graph's novelty against the test
wafers of the classes that were taught. Beside it stand the scores of the literature on the same embeddings, fixed
before a test wafer is looked at: they say whether the graph's own score is a good choice. Pretraining saw the class
unless the weights were made without it (`--weights`).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.evaluation import auroc
from services.common.head import Array, Head
from services.common.splitting import Split
from services.trainer.backbones import BackboneLibrary
from services.trainer.calibration import bank_rows, neighbour_distance
from services.trainer.protocols.full import settings_of
from services.trainer.protocols.jobs import Answers, TaughtModel, teach_job, thinned
from services.trainer.protocols.numbers import mean, spread
from services.trainer.protocols.options import add_network, add_teaching, config_of
from services.trainer.protocols.progress import say
from services.trainer.protocols.split_set import Rows, SplitSet, check_judges

CLASSES = ("Donut", "Loc", "Scratch")
"""Classes that are left out when none is named; Near-full would be too easy, its share of failed dies gives it away."""
GRAPH = "graph's novelty"
"""Name of the score that is served."""
_REFERENCE_WAFERS = 6000
"""Most taught wafers from which the scores of the literature learn what is known."""
_RIDGE = 1e-3

Floats = NDArray[np.floating[Any]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what this protocol can be told."""
    add_network(parser)
    add_teaching(parser, seeds=3)
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME", help=f"classes left out, one after the other ({' '.join(CLASSES)})"
    )


def measure(wafers: SplitSet, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the AUROC of each score for each class left out, one job a class and seed.

    Raises:
        InvalidArgumentError: a class is not there, or has no wafers in lots that can be held back.
    """
    check_judges(wafers)
    left_out = options.classes or [name for name in CLASSES if name in wafers.classes]
    for name in left_out:
        wafers.index(name)
    runs = []
    for name in left_out:
        for seed in options.seeds:
            with tempfile.TemporaryDirectory(prefix="teachwafer-protocol-") as folder:
                known = thinned(wafers.without([name]), options.wafers_per_class, seed)
                model = teach_job(Path(folder), known, config_of(options, seed), BackboneLibrary(options.weights))
                runs.append({"left_out": name, "seed": seed, **_run(model, known, unknown_of(wafers, name), seed)})
            say(f"{name} left out, seed {seed}: AUROC {runs[-1]['auroc'][GRAPH]:.3f}")
    return {
        "backbone": options.backbone,
        "settings": settings_of(options),
        "seeds": options.seeds,
        "classes": left_out,
        "runs": runs,
        "scores": {score: _summary(runs, left_out, score) for score in runs[0]["auroc"]},
    }


def unknown_of(wafers: SplitSet, name: str) -> list[NDArray[np.uint8]]:
    """Returns the wafers of a class in the locked test lots."""
    test = wafers.rows(Split.TEST)
    return wafers.grids_of(test[wafers.labels[test] == wafers.index(name)])


def _run(model: TaughtModel, known: SplitSet, unknown: list[NDArray[np.uint8]], seed: int) -> dict[str, Any]:
    train = known.rows(Split.TRAIN)
    train = np.sort(np.random.default_rng(seed).permutation(train)[:_REFERENCE_WAFERS])
    sides = {
        "train": model.answers(known.grids_of(train)),
        "tune": model.answers(known.grids_of(known.rows(Split.TUNE))),
        "known": model.answers(known.grids_of(known.rows(Split.TEST))),
        "unknown": model.answers(unknown),
    }
    scores = Scores(sides["train"], known.labels[train], model.head(), sides["tune"], len(known.classes), seed)
    of_known, of_unknown = scores.of(sides["known"]), scores.of(sides["unknown"])
    return {
        "auroc": {name: auroc(of_known[name], of_unknown[name]) for name in of_known},
        "known_wafers": len(sides["known"].novelty),
        "unknown_wafers": len(unknown),
        "noticed": float((sides["unknown"].novelty > 1.0).mean()),
        "false_alarms": float((sides["known"].novelty > 1.0).mean()),
    }


class Scores:
    """How unknown a wafer looks, by the graph and by the literature; higher is more unknown.

    Hendrycks and Gimpel, ICLR 2017 (softmax); Liu et al., NeurIPS 2020 (energy); Sun et al., ICML 2022 (nearest
    neighbours); Ren et al., arXiv:2106.09022 (relative Mahalanobis). A combination adds the ranks that scores would
    have among the tune wafers.

    Args:
        taught: answers to taught wafers.
        labels: (N,) their classes.
        head: taught classifier.
        tune: answers to tune wafers.
        classes: number of classes.
        seed: seed of the choice of wafers to compare with.
    """

    def __init__(self, taught: Answers, labels: Rows, head: Head, tune: Answers, classes: int, seed: int) -> None:
        self._head = head
        rows = bank_rows(labels, np.zeros(len(labels), np.bool_), classes, seed)
        self._bank = taught.embedding[rows]
        self._mahalanobis = RelativeMahalanobis(taught.embedding, labels, classes)
        self._tune = {name: np.sort(values) for name, values in self._single(tune).items()}

    def of(self, answers: Answers) -> dict[str, Floats]:
        """Returns the scores (N,) by name."""
        single = self._single(answers)
        ranks = {
            name: np.searchsorted(self._tune[name], values) / len(self._tune[name]) for name, values in single.items()
        }
        # A rank beyond all tune wafers says no more how far beyond: a small share of the score itself breaks ties.
        ranks = {name: rank + 1e-3 * np.tanh(_scaled(single[name], self._tune[name])) for name, rank in ranks.items()}
        return {
            GRAPH: answers.novelty,
            **single,
            "neighbours + softmax": ranks["nearest neighbours"] + ranks["softmax"],
            "neighbours + Mahalanobis + softmax": (
                ranks["nearest neighbours"] + ranks["relative Mahalanobis"] + ranks["softmax"]
            ),
        }

    def _single(self, answers: Answers) -> dict[str, Floats]:
        logits = self._head.logits(answers.embedding).astype(np.float64)
        top = logits.max(axis=1)
        return {
            "softmax": 1.0 - answers.probabilities.max(axis=1).astype(np.float64),
            "energy": -(top + np.log(np.exp(logits - top[:, None]).sum(axis=1))),
            "nearest neighbours": neighbour_distance(answers.embedding, self._bank).astype(np.float64),
            "relative Mahalanobis": self._mahalanobis.of(answers.embedding),
        }


class RelativeMahalanobis:
    """Distance to the nearest class under one covariance, less the distance to all wafers taken as one class.

    Args:
        embeddings: (N, D) taught wafers.
        labels: (N,) their classes, each with a wafer.
        classes: number of classes.
    """

    def __init__(self, embeddings: Array, labels: Rows, classes: int) -> None:
        x = embeddings.astype(np.float64)
        means = np.stack([x[labels == each].mean(axis=0) for each in range(classes)])
        self._means, self._mean = means, x.mean(axis=0)
        self._within = _precision(x - means[labels])
        self._whole = _precision(x - self._mean)

    def of(self, embeddings: Array) -> Floats:
        """Returns the scores (N,)."""
        x = embeddings.astype(np.float64)
        within = np.stack([_squared(x - mean_, self._within) for mean_ in self._means], axis=1)
        return np.asarray(within.min(axis=1) - _squared(x - self._mean, self._whole))


def _precision(centred: Floats) -> Floats:
    covariance = centred.T @ centred / len(centred)
    ridge = _RIDGE * float(np.trace(covariance)) / len(covariance)
    return np.asarray(np.linalg.inv(covariance + ridge * np.eye(len(covariance))))


def _squared(centred: Floats, precision: Floats) -> Floats:
    return np.asarray(((centred @ precision) * centred).sum(axis=1))


def _scaled(values: Floats, tune: Floats) -> Floats:
    return np.asarray((values - np.median(tune)) / max(float(np.std(tune)), 1e-12))


def _summary(runs: list[dict[str, Any]], left_out: list[str], score: str) -> dict[str, Any]:
    by_class = {name: [run["auroc"][score] for run in runs if run["left_out"] == name] for name in left_out}
    # One value a seed: the mean over the classes left out.
    by_seed = np.array(list(by_class.values())).mean(axis=0)
    return {
        "mean": mean(by_seed),
        "spread": spread(by_seed),
        "worst": min(mean(values) for values in by_class.values()),
        "classes": {name: {"mean": mean(values), "spread": spread(values)} for name, values in by_class.items()},
    }
