"""The shipped wafer embedding without TensorFlow: what trained networks see in wafers, for comparing wafers.

The weights are those of the backbone *Fast* that the trainer ships; here they run in plain NumPy, hundreds of wafers a
second, so that checking variations needs neither TensorFlow's memory nor its seconds. A test holds both to the same
numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import services
from services.common.errors import DataLossError, FailedPreconditionError
from services.common.preprocessing import planes_of
from services.common.shipped import shipped_file

WEIGHTS_FOLDER = Path(services.__path__[0]) / "trainer" / "pretrained"
"""Folder of the shipped embeddings."""
WEIGHTS_NAME = "wafer-fast.npz"
WIDTH = 384
"""Numbers of an embedding."""
_SIZE = 48
_AT_ONCE = 64
_NORM_EPSILON = 1e-3
_EPSILON = 1e-6
# Kernel, then gain, offset, mean and variance of its batch normalisation.
_CONVOLUTIONS = ("half", "quarter", "quarter_a", "quarter_b", "eighth", "eighth_a", "eighth_b")
_REMEDY = "Install this release again, or run `make pretrain`."

Array = NDArray[np.float32]


class WaferEmbedding:
    """Turns wafers into vectors of length 1; wafers that look alike lie close.

    Args:
        folder: Folder of the weights.

    Raises:
        FailedPreconditionError: The weights are missing, damaged or of another network.
    """

    def __init__(self, folder: Path = WEIGHTS_FOLDER) -> None:
        try:
            with np.load(shipped_file(folder, WEIGHTS_NAME, _REMEDY), allow_pickle=False) as archive:
                count = sum(name.startswith("w") for name in archive.files)
                weights = [archive[f"w{index:03d}"].astype(np.float32) for index in range(count)]
            self._convolutions = {
                name: _folded(*weights[5 * index : 5 * index + 5]) for index, name in enumerate(_CONVOLUTIONS)
            }
            kernel, self._patterns_bias, self._mean, self._matrix = weights[5 * len(_CONVOLUTIONS) :]
            self._patterns = kernel[0, 0]
        except DataLossError as error:
            raise FailedPreconditionError(error.message, reason="BACKBONE_UNAVAILABLE") from error
        except (KeyError, ValueError, TypeError) as error:
            raise FailedPreconditionError(
                f"Expected the weights of the backbone Fast in {folder / WEIGHTS_NAME}. Received those of another "
                f"network ({error}). {_REMEDY}",
                reason="BACKBONE_UNAVAILABLE",
            ) from error

    def embed(self, grids: Sequence[NDArray[np.uint8]]) -> Array:
        """Returns the embeddings (n, 384) of die grids of any sizes."""
        result = np.empty((len(grids), WIDTH), np.float32)
        for start in range(0, len(grids), _AT_ONCE):
            result[start : start + _AT_ONCE] = self._seen(planes_of(grids[start : start + _AT_ONCE], _SIZE))
        return result

    def _seen(self, planes: Array) -> Array:
        """Returns the embeddings of (n, 48, 48, 2) planes."""
        x = np.maximum(self._convolved(planes, "half", 2), 0)
        x = np.maximum(self._convolved(x, "quarter", 2), 0)
        fine = x = self._residual(x, "quarter")
        x = np.maximum(self._convolved(x, "eighth", 2), 0)
        coarse = self._residual(x, "eighth")
        half = coarse.shape[1]
        down = fine.reshape(len(fine), half, 2, half, 2, -1).mean(axis=(2, 4))
        means = [each.mean(axis=(1, 2)) for each in (down, coarse)]
        peak = np.sqrt(np.sqrt(np.mean(coarse**4, axis=(1, 2)) + _EPSILON))
        # Linear maps and means may change places.
        patterns = np.concatenate(means, axis=1) @ self._patterns + self._patterns_bias
        evidence = (_unit(np.concatenate([*means, peak], axis=1)) - self._mean) @ self._matrix
        joined: Array = np.concatenate([_unit(evidence), _unit(patterns)], axis=1, dtype=np.float32)
        joined /= np.sqrt(2.0)
        return joined

    def _residual(self, x: Array, name: str) -> Array:
        y = self._convolved(np.maximum(self._convolved(x, f"{name}_a", 1), 0), f"{name}_b", 1)
        summed: Array = np.maximum(x + y, 0)
        return summed

    def _convolved(self, x: Array, name: str, stride: int) -> Array:
        """Returns the convolution with zero padding, as TensorFlow's `SAME` lays it."""
        kernel, bias = self._convolutions[name]
        size, side = kernel.shape[0], x.shape[1]
        padding = (side // stride - 1) * stride + size - side
        around = (padding // 2, padding - padding // 2)
        padded = np.pad(x, ((0, 0), around, around, (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]
        columns = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, kernel[..., 0].size)
        product = columns @ kernel.reshape(-1, kernel.shape[-1])
        product += bias
        convolved: Array = product.reshape(*windows.shape[:3], -1)
        return convolved


def _folded(kernel: Array, gain: Array, offset: Array, mean: Array, variance: Array) -> tuple[Array, Array]:
    """Returns kernel and bias of a convolution together with the batch normalisation behind it."""
    scale = gain / np.sqrt(variance + np.float32(_NORM_EPSILON))
    return kernel * scale, offset - mean * scale


def _unit(features: Array) -> Array:
    unit: Array = features / (np.sqrt(np.square(features).sum(axis=-1, keepdims=True)) + np.float32(_EPSILON))
    return unit
