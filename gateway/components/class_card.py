"""The card of a class: name, colour, menu, counts, wafers, what is missing."""

from __future__ import annotations

from nicegui import ui

from gateway.catalogue.patterns import NONE_COLOUR, PALETTE
from gateway.components.base import (
    Text,
    box,
    button,
    dialog,
    dot,
    icon,
    icon_button,
    menu_item,
    paragraph,
    set_attributes,
)
from gateway.components.draw_dialog import draw_dialog
from gateway.components.frame import View
from gateway.components.generate_dialog import generate_dialog
from gateway.components.upload_dialog import upload_dialog
from gateway.components.wafer_dialogs import gallery_dialog, wafer_dialog, wafer_thumbs
from gateway.components.wafer_strip import WaferStrip
from gateway.values import Board, ClassCard, Level, Task
from gateway.views.projects import LEVEL_TONES, counts_text, health_text

STRIP_WAFERS = 24
SHEET_TILE = 190
"""Side of a thumbnail in the sheet, pixels: as large as it is shown on hovering."""


class ClassCardPart:
    """The card of a class.

    Args:
        view: The page's view.
        card: The class with all that its card shows.
        board: The canvas that it stands on.
    """

    def __init__(self, view: View, card: ClassCard, board: Board) -> None:
        self._view = view
        self._card = card
        self._class = card.wafer_class
        self._task = board.project.task
        self._classes = [each.wafer_class for each in board.cards]
        self._others = [each for each in self._classes if each.class_id != self._class.class_id]
        t = view.t
        self._root = box("tw-card tw-class", tag="article", data_wire="class", aria_label=self._class.name)
        self._root.style(f"--dot:{self._class.colour}")
        if not self._class.enabled:
            self._root.classes(add="off")
        with self._root:
            with box("tw-class-head"):
                self._colour_button()
                self._name_field()
                Text(counts_text(t, card.counts), "tw-counts tw-number")
                self._menu_button()
            self._strip = box().style("min-height:58px")
            with box("tw-row tight wrap") as self._buttons:
                button(t("card.upload"), self._upload, kind="small", sign="upload")
                button(t("card.draw"), lambda: draw_dialog(view, self._class), kind="small", sign="pencil")
                why = "" if card.counts.real else t("generate.needs_wafers")
                if self._task is Task.NORMAL:
                    why = t("generate.only_normal")
                button(t("card.generate"), self._generate, kind="small", sign="sparkles", why=why)
                box("tw-spacer")
            self._health()
        view.later(self._fill_strip())

    def _health(self) -> None:
        note = self._card.health[0]
        with box(f"tw-health {LEVEL_TONES[note.level]}"):
            icon("check" if note.level is Level.GOOD else "info" if note.level is Level.ADVICE else "warning", "small")
            Text(health_text(self._view.t, note))

    async def _fill_strip(self) -> None:
        """Shows the newest wafers."""
        view, t, studio = self._view, self._view.t, self._view.portal.studio
        project_id, class_id = self._class.project_id, self._class.class_id
        page = await studio.wafers.page(project_id, class_id, page_size=STRIP_WAFERS)
        sprite = await studio.pictures.page(project_id, class_id, page_size=STRIP_WAFERS, tile=SHEET_TILE)
        with self._strip:
            if not page.wafers:
                Text(t("card.empty"), "tw-faint")
                return
            thumbs = wafer_thumbs(t, page.wafers, self._class, self._classes)
            WaferStrip(
                thumbs,
                view.portal.shelf.put(sprite.png, key=sprite.etag),
                sprite.columns,
                t("card.strip", name=self._class.name),
                on_pick=lambda wafer_id: wafer_dialog(view, wafer_id, self._class, self._classes, self._task),
                on_remove=self._remove,
                delete_label=t("wafer.delete"),
                one_line=True,
            )
        if page.total > len(page.wafers):
            label = t("card.show_all", n=page.total)
            with self._buttons:
                button(label, lambda: gallery_dialog(view, self._class, self._classes, self._task), kind="quiet small")

    async def _remove(self, wafer_id: str) -> None:
        async with self._view.doing():
            await self._view.tell(await self._view.portal.studio.wafers.delete([wafer_id]))

    def _upload(self) -> None:
        upload_dialog(self._view, self._task, self._class)

    def _generate(self) -> None:
        generate_dialog(self._view, self._task, self._class, self._card.counts)

    def _colour_button(self) -> None:
        t = self._view.t
        label = t("card.colour", name=self._class.name)
        with box("tw-dot", tag="button", type="button", aria_label=label, title=label) as swatch:
            menu = ui.menu()
        with menu, box("tw-swatches"):
            for colour in (*PALETTE, NONE_COLOUR):
                element = box("tw-swatch", tag="button", type="button", aria_label=colour).style(f"--dot:{colour}")
                element.on("click", lambda colour=colour: self._recolour(colour, menu), args=[])
        swatch.style(f"--dot:{self._class.colour}")

    async def _recolour(self, colour: str, menu: ui.menu) -> None:
        menu.close()
        async with self._view.doing():
            await self._view.tell(await self._view.portal.studio.classes.recolour(self._class.class_id, colour))

    def _name_field(self) -> None:
        t = self._view.t
        name = ui.input(value=self._class.name).props("dense outlined maxlength=256").classes("tw-inline-name tw-grow")
        set_attributes(name, aria_label=t("card.name"), title=t("card.rename_hint"))

        async def keep() -> None:
            text = (name.value or "").strip()
            if not text or text == self._class.name:
                name.value = self._class.name
                return
            before, renamed = self._class.name, False
            async with self._view.doing():
                change = await self._view.portal.studio.classes.rename(self._class.class_id, text)
                renamed = True
                await self._view.tell(change)
            if not renamed:
                name.value = before

        name.on("keydown.enter", lambda: name.run_method("blur"), args=[])
        name.on("blur", keep, args=[])

    def _menu_button(self) -> None:
        t, classes = self._view.t, self._view.portal.studio.classes
        class_id, counts = self._class.class_id, self._card.counts

        async def do(change: object) -> None:
            async with self._view.doing():
                await self._view.tell(await change)  # type: ignore[misc]

        with icon_button("more", t("card.menu", name=self._class.name)), ui.menu():
            word = t("card.disable" if self._class.enabled else "card.enable")
            menu_item(word, lambda: do(classes.enable(class_id, not self._class.enabled)))
            if counts.wafers:
                menu_item(t("card.download"), self._download)
                menu_item(t("card.remove_all"), lambda: do(classes.clear(class_id)))
            if not self._class.none:
                if self._others:
                    menu_item(t("card.merge"), self._merge_dialog)
                menu_item(t("card.delete"), lambda: do(classes.delete(class_id)))

    def _download(self) -> None:
        ui.navigate.to(f"/media/projects/{self._class.project_id}/classes/{self._class.class_id}/wafers.npz")

    def _merge_dialog(self) -> None:
        t, name = self._view.t, self._class.name
        with dialog(t("card.merge_title", name=name), t("app.close"), "narrow") as window, box("tw-dialog-body"):
            paragraph(t("card.merge_text", name=name), "tw-soft")
            for other in self._others:

                async def merge(target: str = other.class_id) -> None:
                    async with self._view.doing():
                        change = await self._view.portal.studio.classes.merge(self._class.class_id, target)
                        window.close()
                        await self._view.tell(change)

                with box("tw-button", tag="button", type="button").style("justify-content:flex-start") as choice:
                    dot(other.colour)
                    Text(other.name)
                choice.on("click", merge, args=[])
