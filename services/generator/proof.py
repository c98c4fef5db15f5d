"""Whether generated wafers help: a classifier taught with and without them, judged by lots set aside.

The data set version is split by lot already: generated wafers come from its training wafers and stand beside them, and
the wafers of its other two sides judge. Both classifiers of a draw learn from the same resample of the real wafers, in
the same order, and are judged by the same wafers, so that what differs between them is the generated wafers alone.

The interval holds what the figures owe to chance on both sides: draws resample the wafers taught, real and generated,
and within each draw the lots that judge are resampled as wholes, because wafers of one lot fail alike (a paired block
bootstrap; Efron and Tibshirani 1993).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from services.common.dataset import Dataset, Split
from services.common.errors import FailedPreconditionError
from services.common.evaluation import confusion_matrix, macro_f1, number_lots
from services.common.head import Array
from services.generator.domain import Proof
from services.generator.embedding import WaferEmbedding
from services.generator.real_wafers import Wafers, even_sample, real_by_class
from services.generator.recognition import taught_head

DRAWS = 10
"""Draws of the wafers taught."""
RESAMPLES = 40
"""Resamples of the lots that judge in each draw."""
MOST_TAUGHT = 200
"""Most real wafers of each class that teach."""
MOST_JUDGES = 300
"""Most wafers of each class that judge."""
_STREAM = 41


def prove(
    dataset: Dataset,
    embedding: WaferEmbedding,
    generated: Mapping[str, Array],
    seed: int,
    report: Callable[[int], None] = lambda _: None,
) -> Proof:
    """Returns what generated wafers change in the macro-F1 of a classifier.

    Args:
        dataset: The data set version whose training wafers are the parents.
        embedding: What the classifiers see.
        generated: Embeddings (n, D) of generated wafers of each class, by class id.
        seed: Seed of everything random.
        report: Called after each draw with its number, from 1; may raise to stop.

    Raises:
        FailedPreconditionError: Fewer than two classes have wafers to teach and to judge.
    """
    grids, names, _ = even_sample(real_by_class(dataset, Split.TRAIN), MOST_TAUGHT)
    classes = sorted(set(names))
    judges, truths, lots = judging_wafers(dataset, classes)
    if len(classes) < 2 or len(set(truths)) < 2:
        raise FailedPreconditionError(
            "Expected wafers of at least two classes in lots set aside, which judge whether generated wafers help. "
            f"Received: {len(set(truths))} such classes. Add wafers of other lots, or generate without the proof.",
            reason="NOTHING_TO_JUDGE",
        )
    number = {name: place for place, name in enumerate(classes)}
    real, labels = embedding.embed(grids), np.array([number[each] for each in names])
    made = np.concatenate([np.asarray(each, np.float32) for each in generated.values()])
    made_labels = np.repeat([number[name] for name in generated], [len(each) for each in generated.values()])
    seen, truth = embedding.embed(judges), np.array([number[each] for each in truths])
    lot_of = number_lots(lots)
    order = np.argsort(lot_of, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(lot_of[order])) + 1)
    scores, changes = [], []
    for draw in range(DRAWS):
        random = np.random.default_rng((seed, _STREAM, draw))
        some, more = _resampled(labels, random), _resampled(made_labels, random)
        answers = []
        for embeddings, taught in (
            (real[some], labels[some]),
            (np.concatenate([real[some], made[more]]), np.concatenate([labels[some], made_labels[more]])),
        ):
            head = taught_head(embeddings, taught, len(classes), (seed, _STREAM, draw, 1))
            answers.append(head.logits(seen).argmax(axis=1))
        scores.append([macro_f1(confusion_matrix(truth, each, len(classes))) for each in answers])
        for _ in range(RESAMPLES):
            rows = np.concatenate([members[lot] for lot in random.integers(0, len(members), len(members))])
            one, other = (macro_f1(confusion_matrix(truth[rows], each[rows], len(classes))) for each in answers)
            changes.append(other - one)
        report(draw + 1)
    without, with_generated = np.mean(scores, axis=0)
    low, high = np.quantile(changes, (0.025, 0.975))
    return Proof(
        without=float(without),
        with_generated=float(with_generated),
        difference=float(with_generated - without),
        low=float(low),
        high=float(high),
        judged_wafers=len(truth),
        judged_lots=len(members),
    )


def judging_wafers(dataset: Dataset, classes: Sequence[str]) -> Wafers:
    """Returns die grids, classes and lots of the real wafers that judge: of the tune and test sides.

    A data set version holds each lot on one side alone, so that none of them has a sister among the taught wafers or a
    child; a wafer without a lot is a lot of its own.

    Args:
        dataset: The data set version.
        classes: Classes that are taught; wafers of others do not judge.
    """
    grids, names, lots = even_sample(real_by_class(dataset, Split.TUNE, Split.TEST), MOST_JUDGES)
    kept = [place for place, name in enumerate(names) if name in classes]
    return (
        [grids[place] for place in kept],
        [names[place] for place in kept],
        [lots[place] or f"\0{place}" for place in kept],
    )


def _resampled(labels: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Returns as many positions of each class as it has, drawn with replacement."""
    of_class = [np.flatnonzero(labels == each) for each in np.unique(labels)]
    return np.concatenate([random.choice(rows, len(rows)) for rows in of_class])
