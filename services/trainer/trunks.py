"""The networks behind the backbones: one function each, reading from the wafer to the feature maps.

A trunk turns planes (see `services.common.preprocessing`) into feature maps, fine, coarse, and a map of patterns that
pretraining knows, and these into the embedding (see `services.trainer.embedding`). A linear head on the embedding is
the classifier, and the same head on the maps is the heat map.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from services.common.errors import FailedPreconditionError
from services.common.files import file_sha256
from services.common.head import Head
from services.common.preprocessing import PLANES
from services.common.shipped import write_index
from services.trainer.backbones import Backbone, BackboneLibrary, unusable
from services.trainer.embedding import Embedding
from services.trainer.known_patterns import KnownPatterns

# With Keras' 0.99 the moving averages lag hundreds of steps behind and small data sets score at chance.
_BATCH_NORM_MOMENTUM = 0.9
_WIDTHS = {"wafer-fast.npz": (32, 64, 128), "wafer-balanced.npz": (48, 80, 144)}

PATTERN_CHANNELS = 64
"""Channels of the pattern map: the few directions in which pretraining told all its patterns apart."""


def build_trunk(backbone: Backbone) -> keras.Model:
    """Returns the network of a backbone with random weights.

    Returns:
        Model from planes (N, size, size, 2) to one feature map (N, h, w, channels) or fine, coarse and patterns, and
        the embedding (N, D).
    """
    if not backbone.weights:
        return mobilenet_v2(backbone.size)
    return wafer_cnn(backbone.size, _WIDTHS[backbone.weights], backbone.weights.removesuffix(".npz").replace("-", "_"))


def load_trunk(backbone: Backbone, library: BackboneLibrary) -> keras.Model:
    """Returns the network of a backbone with its pretrained weights.

    Raises:
        FailedPreconditionError: the weights are missing, damaged or of another network.
    """
    path = library.check(backbone)
    trunk = build_trunk(backbone)
    if not backbone.weights:
        return _load_keras_weights(trunk, path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            values = [archive[f"w{index:03d}"].astype(np.float32) for index in range(len(trunk.weights))]
        trunk.set_weights(values)
    except (KeyError, ValueError, OSError) as error:
        raise unusable(
            backbone, f"{path.name} holds the weights of another network ({error}). Install this release again."
        ) from error
    return trunk


def wafer_cnn(size: int, widths: tuple[int, int, int], name: str) -> keras.Model:
    """Returns a small residual network with taps at two resolutions (He et al., CVPR 2016).

    Wafers hold two kinds of evidence: thin or small shapes, seen at the first tap, and the pattern as a whole. The stem
    halves the resolution at once, because a convolution of two planes at full resolution is all memory traffic.

    Args:
        size: cells along each side, a multiple of 8.
        widths: channels of stem, fine and coarse maps.
        name: name of the model; part of the names of its layers.

    Returns:
        Model from planes (N, size, size, 2) to maps (N, size/4, size/4, widths[1]), (N, size/8, size/8, widths[2]),
        the pattern map (N, size/8, size/8, PATTERN_CHANNELS), a linear function of the other two, and the embedding.
    """
    planes = keras.Input((size, size, PLANES), name="planes")
    x = _block(planes, widths[0], 2, "half", kernel=4)
    x = _block(x, widths[1], 2, "quarter")
    fine = x = _residual(x, widths[1], "quarter_residual")
    x = _block(x, widths[2], 2, "eighth")
    coarse = _residual(x, widths[2], "eighth_residual")
    evidence = layers.Concatenate(name="evidence")([layers.AveragePooling2D(2, name="fine_down")(fine), coarse])
    patterns = layers.Conv2D(PATTERN_CHANNELS, 1, name="patterns")(evidence)
    maps = [fine, coarse, patterns]
    return keras.Model(planes, [*maps, Embedding(name="embedding")(maps)], name=name)


def _residual(x: Any, channels: int, name: str) -> Any:
    y = _convolution(_block(x, channels, 1, f"{name}_a"), channels, 1, f"{name}_b")
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))


def _block(x: Any, channels: int, stride: int, name: str, kernel: int = 3) -> Any:
    return layers.ReLU(name=f"{name}_relu")(_convolution(x, channels, stride, name, kernel))


def _convolution(x: Any, channels: int, stride: int, name: str, kernel: int = 3) -> Any:
    x = layers.Conv2D(channels, kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return layers.BatchNormalization(momentum=_BATCH_NORM_MOMENTUM, epsilon=1e-3, name=f"{name}_norm")(x)


def mobilenet_v2(size: int) -> keras.Model:
    """Returns Keras' MobileNetV2 on a wafer drawn as the picture (off, passed, failed), as the first research did it.

    Args:
        size: side of the picture, 96 for instance.
    """
    planes = keras.Input((size, size, PLANES), name="planes")
    valid, failed = planes[..., :1], planes[..., 1:]
    picture = keras.ops.concatenate([1.0 - valid, valid - failed, failed], axis=-1) * 2.0 - 1.0
    network = keras.applications.MobileNetV2(input_shape=(size, size, 3), include_top=False, weights=None)
    maps = [network(picture)]
    return keras.Model(planes, [*maps, Embedding(name="embedding")(maps)], name="mobilenet_v2")


def load_known_patterns(backbone: Backbone, library: BackboneLibrary) -> KnownPatterns | None:
    """Returns the patterns with names that a backbone knows from pretraining, None where it was pretrained elsewhere.

    Raises:
        FailedPreconditionError: the weights are missing, damaged or of another network.
    """
    if not backbone.weights:
        return None
    path = library.check(backbone)
    try:
        with np.load(path, allow_pickle=False) as archive:
            kernel, bias, means = (archive[f"known_{name}"].astype(np.float32) for name in ("kernel", "bias", "means"))
            names = tuple(str(name) for name in archive["known_names"])
    except (KeyError, ValueError, OSError) as error:
        raise unusable(backbone, f"{path.name} names no patterns ({error}). Install this release again.") from error
    return KnownPatterns(names, Head(kernel, bias), means)


def save_weights(trunk: keras.Model, known: KnownPatterns, folder: Path, file_name: str) -> str:
    """Writes the weights of a trunk and the patterns it knows as float16 and enters them into the index.

    Half precision keeps 11 bits: answers move by less than 0.001, the file is half as large. Moving variances that
    half precision would round to 0 do not occur behind a batch normalisation of planes in 0..1.

    Returns:
        SHA-256 of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name
    arrays = {f"w{index:03d}": weights for index, weights in enumerate(trunk.get_weights())}
    arrays |= {"known_kernel": known.head.kernel, "known_bias": known.head.bias, "known_means": known.means}
    halves = {name: values.astype(np.float16) for name, values in arrays.items()}
    np.savez_compressed(path, allow_pickle=False, known_names=np.array(known.names), **halves)
    digest = file_sha256(path)
    write_index(folder, file_name, digest)
    return digest


def multiplications(model: keras.Model) -> int:
    """Returns the multiplications of one pass through a network, those of its convolutions."""
    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            total += multiplications(layer)
        elif isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D):
            total += int(np.prod(layer.kernel.shape)) * int(np.prod(layer.output.shape[1:3]))
    return total


def _load_keras_weights(trunk: keras.Model, path: Path) -> keras.Model:
    network = next(layer for layer in trunk.layers if isinstance(layer, keras.Model))
    try:
        network.load_weights(path)
    except (ValueError, OSError, KeyError) as error:
        raise FailedPreconditionError(
            f"Expected the weights of Keras' MobileNetV2 without top in {path}. Received a file that does not fit "
            f"({str(error).splitlines()[0][:200]}).",
            reason="BACKBONE_UNAVAILABLE",
        ) from error
    return trunk
