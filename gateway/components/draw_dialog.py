"""A wafer drawn by hand."""

from __future__ import annotations

from nicegui import ui

from gateway.components.base import Text, box, button, dialog, paragraph, segments
from gateway.components.draw_pad import DrawPad
from gateway.components.frame import View
from gateway.values import WaferClass
from services.common.wafer_map import FAIL

BRUSHES = (1, 2, 4)
SIZES = (26, 36, 52)


def draw_dialog(view: View, of_class: WaferClass) -> None:
    """Lets a person paint a wafer of a class."""
    t = view.t
    with dialog(t("draw.title", name=of_class.name), t("app.close"), "narrow") as window:
        with box("tw-dialog-body"):
            paragraph(t("draw.text"), "tw-soft")
            pad = DrawPad(t("draw.pad"), SIZES[1])
            with box("tw-row wrap tight"):
                tools = {**{str(size): f"{t('draw.brush')} {size}" for size in BRUSHES}, "erase": t("draw.erase")}

                def choose(tool: str) -> None:
                    pad.set(erase=tool == "erase", brush=2 if tool == "erase" else int(tool))

                segments(tools, "2", choose, t("draw.brush"))
            with box("tw-row wrap tight"):
                button(t("draw.noise"), pad.scatter, kind="small")
                button(t("draw.clear"), pad.clear_wafer, kind="small")
            with box("tw-row"):
                Text(t("draw.size"), "tw-grow tw-label")
                sizes = ui.select(list(SIZES), value=SIZES[1], on_change=lambda event: pad.set(across=event.value))
                sizes.props("outlined dense").props["aria-label"] = t("draw.size")

        async def add() -> None:
            async with view.doing():
                dies = await pad.read()
                if not (dies == FAIL).any() and not of_class.none:
                    view.toast(t("draw.empty"), bad=True)
                    return
                added = await view.portal.studio.wafers.draw(of_class.class_id, dies)
                window.close()
                if added.change is not None:
                    await view.tell(added.change)

        with box("tw-dialog-foot"):
            button(t("draw.add"), add, kind="primary")
