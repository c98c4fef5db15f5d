"""What a wafer may look like and still be of the same class: turned, mirrored, with a little more or less yield."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MAX_ADDED = 0.02
_MAX_REMOVED = 0.15


def orient(planes: NDArray[np.float32], orientation: int) -> NDArray[np.float32]:
    """Returns planes in one of the eight orientations of the square.

    Args:
        planes: (..., size, size, channels).
        orientation: 0 to 7; quarter turns in the two low bits, the mirror image in the third. 0 changes nothing.
    """
    x = planes.swapaxes(-3, -2) if orientation & 4 else planes
    if orientation & 1:
        x = x[..., ::-1, :, :]
    if orientation & 2:
        x = x[..., :, ::-1, :]
    return x


def augment(
    planes: NDArray[np.float32], strength: float, random: np.random.Generator, turn: bool = True
) -> NDArray[np.float32]:
    """Returns a varied copy of a batch.

    Orientation: never a shift, because the distance from the edge tells edge classes apart. Die noise, on half of the
    wafers: up to 2 % of the cells fail in addition, up to 15 % of the failed ones pass.

    Args:
        planes: float32 (N, size, size, 2), shares of valid and failed dies.
        strength: 0 none to 1 full: the share of wafers that are turned, and the scale of the noise.
        random: source of everything random.
        turn: whether to turn and mirror as well.
    """
    result = planes.astype(np.float32)
    count = len(result)
    if turn:
        turned = random.random(count) < strength
        orientations = np.where(turned, random.integers(0, 8, count), 0)
        for orientation in range(1, 8):
            chosen = np.flatnonzero(orientations == orientation)
            result[chosen] = orient(result[chosen], orientation)
    noisy = np.flatnonzero(random.random(count) < 0.5 * strength)
    if len(noisy):
        result[noisy, ..., 1] = _with_noise(result[noisy], strength, random)
    return result


def _with_noise(planes: NDArray[np.float32], strength: float, random: np.random.Generator) -> NDArray[np.float32]:
    added = random.random((len(planes), 1, 1), np.float32) * np.float32(_MAX_ADDED * strength)
    removed = random.random((len(planes), 1, 1), np.float32) * np.float32(_MAX_REMOVED * strength)
    draws = random.random(planes.shape[:3], np.float32)
    failed = np.where(draws < removed, 0.0, planes[..., 1])
    return np.where(draws > 1.0 - added, planes[..., 0], failed).astype(np.float32)
