"""The Try card: drop a wafer, see what the model says and why."""

from __future__ import annotations

from nicegui import ui

from gateway.components.base import Text, bar, box, button, chip, dot, heading, image, link, set_share
from gateway.components.drop_zone import DropZone
from gateway.components.frame import View
from gateway.uploads import UploadedFile
from gateway.values import Answer, Board, Task, UploadFile
from gateway.views.predictions import bar_name, decision_advice, decision_chips, wafer_name
from gateway.views.projects import can_try

PICTURE = 420
SHOWN_CLASSES = 9
NEIGHBOURS = 3
MOST_WAFERS = 200


class TryCard:
    """The Try card of a project.

    Args:
        view: The page's view.
        board: The canvas as it is.
    """

    def __init__(self, view: View, board: Board) -> None:
        self._view = view
        self._board = board
        self._answers: tuple[Answer, ...] = ()
        self._index = 0
        self._heat = False
        self._own_index = -1
        with box("tw-card padded tw-stack loose", data_wire="try") as self._root:
            with box("tw-row between"):
                heading(view.t("try.title"), 2)
                self._version = Text("", "tw-faint")
            self._place = box("tw-stack loose")
        self._ask()

    async def show(self) -> None:
        """Takes a new version of the model in."""
        self._board = await self._view.portal.studio.projects.board(self._board.project.project_id)
        self._answers = ()
        self._ask()

    def _ask(self) -> None:
        t, board = self._view.t, self._board
        self._version.text = t("try.model", version=board.model_version) if board.model_version else ""
        self._place.clear()
        with self._place:
            if not can_try(board):
                with box("tw-empty").style("padding:24px 0"):
                    image("/assets/try.svg", "").style("filter:grayscale(1);opacity:.6")
                    Text(t("try.locked"), "tw-soft", tag="p")
                return
            self._drop(compact=False)
            self._below()

    def _drop(self, *, compact: bool) -> None:
        t = self._view.t
        DropZone(
            t,
            self._view.portal.tickets,
            self._arrived,
            title=t("try.another" if compact else "try.drop"),
            compact=compact,
        )

    def _below(self) -> None:
        t = self._view.t
        with box("tw-row wrap between"):
            button(t("try.from_test"), self._own, kind="quiet small")
            link(t("try.more"), f"/projects/{self._board.project.project_id}/predict", "tw-button quiet small")

    async def _arrived(self, files: list[UploadedFile]) -> None:
        async with self._view.doing():
            result = await self._view.portal.studio.answers.classify_files(
                self._board.project.model_id,
                [UploadFile(each.name, each.path) for each in files],
                explain=True,
                neighbours=NEIGHBOURS,
            )
            if not result.answers:
                self._view.toast(self._view.t("try.no_wafer", name=files[0].name), bad=True)
                return
            await self._show(result.answers[:MOST_WAFERS])

    async def _own(self) -> None:
        """Tries a wafer of the project, another one each time."""
        studio, project = self._view.portal.studio, self._board.project
        async with self._view.doing():
            page = await studio.wafers.page(project.project_id, generated=False, page_size=1000)
            if not page.wafers:
                return
            # Steps over neighbours of one lot, so that another pattern comes each time.
            self._own_index = (self._own_index + max(1, len(page.wafers) // 7)) % len(page.wafers)
            wafer = page.wafers[self._own_index]
            answers = await studio.answers.classify_wafers(
                project.model_id, [wafer.wafer_id], explain=True, neighbours=NEIGHBOURS
            )
            await self._show(answers.answers)

    async def _show(self, answers: tuple[Answer, ...]) -> None:
        self._answers, self._index = answers, 0
        await self._draw()

    async def _draw(self) -> None:
        t, portal = self._view.t, self._view.portal
        answer = self._answers[self._index]
        heat = answer.heat if self._heat else None
        source = await portal.picture(answer.map, PICTURE, heat)
        self._place.clear()
        with self._place:
            if len(self._answers) > 1:
                self._pages()
            image(source, t("wafer.image", name=wafer_name(answer)), "tw-wafer").style(
                "max-width:280px;align-self:center"
            )
            with box("tw-stack tight", aria_live="polite").style("align-items:center;text-align:center"):
                with box("tw-row tight wrap").style("justify-content:center"):
                    for text, tone, colour in decision_chips(t, answer):
                        chip(text, f"large {tone}", colour=colour)
                Text(decision_advice(t, answer), "tw-soft")
            if answer.heat is not None:
                toggle = ui.switch(t("try.heat"), value=self._heat, on_change=lambda event: self._set_heat(event.value))
                toggle.style("align-self:center")
            self._bars(answer)
            await self._neighbours(answer)
            self._drop(compact=True)
            self._below()

    def _pages(self) -> None:
        t = self._view.t

        async def step(by: int) -> None:
            self._index = (self._index + by) % len(self._answers)
            await self._draw()

        with box("tw-row between"):
            button(t("app.previous"), lambda: step(-1), kind="small", sign="left", name=t("try.previous"))
            Text(t("try.several", shown=self._index + 1, total=len(self._answers)), "tw-faint tw-number")
            button(t("app.next"), lambda: step(1), kind="small", sign="right", name=t("try.next"))

    async def _set_heat(self, heat: bool) -> None:
        self._heat = heat
        await self._draw()

    def _bars(self, answer: Answer) -> None:
        t = self._view.t
        with box("tw-bars", role="group", aria_label=t("try.bars")):
            for each in answer.probabilities[:SHOWN_CLASSES]:
                name = bar_name(t, answer, each)
                Text(name, "tw-clip")
                set_share(bar(each.probability, name), each.probability, each.colour)
                Text(t.percent(each.probability), "num")
        if answer.task is Task.SEVERAL:
            Text(t("try.bars_several"), "tw-faint")

    async def _neighbours(self, answer: Answer) -> None:
        """Shows the taught wafers that are most alike."""
        if not answer.neighbours:
            return
        t = self._view.t
        names = {card.wafer_class.class_id: card.wafer_class for card in self._board.cards}
        Text(t("try.nearest"), "tw-label")
        with box("tw-wafer-grid").style("grid-template-columns:repeat(3,1fr)"):
            for each in answer.neighbours:
                known = names.get(each.class_id)
                name = known.name if known else each.class_id
                alike = t("try.nearest_item", name=name, percent=t.percent(max(0.0, each.similarity)))
                with box("tw-wafer-tile"):
                    image(f"/media/wafers/{each.wafer_id}.png?size=160", alike)
                    with box("tw-row tight").style("font-size:12px;gap:5px"):
                        if known:
                            dot(known.colour, "small")
                        Text(name, "tw-clip")
