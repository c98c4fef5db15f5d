"""One setting with its name, a help text that a question mark opens, and its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import ui
from nicegui.element import Element

from gateway.components.base import Text, box, set_attributes
from gateway.components.frame import View


def setting(view: View, key: str, make: Callable[[], Any]) -> Any:
    """Shows a setting and returns its input.

    Args:
        view: The page's view.
        key: Text with its name; the help text stands under `{key}_help`.
        make: Makes the input.
    """
    t = view.t
    name = t(key)
    with box("tw-setting"):
        with box("tw-row tight"):
            Text(name)
            helper = Text("?", "tw-help", tag="button")
            set_attributes(helper, type="button", aria_label=t("app.help_for", name=name), aria_expanded="false")
        element = make()
        if not isinstance(element, ui.switch):
            element.props("outlined dense")
        element.props["aria-label"] = name
        text = Text(t(f"{key}_help"), "tw-help-text")
        text.set_visibility(False)
    helper.on("click", lambda: _toggle(helper, text), args=[])
    return element


def _toggle(helper: Element, text: Element) -> None:
    text.set_visibility(not text.visible)
    set_attributes(helper, aria_expanded="true" if text.visible else "false")
