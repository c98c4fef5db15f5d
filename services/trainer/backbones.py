"""The pretrained networks that are taught: what they look like, where their weights lie, and whether those are whole.

A backbone turns planes (see `services.common.preprocessing`) into feature maps at one or two resolutions. Their
averages over the wafer, side by side and scaled to unit length, are the embedding; a linear head on the embedding is
the classifier, and the same head on the maps is the heat map. Missing or damaged weights are an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from services.common.errors import FailedPreconditionError, InvalidArgumentError
from services.common.preprocessing import PLANES

WEIGHTS_FOLDER = Path(__file__).parent / "pretrained"
"""Folder of the shipped weights, their index and the model card."""
INDEX_NAME = "index.json"
"""File beside the weights: `{file name: sha256}`."""
ORIENTATIONS = 8
"""Rotations by quarter turns and their mirror images: the symmetries of a square."""

# With Keras' 0.99 the moving averages lag hundreds of steps behind and small data sets score at chance.
_BATCH_NORM_MOMENTUM = 0.9


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network that can be taught.

    Attributes:
        backbone_id: name in requests and manifests.
        display_name: text for people.
        size: cells along each side of the planes.
        build: makes the trunk: planes (N, size, size, 2) to one or two feature maps (N, h, w, channels), coarsest last;
            each side of a map is a multiple of the next one's.
        weights: name of the weights file in the weights folder; "" when the file is supplied by a setting.
        orientations: 8 when answers are averaged over all orientations of the wafer, else 1.
        model_size: "fast", "balanced" or "best" when it is the default of that size, else "".
    """

    backbone_id: str
    display_name: str
    size: int
    build: Callable[[int], keras.Model]
    weights: str
    orientations: int = 1
    model_size: str = ""

    def trunk(self) -> keras.Model:
        """Returns the network with fresh random weights."""
        return self.build(self.size)


def wafer_cnn(size: int, widths: tuple[int, int, int, int, int, int, int], name: str) -> keras.Model:
    """Returns a plain network of seven 3 x 3 convolutions that halves its resolution three times.

    Wafers hold two kinds of evidence: thin or small shapes, seen at the second tap, and the pattern as a whole.

    Args:
        size: cells along each side, a multiple of 8.
        widths: channels of the seven convolutions.
        name: name of the model; part of the names of its layers.

    Returns:
        Model from planes (N, size, size, 2) to maps (N, size/4, size/4, widths[4]), (N, size/8, size/8, widths[6]).
    """
    planes = keras.Input((size, size, PLANES), name="planes")
    x = _block(planes, widths[0], 1, "full")
    x = _block(x, widths[1], 2, "half_down")
    x = _block(x, widths[2], 1, "half")
    x = _block(x, widths[3], 2, "quarter_down")
    fine = x = _block(x, widths[4], 1, "quarter")
    x = _block(x, widths[5], 2, "eighth_down")
    coarse = _block(x, widths[6], 1, "eighth")
    return keras.Model(planes, [fine, coarse], name=name)


