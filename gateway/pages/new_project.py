"""The dialog that makes a project."""

from __future__ import annotations

from typing import Final

from nicegui import ui
from nicegui.element import Element

from gateway.components.base import Text, box, button, dialog, image, set_attributes
from gateway.components.frame import View
from gateway.values import Task

SUGGESTED: Final = ("Center", "Donut", "Edge-Loc", "Edge-Ring", "Loc", "Near-full", "Random", "Scratch")
CHOSEN_AT_FIRST: Final = ("Center", "Edge-Ring", "Scratch")


def new_project_dialog(view: View) -> None:
    """Asks for type, name and first classes, makes the project and opens it."""
    NewProject(view)


class NewProject:
    """Asks for type, name and first classes, makes the project and opens it.

    Args:
        view: The page's view.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._task = Task.SINGLE
        self._chosen: set[str] = set()
        self._choices: dict[Task, Element] = {}
        t = view.t
        with dialog(t("new.title"), t("app.close")):
            with box("tw-dialog-body"):
                Text(t("new.type"), "tw-label")
                self._types()
                with box("tw-field"):
                    Text(t("new.name"), "tw-label")
                    name = ui.input(value=t("new.name_default"), placeholder=t("new.name_hint")).props(
                        "outlined dense maxlength=256 autofocus"
                    )
                    name.props["aria-label"] = t("new.name")
                self._classes = box("tw-field")
            self._choose(self._task)

            async def create() -> None:
                async with view.doing():
                    classes = [pattern for pattern in SUGGESTED if pattern in self._chosen]
                    project = await view.portal.studio.projects.create(name.value.strip(), self._task, classes=classes)
                    ui.navigate.to(f"/projects/{project.project_id}")

            name.on("keydown.enter", create, args=[])
            with box("tw-dialog-foot"):
                button(t("new.create"), create, kind="primary")

    def _types(self) -> None:
        """The three types, each with when to use it."""
        t = self._view.t
        with box("tw-choices", role="radiogroup", aria_label=t("new.type")):
            for task in Task:
                with box("tw-choice", tag="button", type="button", role="radio") as choice:
                    image(f"/assets/{task.value}.svg", "")
                    Text(t(f"new.{task.value}"), tag="strong")
                    Text(t(f"new.{task.value}_text"), "tw-faint")
                choice.on("click", lambda task=task: self._choose(task), args=[])
                self._choices[task] = choice

    def _choose(self, task: Task) -> None:
        self._task = task
        # Where only normal wafers teach, other classes are something that people add on purpose.
        self._chosen = set() if task is Task.NORMAL else set(CHOSEN_AT_FIRST)
        for each, choice in self._choices.items():
            set_attributes(choice, aria_checked="true" if each is task else "false")
        t = self._view.t
        self._classes.clear()
        with self._classes:
            Text(t("new.classes_normal" if task is Task.NORMAL else "new.classes"), "tw-label")
            with box("tw-row wrap tight"):
                for pattern in SUGGESTED:
                    self._pattern(pattern)
            Text(t("new.classes_hint_normal" if task is Task.NORMAL else "new.classes_hint"), "tw-faint")

    def _pattern(self, pattern: str) -> None:
        """A pattern to begin with, switched on and off."""
        element = Text(pattern, "tw-button small", tag="button")
        set_attributes(element, type="button")

        def show() -> None:
            on = pattern in self._chosen
            set_attributes(element, aria_pressed="true" if on else "false")
            element.classes(add="primary") if on else element.classes(remove="primary")

        def switch() -> None:
            self._chosen.symmetric_difference_update({pattern})
            show()

        show()
        element.on("click", switch, args=[])
