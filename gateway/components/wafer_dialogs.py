"""One wafer enlarged, and all wafers of a class."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from nicegui import ui
from nicegui.element import Element

from gateway.components.base import Text, box, button, dialog, dot, icon, image, menu_item, set_attributes
from gateway.components.frame import View
from gateway.components.wafer_strip import Thumb, WaferStrip
from gateway.i18n import Messages
from gateway.values import Change, Task, WaferClass, WaferDetail, WaferInfo
from gateway.views.projects import further_names, wafer_badge, wafer_label

PAGE_WAFERS = 120
PICTURE = 520


def wafer_thumbs(
    t: Messages, wafers: Sequence[WaferInfo], of_class: WaferClass, classes: Sequence[WaferClass], first: int = 0
) -> list[Thumb]:
    """Returns the small pictures of wafers on the card of a class.

    Args:
        t: Texts.
        wafers: The wafers.
        of_class: Class of the card.
        classes: All classes of the project.
        first: Place of the first wafer in the whole list, from 0.
    """
    names = {each.class_id: each.name for each in classes}
    thumbs = []
    for number, each in enumerate(wafers, first + 1):
        further = further_names(each, of_class.class_id, names)
        note = t("wafer.also", names=", ".join(further)) if further else ""
        thumbs.append(Thumb(each.wafer_id, wafer_label(t, each, number, further), wafer_badge(each, further), note))
    return thumbs


def legend(view: View) -> None:
    """Says what the colours of a wafer mean."""
    with box("tw-legend"):
        for key, colour in (("pass", "#86c18c"), ("fail", "#96140a"), ("none", "#ffffff")):
            with box(tag="span"):
                box(tag="i", aria_hidden="true").style(f"--swatch:{colour}")
                Text(view.t(f"wafer.legend_{key}"))


async def wafer_dialog(
    view: View, wafer_id: str, of_class: WaferClass, classes: Sequence[WaferClass], task: Task
) -> None:
    """Shows a wafer large, with what is known about it; lets it be moved and removed, and say what else it shows.

    Args:
        view: The page's view.
        wafer_id: The wafer.
        of_class: Class on whose card it lies.
        classes: All classes of the project.
        task: What the model of the project tells.
    """
    t = view.t
    async with view.doing():
        detail = await view.portal.studio.wafers.get(wafer_id)
        title = detail.info.wafer or detail.info.source_name or of_class.name
        # It outlives the card, which is made anew when the wafer shows something else.
        with view.toasts, dialog(title, t("app.close")) as window:
            with box("tw-dialog-body"), box("tw-row wrap").style("align-items:flex-start;gap:24px"):
                source = f"/media/wafers/{wafer_id}.png?size={PICTURE}"
                image(source, t("wafer.image", name=of_class.name), "tw-wafer").style("width:360px")
                with box("tw-stack tw-grow").style("min-width:200px"):
                    with box("tw-row tight"):
                        dot(of_class.colour)
                        Text(of_class.name, tag="strong")
                    if task is Task.SEVERAL and not of_class.none:
                        Further(view, of_class, classes, [detail.info])
                    _facts(view, detail)
                    legend(view)
            with box("tw-dialog-foot"):
                _actions(view, window, detail.info, classes)


class Further:
    """Checkboxes for the classes that wafers show beside the one on whose card they lie.

    Args:
        view: The page's view.
        of_class: Class of the card.
        classes: All classes of the project.
        wafers: The wafers.
        on_kept: Called after each change.
    """

    def __init__(
        self,
        view: View,
        of_class: WaferClass,
        classes: Sequence[WaferClass],
        wafers: Sequence[WaferInfo],
        on_kept: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._view = view
        self._on_kept = on_kept
        self._ids = [each.wafer_id for each in wafers]
        t = view.t
        others = [each for each in classes if not each.none and each.class_id != of_class.class_id]
        with box("tw-stack tight", role="group", aria_label=t("wafer.also_shows")):
            Text(t("wafer.also_shows"), "tw-label")
            if not others:
                Text(t("wafer.also_needs_classes"), "tw-faint")
            with box("tw-row wrap").style("gap:6px 18px"):
                for each in others:
                    self._checkbox(each, wafers)

    def _checkbox(self, each: WaferClass, wafers: Sequence[WaferInfo]) -> None:
        showing = sum(each.class_id in (wafer.class_id, *wafer.also) for wafer in wafers)
        # Neither on nor off where only some of several wafers show the class.
        value = None if 0 < showing < len(wafers) else bool(showing)
        with box("tw-row tight").style("gap:7px"):
            dot(each.colour, "small")
            checkbox = ui.checkbox(each.name, value=value).props("dense")

        async def keep(shown: bool) -> None:
            async with self._view.doing():
                await self._view.tell(await self._view.portal.studio.wafers.show(self._ids, each.class_id, shown))
                if self._on_kept is not None:
                    await self._on_kept()

        checkbox.on_value_change(lambda event: keep(bool(event.value)))


def _facts(view: View, detail: WaferDetail) -> None:
    t, info = view.t, detail.info
    facts = [
        (t("wafer.lot"), info.lot or t("wafer.no_lot")),
        (t("wafer.wafer"), info.wafer or "–"),
        (t("wafer.size"), t("wafer.size_value", rows=info.rows, columns=info.columns, fails=info.failed)),
        (t("wafer.origin"), t(f"origin.{info.origin.value}")),
    ]
    if info.source_name:
        facts.append((t("wafer.source"), info.source_name))
    with box("tw-stack", tag="dl"):
        for name, value in facts:
            with box():
                Text(name, "tw-faint", tag="dt")
                Text(value, tag="dd").style("overflow-wrap:anywhere")


def _actions(view: View, window: ui.dialog, info: WaferInfo, classes: Sequence[WaferClass]) -> None:
    t, wafers = view.t, view.portal.studio.wafers

    async def remove() -> None:
        window.close()
        async with view.doing():
            await view.tell(await wafers.delete([info.wafer_id]))

    async def move(class_id: str) -> None:
        window.close()
        async with view.doing():
            await view.tell(await wafers.move([info.wafer_id], class_id))

    button(t("wafer.delete"), remove, kind="danger", sign="trash")
    others = [each for each in classes if each.class_id != info.class_id]
    if others:
        with box("tw-button", tag="button", type="button"):
            Text(t("wafer.move"))
            icon("right", "small")
            with ui.menu():
                for other in others:
                    menu_item(other.name, lambda class_id=other.class_id: move(class_id))


def gallery_dialog(view: View, of_class: WaferClass, classes: Sequence[WaferClass], task: Task) -> None:
    """Shows all wafers of a class, page by page."""
    with view.toasts:
        Gallery(view, of_class, classes, task)


class Gallery:
    """All wafers of a class, page by page; several can be chosen and changed together.

    Args:
        view: The page's view.
        of_class: The class.
        classes: All classes of the project.
        task: What the model of the project tells.
    """

    def __init__(self, view: View, of_class: WaferClass, classes: Sequence[WaferClass], task: Task) -> None:
        self._view = view
        self._class = of_class
        self._classes = classes
        self._task = task
        self._tokens = [""]
        self._next = ""
        self._choosing = False
        self._chosen: list[str] = []
        self._shown: dict[str, WaferInfo] = {}
        self._strip: WaferStrip | None = None
        t = view.t
        with dialog(of_class.name, t("app.close"), "wide"), box("tw-dialog-body"):
            with box("tw-row between wrap"):
                self._where = Text("", "tw-soft tw-number")
                with box("tw-row tight"):
                    self._choose = button(t("wafer.choose"), self._switch, kind="small")
                    self._back = button(t("app.previous"), self._step_back, kind="small", sign="left")
                    self._ahead = button(t("app.next"), self._step_ahead, kind="small", sign="right")
            self._bar: Element = box("tw-stack tight")
            self._place = box()
        view.later(self._show())

    async def _show(self) -> None:
        """Shows a page; what was chosen on it and is still there stays chosen."""
        view, t, studio, of_class = self._view, self._view.t, self._view.portal.studio, self._class
        first, token = (len(self._tokens) - 1) * PAGE_WAFERS, self._tokens[-1]
        page = await studio.wafers.page(of_class.project_id, of_class.class_id, page_size=PAGE_WAFERS, page_token=token)
        sprite = await studio.pictures.sprite([each.wafer_id for each in page.wafers], tile=112)
        self._next = page.next_token
        self._shown = {each.wafer_id: each for each in page.wafers}
        self._chosen = [each for each in self._chosen if each in self._shown]
        shown = min(1, len(page.wafers))
        self._where.text = t("app.page_of", first=first + shown, last=first + len(page.wafers), total=page.total)
        for each in (self._back, self._ahead):
            each.set_visibility(page.total > PAGE_WAFERS)
        set_attributes(self._back, disabled="disabled" if first == 0 else None)
        set_attributes(self._ahead, disabled=None if page.next_token else "disabled")
        self._place.clear()
        with self._place:
            self._strip = WaferStrip(
                wafer_thumbs(t, page.wafers, of_class, self._classes, first),
                view.portal.shelf.put(sprite.png, key=sprite.etag),
                sprite.columns,
                t("card.strip", name=of_class.name),
                on_pick=self._pick,
                marking=self._choosing,
            )
        self._strip.mark_only(self._chosen)
        self._draw_bar()

    async def _switch(self) -> None:
        """Begins to choose wafers, or ends it."""
        self._choosing, self._chosen = not self._choosing, []
        self._choose.label = self._view.t("wafer.choose_end" if self._choosing else "wafer.choose")
        await self._show()

    async def _pick(self, wafer_id: str) -> None:
        if not self._choosing:
            await wafer_dialog(self._view, wafer_id, self._class, self._classes, self._task)
            return
        if wafer_id in self._chosen:
            self._chosen.remove(wafer_id)
        elif wafer_id in self._shown:
            self._chosen.append(wafer_id)
        if self._strip is not None:
            self._strip.mark_only(self._chosen)
        self._draw_bar()

    def _choose_page(self) -> None:
        self._chosen = list(self._shown)
        if self._strip is not None:
            self._strip.mark_only(self._chosen)
        self._draw_bar()

    def _draw_bar(self) -> None:
        """What can be done with the wafers chosen."""
        t = self._view.t
        self._bar.clear()
        if not self._choosing:
            return
        with self._bar:
            with box("tw-row wrap tight"):
                Text(t("wafer.chosen", n=len(self._chosen)), "tw-number", tag="strong").props("aria-live=polite")
                button(t("wafer.choose_page"), self._choose_page, kind="quiet small")
                if self._chosen:
                    self._act()
            if self._chosen and self._task is Task.SEVERAL and not self._class.none:
                chosen = [self._shown[each] for each in self._chosen]
                Further(self._view, self._class, self._classes, chosen, self._show)

    def _act(self) -> None:
        t, wafers = self._view.t, self._view.portal.studio.wafers

        async def do(change: Change) -> None:
            await self._view.tell(change)
            await self._show()

        async def remove() -> None:
            async with self._view.doing():
                await do(await wafers.delete(self._chosen))

        async def move(class_id: str) -> None:
            async with self._view.doing():
                await do(await wafers.move(self._chosen, class_id))

        button(t("wafer.delete_chosen"), remove, kind="danger small", sign="trash")
        others = [each for each in self._classes if each.class_id != self._class.class_id]
        if others:
            with box("tw-button small", tag="button", type="button"):
                Text(t("wafer.move"))
                icon("right", "small")
                with ui.menu():
                    for other in others:
                        menu_item(other.name, lambda class_id=other.class_id: move(class_id))

    async def _step_back(self) -> None:
        if len(self._tokens) > 1:
            self._tokens.pop()
            await self._turn()

    async def _step_ahead(self) -> None:
        if self._next:
            self._tokens.append(self._next)
            await self._turn()

    async def _turn(self) -> None:
        self._chosen = []
        await self._show()
