"""Scores in words, and the table and matrix behind them."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.i18n import Messages
from gateway.values import ClassScore, EvaluationView

FEW_WAFERS = 20
"""Below this many wafers of a class the interval is too wide to lean on."""


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A row of the table per class, ready to show."""

    class_id: str
    name: str
    colour: str
    found: str
    missed: str
    false_alarms: str
    recall: str
    interval: str
    precision: str
    f1: str
    wafers: str
    lots: str
    few: bool


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """A cell of the confusion matrix.

    Attributes:
        true_id: Class that the wafers were taught as.
        predicted_id: Class that they were called.
        count: Wafers.
        label: What the cell says, for screen readers.
        style: CSS of its background and letters.
    """

    true_id: str
    predicted_id: str
    count: int
    label: str
    style: str


def summary_sentences(t: Messages, view: EvaluationView) -> list[str]:
    """Says how good the model is, words before numbers."""
    evaluation = view.evaluation
    right = sum(row[index] for index, row in enumerate(evaluation.confusion))
    sentences = [t("evaluate.overall", found=right, total=evaluation.wafers)]
    scores = {score.class_id: score for score in evaluation.classes}
    for key, class_id in (("best_class", view.best_found), ("worst_class", view.worst_found)):
        score = scores.get(class_id)
        if score is not None and (key == "best_class" or class_id != view.best_found):
            name = view.names.get(class_id, score.name)
            sentences.append(t(f"evaluate.{key}", name=name, found=score.found, total=score.wafers))
    share, error = t.percent(evaluation.accepted_share), t.percent(evaluation.accepted_error, 1)
    sentences.append(t("evaluate.accepted", share=share, error=error))
    return sentences


def class_sentence(t: Messages, score: ClassScore, name: str) -> str:
    """Says how one class is found: `Found 18 of 20 Scratch; called 3 other wafers Scratch`."""
    found = t("evaluate.found_sentence", found=score.found, total=score.wafers, name=name)
    alarms = score.false_alarms
    others = t("evaluate.false_sentence", n=alarms, name=name) if alarms else t("evaluate.no_false")
    return f"{found}; {others}."


def score_rows(t: Messages, view: EvaluationView) -> list[ScoreRow]:
    """Returns a row a class; a class without wafers has no scores."""
    rows = []
    for score in view.evaluation.classes:
        none = score.wafers == 0
        low, high = t.score(score.recall_interval.low), t.score(score.recall_interval.high)
        rows.append(
            ScoreRow(
                class_id=score.class_id,
                name=view.names.get(score.class_id, score.name),
                colour=view.colours.get(score.class_id, "#8a94a3"),
                found=f"{score.found:,}",
                missed=f"{score.missed:,}",
                false_alarms=f"{score.false_alarms:,}",
                recall="–" if none else t.score(score.recall),
                interval="" if none else f"{low}–{high}",
                precision="–" if score.found + score.false_alarms == 0 else t.score(score.precision),
                f1="–" if none else t.score(score.f1),
                wafers=f"{score.wafers:,}",
                lots=f"{score.lots:,}",
                few=score.wafers < FEW_WAFERS,
            )
        )
    return rows


def matrix_rows(t: Messages, view: EvaluationView) -> list[tuple[str, list[MatrixCell]]]:
    """Returns the confusion matrix row by row, each with the name of the true class.

    Cells are shaded by their share of the row: right ones in the accent colour, wrong ones in red.
    """
    scores = view.evaluation.classes
    names = [view.names.get(score.class_id, score.name) for score in scores]
    rows = []
    for true, counts in enumerate(view.evaluation.confusion):
        total = sum(counts) or 1
        cells = [
            MatrixCell(
                scores[true].class_id,
                scores[predicted].class_id,
                count,
                t("evaluate.cell", n=count, truth=names[true], answer=names[predicted]),
                _shade(count / total, right=true == predicted),
            )
            for predicted, count in enumerate(counts)
        ]
        rows.append((names[true], cells))
    return rows


def _shade(share: float, *, right: bool) -> str:
    """Colours a cell by its share of the row; letters turn white where the ground gets dark."""
    if share == 0:
        return ""
    strength = round(12 + 78 * share)
    colour = "#2251cc" if right else "#a81e3c"
    ink = "#fff" if strength > 50 else "#1a2230"
    return f"--cell:color-mix(in srgb, {colour} {strength}%, #fff);--cell-ink:{ink}"
