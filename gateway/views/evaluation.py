"""Scores in words, and the table and matrix behind them."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.i18n import Messages
from gateway.values import ClassScore, Evaluation, EvaluationView, Task, TrainingResult

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


def known_classes(view: EvaluationView, result: TrainingResult | None) -> list[str]:
    """Returns the classes that look like a pattern known before: the name, and "Name → Pattern" where they differ."""
    known = result.known_patterns if result else {}
    return [
        name if name.casefold() == known[class_id].casefold() else f"{name} → {known[class_id]}"
        for class_id, name in view.names.items()
        if class_id in known
    ]


def caution_sentences(t: Messages, view: EvaluationView, result: TrainingResult | None) -> list[str]:
    """Says what makes the scores less sure than they look, because of how the wafers were divided."""
    cautions = result.cautions if result else ()
    return [
        t(f"evaluate.caution_{each.kind}", classes=", ".join(view.names.get(key, key) for key in each.class_ids))
        for each in cautions
    ]


def summary_sentences(t: Messages, view: EvaluationView) -> list[str]:
    """Says how good the model is, words before numbers."""
    evaluation = view.evaluation
    sentences = [outcome_sentence(t, evaluation, view.normal_id)]
    scores = {score.class_id: score for score in evaluation.classes}
    if evaluation.task is Task.NORMAL:
        weakest = scores.get(view.worst_found)
        if weakest is not None and weakest.missed:
            name = view.names.get(weakest.class_id, weakest.name)
            sentences.append(t("evaluate.least_noticed", name=name, found=weakest.found, total=weakest.wafers))
        return sentences
    for key, class_id in (("best_class", view.best_found), ("worst_class", view.worst_found)):
        score = scores.get(class_id)
        if score is not None and (key == "best_class" or class_id != view.best_found):
            name = view.names.get(class_id, score.name)
            sentences.append(t(f"evaluate.{key}", name=name, found=score.found, total=score.wafers))
    share, error = t.percent(evaluation.accepted_share), t.percent(evaluation.accepted_error, 1)
    sentences.append(t("evaluate.accepted", share=share, error=error))
    return sentences


def outcome_sentence(t: Messages, evaluation: Evaluation, normal_id: str) -> str:
    """Says how many wafers are right, in the words of the type of project.

    Args:
        t: Texts.
        evaluation: The scores.
        normal_id: Id of the class of wafers without a pattern; "" when the model knows none.
    """
    if evaluation.task is Task.SEVERAL:
        return t("evaluate.overall_several", found=evaluation.right, total=evaluation.wafers)
    if evaluation.task is Task.SINGLE:
        return t("evaluate.overall", found=evaluation.right, total=evaluation.wafers)
    passed, normal, noticed, others = evaluation.normal_figures(normal_id)
    if not others:
        return t("evaluate.overall_normal_alone", found=passed, total=normal)
    return t("evaluate.overall_normal", found=passed, total=normal, noticed=noticed, others=others)


def figures(t: Messages, view: EvaluationView) -> list[tuple[str, str, str]]:
    """Returns the figures of the whole set: key of the name, value, and what it means."""
    evaluation = view.evaluation
    if evaluation.task is Task.NORMAL:
        passed, normal, noticed, others = evaluation.normal_figures(view.normal_id)
        found = [("normal_pass", t.percent(passed / normal, 1) if normal else "–", t("evaluate.normal_pass_help"))]
        if others:
            found.append(("noticed", t.percent(noticed / others, 1), t("evaluate.noticed_help")))
            found.append(("auroc", t.score(evaluation.auroc), t("evaluate.auroc_help")))
        return found
    interval = evaluation.macro_f1_interval
    several = evaluation.task is Task.SEVERAL
    exact = "accuracy_several" if several else "accuracy"
    found = [
        (
            "macro_f1",
            t.score(evaluation.macro_f1),
            t("evaluate.interval", low=t.score(interval.low), high=t.score(interval.high)),
        ),
        ("accepted_share", t.percent(evaluation.accepted_share), t("evaluate.accepted_share_help")),
        ("accepted_error", t.percent(evaluation.accepted_error, 1), t("evaluate.accepted_error_help")),
        (exact, t.percent(evaluation.accuracy, 1), t(f"evaluate.{exact}_help")),
    ]
    return [found[-1], *found[:-1]] if several else found


def class_sentence(t: Messages, view: EvaluationView, score: ClassScore, name: str) -> str:
    """Says how one class is found: `Found 18 of 20 Scratch; called 3 other wafers Scratch`."""
    if view.evaluation.task is Task.NORMAL:
        key = "pass_sentence" if score.class_id == view.normal_id else "noticed_sentence"
        return t(f"evaluate.{key}", found=score.found, total=score.wafers, name=name)
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
