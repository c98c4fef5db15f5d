"""Files on their way into a class: shown as they will be used, stored when the person says so."""

from __future__ import annotations

from nicegui import ui

from gateway.components.base import Text, box, button, dialog, icon, image, note, segments
from gateway.components.drop_zone import DropZone
from gateway.components.frame import View
from gateway.uploads import UploadedFile
from gateway.values import ImportPreview, Task, UploadFile, WaferClass
from gateway.views.uploads import preview_lines

BY_LABEL, TO_CLASS = "label", "class"


def upload_dialog(view: View, task: Task, of_class: WaferClass) -> None:
    """Takes files for a class."""
    UploadDialog(view, task, of_class)


class UploadDialog:
    """Takes files for a class; nothing is stored before its last button.

    Args:
        view: The page's view.
        task: What the model of the project tells.
        of_class: Class that the files are for.
    """

    def __init__(self, view: View, task: Task, of_class: WaferClass) -> None:
        self._view = view
        self._task = task
        self._project_id = of_class.project_id
        self._class = of_class
        self._preview: ImportPreview | None = None
        self._way = TO_CLASS
        t = view.t
        with dialog(t("upload.title", name=of_class.name), t("app.close"), on_close=self._discard) as self._window:
            self._body = box("tw-dialog-body")
            self._foot = box("tw-dialog-foot")
        self._ask()

    def _ask(self) -> None:
        t, tickets = self._view.t, self._view.portal.tickets
        self._body.clear()
        self._foot.clear()
        self._foot.set_visibility(False)
        with self._body:
            DropZone(t, tickets, self._arrived, hint=t("upload.formats", size=t.size(tickets.limits.max_bytes)))
            if self._task is Task.SEVERAL:
                Text(t("upload.plus"), "tw-faint")

    async def _arrived(self, files: list[UploadedFile]) -> None:
        t = self._view.t
        self._body.clear()
        with self._body, box("tw-empty"):
            ui.spinner(size="32px")
            Text(t("upload.reading"))
        preview = None
        async with self._view.doing():
            sent = [UploadFile(each.name, each.path) for each in files]
            preview = await self._view.portal.studio.uploads.stage(self._project_id, sent)
        if preview is None:
            self._ask()
            return
        self._preview = preview
        await self._show(preview)

    async def _show(self, preview: ImportPreview) -> None:
        t, portal = self._view.t, self._view.portal
        sources = [(await portal.picture(each.map, 320), each) for each in preview.examples]
        labelled = any(group.label for group in preview.labels)
        several = len(preview.labels) > 1 or any(group.also for group in preview.labels)
        self._way = BY_LABEL if labelled and several else TO_CLASS
        self._body.clear()
        self._foot.clear()
        self._foot.set_visibility(True)
        with self._body:
            if sources:
                Text(t("upload.preview"), "tw-label")
                with box("tw-wafer-grid").style("grid-template-columns:repeat(auto-fill,minmax(150px,1fr))"):
                    for source, example in sources:
                        with box("tw-wafer-tile"):
                            image(source, t("wafer.image", name=example.label or example.source_name))
                            Text(example.label or example.source_name, "tw-faint tw-clip")
            for text, tone in preview_lines(t, preview):
                if tone:
                    note(text, tone)
                else:
                    with box("tw-row tight"):
                        icon("check", "small")
                        Text(text)
            if labelled:
                self._ways(preview)
            Text(t("upload.nothing_stored"), "tw-faint")
        with self._foot:
            button(t("upload.again"), self._again)
            label = t("upload.add", n=preview.new) if preview.new else t("upload.nothing")
            why = "" if preview.new else t("upload.nothing")
            button(label, self._commit, kind="primary", why=why)

    def _ways(self, preview: ImportPreview) -> None:
        """Lets the person choose between the labels of the files and the class of the card."""
        t = self._view.t

        def choose(way: str) -> None:
            self._way = way
            groups.set_visibility(way == BY_LABEL)

        options = {BY_LABEL: t("upload.by_label"), TO_CLASS: t("upload.to_class", name=self._class.name)}
        segments(options, self._way, choose, t("evaluate.class"))
        with box("tw-stack tight") as groups:
            Text(t("upload.by_label_text"), "tw-faint")
            with box("tw-row wrap tight"):
                for group in preview.labels:
                    name = " + ".join((group.class_name or self._class.name, *group.also))
                    Text(f"{name} · {group.count:,}", "tw-chip")
        groups.set_visibility(self._way == BY_LABEL)

    async def _again(self) -> None:
        await self._discard()
        self._ask()

    async def _commit(self) -> None:
        if self._preview is None:
            return
        async with self._view.doing():
            class_id = self._class.class_id if self._way == TO_CLASS else ""
            done = await self._view.portal.studio.uploads.commit(self._preview.import_id, class_id=class_id)
            self._preview = None
            self._window.close()
            if done.change is not None:
                await self._view.tell(done.change)

    async def _discard(self) -> None:
        """Forgets what was not added."""
        if self._preview is not None:
            preview, self._preview = self._preview, None
            await self._view.portal.studio.uploads.discard(preview.import_id)
