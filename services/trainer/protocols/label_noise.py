"""Label noise: how many labels are wrong, and what macro-F1 the labels themselves allow.

Two measurements. Exactly repeated wafers (the same dies) that carry different labels cannot all be right: a count,
without a model. Confident learning (Northcutt, Jiang, Chuang, JAIR 70 (2021)) estimates the rest: a classifier is
taught on the embeddings of all lots but a fifth and asked about that fifth, for each fifth; a wafer that is called
another class with more than that class's usual confidence counts as one of that class. The counts, scaled to the
labels, are an estimate of the joint distribution of given and true labels.

The ceiling is the macro-F1 of a classifier that always tells the true class, judged by the given labels: the F1 of the
estimated joint itself. It is an estimate and no bound: what the classifier gets wrong with confidence counts as a wrong
label, which makes the ceiling too low, and errors that classifier and labels share are not seen, which makes it too
high. Pretraining saw the labels of the training lots; the figures of the other lots stand apart.
"""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgumentError
from services.common.evaluation import class_f1, confusion_matrix, macro_f1
from services.common.head import Array, log_softmax
from services.common.splitting import Split
from services.trainer.backbones import BackboneLibrary
from services.trainer.calibration import best_temperature
from services.trainer.protocols.few_shot import taught_head
from services.trainer.protocols.network import Network
from services.trainer.protocols.options import add_network, positive
from services.trainer.protocols.progress import say
from services.trainer.protocols.split_set import Rows, SplitSet, first_of_each

FOLDS = 5
"""Parts that are asked in turn."""
TAUGHT_WAFERS = 1500
"""Most wafers of a class that each fold teaches."""


