"""Small pieces of the report's pages."""

from __future__ import annotations

from collections.abc import Sequence


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def matrix(classes: Sequence[str], counts: Sequence[Sequence[float]], corner: str) -> str:
    """Returns a table of counts, row the true class, column the answer."""
    rows = [[name, *(f"{value:.0f}" for value in row)] for name, row in zip(classes, counts, strict=True)]
    return table([corner, *classes], rows)


def joined(*parts: str) -> str:
    """Returns the parts that are not empty, with a line between them."""
    return "\n\n".join(part for part in parts if part)


def with_spread(mean: float, spread: float, count: int) -> str:
    """Returns a mean and its spread; the mean alone when there is a single value."""
    return f"{mean:.3f} ± {spread:.3f}" if count > 1 else f"{mean:.3f}"


def share(value: float) -> str:
    """Returns a share as per cent with one digit."""
    return f"{100 * value:.1f} %"


def points(value: float) -> str:
    """Returns a difference of shares in points, with its sign."""
    return f"{100 * value:+.1f}"


def code(lines: Sequence[str]) -> str:
    """Returns a block of commands."""
    return "\n".join(["```", *lines, "```"]) if lines else ""
