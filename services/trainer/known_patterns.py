"""What pretraining knows of the patterns that have names, and how a classifier starts from it.

Most fabs teach the patterns everybody has: rings, scratches, centres. Pretraining met thousands of wafers of them, so
five of a user's suffice to see which known pattern a class is, but not where exactly it ends. Where the wafers of one
class, and of no other, look like a known pattern, the classifier starts at that pattern's weights, learned from all
wafers of pretraining, and is drawn back to them; every other class starts at the mean of its own wafers. What the user
shows still decides: names are never compared, and the more wafers there are, the less the start matters. In Bayes'
terms the known weights are the prior mean (Chelba and Acero, EMNLP 2004; Li et al., L2-SP, ICML 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common.head import ANCHOR_WAFERS, Array, Head, HeadState, log_softmax, prototype_head, teach_head

MATCH_SHARE = 0.7
"""A class is a known pattern if its wafers are called so with this mean probability at least,"""
RIVAL_SHARE = 0.8
"""and no other class with so large a share of it: two classes into which a user parts one pattern are neither."""
MEAN_WAFERS = 20.0
"""The mean of a known pattern weighs like so many wafers of the user's."""
_EPOCHS, _BATCH, _RATE = 10, 128, 1e-3


@dataclass(frozen=True, slots=True)
class KnownPatterns:
    """Patterns with names, as one pretrained network sees them.

    Attributes:
        names: (K,) their names.
        head: their classifier on the network's embedding of D values.
        means: float32 (D, K), the mean of each, of length 1.
    """

    names: tuple[str, ...]
    head: Head
    means: Array

    def matches(self, embeddings: Array, labels: NDArray[np.int64], classes: int) -> dict[int, int]:
        """Returns the known pattern of each class whose wafers show one.

        Args:
            embeddings: float32 (N, D) of length about 1.
            labels: (N,) class of each.
            classes: number of classes.
        """
        called = np.exp(log_softmax(self.head.logits(embeddings)))
        shares = np.zeros((classes, len(self.names)))
        for each in np.unique(labels):
            shares[each] = called[labels == each].mean(axis=0)
        found = {}
        for each, share in enumerate(shares):
            pattern = int(share.argmax())
            rival = np.delete(shares[:, pattern], each).max(initial=0.0)
            if share[pattern] >= max(MATCH_SHARE, rival / RIVAL_SHARE):
                found[each] = pattern
        return found


def learn_patterns(embeddings: Array, labels: NDArray[np.int64], names: Sequence[str], seed: int) -> KnownPatterns:
    """Returns what the wafers of pretraining say of their patterns.

    Args:
        embeddings: float32 (N, D) of length 1.
        labels: (N,) indices into `names`, each occurring.
        names: the patterns.
        seed: seed of the order of learning.
    """
    means = prototype_head(embeddings, labels, len(names))
    random = np.random.default_rng([seed, 2])
    head = teach_head(HeadState.at(means), embeddings[:, None], labels, _EPOCHS, _BATCH, _RATE, random)
    return KnownPatterns(tuple(names), head, means.kernel)


def first_state(
    embeddings: Array,
    labels: NDArray[np.int64],
    classes: int,
    known: KnownPatterns | None,
    pull: float = ANCHOR_WAFERS,
) -> tuple[HeadState, dict[int, str]]:
    """Returns where a classifier starts: at known weights, or at the class means where nothing is known.

    Also returns the name of the pattern of each class that is known.

    Args:
        embeddings: float32 (N, D), the mean over the copies of each training wafer.
        labels: (N,) their classes.
        classes: number of classes.
        known: patterns that the network knows, or None.
        pull: how strongly the classifier is drawn back to where it starts; see `HeadState.at`.
    """
    own = prototype_head(embeddings, labels, classes)
    found = known.matches(embeddings, labels, classes) if known is not None else {}
    if known is None or not found:
        return HeadState.at(own, pull), {}
    places, patterns = list(found), list(found.values())
    wafers = np.bincount(labels, minlength=classes)[places]
    kernel, bias = own.kernel.copy(), own.bias.copy()
    means = wafers * kernel[:, places] + MEAN_WAFERS * known.means[:, patterns]
    means /= np.linalg.norm(means, axis=0)
    kernel[:, places] = means + (known.head.kernel - known.means)[:, patterns]
    bias[places] = known.head.bias[patterns]
    # Weights that were learned are longer than means. The others become as long, else no wafer is called theirs.
    others = np.setdiff1d(np.arange(classes), places)
    kernel[:, others] *= np.linalg.norm(kernel[:, places], axis=0).mean()
    return HeadState.at(Head(kernel, bias), pull), {place: known.names[pattern] for place, pattern in found.items()}
