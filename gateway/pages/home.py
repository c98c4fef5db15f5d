"""Home: what this is, my projects, questions, the state of the server."""

from __future__ import annotations

from nicegui import ui
from nicegui.element import Element

from gateway.components.base import (
    Text,
    box,
    button,
    cell,
    chip,
    dialog,
    heading,
    icon_button,
    image,
    link,
    note,
    paragraph,
    table,
)
from gateway.components.drop_zone import DropZone
from gateway.components.frame import View, begin, empty_state, frame
from gateway.pages.new_project import new_project_dialog
from gateway.portal import Portal
from gateway.uploads import UploadedFile
from gateway.values import ProjectState, ProjectSummary, SampleState, ServerState, TrashedProject
from gateway.views.projects import STATE_TONES, problem_text, server_text

QUESTIONS = ("how_many", "lots", "unknown", "generated", "formats", "where")
REFRESH_SECONDS = 3.0


def register(portal: Portal) -> None:
    """Makes the page known to NiceGUI."""

    @ui.page("/")
    async def home() -> None:
        view = await begin(portal)
        with frame(view):
            _hero(view)
            projects = box("tw-stack", tag="section")
            await _Projects(view, projects).show()
            _questions(view)
            server = box("tw-stack", tag="section")
        view.later(_server(view, server))


def _hero(view: View) -> None:
    t = view.t

    async def sample() -> None:
        await open_sample(view)

    with box("tw-stack loose", tag="section"):
        with box("tw-hero"):
            heading(t("home.title"), 1)
            paragraph(t("home.lead"), "tw-lead")
            with box("tw-row wrap"):
                button(t("home.start"), lambda: new_project_dialog(view), kind="primary large")
                button(t("home.open"), lambda: _open_dialog(view), kind="large", sign="folder")
                button(t("home.sample"), sample, kind="large")
        with box("tw-steps", tag="ol"):
            for step in ("teach", "train", "try"):
                with box("tw-card tw-step", tag="li"):
                    image(f"/assets/{step}.svg", "")
                    with box("tw-stack tight"):
                        heading(t(f"home.{step}"), 2)
                        paragraph(t(f"home.{step}_text"))


async def open_sample(view: View) -> None:
    """Opens the sample project, or says that it is being made."""
    sample = view.portal.studio.sample
    async with view.doing():
        progress = await sample.ensure()
        if progress.state is SampleState.READY and progress.project_id:
            ui.navigate.to(f"/projects/{progress.project_id}")
        elif progress.state is SampleState.FAILED and progress.problem:
            view.toast(problem_text(view.t, progress.problem), bad=True)
        elif progress.state is SampleState.ABSENT:
            view.toast(view.t("home.sample_absent"))
        else:
            view.toast(view.t("home.sample_making"))


def _open_dialog(view: View) -> None:
    """Opens a project file."""
    t = view.t
    with dialog(t("home.open_title"), t("app.close"), "narrow") as window, box("tw-dialog-body"):
        paragraph(t("home.open_text"), "tw-soft")

        async def arrived(files: list[UploadedFile]) -> None:
            async with view.doing():
                project = await view.portal.studio.projects.open_file(files[0].path)
                window.close()
                ui.navigate.to(f"/projects/{project.project_id}")

        DropZone(t, view.portal.tickets, arrived, accept=".zip", multiple=False)


