"""The frame around every page: header, language, project tabs, toasts with undo, errors in words."""

from __future__ import annotations

import copy
import inspect
import secrets
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Literal

from nicegui import app, background_tasks, ui
from nicegui.element import Element

from gateway.components.base import Button, Text, box, heading, icon, icon_button, image, link, menu_item, paragraph
from gateway.i18n import LANGUAGES, Messages, choose_language
from gateway.portal import Portal
from gateway.studio import acting_as
from gateway.values import Change, Project
from gateway.views.projects import change_text
from services.common.errors import NotFoundError, TeachwaferError

STYLE_VERSION: Final = secrets.token_hex(4)
"""Lets browsers take new styles after an update of the portal, and keep them until then."""

TOAST_SECONDS = 9.0
TABS: Final = {"canvas": "", "evaluate": "/evaluate", "predict": "/predict", "models": "/models"}
QUASAR_LANGUAGES: Final[dict[str, Literal["en-US", "ko-KR"]]] = {"en": "en-US", "ko": "ko-KR"}


@dataclass(slots=True)
class View:
    """What a page's parts need.

    Attributes:
        portal: The portal.
        t: Texts of the person's language.
        person: Who looks at the page.
        toasts: Where toasts appear.
        on_changed: Called after every change of the project and after every undo.
    """

    portal: Portal
    t: Messages
    person: str
    toasts: Element
    on_changed: list[Callable[[], Awaitable[None] | None]] = field(default_factory=list)

    async def changed(self) -> None:
        """Lets the page show what has changed."""
        for callback in self.on_changed:
            result = callback()
            if inspect.isawaitable(result):
                await result

    def doing(self) -> Doing:
        """Does something in the person's name; an error becomes a toast, and what follows in the block is left out."""
        return Doing(self)

    def toast(self, text: str, *, undo: Callable[[], Awaitable[None]] | None = None, bad: bool = False) -> None:
        """Shows a sentence for some seconds.

        Args:
            text: The sentence.
            undo: Takes back what it tells of.
            bad: Whether it tells of a failure; those stay until closed.
        """
        with self.toasts:
            toast = box("tw-toast bad" if bad else "tw-toast", role="alert" if bad else "status")
        with toast:
            Text(text)

            async def take_back() -> None:
                toast.delete()
                if undo is not None:
                    await undo()

            if undo is not None:
                Button(self.t("app.undo"), take_back, sign="undo")
            icon_button("close", self.t("app.close"), toast.delete)
            if not bad:
                ui.timer(TOAST_SECONDS, lambda: None if toast.is_deleted else toast.delete(), once=True)

    async def tell(self, change: Change) -> None:
        """Shows a change with a way back, and lets the page show what has changed."""

        async def take_back() -> None:
            async with self.doing():
                await self.portal.studio.history.undo(change.change_id)
                self.toast(self.t("change.undone"))
            await self.changed()

        self.toast(change_text(self.t, change), undo=take_back)
        await self.changed()

    def later(self, work: Awaitable[Any]) -> None:
        """Lets something go on beside the page, in its place there and in the person's name, until it is closed."""
        client = ui.context.client
        slot = ui.context.slot

        async def run() -> None:
            with client, slot:
                async with self.doing():
                    await work

        task = background_tasks.create(run(), name="page work")
        client.on_delete(lambda: task.cancel())


class Doing:
    """A block in which something is done in a person's name and errors become toasts.

    Args:
        view: View of the page on which it is done.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._acting = acting_as(view.person)

    async def __aenter__(self) -> None:
        """Begins to act."""
        self._acting.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Ends acting; says errors of ours in words and lets others pass."""
        self._acting.__exit__(None, None, None)
        if isinstance(error, TeachwaferError):
            self._view.toast(self._view.t.error(error), bad=True)
            return True
        return False


