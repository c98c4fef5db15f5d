"""Which colours of a wafer picture are background, passed and failed dies."""

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common.wafer_map import FAIL, NO_DIE, PASS

_Colour = tuple[int, int, int]

_PALETTES: tuple[tuple[_Colour, _Colour, _Colour], ...] = (
    ((0, 0, 0), (127, 127, 127), (255, 255, 255)),
    ((68, 1, 84), (33, 145, 140), (253, 231, 37)),  # viridis at 0, 1/2, 1
)
"""Colours of no die, pass and fail in pictures that plotting libraries make of a map of 0, 1 and 2."""

_EXACT_COLOURS = 12
_MAX_PEAKS = 6
_PEAK_SHARE = 0.004
_EVEN_PEAK_SHARE = 0.0006
_EVEN_STEP = 20
_EVEN_SHARE = 0.02
_PALETTE_DISTANCE = 40.0
_PEAK_DISTANCE = 56.0
_SATURATED = 0.35
_FULL_DISC = 0.9


@dataclass(frozen=True, slots=True)
class Codes:
    """What the colours of a picture say.

    Attributes:
        codes: uint8 (height, width): 0 no die, 1 pass, 2 fail.
        clean: whether the picture has few colours, so that no pixel is a blend.
        warning: what was guessed, in a sentence for people, or "".
    """

    codes: NDArray[np.uint8]
    clean: bool
    warning: str


def read_codes(pixels: NDArray[np.uint8]) -> Codes:
    """Return what each pixel stands for.

    Args:
        pixels: uint8 (height, width, 3).
    """
    colours, index, clean = _dominant_colours(pixels)
    if len(colours) == 1:
        return Codes(np.zeros(index.shape, np.uint8), clean, "")
    background = _background(colours, index)
    if background is not None and len(colours) == 2 and _is_grey(colours[1 - background]):
        codes, warning = _two_levels(index != background)
        return Codes(codes, clean, warning)
    codes, warning = _roles(colours, background, np.bincount(index.ravel(), minlength=len(colours)))
    return Codes(codes[index], clean, warning)