class _Projects:
    """The table of projects; follows the sample project and trainings while they go on.

    Args:
        view: The page's view.
        place: Where it stands.
    """

    def __init__(self, view: View, place: Element) -> None:
        self._view = view
        self._place = place
        self._shown: object = None
        view.on_changed.append(self.show)
        ui.timer(REFRESH_SECONDS, self._refresh)

    async def _refresh(self) -> None:
        """Shows the table anew when something moves on by itself."""
        making = self._view.portal.studio.sample.progress().state is SampleState.MAKING
        if making or self._moving:
            await self.show()

    async def show(self) -> None:
        """Shows the table."""
        studio = self._view.portal.studio
        summaries = await studio.projects.list()
        trashed = await studio.projects.trashed()
        making = studio.sample.progress().state is SampleState.MAKING
        self._moving = any(each.state is ProjectState.TRAINING for each in summaries)
        content = (summaries, trashed, making)
        if content == self._shown:
            return
        self._shown = content
        self._place.clear()
        with self._place:
            self._draw(summaries, trashed, making)

    def _draw(self, summaries: tuple[ProjectSummary, ...], trashed: tuple[TrashedProject, ...], making: bool) -> None:
        t = self._view.t
        with box("tw-row between"):
            heading(t("home.my_projects"), 2)
            if trashed:
                label = t("home.trash_count", n=len(trashed))
                button(label, lambda: self._trash_dialog(trashed), kind="quiet small", sign="trash")
        if making:
            note(t("home.sample_making"), sign="hourglass")
        if not summaries:
            if not making:
                with box("tw-card"), empty_state(t("home.no_projects"), t("home.no_projects_text")):
                    button(t("home.start"), lambda: new_project_dialog(self._view), kind="primary")
            return
        headers = [
            (t("home.name"), ""),
            (t("home.classes"), "num"),
            (t("home.wafers"), "num"),
            (t("home.state"), ""),
            (t("home.score"), "num"),
            (t("home.changed"), ""),
            ("", "actions"),
        ]
        with table(headers, t("home.my_projects"), "tw-projects"):
            for summary in summaries:
                self._row(summary)

    def _row(self, summary: ProjectSummary) -> None:
        t, project = self._view.t, summary.project
        with box(tag="tr"):
            with box(tag="td"):
                link(project.name, f"/projects/{project.project_id}").style("font-weight:600")
            cell(f"{summary.classes:,}", "num")
            cell(f"{summary.wafers:,}", "num")
            with box(tag="td"):
                chip(t(f"project_state.{summary.state.value}"), STATE_TONES[summary.state])
            score = cell("–" if summary.score is None else t.score(summary.score), "num")
            score.props["title"] = t("home.score_help")
            cell(t.moment(project.changed_at), "tw-soft")
            with box("actions", tag="td"):
                with box(
                    "tw-icon-button",
                    tag="a",
                    href=f"/media/projects/{project.project_id}/project.zip",
                    download="",
                    aria_label=t("home.download_project", name=project.name),
                    title=t("app.download"),
                ):
                    box("tw-icon", tag="i", aria_hidden="true").style("--icon:url(/assets/icons/download.svg)")
                icon_button("trash", t("home.delete_project", name=project.name), lambda: self._trash(summary))

    async def _trash(self, summary: ProjectSummary) -> None:
        view, project = self._view, summary.project

        async def restore() -> None:
            await self._restore(project.project_id)

        async with view.doing():
            await view.portal.studio.projects.trash(project.project_id)
            view.toast(view.t("home.deleted", name=project.name), undo=restore)
        await view.changed()

    async def _restore(self, project_id: str) -> None:
        async with self._view.doing():
            project = await self._view.portal.studio.projects.restore(project_id)
            self._view.toast(self._view.t("home.restored", name=project.name))
        await self._view.changed()

    def _trash_dialog(self, trashed: tuple[TrashedProject, ...]) -> None:
        t = self._view.t
        with dialog(t("home.trash"), t("app.close")) as window, box("tw-dialog-body"):
            paragraph(t("home.trash_text"), "tw-soft")
            for each in trashed:
                with box("tw-row between"):
                    with box("tw-stack tight"):
                        Text(each.project.name).style("font-weight:600")
                        counts = t("count.wafers", n=each.wafers)
                        Text(f"{counts} · {t.moment(each.deleted_at)}", "tw-faint")

                    async def restore(project_id: str = each.project.project_id) -> None:
                        window.close()
                        await self._restore(project_id)

                    button(t("home.restore"), restore, kind="small", sign="undo")


def _questions(view: View) -> None:
    t = view.t
    with box("tw-stack", tag="section"):
        heading(t("faq.title"), 2)
        with box("tw-faq"):
            for question in QUESTIONS:
                with box(tag="details"):
                    Text(t(f"faq.{question}_q"), tag="summary")
                    paragraph(t(f"faq.{question}_a"))


async def _server(view: View, place: Element) -> None:
    """Shows which services answer, once they have been asked."""
    state: ServerState = await view.portal.studio.server.state()
    t = view.t
    with place:
        heading(t("home.server"), 2)
        with box("tw-row wrap"):
            for service in state.services:
                tone = "good" if service.reachable else "bad"
                word = t("server.running" if service.reachable else "server.not_running")
                extra = ""
                if service.queue is not None and service.queue.queued:
                    extra = " · " + t("server.queue", n=service.queue.queued)
                elif service.reachable and service.name == "predictor":
                    extra = " · " + t("server.models", n=service.models)
                chip(f"{t(f'server.{service.name}')}: {word}{extra}", tone)
        if not state.all_reachable:
            note(f"{server_text(t, state)}. {t('server.help')}", "warn")
