"""Models: published versions, whether they serve, how to ask them."""

from __future__ import annotations

from nicegui import ui

from gateway.components.base import Text, box, button, cell, chip, heading, link, note, paragraph, table
from gateway.components.frame import View, begin, empty_state, find_project, frame
from gateway.portal import Portal
from gateway.values import (
    JobState,
    ModelState,
    ModelVersion,
    Project,
    QuantisedVariant,
    Task,
    TrainingResult,
    TrainingRun,
)
from gateway.views.models import STATE_TONES, python_snippet, service_text, variant_rows
from gateway.views.projects import problem_text


def register(portal: Portal) -> None:
    """Makes the page known to NiceGUI."""

    @ui.page("/projects/{project_id}/models")
    async def models(project_id: str) -> None:
        view = await begin(portal)
        project = await find_project(view, project_id)
        if project is None:
            return
        with frame(view, project=project, tab="models"):
            page = _Models(view, project)
            await page.show()
        view.on_changed.append(page.show)


class _Models:
    """The versions of a project's model.

    Args:
        view: The page's view.
        project: The project.
    """

    def __init__(self, view: View, project: Project) -> None:
        self._view = view
        self._project = project
        self._place = box("tw-stack loose").style("gap:32px")

    async def show(self) -> None:
        """Shows all versions as they are now."""
        studio, project_id = self._view.portal.studio, self._project.project_id
        versions = await studio.models.of_project(project_id)
        runs = await studio.training.list(project_id)
        waiting = next((run for run in runs if run.state is JobState.SUCCEEDED), None)
        self._place.clear()
        with self._place:
            t = self._view.t
            with box("tw-stack", tag="section"):
                heading(t("models.title"), 1)
                paragraph(t("models.text"), "tw-soft")
            if waiting is not None and not waiting.model_version:
                self._candidate(waiting)
            elif waiting is not None and waiting.result and waiting.result.quantised and not waiting.quantised_version:
                self._variant(waiting, waiting.result, waiting.result.quantised)
            if not versions:
                with box("tw-card"), empty_state(t("models.empty"), t("models.empty_text"), sign="train"):
                    link(t("evaluate.to_canvas"), f"/projects/{project_id}", "tw-button primary")
                return
            self._versions(versions)
            self._call()

    def _candidate(self, run: TrainingRun) -> None:
        """A model that was taught but could not be published yet."""
        t = self._view.t

        async def publish() -> None:
            async with self._view.doing():
                version = await self._view.portal.studio.models.publish(run.run_id)
                self._view.toast(t("models.published_toast", version=version.version))
            await self.show()

        with box("tw-card padded tw-stack", tag="section"):
            heading(t("models.candidate"), 2)
            paragraph(t("models.candidate_text", when=t.moment(run.ended_at)), "tw-soft")
            if run.problem is not None:
                note(problem_text(t, run.problem), "bad")
            with box("tw-row"):
                button(t("models.publish"), publish, kind="primary")

    def _variant(self, run: TrainingRun, result: TrainingResult, variant: QuantisedVariant) -> None:
        """The quantised variant of the newest model, beside it, before a person decides."""
        t = self._view.t

        async def publish() -> None:
            async with self._view.doing():
                version = await self._view.portal.studio.models.publish_quantised(run.run_id)
                self._view.toast(t("models.published_toast", version=version.version))
            await self.show()

        with box("tw-card padded tw-stack", tag="section"):
            heading(t("models.variant"), 2)
            paragraph(t("models.variant_text"), "tw-soft")
            headers = [
                ("", ""),
                (t("models.variant_model", version=run.model_version), "num"),
                (t("models.variant_small"), "num"),
            ]
            with table(headers, t("models.variant")):
                for name, model, small in variant_rows(t, result, variant):
                    with box(tag="tr"):
                        cell(name)
                        cell(model, "num")
                        cell(small, "num")
            share, least = t.percent(variant.same_answers, 1), t.percent(variant.least_same_answers)
            wafers = t("count.wafers", n=variant.compared_wafers)
            measured = t("evaluate.test") if result.test else t("evaluate.tune")
            Text(t("models.variant_measured", part=measured), "tw-faint")
            if variant.publishable:
                note(t("models.variant_same", share=share, wafers=wafers), "good", "check")
            else:
                note(t("models.variant_differs", share=share, wafers=wafers, least=least), "warn")
            with box("tw-row"):
                why = "" if variant.publishable else t("models.variant_refused", least=least)
                button(t("models.variant_publish"), publish, kind="primary", why=why)

    def _versions(self, versions: tuple[ModelVersion, ...]) -> None:
        t = self._view.t
        model_id = self._project.model_id
        loaded = any(version.state is ModelState.READY for version in versions)
        known = any(version.state is not ModelState.UNKNOWN for version in versions)
        with box("tw-stack", tag="section"):
            with box("tw-row between wrap"):
                with box("tw-row tight wrap"):
                    Text(t("models.name"), "tw-soft")
                    Text(model_id, tag="code").style("font-family:var(--mono);font-weight:600")
                if known:
                    action, key = (self._unload, "models.unload") if loaded else (self._load, "models.load")
                    button(t(key), action, kind="small")
            headers = [
                (t("models.version"), ""),
                (t("models.published"), ""),
                (t("models.score_normal" if self._project.task is Task.NORMAL else "models.score"), "num"),
                (t("models.state"), ""),
                (t("models.service"), ""),
                ("", "actions"),
            ]
            with table(headers, t("models.title")):
                for index, version in enumerate(versions):
                    self._row(version, newest=index == 0)

    def _row(self, version: ModelVersion, *, newest: bool) -> None:
        t = self._view.t
        with box(tag="tr"):
            with box(tag="td"), box("tw-row tight"):
                Text(str(version.version), tag="strong")
                if newest:
                    chip(t("models.newest"), "accent")
                if version.quantised:
                    chip(t("models.quantised"))
            cell(t.moment(version.published_at), "tw-soft")
            cell("–" if version.score is None else t.score(version.score), "num")
            with box(tag="td"):
                state = chip(t(f"models.state_{version.state.value}"), STATE_TONES[version.state])
                if version.reason:
                    state.props["title"] = version.reason
            cell(service_text(t, version) or "–", "tw-soft tw-number")
            with box("actions", tag="td"):
                name = t("models.download_onnx", version=version.version)
                address = f"/media/models/{version.model_id}/{version.version}/model.onnx"
                link("ONNX", address, "tw-button small", sign="download", download="", aria_label=name, title=name)

    async def _load(self) -> None:
        async with self._view.doing():
            await self._view.portal.studio.models.load(self._project.model_id)
            self._view.toast(self._view.t("models.loaded_toast"))
        await self.show()

    async def _unload(self) -> None:
        async with self._view.doing():
            await self._view.portal.studio.models.unload(self._project.model_id)
            self._view.toast(self._view.t("models.unloaded_toast"))
        await self.show()

    def _call(self) -> None:
        """Says how to ask the model from a program."""
        t = self._view.t
        address = self._view.portal.settings.predictor_address
        code = python_snippet(self._project.model_id, address, self._project.task)
        with box("tw-stack", tag="section"):
            with box("tw-row between"):
                heading(t("models.call"), 2)

                def copy() -> None:
                    ui.clipboard.write(code)
                    self._view.toast(t("app.copied"))

                button(t("app.copy"), copy, kind="small", sign="copy")
            Text(t("models.call_text", address=address), "tw-faint")
            Text(code, "tw-code", tag="pre").props("tabindex=0")
