"""One wafer enlarged, and all wafers of a class."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

from gateway.components.base import Text, box, button, dialog, dot, icon, image, menu_item
from gateway.components.frame import View
from gateway.components.wafer_strip import Thumb, WaferStrip
from gateway.values import WaferClass, WaferDetail
from gateway.views.projects import wafer_label

PAGE_WAFERS = 120
PICTURE = 520


def legend(view: View) -> None:
    """Says what the colours of a wafer mean."""
    with box("tw-legend"):
        for key, colour in (("pass", "#86c18c"), ("fail", "#96140a"), ("none", "#ffffff")):
            with box(tag="span"):
                box(tag="i", aria_hidden="true").style(f"--swatch:{colour}")
                Text(view.t(f"wafer.legend_{key}"))


async def wafer_dialog(view: View, wafer_id: str, of_class: WaferClass, others: Sequence[WaferClass]) -> None:
    """Shows a wafer large, with what is known about it; lets it be moved and removed."""
    t = view.t
    async with view.doing():
        detail = await view.portal.studio.wafers.get(wafer_id)
        title = detail.info.wafer or detail.info.source_name or of_class.name
        with dialog(title, t("app.close")) as window:
            with box("tw-dialog-body"), box("tw-row wrap").style("align-items:flex-start;gap:24px"):
                source = f"/media/wafers/{wafer_id}.png?size={PICTURE}"
                image(source, t("wafer.image", name=of_class.name), "tw-wafer").style("width:360px")
                with box("tw-stack tw-grow").style("min-width:200px"):
                    _facts(view, detail, of_class)
                    legend(view)
            with box("tw-dialog-foot"):
                _actions(view, window, wafer_id, others)


def _facts(view: View, detail: WaferDetail, of_class: WaferClass) -> None:
    t, info = view.t, detail.info
    facts = [
        (t("wafer.lot"), info.lot or t("wafer.no_lot")),
        (t("wafer.wafer"), info.wafer or "–"),
        (t("wafer.size"), t("wafer.size_value", rows=info.rows, columns=info.columns, fails=info.failed)),
        (t("wafer.origin"), t(f"origin.{info.origin.value}")),
    ]
    if info.source_name:
        facts.append((t("wafer.source"), info.source_name))
    with box("tw-row tight"):
        dot(of_class.colour)
        Text(of_class.name, tag="strong")
    with box("tw-stack", tag="dl"):
        for name, value in facts:
            with box():
                Text(name, "tw-faint", tag="dt")
                Text(value, tag="dd").style("overflow-wrap:anywhere")


def _actions(view: View, window: ui.dialog, wafer_id: str, others: Sequence[WaferClass]) -> None:
    t, wafers = view.t, view.portal.studio.wafers

    async def remove() -> None:
        window.close()
        async with view.doing():
            await view.tell(await wafers.delete([wafer_id]))

    async def move(class_id: str) -> None:
        window.close()
        async with view.doing():
            await view.tell(await wafers.move([wafer_id], class_id))

    button(t("wafer.delete"), remove, kind="danger", sign="trash")
    if others:
        with box("tw-button", tag="button", type="button"):
            Text(t("wafer.move"))
            icon("right", "small")
            with ui.menu():
                for other in others:
                    menu_item(other.name, lambda class_id=other.class_id: move(class_id))


def gallery_dialog(view: View, of_class: WaferClass, others: Sequence[WaferClass]) -> None:
    """Shows all wafers of a class, page by page."""
    t, studio = view.t, view.portal.studio
    tokens = [""]
    with dialog(of_class.name, t("app.close"), "wide"), box("tw-dialog-body"):
        with box("tw-row between"):
            where = Text("", "tw-soft tw-number")
            with box("tw-row tight"):
                back = button(t("app.previous"), kind="small", sign="left")
                ahead = button(t("app.next"), kind="small", sign="right")
        place = box()

        async def show() -> None:
            number, token = len(tokens) - 1, tokens[-1]
            page = await studio.wafers.page(
                of_class.project_id, of_class.class_id, page_size=PAGE_WAFERS, page_token=token
            )
            sprite = await studio.pictures.page(
                of_class.project_id, of_class.class_id, page_size=PAGE_WAFERS, page_token=token, tile=112
            )
            first = number * PAGE_WAFERS
            where.text = t("app.page_of", first=first + 1, last=first + len(page.wafers), total=page.total)
            back.set_visibility(page.total > PAGE_WAFERS)
            ahead.set_visibility(page.total > PAGE_WAFERS)
            back.props["disabled"] = number == 0
            ahead.props["disabled"] = not page.next_token
            following[:] = [page.next_token]
            place.clear()
            with place:
                thumbs = [
                    Thumb(each.wafer_id, wafer_label(t, each, first + index + 1), "G" if each.generated else "")
                    for index, each in enumerate(page.wafers)
                ]
                WaferStrip(
                    thumbs,
                    view.portal.shelf.put(sprite.png, key=sprite.etag),
                    sprite.columns,
                    t("card.strip", name=of_class.name),
                    on_pick=lambda wafer_id: wafer_dialog(view, wafer_id, of_class, others),
                )

        following = [""]

        async def step_back() -> None:
            if len(tokens) > 1:
                tokens.pop()
                await show()

        async def step_ahead() -> None:
            if following[0]:
                tokens.append(following[0])
                await show()

        back.on("click", step_back, args=[])
        ahead.on("click", step_ahead, args=[])
        view.later(show())
