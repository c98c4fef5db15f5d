"""The DCGAN of the original research on wafer generation, as a yardstick; no part of the product.

A class's wafers as pictures of 48 x 48, augmented to 400 by rotation up to 90 degrees and mirrors; a generator of dense
144, dense 12 x 12 x 128 and four transposed convolutions of 128-128-64-1 with batch normalisation and LeakyReLU; a
discriminator of four convolutions of 64 and dense 256, 512, 1; Adam 2e-4 at batch 32 for 150 epochs; pictures binarised
at 120. What the research leaves open follows Radford et al., ICLR 2016: 100 random numbers, kernels of 4, strides of 1,
2, 2, 1 up and 2 down, momentum 0.5, tanh.

A made picture is laid on the die grid of a parent: each die takes the binarised cell at its place, so that no wafer is
blamed for its outline.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from services.common.preprocessing import planes_of
from services.common.wafer_map import FAIL, NO_DIE, PASS
from services.generator.variations import VariationMaker, VariationSettings

SIDE, NOISE, BATCH, AUGMENTED, BINARISED_AT = 48, 100, 32, 400, 120


def wafers_of_dcgan(
    parents: Sequence[np.ndarray], count: int, epochs: int, seed: int
) -> tuple[list[np.ndarray], float]:
    """Returns wafers that a DCGAN taught on parents made, and the seconds of teaching."""
    keras.utils.set_random_seed(seed)
    started = time.perf_counter()
    pictures = _pictures(parents, seed)
    generator = _generator()
    _teach(generator, _discriminator(), pictures, epochs, np.random.default_rng(seed))
    learned_s = time.perf_counter() - started
    random, made = np.random.default_rng(seed + 1), []
    for first in range(0, count, 100):
        noise = random.standard_normal((min(100, count - first), NOISE), np.float32)
        drawn = generator(noise, training=False).numpy()[..., 0] * 127.5 + 127.5
        for index, picture in enumerate(drawn >= BINARISED_AT, start=first):
            made.append(_laid(picture, parents[index % len(parents)]))
    return made, learned_s


def _pictures(parents: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Returns (400, 48, 48, 1) pictures of fails, -1 to 1."""
    settings = VariationSettings(rotation_degrees=90.0, shear=0.0, shift=0.0, die_noise=0.0)
    maker = VariationMaker(list(parents), settings)
    wafers = maker.make(np.arange(AUGMENTED) % len(parents), np.random.default_rng(seed))
    planes = planes_of(list(wafers), SIDE)
    share = planes[..., 1] / np.maximum(planes[..., 0], 1e-6)
    return ((share >= 0.5) * 2.0 - 1.0).astype(np.float32)[..., None]


def _generator() -> keras.Model:
    x = noise = keras.Input((NOISE,))
    for units in (144, 12 * 12 * 128):
        x = layers.LeakyReLU()(layers.BatchNormalization()(layers.Dense(units)(x)))
    x = layers.Reshape((12, 12, 128))(x)
    for width, stride in ((128, 1), (128, 2), (64, 2)):
        x = layers.Conv2DTranspose(width, 4, strides=stride, padding="same")(x)
        x = layers.LeakyReLU()(layers.BatchNormalization()(x))
    return keras.Model(noise, layers.Conv2DTranspose(1, 4, padding="same", activation="tanh")(x))


def _discriminator() -> keras.Model:
    x = picture = keras.Input((SIDE, SIDE, 1))
    for _ in range(4):
        x = layers.LeakyReLU()(layers.Conv2D(64, 4, strides=2, padding="same")(x))
    x = layers.Flatten()(x)
    for units in (256, 512):
        x = layers.LeakyReLU()(layers.Dense(units)(x))
    return keras.Model(picture, layers.Dense(1)(x))


def _teach(
    generator: keras.Model, discriminator: keras.Model, pictures: np.ndarray, epochs: int, random: np.random.Generator
) -> None:
    optimizers = [keras.optimizers.Adam(2e-4, beta_1=0.5) for _ in range(2)]
    for optimizer, model in zip(optimizers, (generator, discriminator), strict=True):
        optimizer.build(model.trainable_variables)

    @tf.function
    def step(real: tf.Tensor, noise: tf.Tensor) -> None:
        with tf.GradientTape(persistent=True) as tape:
            made = generator(noise, training=True)
            answers = [discriminator(each, training=True) for each in (real, made)]
            fooled, told = tf.ones_like(answers[1]), tf.zeros_like(answers[1])
            entropy = tf.nn.sigmoid_cross_entropy_with_logits
            of_generator = tf.reduce_mean(entropy(labels=fooled, logits=answers[1]))
            of_discriminator = tf.reduce_mean(entropy(labels=tf.ones_like(answers[0]), logits=answers[0]))
            of_discriminator += tf.reduce_mean(entropy(labels=told, logits=answers[1]))
        for optimizer, model, loss in zip(
            optimizers, (generator, discriminator), (of_generator, of_discriminator), strict=True
        ):
            weights = model.trainable_variables
            optimizer.apply(tape.gradient(loss, weights), weights)

    for _ in range(epochs):
        order = random.permutation(len(pictures))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            noise = random.standard_normal((BATCH, NOISE), np.float32)
            step(tf.constant(pictures[order[start : start + BATCH]]), tf.constant(noise))


def _laid(picture: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """Returns the parent's die grid with the fails of a picture of its bounding box."""
    valid = parent != NO_DIE
    rows, columns = (np.flatnonzero(valid.any(axis=axis)) for axis in (1, 0))
    top, left = rows[0], columns[0]
    height, width = rows[-1] - top + 1, columns[-1] - left + 1
    at_row, at_column = (((np.arange(each) + 0.5) * SIDE / each).astype(int) for each in (height, width))
    made = np.where(valid, PASS, NO_DIE).astype(np.uint8)
    box = made[top : top + height, left : left + width]
    box[picture[np.ix_(at_row, at_column)] & (box != NO_DIE)] = FAIL
    return made
