"""From the feature maps of a backbone to the answers: embedding, probabilities, novelty and heat map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import ops

EPSILON = 1e-6
"""Keeps the length of an embedding from being 0."""


def pooled_of(maps: Sequence[Any]) -> Any:
    """Returns the averages of feature maps over the wafer, side by side: (N, channels of all maps)."""
    return ops.concatenate([ops.mean(each, axis=(1, 2)) for each in maps], axis=-1)


def unit_length(features: Any) -> Any:
    """Returns features (N, D) scaled to length 1."""
    return features / (ops.sqrt(ops.sum(ops.square(features), axis=-1, keepdims=True)) + EPSILON)


def embedding_of(maps: Sequence[Any]) -> Any:
    """Returns the embedding of feature maps: their averages over the wafer, side by side, scaled to length 1."""
    return unit_length(pooled_of(maps))
