"""Predict: a lot or many files at once, most doubtful answers first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from nicegui import ui
from nicegui.element import Element

from gateway.components.base import (
    Text,
    bar,
    box,
    button,
    cell,
    chip,
    dialog,
    heading,
    image,
    link,
    note,
    paragraph,
    segments,
    set_share,
    table,
)
from gateway.components.drop_zone import DropZone
from gateway.components.frame import View, begin, empty_state, find_project, frame
from gateway.portal import Portal
from gateway.uploads import UploadedFile
from gateway.values import Answer, Board, FileAnswers, Task, UploadFile
from gateway.views.predictions import (
    DECISION_TONES,
    answer_name,
    bar_name,
    by_doubt,
    decision_advice,
    decision_text,
    shows_several,
    summarise,
    to_csv,
    to_json,
    wafer_name,
)
from gateway.views.projects import can_try
from gateway.views.uploads import skipped_text

PAGE_ROWS = 50
PICTURE = 128
TABLE, GALLERY = "table", "gallery"


def register(portal: Portal) -> None:
    """Makes the page known to NiceGUI."""

    @ui.page("/projects/{project_id}/predict")
    async def predict(project_id: str) -> None:
        view = await begin(portal)
        project = await find_project(view, project_id)
        if project is None:
            return
        board = await portal.studio.projects.board(project_id)
        with frame(view, project=project, tab="predict"):
            if not can_try(board):
                with box("tw-card"), empty_state(view.t("predict.empty"), view.t("predict.empty_text"), sign="try"):
                    link(view.t("evaluate.to_canvas"), f"/projects/{project_id}", "tw-button primary")
                return
            Prediction(view, board)


class Prediction:
    """Files in, answers out.

    Args:
        view: The page's view.
        board: The canvas of the project.
    """

    def __init__(self, view: View, board: Board) -> None:
        self._view = view
        self._board = board
        self._shape = TABLE
        self._page = 0
        t = view.t
        with box("tw-stack", tag="section"):
            heading(t("predict.title"), 1)
            Text(t("try.model", version=board.model_version), "tw-faint")
            paragraph(t("predict.text"), "tw-soft")
            limits = view.portal.tickets.limits
            DropZone(t, view.portal.tickets, self._arrived, hint=t("upload.formats", size=t.size(limits.max_bytes)))
        self._place = box("tw-stack loose", tag="section", aria_live="polite")

    async def _arrived(self, files: list[UploadedFile]) -> None:
        t = self._view.t
        self._place.clear()
        with self._place, box("tw-row"):
            ui.spinner(size="28px")
            Text(t("predict.working_now"))
        async with self._view.doing():
            sent = [UploadFile(each.name, each.path) for each in files]
            result = await self._view.portal.studio.answers.classify_files(self._board.project.model_id, sent)
            self._page = 0
            await self._show(result)
            return
        self._place.clear()

    async def _show(self, result: FileAnswers) -> None:
        t, shelf = self._view.t, self._view.portal.shelf
        csv, json = await asyncio.gather(asyncio.to_thread(to_csv, result), asyncio.to_thread(to_json, result))
        answers = by_doubt(result.answers)
        summary = summarise(t, answers)
        name = f"{self._board.project.name}-v{result.version}"
        self._place.clear()
        with self._place:
            with box("tw-card padded tw-stack"):
                text = t("predict.summary", accepted=summary.accepted, total=summary.total, look=summary.look)
                paragraph(text, "tw-lead").style("color:var(--ink);font-weight:650")
                with box("tw-bars narrow"):
                    for each, count in summary.per_class:
                        Text(each, "tw-clip")
                        set_share(bar(count / summary.total, each), count / summary.total, self._colour(each))
                        Text(f"{count:,}", "num")
            if result.skipped:
                note(skipped_text(t, result.skipped, len(result.skipped)), "warn")
            with box("tw-row between wrap"):
                shapes = {TABLE: t("predict.table"), GALLERY: t("predict.gallery")}
                segments(shapes, self._shape, self._choose, t("predict.answer"))
                Text(t("predict.doubtful_first"), "tw-faint")
                box("tw-spacer")
                address = shelf.put(csv, "text/csv; charset=utf-8", f"{name}.csv")
                link(t("predict.csv"), address, "tw-button small", sign="download", download="")
                address = shelf.put(json, "application/json", f"{name}.json")
                link(t("predict.json"), address, "tw-button small", sign="download", download="")
            self._list = box("tw-stack")
        self._sorted = answers
        self._view.later(self._draw())

    async def _choose(self, shape: str) -> None:
        self._shape = shape
        await self._draw()

    async def _draw(self) -> None:
        """Shows a page of answers."""
        t, first = self._view.t, self._page * PAGE_ROWS
        shown = self._sorted[first : first + PAGE_ROWS]
        sources = [await self._view.portal.picture(answer.map, PICTURE) for answer in shown]
        self._list.clear()
        with self._list:
            if self._shape == TABLE:
                self._table(shown, sources)
            else:
                self._gallery(shown, sources)
            if len(self._sorted) > PAGE_ROWS:
                with box("tw-row"):
                    last, total = first + len(shown), len(self._sorted)
                    Text(t("app.page_of", first=first + 1, last=last, total=total), "tw-soft tw-number tw-grow")
                    button(t("app.previous"), lambda: self._step(-1), kind="small", sign="left")
                    button(t("app.next"), lambda: self._step(1), kind="small", sign="right")

    async def _step(self, by: int) -> None:
        pages = -(-len(self._sorted) // PAGE_ROWS)
        self._page = max(0, min(pages - 1, self._page + by))
        await self._draw()

    def _table(self, answers: Sequence[Answer], sources: Sequence[str]) -> None:
        t = self._view.t
        headers = [
            (t("predict.wafer"), ""),
            ("", ""),
            (t("predict.answer"), ""),
            (t("predict.probability"), "num"),
            (t("predict.decision"), ""),
            (t("predict.novelty"), "num"),
        ]
        with table(headers, t("predict.per_class")):
            for answer, source in zip(answers, sources, strict=True):
                with box(tag="tr"):
                    with box(tag="td").style("width:64px"):
                        self._thumb(answer, source)
                    cell(wafer_name(answer)).style("white-space:normal;overflow-wrap:anywhere;min-width:120px")
                    with box(tag="td"), box("tw-row tight wrap"):
                        self._answer_chips(answer)
                    cell(t.percent(answer.probability), "num")
                    with box(tag="td"):
                        chip(decision_text(t, answer), DECISION_TONES[answer.decision])
                    novelty = cell(f"{answer.novelty:.2f}", "num")
                    novelty.props["title"] = t("predict.novelty_help")

    def _answer_chips(self, answer: Answer) -> None:
        """What a wafer shows: a chip for each of several patterns."""
        if shows_several(answer):
            for each in answer.patterns:
                chip(f"{each.name} {self._view.t.percent(each.probability)}", colour=each.colour)
        else:
            name = answer_name(self._view.t, answer)
            chip(name or "–", colour=self._colour(name))

    def _thumb(self, answer: Answer, source: str) -> Element:
        name = wafer_name(answer)
        element = box("tw-thumb", tag="button", type="button", aria_label=self._view.t("wafer.image", name=name))
        with element:
            image(source, "").style("width:56px;height:56px")
        element.on("click", lambda: self._open(answer), args=[])
        return element

    def _gallery(self, answers: Sequence[Answer], sources: Sequence[str]) -> None:
        t = self._view.t
        with box("tw-wafer-grid"):
            for answer, source in zip(answers, sources, strict=True):
                with box("tw-wafer-tile", tag="button", type="button") as tile:
                    image(source, t("wafer.image", name=wafer_name(answer)))
                    with box("tw-row between tight"):
                        Text(answer_name(t, answer), "tw-clip", tag="strong")
                        Text(t.percent(answer.probability), "tw-faint tw-number")
                    Text(decision_text(t, answer), "tw-faint tw-clip")
                tile.on("click", lambda answer=answer: self._open(answer), args=[])

    async def _open(self, answer: Answer) -> None:
        """Shows a wafer large with its probabilities."""
        t = self._view.t
        source = await self._view.portal.picture(answer.map, 420)
        with dialog(wafer_name(answer), t("app.close")):
            body = box("tw-dialog-body")
        with body, box("tw-row wrap").style("align-items:flex-start;gap:24px"):
            image(source, t("wafer.image", name=wafer_name(answer)), "tw-wafer").style("width:300px")
            with box("tw-stack tw-grow").style("min-width:240px"):
                with box("tw-row tight wrap"):
                    chip(decision_text(t, answer), DECISION_TONES[answer.decision])
                    if answer.task is not Task.SINGLE:
                        self._answer_chips(answer)
                Text(decision_advice(t, answer), "tw-soft")
                with box("tw-bars"):
                    for each in answer.probabilities:
                        Text(bar_name(t, answer, each), "tw-clip")
                        set_share(bar(each.probability, bar_name(t, answer, each)), each.probability, each.colour)
                        Text(t.percent(each.probability), "num")
                if answer.task is Task.SEVERAL:
                    Text(t("try.bars_several"), "tw-faint")
                Text(answer.source_name, "tw-faint").style("overflow-wrap:anywhere")

    def _colour(self, name: str) -> str:
        return next((each.wafer_class.colour for each in self._board.cards if each.wafer_class.name == name), "#8a94a3")
