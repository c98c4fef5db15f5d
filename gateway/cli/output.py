"""What the command line says: tables for people, or one JSON object for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from gateway.values import ClassScore, Evaluation, Task


class Output:
    """Where a command speaks.

    With `--json`, standard output carries one JSON object and everything for people goes to standard error.

    Args:
        as_json: Whether `--json` was given.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=True)

    def say(self, text: str = "") -> None:
        """Tells people something; square brackets are not markup."""
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """Tells people something that they should not miss."""
        self.console.print(f"Note: {text}", style="yellow", markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Shows a table; columns whose name starts with `>` are aligned to the right."""
        shown = Table(title=title or None, title_justify="left", header_style="bold")
        for column in columns:
            shown.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
        for row in rows:
            shown.add_row(*(str(cell) for cell in row))
        self.console.print(shown, markup=False)

    def result(self, value: Mapping[str, Any], *, always: bool = False) -> None:
        """Writes the JSON object.

        Args:
            value: The object.
            always: Whether also without `--json`.
        """
        if self.as_json or always:
            print(json.dumps(value, ensure_ascii=False, default=str))
            sys.stdout.flush()


def evaluation_json(evaluation: Evaluation | None) -> dict[str, Any] | None:
    """Returns scores as JSON: the form that `evaluate --json` promises."""
    if evaluation is None:
        return None
    return {
        "task": evaluation.task.value,
        "wafers": evaluation.wafers,
        "lots": evaluation.lots,
        "macro_f1": evaluation.macro_f1,
        "macro_f1_interval": [evaluation.macro_f1_interval.low, evaluation.macro_f1_interval.high],
        "accuracy": evaluation.accuracy,
        "per_class": {
            score.name: {
                "recall": score.recall,
                "recall_interval": [score.recall_interval.low, score.recall_interval.high],
                "precision": score.precision,
                "f1": score.f1,
                "wafers": score.wafers,
                "found": score.found,
                "false_alarms": score.false_alarms,
            }
            for score in evaluation.classes
        },
        "classes": [score.name for score in evaluation.classes],
        "confusion": [list(row) for row in evaluation.confusion],
        "accepted_share": evaluation.accepted_share,
        "accepted_error": evaluation.accepted_error,
        "ece": evaluation.calibration_error,
        "auroc": evaluation.auroc,
    }


def show_evaluation(output: Output, title: str, evaluation: Evaluation, normal_id: str = "") -> None:
    """Shows scores in the words of the task: what is right, a row a class, the figures of the whole set.

    Args:
        output: Where to show them.
        title: What was scored.
        evaluation: The scores.
        normal_id: Id of the class of wafers without a pattern; "" when there is none.
    """
    if evaluation.task is Task.NORMAL:
        _show_normal(output, title, evaluation, normal_id)
        return
    output.table(
        title,
        ("class", ">wafers", ">found", ">false alarms", ">recall (95 %)", ">precision", ">F1"),
        [
            (
                score.name,
                score.wafers,
                score.found,
                score.false_alarms,
                _recall(score),
                f"{score.precision:.3f}",
                f"{score.f1:.3f}",
            )
            for score in evaluation.classes
        ],
    )
    if evaluation.task is Task.SEVERAL:
        output.say(f"All patterns right on {evaluation.right} of {evaluation.wafers} wafers.")
    else:
        names = [score.name for score in evaluation.classes]
        rows = [(name, *row) for name, row in zip(names, evaluation.confusion, strict=True)]
        output.table("Confusion (row: true class, column: answer)", ("", *(f">{name}" for name in names)), rows)
    interval = evaluation.macro_f1_interval
    output.say(
        f"macro-F1 {evaluation.macro_f1:.4f} (95 % {interval.low:.3f}-{interval.high:.3f}, by lot)   "
        f"{'exact match' if evaluation.task is Task.SEVERAL else 'accuracy'} {evaluation.accuracy:.4f}   "
        f"wafers {evaluation.wafers}   lots {evaluation.lots}"
    )
    output.say(
        f"accepted without a look {evaluation.accepted_share:.1%}, wrong among them {evaluation.accepted_error:.1%}   "
        f"calibration error {evaluation.calibration_error:.3f}"
    )


def _show_normal(output: Output, title: str, evaluation: Evaluation, normal_id: str) -> None:
    """Shows how many normal wafers pass, and how many others were noticed."""
    output.table(
        title,
        ("class", ">wafers", ">right", ">share right (95 %)"),
        [(score.name, score.wafers, score.found, _recall(score)) for score in evaluation.classes],
    )
    passed, normal, noticed, others = evaluation.normal_figures(normal_id)
    output.say(f"{passed} of {normal} normal wafers pass.")
    if others:
        output.say(f"{noticed} of {others} other wafers were noticed.   AUROC {evaluation.auroc:.4f}")


def _recall(score: ClassScore) -> str:
    if not score.wafers:
        return "-"
    return f"{score.recall:.3f} ({score.recall_interval.low:.2f}-{score.recall_interval.high:.2f})"
