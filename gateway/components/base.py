"""Small parts: boxes, texts, icons, buttons, chips, notes, dialogs.

Buttons are native elements, because a button that says why it is grey has to stay reachable by keyboard, which a
disabled one does not.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from nicegui import background_tasks, ui
from nicegui.element import Element
from nicegui.elements.mixins.text_element import TextElement

Action = Callable[[], Awaitable[None] | None]


class Text(TextElement):
    """Text in an element of a given tag.

    Args:
        content: The text.
        tag: HTML tag.
        classes: CSS classes.
    """

    def __init__(self, content: str, classes: str = "", *, tag: str = "span") -> None:
        super().__init__(tag=tag, text=content)
        self.classes(classes)


def box(classes: str = "", *, tag: str = "div", **attributes: str) -> Element:
    """An element to put others into.

    Args:
        classes: CSS classes.
        tag: HTML tag.
        **attributes: HTML attributes; underscores become hyphens.
    """
    element = ui.element(tag).classes(classes)
    set_attributes(element, **attributes)
    return element


def set_attributes(element: Element, **attributes: str | None) -> None:
    """Sets HTML attributes; None removes one."""
    for name, value in attributes.items():
        key = name.strip("_").replace("_", "-")
        if value is None:
            element.props.pop(key, None)
        else:
            element.props[key] = value
    element.update()


def paragraph(content: str, classes: str = "") -> Text:
    """A paragraph of text."""
    return Text(content, classes, tag="p")


def heading(content: str, level: int = 2, classes: str = "") -> Text:
    """A heading of a level from 1 to 3."""
    return Text(content, classes, tag=f"h{level}")


def icon(name: str, classes: str = "") -> Element:
    """A picture sign from web/icons, in the colour of the text; says nothing to screen readers."""
    return box(f"tw-icon {classes}", tag="i", aria_hidden="true").style(f"--icon:url(/assets/icons/{name}.svg)")


def dot(colour: str, classes: str = "") -> Element:
    """The colour dot of a class."""
    return box(f"tw-dot {classes}", tag="span", aria_hidden="true").style(f"--dot:{colour}")


class Button(Element):
    """A button that can say why it is grey.

    Args:
        label: Text on it.
        on_click: What it does.
        kind: `primary`, `quiet`, `danger`, sizes `small`, `large`, and `stretch`, in any mix.
        sign: Icon before the text.
        name: Name for screen readers where the text alone says too little.
    """

    def __init__(
        self, label: str, on_click: Action | None = None, *, kind: str = "", sign: str = "", name: str = ""
    ) -> None:
        super().__init__("button")
        self.classes(f"tw-button {kind}")
        set_attributes(self, type="button", **({"aria_label": name} if name else {}))
        self._action = on_click
        self._refusal = ""
        with self:
            self._sign = icon(sign, "small") if sign else None
            self._label = Text(label)
        self.on("click", self._clicked, args=[])

    @property
    def label(self) -> str:
        """Text on the button."""
        return str(self._label.text)

    @label.setter
    def label(self, value: str) -> None:
        self._label.text = value

    def refuse(self, reason: str) -> None:
        """Makes the button grey with a reason, or usable again with an empty one."""
        self._refusal = reason
        set_attributes(self, aria_disabled="true" if reason else None, title=reason or None)

    async def _clicked(self) -> None:
        if self._refusal or self._action is None:
            return
        result = self._action()
        if inspect.isawaitable(result):
            await result


def button(
    label: str, on_click: Action | None = None, *, kind: str = "", sign: str = "", name: str = "", why: str = ""
) -> Button:
    """A button; see Button. `why` makes it grey and says why."""
    made = Button(label, on_click, kind=kind, sign=sign, name=name)
    if why:
        made.refuse(why)
    return made


def icon_button(sign: str, name: str, on_click: Action | None = None) -> Element:
    """A button with an icon alone; the name is read out and shown on hovering."""
    element = box("tw-icon-button", tag="button", type="button", aria_label=name, title=name)
    with element:
        icon(sign)
    if on_click is not None:
        element.on("click", on_click, args=[])
    return element


def link(label: str, target: str, classes: str = "", *, sign: str = "", **attributes: str) -> Element:
    """A link, which looks like a button with class `tw-button`."""
    element = box(classes, tag="a", href=target, **attributes)
    with element:
        if sign:
            icon(sign, "small")
        Text(label)
    return element


def chip(label: str, tone: str = "", *, colour: str = "") -> Element:
    """A short state, with the colour dot of a class where one is given."""
    element = box(f"tw-chip {tone}", tag="span")
    with element:
        if colour:
            dot(colour, "small")
        Text(label)
    return element


def note(content: str, tone: str = "", sign: str = "info") -> Element:
    """A boxed remark; tone is `good`, `warn`, `bad` or none."""
    element = box(f"tw-note {tone}", role="status" if tone in ("bad", "warn") else "note")
    with element:
        icon("warning" if tone in ("bad", "warn") else sign)
        Text(content)
    return element


def image(source: str, alternative: str, classes: str = "") -> Element:
    """A picture; with an empty alternative it is decoration."""
    return box(classes, tag="img", src=source, alt=alternative, loading="lazy", decoding="async")


def bar(share: float, label: str, fill: str = "") -> Element:
    """A horizontal bar filled by a share between 0 and 1."""
    element = box("tw-bar", role="progressbar", aria_label=label, aria_valuemin="0", aria_valuemax="100")
    with element:
        box(tag="i")
    set_share(element, share, fill)
    return element


def set_share(element: Element, share: float, fill: str = "") -> None:
    """Fills a bar made by `bar` anew."""
    percent = f"{max(0.0, min(1.0, share)) * 100:.0f}"
    element.style(f"--share:{percent}%" + (f";--fill:{fill}" if fill else ""))
    set_attributes(element, aria_valuenow=percent)


def segments(options: dict[str, str], chosen: str, on_choose: Callable[[str], Any], name: str) -> Element:
    """A row of choices of which one is in force.

    Args:
        options: Labels by value.
        chosen: Value in force.
        on_choose: Called with the value that a person chooses.
        name: What is being chosen, for screen readers.
    """
    group = box("tw-segments", role="group", aria_label=name)
    made: dict[str, Element] = {}

    async def choose(value: str) -> None:
        for key, element in made.items():
            set_attributes(element, aria_pressed="true" if key == value else "false")
        result = on_choose(value)
        if inspect.isawaitable(result):
            await result

    with group:
        for value, label in options.items():
            made[value] = Text(label, "tw-segment", tag="button")
            set_attributes(made[value], type="button", aria_pressed="true" if value == chosen else "false")
            made[value].on("click", lambda value=value: choose(value), args=[])
    return group


@contextmanager
def dialog(title: str, close: str, size: str = "", on_close: Action | None = None) -> Iterator[ui.dialog]:
    """A dialog with a title and a button that closes it; what is made inside becomes its content.

    Args:
        title: Title.
        close: Name of the closing button.
        size: `narrow`, `wide` or none.
        on_close: Called once the dialog has closed.
    """
    element = ui.dialog()
    element.props["aria-label"] = title

    def hidden() -> None:
        if on_close is not None:
            result = on_close()
            if inspect.isawaitable(result):
                background_tasks.create(_wait(result))
        element.delete()

    element.on("hide", hidden, args=[])
    with element, box(f"tw-dialog {size}"):
        with box("tw-dialog-head"):
            heading(title, 2, "tw-grow")
            icon_button("close", close, element.close)
        yield element
    element.open()


async def _wait(result: Awaitable[None]) -> None:
    await result


def menu_item(label: str, on_click: Callable[..., Any]) -> Element:
    """An entry of a menu."""
    return ui.menu_item(label, on_click).props("role=menuitem")


def table(headers: Iterable[tuple[str, str]], caption: str, classes: str = "") -> Element:
    """A table that scrolls sideways where it is too wide; returns its body to put rows into.

    Args:
        headers: Text and CSS class of each column; an empty text stays for screen readers alone in the caption.
        caption: What the table shows, for screen readers.
        classes: CSS classes of the table.
    """
    with box("tw-table-scroll"), box(f"tw-table {classes}", tag="table"):
        Text(caption, "tw-visually-hidden", tag="caption")
        with box(tag="thead"), box(tag="tr"):
            for label, css in headers:
                Text(label, css, tag="th").props("scope=col")
        return box(tag="tbody")


def cell(content: str, classes: str = "") -> Text:
    """A cell of a table's row."""
    return Text(content, classes, tag="td")