async def begin(portal: Portal) -> View:
    """Begins a page: finds out who looks at it in which language, and prepares the document."""
    client = ui.context.client
    request = client.request
    person = str(app.storage.browser["id"])
    chosen = await portal.studio.people.preference(person, "language")
    language = choose_language(chosen, request.headers.get("accept-language", ""), portal.settings.gateway_language)
    # A page's language is fixed for all visitors; each gets a page object of their own instead.
    client.page = copy.copy(client.page)
    client.page.language = QUASAR_LANGUAGES[language]
    ui.add_head_html(f'<link rel="stylesheet" href="/assets/styles.css?v={STYLE_VERSION}">')
    ui.colors(primary="#2251cc", positive="#17694a", negative="#a81e3c", warning="#8a5300")
    client.content.classes("tw-root")
    if client.content.parent_slot is not None:
        # The page as a whole is not its main part: header and navigation stand in it, too.
        client.content.parent_slot.parent.props("role=presentation")
    t = Messages(language)
    link(t("app.skip"), "#content", "tw-skip")
    return View(portal, t, person, box("tw-toasts"))


@contextmanager
def frame(
    view: View, *, title: str = "", project: Project | None = None, tab: str = "", wide: bool = False
) -> Iterator[None]:
    """Puts header and main part around what is made inside.

    Args:
        view: The page's view.
        title: Title of the page for the browser; the project's name otherwise.
        project: Project that the page belongs to.
        tab: Part of the project, a key of TABS.
        wide: Whether the page uses the whole width.
    """
    t = view.t
    name = title or (project.name if project else "")
    ui.page_title(f"{name} · {t('app.name')}" if name else t("app.name"))
    with box("tw-header", tag="header"):
        with box("tw-brand", tag="a", href="/", aria_label=f"{t('app.name')}, {t('app.projects')}"):
            image("/assets/favicon.svg", "")
            Text(t("app.name"))
        if project is not None:
            with box("tw-crumb"):
                Text("/", "tw-crumb-sep").props("aria-hidden=true")
                _project_name(view, project)
            _tabs(t, project, tab)
        box("tw-spacer")
        _language_switch(view)
    with box("tw-main wide" if wide else "tw-main", tag="main", id="content", tabindex="-1"):
        yield


def not_found(view: View) -> None:
    """Shows that there is nothing here."""
    t = view.t
    with frame(view, title=t("app.not_found")), box("tw-empty"):
        image("/assets/empty.svg", "")
        heading(t("app.not_found"), 1)
        paragraph(t("app.not_found_text"))
        link(t("app.to_projects"), "/", "tw-button primary")


async def find_project(view: View, project_id: str) -> Project | None:
    """Returns the project of a page; shows that it is not there otherwise."""
    try:
        return await view.portal.studio.projects.get(project_id)
    except NotFoundError:
        not_found(view)
        ui.context.client.status_code = 404
        return None


def empty_state(title: str, text: str, *, sign: str = "empty") -> Element:
    """An empty place that says what will be there; returns it to put a button into."""
    element = box("tw-empty")
    with element:
        image(f"/assets/{sign}.svg", "")
        heading(title, 2)
        paragraph(text)
    return element


def _project_name(view: View, project: Project) -> None:
    """The name of the project, edited in place."""
    t = view.t
    field_ = ui.input(value=project.name).props("dense outlined maxlength=256").classes("tw-inline-name tw-grow")
    field_.props["aria-label"] = t("project.name")

    async def keep() -> None:
        name = field_.value.strip()
        if not name or name == project.name:
            field_.value = project.name
            return
        async with view.doing():
            await view.tell(await view.portal.studio.projects.rename(project.project_id, name))

    field_.on("keydown.enter", lambda: field_.run_method("blur"), args=[])
    field_.on("blur", keep, args=[])


def _tabs(t: Messages, project: Project, tab: str) -> None:
    with box("tw-tabs", tag="nav", aria_label=t("project.tabs")):
        for key, path in TABS.items():
            current = {"aria_current": "page"} if key == tab else {}
            link(t(f"project.{key}"), f"/projects/{project.project_id}{path}", "tw-tab", **current)


def _language_switch(view: View) -> None:
    """Lets a person choose the language; kept for the person."""
    t = view.t

    async def choose(language: str) -> None:
        await view.portal.studio.people.set_preference(view.person, "language", language)
        ui.navigate.reload()

    with box("tw-button quiet small", tag="button", type="button", aria_label=t("app.language")):
        icon("globe", "small")
        Text(LANGUAGES[t.language])
        with ui.menu():
            for code, name in LANGUAGES.items():
                item = menu_item(name, lambda code=code: choose(code))
                item.props["lang"] = code
