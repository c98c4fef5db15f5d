"""The dialog that makes a project."""

from __future__ import annotations

from typing import Final

from nicegui import ui

from gateway.components.base import Text, box, button, dialog, image, set_attributes
from gateway.components.frame import View
from gateway.values import Task

SUGGESTED: Final = ("Center", "Donut", "Edge-Loc", "Edge-Ring", "Loc", "Near-full", "Random", "Scratch")
CHOSEN_AT_FIRST: Final = ("Center", "Edge-Ring", "Scratch")


def new_project_dialog(view: View) -> None:
    """Asks for type, name and first classes, makes the project and opens it."""
    t = view.t
    with dialog(t("new.title"), t("app.close")):
        with box("tw-dialog-body"):
            Text(t("new.type"), "tw-label")
            _types(view)
            with box("tw-field"):
                Text(t("new.name"), "tw-label")
                name = ui.input(value=t("new.name_default"), placeholder=t("new.name_hint")).props(
                    "outlined dense maxlength=256 autofocus"
                )
                name.props["aria-label"] = t("new.name")
            with box("tw-field"):
                Text(t("new.classes"), "tw-label")
                chosen = _classes(view)
                Text(t("new.classes_hint"), "tw-faint")

        async def create() -> None:
            async with view.doing():
                classes = [pattern for pattern in SUGGESTED if pattern in chosen]
                project = await view.portal.studio.projects.create(name.value.strip(), Task.SINGLE, classes=classes)
                ui.navigate.to(f"/projects/{project.project_id}")

        name.on("keydown.enter", create, args=[])
        with box("tw-dialog-foot"):
            button(t("new.create"), create, kind="primary")


def _types(view: View) -> None:
    """The three types; two of them are shown with the reason why they cannot be chosen."""
    t = view.t
    with box("tw-choices", role="radiogroup", aria_label=t("new.type")):
        for task in Task:
            ready = task is Task.SINGLE
            with box("tw-choice", tag="button", type="button", role="radio") as choice:
                image(f"/assets/{task.value}.svg", "")
                Text(t(f"new.{task.value}"), tag="strong")
                Text(t(f"new.{task.value}_text"), "tw-faint")
                if not ready:
                    Text(t("new.later"), "tw-faint").style("font-weight:600")
            set_attributes(choice, aria_checked="true" if ready else "false", aria_disabled=None if ready else "true")


def _classes(view: View) -> set[str]:
    """Patterns to begin with, each switched on and off; returns the set that holds those switched on."""
    chosen = set(CHOSEN_AT_FIRST)
    with box("tw-row wrap tight"):
        for pattern in SUGGESTED:
            element = Text(pattern, "tw-button small", tag="button")
            set_attributes(element, type="button")

            def show(element: Text = element, pattern: str = pattern) -> None:
                on = pattern in chosen
                set_attributes(element, aria_pressed="true" if on else "false")
                element.classes(add="primary") if on else element.classes(remove="primary")

            def switch(pattern: str = pattern, show: object = show) -> None:
                chosen.symmetric_difference_update({pattern})
                show()  # type: ignore[operator]

            show()
            element.on("click", switch, args=[])
    return chosen
