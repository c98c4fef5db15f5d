"""Small pieces of the report's pages, of results and of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]
"""A kept result: JSON values by name."""


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


def title_of(result: Result) -> str:
    """Returns what a result is called."""
    return str(result.get("title") or result.get("backbone") or result["protocol"])


def score_cell(result: Result, name: str) -> str:
    """Returns a score of a result whose jobs were repeated over seeds."""
    return with_spread(result["mean"][name], result["spread"][name], len(result["runs"]))


def repeat(results: Sequence[Result]) -> str:
    """Returns the commands that repeat results."""
    commands = [str(each["command"]) for each in results if each.get("command")]
    return joined("## Repeat it", code(commands)) if commands else ""