@dataclass(frozen=True, slots=True)
class Repeats:
    """Exactly repeated wafers.

    Attributes:
        wafers: all wafers.
        repeated: wafers whose dies another wafer has, too.
        groups: different ones among those.
        contradicting: wafers in groups with more than one label.
        contradicting_groups: those groups.
        least_wrong: wafers that do not carry the commonest label of their group: at least so many labels are wrong.
        pairs: pairs of labels in one group, with the number of groups, the commonest first.
    """

    wafers: int
    repeated: int
    groups: int
    contradicting: int
    contradicting_groups: int
    least_wrong: int
    pairs: list[tuple[str, str, int]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what this protocol can be told."""
    add_network(parser)
    parser.add_argument("--folds", type=positive, default=FOLDS)
    parser.add_argument("--seed", type=int, default=0)


def measure(wafers: SplitSet, options: argparse.Namespace) -> dict[str, Any]:
    """Returns repeats, the estimated joint, the share of wrong labels of each class, and the ceiling.

    Raises:
        InvalidArgumentError: there are fewer lots than folds.
    """
    network = Network(options.backbone, BackboneLibrary(options.weights))
    embeddings = network.embed(wafers.grids)
    folds = folds_of(wafers, options.folds, options.seed)
    logits = np.zeros((len(wafers), len(wafers.classes)), np.float32)
    for fold in range(options.folds):
        rows = np.random.default_rng([options.seed, fold]).permutation(np.flatnonzero(folds != fold))
        rows = first_of_each(rows, wafers.labels, len(wafers.classes), TAUGHT_WAFERS)
        head = taught_head(embeddings[rows][:, None], wafers.labels[rows], wafers.classes, [options.seed, fold])
        logits[folds == fold] = head.logits(embeddings[folds == fold])
        say(f"fold {fold + 1} of {options.folds}")
    logits /= np.float32(best_temperature(logits, wafers.labels))
    probabilities = np.exp(log_softmax(logits))
    unseen = wafers.rows(Split.TUNE, Split.TEST)
    return {
        "backbone": options.backbone,
        "classes": list(wafers.classes),
        "folds": options.folds,
        "seed": options.seed,
        "repeats": asdict(repeats(wafers)),
        "all_lots": _estimate(probabilities, wafers.labels, wafers.classes),
        "lots_unseen_by_pretraining": _estimate(probabilities[unseen], wafers.labels[unseen], wafers.classes),
    }


def repeats(wafers: SplitSet) -> Repeats:
    """Returns what exactly repeated wafers say of the labels."""
    groups: dict[str, list[str]] = defaultdict(list)
    for digest, name in zip(wafers.digests, wafers.names, strict=True):
        groups[digest].append(name)
    repeated = [Counter(names) for names in groups.values() if len(names) > 1]
    against = [counted for counted in repeated if len(counted) > 1]
    pairs = Counter((first, second) for counted in against for first in counted for second in counted if first < second)
    return Repeats(
        wafers=len(wafers),
        repeated=sum(counted.total() for counted in repeated),
        groups=len(repeated),
        contradicting=sum(counted.total() for counted in against),
        contradicting_groups=len(against),
        least_wrong=sum(counted.total() - max(counted.values()) for counted in against),
        pairs=[(first, second, count) for (first, second), count in pairs.most_common()],
    )


def folds_of(wafers: SplitSet, folds: int, seed: int) -> Rows:
    """Returns the fold (N,) of each wafer; wafers of one lot, and equal ones without lot, share one.

    Raises:
        InvalidArgumentError: there are fewer lots than folds, or a single fold.
    """
    keys = [lot or f"\0{digest}" for lot, digest in zip(wafers.lots, wafers.digests, strict=True)]
    lots = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}\0{key}".encode()).digest())
    if not 2 <= folds <= len(lots):
        raise InvalidArgumentError(f"Expected 2 to {len(lots)} folds, as many as lots. Received: {folds}.")
    fold_of = {key: place % folds for place, key in enumerate(lots)}
    return np.array([fold_of[key] for key in keys], np.int64)


def _estimate(probabilities: Array, labels: Rows, classes: tuple[str, ...]) -> dict[str, Any]:
    joint = confident_joint(probabilities, labels)
    wrong = 1.0 - np.diag(joint) / np.maximum(joint.sum(axis=1), 1e-12)
    called = confusion_matrix(labels, probabilities.argmax(axis=1), len(classes))
    counts = np.rint(1000 * joint).astype(np.int64)
    return {
        "wafers": len(labels),
        "wrong_share": float(1.0 - np.trace(joint) / joint.sum()),
        "class_wrong_share": {name: float(wrong[index]) for index, name in enumerate(classes)},
        "class_ceiling": {name: float(value) for name, value in zip(classes, class_f1(counts), strict=True)},
        "ceiling": macro_f1(counts),
        "out_of_lot_macro_f1": macro_f1(called),
        "joint": joint.round(1).tolist(),
    }


def confident_joint(probabilities: Array, labels: Rows) -> NDArray[np.float64]:
    """Returns the estimated numbers (classes, classes) of wafers: row the given label, column the true one.

    A wafer counts in the column of its most probable class among those whose probability reaches the class's threshold:
    the mean probability of the class over the wafers that are labelled so. A wafer that reaches none is not counted.
    Rows are scaled to the number of wafers of each label.

    Args:
        probabilities: (N, classes), out of sample.
        labels: (N,) given labels.
    """
    classes = probabilities.shape[1]
    thresholds = np.array(
        [probabilities[labels == each, each].mean() if (labels == each).any() else np.inf for each in range(classes)]
    )
    reaching = np.where(probabilities >= thresholds, probabilities, -1.0)
    sure = reaching.max(axis=1) >= 0
    counts = confusion_matrix(labels[sure], reaching[sure].argmax(axis=1), classes).astype(np.float64)
    given = np.bincount(labels, minlength=classes).astype(np.float64)
    # A class without a confident wafer says nothing against its labels.
    empty = counts.sum(axis=1) == 0
    counts[empty, empty] = given[empty]
    return np.asarray(counts * (given / np.maximum(counts.sum(axis=1), 1e-12))[:, None])
