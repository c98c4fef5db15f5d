"""A place to drop or choose files; they travel to the portal's upload address and land in files, never in memory."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import app, ui
from nicegui.element import Element
from nicegui.events import GenericEventArguments

from gateway.components.base import Text
from gateway.i18n import Messages
from gateway.uploads import Tickets, UploadedFile

Arrived = Callable[[list[UploadedFile]], Awaitable[None] | None]

ACCEPTED = ".png,.jpg,.jpeg,.csv,.txt,.npz,.zip"
"""Endings that the file chooser offers; what a file really is, its content tells."""


class DropZone(Element, component="drop_zone.js"):
    """A place to drop or choose files.

    Args:
        messages: Texts.
        tickets: Where permissions to upload are kept.
        on_arrived: Called with the files of one drop, once all have arrived; they are removed when it returns.
        title: What to do, in a few words.
        hint: Which files are taken.
        accept: Endings that the file chooser offers.
        multiple: Whether several files may come at once.
        compact: Whether to be less tall.
    """

    def __init__(
        self,
        messages: Messages,
        tickets: Tickets,
        on_arrived: Arrived,
        *,
        title: str = "",
        hint: str = "",
        accept: str = ACCEPTED,
        multiple: bool = True,
        compact: bool = False,
    ) -> None:
        super().__init__()
        self._messages = messages
        self._tickets = tickets
        self._on_arrived = on_arrived
        self._ticket = tickets.issue(str(app.storage.browser["id"]))
        self._problem: Text | None = None
        self.client.on_delete(lambda: tickets.revoke(self._ticket))
        limits = tickets.limits
        self.props.update(
            {
                "url": f"/media/uploads/{self._ticket}",
                "title": title or messages("upload.drop"),
                "subtitle": messages("upload.drop_or"),
                "hint": hint,
                "accept": accept,
                "multiple": multiple,
                "compact": compact,
                "max-bytes": limits.max_bytes,
                "max-files": limits.max_files,
                "sending-text": messages("upload.sending", percent="{percent}"),
            }
        )
        self.on("arrived", self._arrived)
        self.on("refused", self._refused)

    async def _arrived(self, event: GenericEventArguments) -> None:
        files = self._tickets.take(self._ticket, [str(each) for each in event.args["ids"]])
        try:
            result = self._on_arrived(files)
            if inspect.isawaitable(result):
                await result
        finally:
            for file in files:
                file.path.unlink(missing_ok=True)

    def _refused(self, event: GenericEventArguments) -> None:
        ui.notify(self._words(event.args), type="negative", multi_line=True, timeout=8000)

    def _words(self, problem: dict[str, Any]) -> str:
        """Says why files were not taken."""
        t, limits = self._messages, self._tickets.limits
        name, size = str(problem.get("name", "")), int(problem.get("size") or 0)
        if problem["kind"] == "too_many":
            return t("upload.too_many", n=int(problem["count"]), limit=limits.max_files)
        if problem["kind"] == "too_large" or problem.get("reason") == "FILE_TOO_LARGE":
            return t("upload.too_large", name=name, size=t.size(size), limit=t.size(limits.max_bytes))
        key = f"reason.{problem.get('reason')}"
        return t(key) if t.has(key) else t("upload.failed", name=name)
