"""Evaluate: how good the model is, words first, then the table and the matrix."""

from __future__ import annotations

from nicegui import ui
from nicegui.element import Element

from gateway.components.base import (
    Text,
    box,
    cell,
    dialog,
    dot,
    heading,
    image,
    link,
    note,
    paragraph,
    segments,
    set_attributes,
    table,
)
from gateway.components.frame import View, begin, empty_state, find_project, frame
from gateway.portal import Portal
from gateway.values import EvaluationView, JobState, Project, Task, TrainingRun
from gateway.views.evaluation import (
    MatrixCell,
    caution_sentences,
    class_sentence,
    figures,
    known_classes,
    matrix_rows,
    score_rows,
    summary_sentences,
)

SHOWN_WAFERS = 60
_QUESTION = tuple((each, each) for each in ("found", "missed", "false_alarms", "recall", "precision", "f1"))
_HELD = (("wafers", "wafers"), ("lots", "lots"))
COLUMNS = {
    Task.SINGLE: _QUESTION + _HELD,
    Task.SEVERAL: _QUESTION + _HELD,
    Task.NORMAL: (("right", "found"), ("wrong", "missed"), ("share_right", "recall"), *_HELD),
}
"""Name and field of the columns of the table, for each type of project."""


def register(portal: Portal) -> None:
    """Makes the page known to NiceGUI."""

    @ui.page("/projects/{project_id}/evaluate")
    async def evaluate(project_id: str) -> None:
        view = await begin(portal)
        project = await find_project(view, project_id)
        if project is None:
            return
        runs = await portal.studio.training.list(project_id)
        run = next((each for each in runs if each.state is JobState.SUCCEEDED), None)
        with frame(view, project=project, tab="evaluate"):
            if run is None:
                with box("tw-card"), empty_state(view.t("evaluate.empty"), view.t("evaluate.empty_text"), sign="train"):
                    link(view.t("evaluate.to_canvas"), f"/projects/{project_id}", "tw-button primary")
                return
            page = _Evaluation(view, project, run)
            await page.show("")


