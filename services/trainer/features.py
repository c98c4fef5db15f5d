"""Embeddings of many wafers, in varied copies where there are few."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from services.trainer.augmentation import augment, orient

_BATCH_CELLS = 600_000
_TARGET_COPIES = 4000


def embedder(model: keras.Model) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """Returns a function from planes (n, size, size, 2) to embeddings float32 (n, D)."""
    shape = model.inputs[0].shape[1:]
    function = tf.function(
        lambda batch: model(batch, training=False), input_signature=[tf.TensorSpec((None, *shape), tf.float32)]
    )
    return lambda planes: np.asarray(function(tf.constant(planes, tf.float32)))


def embed(
    embeddings_of: Callable[[NDArray[Any]], NDArray[np.float32]],
    planes: NDArray[np.float16],
    check: Callable[[float], None],
    orientations: int,
) -> NDArray[np.float32]:
    """Returns the embeddings (N, D) of planes (N, size, size, 2), N >= 1.

    Args:
        embeddings_of: see `embedder`.
        planes: wafers.
        check: called after each batch with the share done; may raise to stop.
        orientations: how many times the network runs for a wafer.
    """
    # Flat memory: feature maps are larger than planes.
    step = max(8, _BATCH_CELLS // (planes.shape[1] ** 2 * orientations))
    parts = []
    for start in range(0, len(planes), step):
        parts.append(embeddings_of(planes[start : start + step]))
        check(min(1.0, (start + step) / len(planes)))
    return np.concatenate(parts)


def copies_of(wafers: int, orientations: int, augmentation: float) -> int:
    """Returns how many varied copies of each wafer pay: all orientations for few wafers, none for thousands."""
    if augmentation == 0 or orientations > 1:
        return 1
    return int(np.clip(_TARGET_COPIES // max(wafers, 1), 1, 8))


def embed_copies(
    embeddings_of: Callable[[NDArray[Any]], NDArray[np.float32]],
    planes: NDArray[np.float16],
    copies: int,
    augmentation: float,
    seed: int,
    check: Callable[[float], None],
    orientations: int,
) -> NDArray[np.float32]:
    """Returns the embeddings (N, copies, D) of wafers and of their varied copies.

    The first copy is the wafer as it is; the others stand in further orientations, each in another one, with die noise.
    """
    random = np.random.default_rng([seed, 1])
    first = [int(each) for each in random.permutation(np.arange(1, 8))][: copies - 1]
    varied = random.random(len(planes)) < augmentation
    parts = [embed(embeddings_of, planes, lambda share: check(share / copies), orientations)]
    for number, orientation in enumerate(first, start=1):
        copy = planes.copy()
        copy[varied] = orient(planes[varied].astype(np.float32), orientation)
        noisy = _with_noise(copy, augmentation, random)
        parts.append(embed(embeddings_of, noisy, partial(_check_copy, check, number, copies), orientations))
    return np.stack(parts, axis=1)


def _check_copy(check: Callable[[float], None], done: int, copies: int, share: float) -> None:
    check((done + share) / copies)


def _with_noise(planes: NDArray[np.float16], strength: float, random: np.random.Generator) -> NDArray[np.float16]:
    step = 2048
    for start in range(0, len(planes), step):
        part = planes[start : start + step]
        planes[start : start + step] = augment(part.astype(np.float32), strength, random, turn=False)
    return planes
