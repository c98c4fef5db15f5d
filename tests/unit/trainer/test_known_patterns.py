"""Known patterns: which classes are taken for one, and what that gains few wafers."""

from __future__ import annotations

import numpy as np
import pytest

from services.common.dataset import DatasetClass
from services.common.head import ANCHOR_WAFERS, prototype_head
from services.trainer.known_patterns import first_state, learn_patterns
from services.trainer.objective import SinglePattern
from services.trainer.teaching_set import Side

WIDTH, NAMES = 24, ("Ring", "Spot", "Line", "none")
_KNOWN_CENTRES = np.random.default_rng(0).normal(size=(4, WIDTH))
# Two patterns that nobody knows: each a little of three that are known, and something of its own.
_NEW_CENTRES = _KNOWN_CENTRES[1:].sum(axis=0) + 0.4 * np.random.default_rng(3).normal(size=(2, WIDTH))
_CENTRES = np.concatenate([_KNOWN_CENTRES, _NEW_CENTRES])
# Each wafer also differs from its sisters along a few directions that tell nothing.
_NOISE = np.random.default_rng(1).normal(size=(4, WIDTH))


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def wafers_of(patterns, count, seed):
    """Embeddings (len(patterns) * count, WIDTH) of wafers of some patterns, in order."""
    random = np.random.default_rng(seed)
    labels = np.repeat(patterns, count)
    away = 1.2 * random.normal(size=(len(labels), 4)) @ _NOISE + 0.6 * random.normal(size=(len(labels), WIDTH))
    return unit(_CENTRES[labels] + away)


@pytest.fixture(scope="module")
def known():
    return learn_patterns(wafers_of(range(4), 400, 2), np.repeat(np.arange(4), 400), NAMES, seed=0)


def accuracy(head, patterns):
    judges = wafers_of(patterns, 300, 9)
    return (head.logits(judges).argmax(axis=1) == np.repeat(np.arange(len(patterns)), 300)).mean()


def test_classes_are_matched_by_what_their_wafers_show_in_any_order(known):
    labels = np.repeat(np.arange(3), 5)
    assert known.matches(wafers_of([2, 0, 5], 5, 3), labels, 3) == {0: 2, 1: 0}
    assert known.matches(wafers_of([1], 5, 3), np.zeros(5, np.int64), 2) == {0: 1}


def test_a_pattern_parted_into_two_classes_is_neither(known):
    assert known.matches(wafers_of([0, 0, 1], 5, 4), np.repeat(np.arange(3), 5), 3) == {2: 1}


def test_few_wafers_of_known_patterns_start_near_what_pretraining_knows(known):
    patterns, labels = [3, 1, 0, 2], np.repeat(np.arange(4), 5)
    embeddings = wafers_of(patterns, 5, 5)
    state, found = first_state(embeddings, labels, 4, known)
    assert found == {place: NAMES[pattern] for place, pattern in enumerate(patterns)}
    assert accuracy(state.head, patterns) > accuracy(prototype_head(embeddings, labels, 4), patterns) + 0.02
    assert np.array_equal(state.anchor, state.weights[:-1])


def test_a_new_class_beside_known_ones_starts_at_its_mean_and_as_long_as_they(known):
    patterns, labels = [0, 4, 1], np.repeat(np.arange(3), 20)
    embeddings = wafers_of(patterns, 20, 6)
    state, found = first_state(embeddings, labels, 3, known)
    assert found == {0: "Ring", 2: "Spot"}
    lengths = np.linalg.norm(state.anchor, axis=0)
    assert lengths[1] == pytest.approx((lengths[0] + lengths[2]) / 2, rel=1e-5)
    own = prototype_head(embeddings, labels, 3).kernel[:, 1]
    assert float(state.anchor[:, 1] @ own) == pytest.approx(lengths[1], rel=1e-5)
    assert accuracy(state.head, patterns) > 0.8


def test_without_anything_known_it_starts_at_the_class_means(known):
    labels = np.repeat(np.arange(2), 20)
    embeddings = wafers_of([4, 5], 20, 7)
    for given in (None, known):
        state, found = first_state(embeddings, labels, 2, given, pull=7.0)
        assert not found
        assert np.array_equal(state.anchor, prototype_head(embeddings, labels, 2).kernel)
        assert state.pull == 7.0


def test_training_starts_from_what_is_known(known):
    labels = np.repeat(np.arange(3), 5)
    embeddings = wafers_of([0, 1, 3], 5, 8)
    classes = [DatasetClass(name, name) for name in ("a", "b", "c")]
    side = Side(np.zeros((15, 1, 1, 2), np.float16), labels, np.eye(3, dtype=bool)[labels])
    states = [SinglePattern(side, classes, each).first_state(embeddings, ANCHOR_WAFERS)[0] for each in (known, None)]
    expected = first_state(embeddings, labels, 3, known)[0].head
    assert np.array_equal(states[0].head.kernel, expected.kernel)
    assert not np.array_equal(states[1].head.kernel, expected.kernel)


def test_a_class_without_wafers_is_no_pattern(known):
    assert known.matches(wafers_of([1], 5, 3), np.full(5, 1), 3) == {1: 1}
    state, _ = first_state(wafers_of([1], 5, 3), np.full(5, 1), 3, known)
    assert not state.anchor[:, 0].any()
