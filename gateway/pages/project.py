"""The project canvas: teach, train, try on one screen."""

from __future__ import annotations

from nicegui import ui
from nicegui.element import Element

from gateway.components.base import Text, box, button, dialog, icon
from gateway.components.class_card import ClassCardPart
from gateway.components.frame import View, begin, find_project, frame
from gateway.components.training_card import TrainingCard
from gateway.components.try_card import TryCard
from gateway.components.wires import Wires
from gateway.portal import Portal
from gateway.values import Board, ClassCard, Task


def register(portal: Portal) -> None:
    """Makes the page known to NiceGUI."""

    @ui.page("/projects/{project_id}")
    async def canvas(project_id: str) -> None:
        view = await begin(portal)
        project = await find_project(view, project_id)
        if project is None:
            return
        board = await portal.studio.projects.board(project_id)
        with frame(view, project=project, tab="canvas", wide=True):
            Text(project.name, "tw-visually-hidden", tag="h1")
            with box("tw-canvas"):
                wires = Wires()
                Classes(view, box("tw-column classes", tag="section"), board)
                with box("tw-column sticky", tag="section"):
                    training = TrainingCard(view, board, wires)
                with box("tw-column sticky", tag="section"):
                    trying = TryCard(view, board)
        training.on_trained.append(trying.show)


class Classes:
    """The column of class cards; only cards that changed are made anew.

    Args:
        view: The page's view.
        place: Where it stands.
        board: The canvas as it is.
    """

    def __init__(self, view: View, place: Element, board: Board) -> None:
        self._view = view
        self._project_id = board.project.project_id
        self._cards: dict[str, tuple[ClassCard, tuple[str, ...], Element]] = {}
        with place:
            self._list = box("tw-column")
            with box("tw-add-class", tag="button", type="button") as add:
                icon("plus")
                Text(view.t("card.add"))
            add.on("click", self._add_dialog, args=[])
        self._show(board)
        view.on_changed.insert(0, self._refresh)

    async def _refresh(self) -> None:
        self._show(await self._view.portal.studio.projects.board(self._project_id))

    def _show(self, board: Board) -> None:
        names = tuple(card.wafer_class.class_id + card.wafer_class.name for card in board.cards)
        if board.project.task is Task.SEVERAL:
            # What a wafer shows beside a class changes the badges on the card of that class, but no count of it.
            names += (board.project.changed_at.isoformat(),)
        present = {card.wafer_class.class_id for card in board.cards}
        for class_id in [each for each in self._cards if each not in present]:
            self._cards.pop(class_id)[2].delete()
        for index, card in enumerate(board.cards):
            class_id = card.wafer_class.class_id
            known = self._cards.get(class_id)
            if known is not None and known[:2] == (card, names):
                continue
            if known is None:
                with self._list:
                    element = box()
                element.move(target_index=index)
            else:
                element = known[2]
                element.clear()
            with element:
                ClassCardPart(self._view, card, board)
            self._cards[class_id] = (card, names, element)

    async def _add_dialog(self) -> None:
        """Asks for the name of a class, common patterns first."""
        t, classes = self._view.t, self._view.portal.studio.classes
        suggestions = await classes.suggestions(self._project_id)
        with dialog(t("card.add"), t("app.close"), "narrow") as window, box("tw-dialog-body"):

            async def add(name: str) -> None:
                if not name.strip():
                    return
                async with self._view.doing():
                    _, change = await classes.add(self._project_id, name.strip())
                    window.close()
                    await self._view.tell(change)

            name = ui.input(placeholder=t("card.own")).props("outlined dense maxlength=256 autofocus")
            name.props["aria-label"] = t("card.name")
            name.on("keydown.enter", lambda: add(name.value), args=[])
            if suggestions:
                Text(t("card.suggestions"), "tw-faint")
                with box("tw-row wrap tight"):
                    for suggestion in suggestions:
                        chip = Text(suggestion, "tw-button small", tag="button").props("type=button")
                        chip.on("click", lambda suggestion=suggestion: add(suggestion), args=[])
            with box("tw-row").style("justify-content:flex-end"):
                button(t("card.add"), lambda: add(name.value), kind="primary")