class _Evaluation:
    """The evaluation of a training.

    Args:
        view: The page's view.
        project: The project.
        run: The training.
    """

    def __init__(self, view: View, project: Project, run: TrainingRun) -> None:
        self._view = view
        self._project = project
        self._run = run
        self._place = box("tw-stack loose").style("gap:32px")

    async def show(self, part: str) -> None:
        """Shows the scores on a part of the wafers: `test`, `tune`, or "" for the best there is."""
        async with self._view.doing():
            scores = await self._view.portal.studio.evaluation.of_run(self._run.run_id, part=part)
            self._place.clear()
            with self._place:
                self._head(scores)
                self._figures(scores)
                self._table(scores)
                if scores.evaluation.confusion:
                    self._matrix(scores)

    def _head(self, scores: EvaluationView) -> None:
        t, run, evaluation = self._view.t, self._run, scores.evaluation
        with box("tw-stack", tag="section"):
            with box("tw-row between wrap"):
                heading(t("evaluate.title"), 1)
                if scores.has_test:
                    parts = {"test": t("evaluate.test"), "tune": t("evaluate.tune")}
                    segments(parts, scores.part, self.show, t("evaluate.which"))
            key = "evaluate.model" if run.model_version else "evaluate.model_unpublished"
            Text(t(key, version=run.model_version, when=t.moment(run.ended_at)), "tw-faint")
            with box("tw-card padded tw-stack"):
                for index, sentence in enumerate(summary_sentences(t, scores)):
                    paragraph(sentence, "" if index else "tw-lead").style(
                        "" if index else "color:var(--ink);font-weight:650"
                    )
            wafers, lots = t("count.wafers", n=evaluation.wafers), t("count.lots", n=evaluation.lots)
            if scores.part == "test":
                note(t("evaluate.test_text", wafers=wafers, lots=lots), "good", "check")
            elif scores.has_test:
                note(t("evaluate.tune_text", wafers=wafers, lots=lots))
            else:
                note(t("evaluate.no_test"), "warn")
            doubtful = run.result.doubtful_lots if run.result else ()
            if doubtful:
                note(t("evaluate.doubtful_lots", lots=", ".join(doubtful)), "warn")
            for sentence in caution_sentences(t, scores, run.result):
                note(sentence, "warn")
            if known := known_classes(scores, run.result):
                note(t("evaluate.known_patterns", classes=", ".join(known)))

    def _figures(self, scores: EvaluationView) -> None:
        t = self._view.t
        with box("tw-figures", tag="section"):
            for key, value, text in figures(t, scores):
                with box("tw-figure") as figure:
                    Text(t(f"evaluate.{key}"), "tw-label", tag="div")
                    Text(value, "value", tag="div")
                    Text(text, "tw-faint", tag="div")
                if t.has(f"evaluate.{key}_help"):
                    set_attributes(figure, title=t(f"evaluate.{key}_help"))

    def _table(self, scores: EvaluationView) -> None:
        t, task = self._view.t, scores.evaluation.task
        columns = COLUMNS[task]
        title = t("evaluate.per_pattern" if task is Task.SEVERAL else "evaluate.per_class")
        headers = [(t("evaluate.class"), ""), *((t(f"evaluate.{key}"), "num") for key, _ in columns)]
        by_id = {score.class_id: score for score in scores.evaluation.classes}
        rows = score_rows(t, scores)
        with box("tw-stack", tag="section"):
            heading(title, 2)
            if task is not Task.SINGLE:
                Text(t(f"evaluate.per_class_{task.value}"), "tw-soft")
            with table(headers, title):
                for row in rows:
                    with box(tag="tr", title=class_sentence(t, scores, by_id[row.class_id], row.name)):
                        with box(tag="td"), box("tw-row tight"):
                            dot(row.colour)
                            Text(row.name, tag="strong")
                        for _, field in columns:
                            if field == "recall":
                                with box("num", tag="td"):
                                    Text(row.recall)
                                    Text(f" {row.interval}", "tw-faint")
                            else:
                                cell(getattr(row, field), "num")
            if any(row.few for row in rows):
                Text(t("evaluate.few_note"), "tw-faint")

    def _matrix(self, scores: EvaluationView) -> None:
        t = self._view.t
        rows = matrix_rows(t, scores)
        with box("tw-stack", tag="section"):
            heading(t("evaluate.matrix"), 2)
            Text(t("evaluate.matrix_text"), "tw-soft")
            with (
                box("tw-card").style("overflow-x:auto;width:fit-content;max-width:100%"),
                box("tw-matrix", tag="table"),
            ):
                Text(t("evaluate.matrix"), "tw-visually-hidden", tag="caption")
                with box(tag="thead"), box(tag="tr"):
                    Text(f"{t('evaluate.matrix_true')} \\ {t('evaluate.matrix_answer')}", "tw-faint", tag="th").style(
                        "text-align:right;font-weight:400"
                    )
                    for name, _ in rows:
                        Text(name, tag="th").props("scope=col")
                with box(tag="tbody"):
                    for name, cells in rows:
                        with box(tag="tr"):
                            Text(name, tag="th").props("scope=row")
                            for each in cells:
                                self._cell(each, scores)

    def _cell(self, each: MatrixCell, scores: EvaluationView) -> None:
        with box(tag="td"):
            zero = each.count == 0
            element = Text(
                f"{each.count:,}" if each.count else "·", "tw-cell zero" if zero else "tw-cell", tag="button"
            )
            set_attributes(element, type="button", aria_label=each.label, title=each.label)
            if zero:
                set_attributes(element, tabindex="-1")
            else:
                element.style(each.style)
                element.on("click", lambda: self._open(each, scores), args=[])

    async def _open(self, each: MatrixCell, scores: EvaluationView) -> None:
        """Shows the wafers of a cell."""
        t = self._view.t
        with dialog(each.label, t("app.close"), "wide"):
            body = box("tw-dialog-body")
        with body:
            ui.spinner(size="32px")
        async with self._view.doing():
            wafers = await self._view.portal.studio.evaluation.cell(
                self._run.run_id, each.true_id, each.predicted_id, part=scores.part, limit=SHOWN_WAFERS
            )
            body.clear()
            with body, box("tw-wafer-grid"):
                for wafer in wafers:
                    with box("tw-wafer-tile"):
                        image(f"/media/wafers/{wafer.wafer_id}.png?size=240", wafer.lot or each.label)
                        with box("tw-row between tight"):
                            Text(wafer.lot, "tw-faint tw-clip")
                            Text(t.percent(wafer.probability), "tw-faint tw-number")
            return
        _clear(body, t("evaluate.cell_unavailable"))


def _clear(body: Element, text: str) -> None:
    body.clear()
    with body:
        note(text, "warn")