def _dominant_colours(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Return the colours that matter, (k, 3), the nearest of them for each pixel, (height, width), and if all do."""
    packed = (pixels.astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(axis=2, dtype=np.uint32)
    different, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colours = np.stack([different >> 16 & 255, different >> 8 & 255, different & 255], axis=1).astype(np.int64)
    clean = len(different) <= _EXACT_COLOURS
    if clean:
        peaks = _merged(colours, counts, distance=_PALETTE_DISTANCE, share=0.0)
    else:
        # Coarse bins of 32 levels a channel stand for the noise around a colour; the mean of the largest is the colour.
        # Only even areas count: the pixels between two colours are blends of them.
        even = _even(pixels)
        share = _PEAK_SHARE
        if even.mean() >= _EVEN_SHARE:
            share = _EVEN_PEAK_SHARE
            counts = np.bincount(inverse.ravel()[even.ravel()], minlength=len(different))
        bins, of_bin = np.unique(colours >> 5, axis=0, return_inverse=True)
        sums = np.zeros((len(bins), 3))
        weights = np.bincount(of_bin.ravel(), counts, len(bins))
        np.add.at(sums, of_bin.ravel(), colours * counts[:, None])
        sums, weights = sums[weights > 0], weights[weights > 0]
        means = np.round(sums / weights[:, None]).astype(np.int64)
        peaks = _merged(means, weights, distance=_PEAK_DISTANCE, share=share)
    nearest = ((colours[:, None, :] - peaks[None]) ** 2).sum(axis=2).argmin(axis=1)
    return peaks, nearest[inverse].reshape(pixels.shape[:2]), clean


def _even(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return which pixels have nearly the colour of their four neighbours, bool (height, width)."""
    values = pixels.astype(np.int16)
    even = np.ones(pixels.shape[:2], bool)
    below = np.abs(np.diff(values, axis=0)).max(axis=2) <= _EVEN_STEP
    beside = np.abs(np.diff(values, axis=1)).max(axis=2) <= _EVEN_STEP
    even[:-1] &= below
    even[1:] &= below
    even[:, :-1] &= beside
    even[:, 1:] &= beside
    return even


def _merged(
    colours: NDArray[np.int64], counts: NDArray[np.generic], distance: float, share: float
) -> NDArray[np.int64]:
    """Return the most frequent colours that lie apart, at most as many as a map needs."""
    chosen: list[NDArray[np.int64]] = []
    total = float(np.sum(counts))
    for place in np.argsort(-np.asarray(counts, np.float64), kind="stable"):
        if len(chosen) == _MAX_PEAKS or (chosen and counts[place] < share * total):
            break
        if all(np.linalg.norm(colours[place] - other) > distance for other in chosen):
            chosen.append(colours[place])
    return np.stack(chosen)


def _background(colours: NDArray[np.int64], index: NDArray[np.int64]) -> int | None:
    """Return the colour around the wafer, or None where dies reach into every corner."""
    corners = index[[0, 0, -1, -1], [0, -1, 0, -1]]
    votes = np.bincount(corners, minlength=len(colours))
    place = int(votes.argmax())
    if votes[place] < 3:
        border = np.concatenate([index[0], index[-1], index[:, 0], index[:, -1]])
        place = int(np.bincount(border, minlength=len(colours)).argmax())
    purple = np.linalg.norm(colours[place] - np.array(_PALETTES[1][0])) < _PALETTE_DISTANCE
    if not purple and (_is_green(colours[place]) or _is_red(colours[place])):
        return None
    return place


def _two_levels(foreground: NDArray[np.bool_]) -> tuple[NDArray[np.uint8], str]:
    """Read a picture of background and one grey: a wafer without fails, or only the failed dies of one."""
    height, width = foreground.shape
    y = (np.arange(height)[:, None] * 2 + 1 - height) / height
    x = (np.arange(width)[None, :] * 2 + 1 - width) / width
    disc = x * x + y * y <= 1
    if foreground[disc & (x * x + y * y <= 0.9)].mean() >= _FULL_DISC:
        return foreground.astype(np.uint8), "one colour of dies: taken as passed."
    codes = np.where(foreground, FAIL, np.where(disc, PASS, NO_DIE)).astype(np.uint8)
    return codes, "geometry guessed: two levels only, taken as failed dies on a round wafer that fills the picture."


def _roles(
    colours: NDArray[np.int64], background: int | None, counts: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], str]:
    """Return the value that each colour stands for, uint8 (k,)."""
    codes = np.full(len(colours), FAIL, np.uint8)
    dies = [place for place in range(len(colours)) if place != background]
    if background is not None:
        codes[background] = NO_DIE
        by_palette = _palette_codes(colours, background)
        if by_palette is not None:
            return by_palette, ""
    green = [place for place in dies if _is_green(colours[place])]
    red = [place for place in dies if _is_red(colours[place])]
    if green and red:
        others = [place for place in dies if place not in green and place not in red]
        # Grey beside green and red are lines between the dies; anything else is a blend, told by the nearer hue.
        lines = [place for place in others if _is_grey(colours[place])]
        blends = [place for place in others if place not in lines and 48 <= _hsv(colours[place])[0] <= 255]
        codes[[*green, *blends]] = PASS
        codes[lines] = NO_DIE
        return codes, "" if len(others) == len(lines) else "more than two colours of dies: told by their hue."
    if green or red:
        codes[green or [place for place in dies if place not in red]] = PASS
        return codes, "" if len(dies) <= 2 else "more than two colours of dies: green ones taken as passed."
    if background is not None and len(dies) == 2 and all(_is_grey(colours[place]) for place in (*dies, background)):
        nearer = min(dies, key=lambda place: abs(int(colours[place].sum()) - int(colours[background].sum())))
        codes[nearer] = PASS
        return codes, ""
    most = max(dies, key=lambda place: int(counts[place]))
    codes[most] = PASS
    return codes, "colours not known: the most frequent one taken as passed, the others as failed."


def _palette_codes(colours: NDArray[np.int64], background: int) -> NDArray[np.uint8] | None:
    for palette in _PALETTES:
        distances = np.linalg.norm(colours[:, None, :] - np.array(palette)[None], axis=2)
        nearest = distances.argmin(axis=1)
        if (distances.min(axis=1) < _PALETTE_DISTANCE).all() and nearest[background] == NO_DIE:
            return np.asarray(nearest, np.uint8)
    return None


def _hsv(colour: NDArray[np.int64]) -> tuple[float, float, float]:
    red, green, blue = (float(channel) / 255 for channel in colour)
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    return hue * 360, saturation, value


def _is_grey(colour: NDArray[np.int64]) -> bool:
    return int(colour.max() - colour.min()) < 24


def _is_green(colour: NDArray[np.int64]) -> bool:
    hue, saturation, value = _hsv(colour)
    return saturation >= _SATURATED and value > 0.2 and 75 <= hue <= 175


def _is_red(colour: NDArray[np.int64]) -> bool:
    hue, saturation, value = _hsv(colour)
    return saturation >= _SATURATED and value > 0.2 and (hue <= 25 or hue >= 335)
