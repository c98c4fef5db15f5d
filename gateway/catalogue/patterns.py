"""Canonical patterns, what people call them, and colours of classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Final

from gateway.catalogue.names import name_key

NONE: Final = "none"
"""Pattern of wafers that show none."""

PATTERNS: Final = (NONE, "Center", "Donut", "Edge-Loc", "Edge-Ring", "Loc", "Near-full", "Random", "Scratch")
"""Canonical pattern names, as in WM-811K."""

PALETTE: Final = (
    "#0072b2",
    "#e69f00",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#117733",
    "#882255",
    "#f0e442",
    "#332288",
    "#44aa99",
    "#aa4499",
    "#999933",
    "#661100",
    "#88ccee",
    "#ddcc77",
    "#6699cc",
)
"""Colours that people with any kind of colour vision tell apart (Okabe and Ito 2008, then Tol's muted scheme)."""

NONE_COLOUR: Final = "#8a8f98"
"""Colour of the none class."""

_ALIASES: Final[dict[str, tuple[str, ...]]] = {
    NONE: ("none", "normal", "good", "ok", "pass", "clean", "nopattern", "정상", "없음", "무결함", "양품"),
    "Center": ("center", "centre", "중심", "중앙", "센터"),
    "Donut": ("donut", "doughnut", "ring", "도넛"),
    "Edge-Loc": ("edgeloc", "edgelocal", "edgelocalized", "edgelocalised", "에지국부", "가장자리국부", "엣지로컬"),
    "Edge-Ring": ("edgering", "에지링", "엣지링", "가장자리링"),
    "Loc": ("loc", "local", "localized", "localised", "cluster", "국부", "로컬"),
    "Near-full": ("nearfull", "full", "전면", "거의전체"),
    "Random": ("random", "랜덤", "무작위"),
    "Scratch": ("scratch", "스크래치", "긁힘"),
}
_PATTERN_OF: Final = {alias: pattern for pattern, aliases in _ALIASES.items() for alias in aliases}


def guess_pattern(name: str) -> str:
    """Returns the canonical pattern that a name means, or "".

    Args:
        name: Name in English or Korean; capitals, spaces and signs do not matter.
    """
    letters = "".join(letter for letter in unicodedata.normalize("NFKC", name).casefold() if letter.isalnum())
    return _PATTERN_OF.get(letters, "")


def next_colour(taken: Iterable[str]) -> str:
    """Returns the first colour of the palette that is not taken; when all are, the one that is taken least."""
    used = list(taken)
    return min(PALETTE, key=lambda colour: (used.count(colour), PALETTE.index(colour)))


def label_parts(label: str) -> tuple[str, ...]:
    """Returns the classes that a label names where a wafer may show several: `Center+Scratch` names two.

    Each comes once; a class without a pattern is left out beside others.

    Args:
        label: Label of a file or folder; "" gives ("",).
    """
    parts: dict[str, str] = {}
    for part in label.split("+"):
        if part.strip():
            parts.setdefault(name_key(part.strip()), part.strip())
    with_pattern = [part for part in parts.values() if guess_pattern(part) != NONE]
    return tuple(with_pattern or list(parts.values())[:1]) or ("",)
