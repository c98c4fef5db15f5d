"""A trunk of a few thousand weights with a whitening, for tests of what stands on it."""

from __future__ import annotations

import keras
import numpy as np

from services.trainer.trunks import PATTERN_CHANNELS, wafer_cnn

SIZE = 16
EVIDENCE = 6 + 8 + 8
WIDTH = EVIDENCE + PATTERN_CHANNELS


def tiny_trunk() -> keras.Model:
    """Returns an untaught trunk whose whitening is no symmetric one, so that a wrong side of it shows."""
    keras.utils.set_random_seed(0)
    trunk = wafer_cnn(SIZE, (4, 6, 8), "tiny")
    random = np.random.default_rng(1)
    layer = trunk.get_layer("embedding")
    layer.mean.assign(random.normal(scale=0.1, size=EVIDENCE))
    layer.matrix.assign(random.normal(size=(EVIDENCE, EVIDENCE)))
    return trunk