def _block(x: Any, channels: int, stride: int, name: str) -> Any:
    x = layers.Conv2D(channels, 3, strides=stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(momentum=_BATCH_NORM_MOMENTUM, epsilon=1e-3, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def mobilenet_v2(size: int) -> keras.Model:
    """Returns Keras' MobileNetV2 on a wafer drawn as the picture (off, passed, failed), as the first research did it.

    Args:
        size: side of the picture, 96 for instance.
    """
    planes = keras.Input((size, size, PLANES), name="planes")
    valid, failed = planes[..., :1], planes[..., 1:]
    picture = keras.ops.concatenate([1.0 - valid, valid - failed, failed], axis=-1) * 2.0 - 1.0
    network = keras.applications.MobileNetV2(input_shape=(size, size, 3), include_top=False, weights=None)
    return keras.Model(planes, [network(picture)], name="mobilenet_v2")


def _fast(size: int) -> keras.Model:
    return wafer_cnn(size, (16, 24, 32, 48, 72, 112, 144), "fast")


def _balanced(size: int) -> keras.Model:
    return wafer_cnn(size, (16, 32, 40, 56, 80, 128, 192), "balanced")


BACKBONES: Mapping[str, Backbone] = {
    each.backbone_id: each
    for each in (
        Backbone("wafer-fast", "Fast (48 cells)", 48, _fast, "wafer-fast.npz", model_size="fast"),
        Backbone("wafer-balanced", "Balanced (64 cells)", 64, _balanced, "wafer-balanced.npz", model_size="balanced"),
        Backbone(
            "wafer-best",
            "Best (64 cells, eight orientations)",
            64,
            _balanced,
            "wafer-balanced.npz",
            orientations=ORIENTATIONS,
            model_size="best",
        ),
        Backbone("mobilenet-v2", "MobileNetV2 (96 pixels, own weights file)", 96, mobilenet_v2, ""),
    )
}
"""All backbones by id; the defaults of the model sizes come first."""


@dataclass(frozen=True, slots=True)
class BackboneLibrary:
    """Where the weights of the backbones lie.

    Attributes:
        folder: folder of the shipped weights.
        mobilenet_v2_weights: weights file of Keras' MobileNetV2 without its top (`.weights.h5` or `.h5`), or None.
    """

    folder: Path = WEIGHTS_FOLDER
    mobilenet_v2_weights: Path | None = None

    def load(self, backbone: Backbone) -> keras.Model:
        """Returns the trunk with its pretrained weights.

        Raises:
            FailedPreconditionError: the weights are missing, damaged or of another network.
        """
        path = self.check(backbone)
        trunk = backbone.trunk()
        if not backbone.weights:
            return _load_keras_weights(trunk, path)
        try:
            with np.load(path, allow_pickle=False) as archive:
                values = [archive[f"w{index:03d}"].astype(np.float32) for index in range(len(trunk.weights))]
            trunk.set_weights(values)
        except (KeyError, ValueError, OSError) as error:
            raise _unusable(
                backbone, f"{path.name} holds the weights of another network ({error}). Install this release again."
            ) from error
        return trunk

    def check(self, backbone: Backbone) -> Path:
        """Returns the weights file of a backbone after checking that it is the one that was shipped.

        Raises:
            FailedPreconditionError: it is missing or damaged; the message says what to do.
        """
        if not backbone.weights:
            return self._supplied(backbone)
        path = self.folder / backbone.weights
        expected = self._index().get(backbone.weights)
        if expected is None or not path.is_file():
            raise _unusable(
                backbone,
                f"The weights file {backbone.weights} is missing from {self.folder}. "
                "Install this release again, or run `make pretrain`.",
            )
        found = file_sha256(path)
        if found != expected:
            raise _unusable(
                backbone,
                f"Expected {backbone.weights} with SHA-256 {expected}. Received: {found}. The file is damaged; "
                "install this release again, or run `make pretrain`.",
            )
        return path

    def sha256(self, backbone: Backbone) -> str:
        """Returns the hash of the checked weights file; raises as `check`."""
        return file_sha256(self.check(backbone))

    def _supplied(self, backbone: Backbone) -> Path:
        path = self.mobilenet_v2_weights
        if path is None or not path.is_file():
            raise _unusable(
                backbone,
                "Its weights are not part of this release. Set TEACHWAFER_TRAINER_MOBILENET_V2_WEIGHTS to Keras' "
                f"weights file without top. Received: {path or 'nothing'}.",
            )
        return path

    def _index(self) -> dict[str, str]:
        try:
            return {
                str(name): str(digest) for name, digest in json.loads((self.folder / INDEX_NAME).read_text()).items()
            }
        except (OSError, ValueError, AttributeError):
            return {}


def find_backbone(backbone_id: str) -> Backbone:
    """Returns a backbone by name.

    Raises:
        InvalidArgumentError: there is none of this name.
    """
    if backbone_id not in BACKBONES:
        raise InvalidArgumentError(
            f"Expected one of {', '.join(BACKBONES)}. Received: {backbone_id[:100]!r}.",
            field="training_job.config.backbone",
        )
    return BACKBONES[backbone_id]


def backbone_of_size(model_size: str) -> Backbone:
    """Returns the default backbone of "fast", "balanced" or "best"."""
    return next(each for each in BACKBONES.values() if each.model_size == model_size)


def save_weights(trunk: keras.Model, folder: Path, file_name: str) -> str:
    """Writes the weights of a trunk as float16 and enters them into the index.

    Half precision keeps 11 bits: answers move by less than 0.001, the file is half as large. Moving variances that
    half precision would round to 0 do not occur behind a batch normalisation of planes in 0..1.

    Returns:
        SHA-256 of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name
    arrays = {f"w{index:03d}": weights.astype(np.float16) for index, weights in enumerate(trunk.get_weights())}
    np.savez_compressed(path, allow_pickle=False, **arrays)
    index_path = folder / INDEX_NAME
    index = json.loads(index_path.read_text()) if index_path.is_file() else {}
    index[file_name] = file_sha256(path)
    index_path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return str(index[file_name])


def parameters(backbone: Backbone) -> int:
    """Returns the number of weights of the trunk."""
    return int(backbone.trunk().count_params())


def mflops(backbone: Backbone) -> float:
    """Returns the multiplications of one answer in millions: convolutions only, all orientations."""
    return backbone.orientations * _multiplications(backbone.trunk()) / 1e6


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _multiplications(model: keras.Model) -> int:
    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            total += _multiplications(layer)
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


def _unusable(backbone: Backbone, why: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"The backbone {backbone.backbone_id} cannot be used. {why}", reason="BACKBONE_UNAVAILABLE"
    )
