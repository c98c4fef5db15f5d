"""More wafers of a class: ask, watch, look through, add."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any, Final

from nicegui import ui

from gateway.components.base import (
    Text,
    bar,
    box,
    button,
    dialog,
    heading,
    icon,
    note,
    paragraph,
    set_attributes,
    set_share,
)
from gateway.components.frame import View
from gateway.components.setting import setting
from gateway.components.wafer_strip import Thumb, WaferStrip
from gateway.values import (
    VARIATION_LIMITS,
    Counts,
    GenerationPreview,
    GenerationProgress,
    GenerationRequest,
    GenerationRun,
    JobState,
    JobStateChanged,
    Method,
    Task,
    VariationOptions,
    WaferClass,
)
from gateway.views.generation import (
    VARIATION_STEPS,
    progress_text,
    proof_sentence,
    realism_sentences,
    variation_options,
)
from gateway.views.projects import problem_text

LEARNED_NEEDS: Final = 20
DEFAULT_COUNT: Final = 30
MAX_COUNT: Final = 1000
SHOWN_RESULTS: Final = 300


def generate_dialog(view: View, task: Task, of_class: WaferClass, counts: Counts) -> None:
    """Makes more wafers of a class."""
    GenerateDialog(view, task, of_class, counts)


class GenerateDialog:
    """Makes more wafers of a class. Work goes on when it is closed; opened again, it shows where the work is.

    Args:
        view: The page's view.
        task: What the model of the project tells.
        of_class: The class.
        counts: What the class holds.
    """

    def __init__(self, view: View, task: Task, of_class: WaferClass, counts: Counts) -> None:
        self._view = view
        self._several = task is Task.SEVERAL
        self._class = of_class
        self._counts = counts
        self._method = Method.VARIATIONS
        self._settings: dict[str, Any] = {}
        self._room = view.portal.studio.generation
        t = view.t
        with dialog(t("generate.title", name=of_class.name), t("app.close")) as self._window:
            self._body = box("tw-dialog-body")
            self._foot = box("tw-dialog-foot")
            self._foot.set_visibility(False)
        view.later(self._begin())

    async def _begin(self) -> None:
        """Goes on with a generation of the class that is under way or not looked through yet; asks otherwise."""
        for run in await self._room.list(self._class.project_id):
            mine = any(request.class_id == self._class.class_id for request in run.requests)
            if mine and not run.accepted and (not run.state.ended or run.state is JobState.SUCCEEDED):
                await self._follow(await self._room.get(run.run_id))
                return
            if mine:
                break
        self._ask()

    def _clear(self, *, foot: bool = True) -> None:
        self._body.clear()
        self._foot.clear()
        self._foot.set_visibility(foot)

    def _ask(self) -> None:
        t = self._view.t
        self._clear()
        self._settings.clear()
        with self._body:
            paragraph(t("generate.text"), "tw-soft")
            Text(t("generate.method"), "tw-label")
            self._methods()
            with box("tw-row"):
                Text(t("generate.count"), "tw-label tw-grow")
                count = ui.number(value=DEFAULT_COUNT, min=1, max=MAX_COUNT, step=1, precision=0)
                count.props("outlined dense").style("width:120px").props["aria-label"] = t("generate.count")
            self._variation_settings()
            with box("tw-row"):
                with box("tw-stack tight tw-grow"):
                    Text(t("generate.prove"), "tw-label")
                    Text(t("generate.prove_help"), "tw-faint")
                prove = ui.switch(value=False)
                prove.props["aria-label"] = t("generate.prove")

        async def start() -> None:
            async with self._view.doing():
                wanted = max(1, min(MAX_COUNT, int(count.value or DEFAULT_COUNT)))
                request = GenerationRequest(
                    self._class.class_id, wanted, self._method, variation_options(self._answers())
                )
                run = await self._room.start(
                    self._class.project_id,
                    [request],
                    seed=secrets.randbelow(2**31),
                    request_id=secrets.token_hex(16),
                    prove=bool(prove.value),
                )
                self._view.later(self._follow(run))

        with self._foot:
            button(t("generate.start"), start, kind="primary", sign="sparkles")

    def _methods(self) -> None:
        t = self._view.t
        why = ""
        if self._several:
            why = t("generate.learned_one_pattern")
        elif self._counts.real < LEARNED_NEEDS:
            why = t("generate.learned_needs", needed=LEARNED_NEEDS, n=self._counts.real)
        choices = {}
        with box("tw-choices", role="radiogroup", aria_label=t("generate.method")):
            for method in Method:
                off = method is Method.LEARNED and bool(why)
                with box("tw-choice", tag="button", type="button", role="radio") as choice:
                    Text(t(f"generate.{method.value}"), tag="strong")
                    Text(t(f"generate.{method.value}_text"), "tw-faint")
                    if off:
                        Text(why, "tw-faint")
                set_attributes(choice, aria_disabled="true" if off else None)
                choices[method] = choice

        def choose(method: Method) -> None:
            if method is Method.LEARNED and why:
                return
            self._method = method
            if self._settings:
                self._advanced.set_visibility(method is Method.VARIATIONS)
            for each, element in choices.items():
                set_attributes(element, aria_checked="true" if each is method else "false")

        for method, element in choices.items():
            element.on("click", lambda method=method: choose(method), args=[])
        choose(self._method)

    def _variation_settings(self) -> None:
        """Every setting of variations with a help text; left alone, each is what suits the pattern."""
        t = self._view.t
        choices = {"": t("generate.as_suits"), "yes": t("generate.yes"), "no": t("generate.no")}
        with box("tw-advanced", tag="details") as self._advanced:
            Text(t("train.advanced"), tag="summary")
            with box("tw-stack"):
                Text(t("generate.settings_text"), "tw-faint")
                for name in (each.name for each in fields(VariationOptions)):
                    make: Callable[[], Any] = partial(ui.select, choices, value="")
                    if name in VARIATION_STEPS:
                        highest, step = VARIATION_LIMITS[name], VARIATION_STEPS[name]
                        make = partial(ui.number, min=0, max=highest, step=step, placeholder=t("generate.as_suits"))
                    self._settings[name] = setting(self._view, f"generate.{name}", make)
        self._advanced.set_visibility(self._method is Method.VARIATIONS)

    def _answers(self) -> dict[str, Any]:
        return {name: element.value for name, element in self._settings.items()}

    async def _follow(self, run: GenerationRun) -> None:
        """Shows a generation until it ends, then what it made."""
        t = self._view.t
        if not run.state.ended:
            run = await self._watch(run)
        if self._window.is_deleted:
            return
        if run.state is JobState.SUCCEEDED:
            await self._results(run)
            return
        self._clear()
        with self._body:
            cancelled = run.state is JobState.CANCELLED
            text = problem_text(t, run.problem) if run.problem else t("generate.discarded")
            note(text if cancelled else f"{t('generate.failed')}. {text}", "" if cancelled else "bad")
        with self._foot:
            button(t("app.back"), self._ask)

    async def _watch(self, run: GenerationRun) -> GenerationRun:
        t = self._view.t
        self._clear()
        with self._body:
            headline = Text(progress_text(t, run.state, run.queue_position, None), tag="strong")
            headline.props("aria-live=polite")
            share = bar(run.progress, t("generate.start"))
            Text(t("generate.leave"), "tw-faint")
            previews = box("tw-stack")

        async def stop() -> None:
            async with self._view.doing():
                await self._room.cancel(run.run_id)

        with self._foot:
            button(t("generate.stop"), stop, sign="stop")
        state, last = run.state, None
        async with self._view.doing():
            async for event in self._room.watch(run.run_id):
                if self._window.is_deleted:
                    return run
                if isinstance(event, JobStateChanged):
                    state = event.state
                elif isinstance(event, GenerationProgress):
                    last = event
                    set_share(share, event.progress)
                elif isinstance(event, GenerationPreview):
                    sheet, columns = await self._view.portal.sheet(event.maps)
                    previews.clear()
                    with previews:
                        Text(t("generate.previews"), "tw-label")
                        thumbs = [Thumb(str(index), f"{index + 1}") for index in range(len(event.maps))]
                        label = t("generate.previews")
                        WaferStrip(thumbs, sheet, columns, label, on_pick=lambda _: None)
                headline.text = progress_text(t, state, run.queue_position, last)
        return await self._room.get(run.run_id)

    async def _results(self, run: GenerationRun) -> None:
        """Shows what was made; those marked as wrong are left out."""
        t, class_id = self._view.t, self._class.class_id
        results = await self._room.results(run.run_id, class_id, limit=SHOWN_RESULTS)
        made = next((each for each in run.result.classes if each.class_id == class_id), None) if run.result else None
        sheet, columns = await self._view.portal.sheet([wafer for _, wafer in results])
        total = made.count if made else len(results)
        wrong: list[str] = []
        self._clear()
        with self._body:
            if made is not None:
                heading(t("generate.realism"), 3)
                with box("tw-stack tight"):
                    proof = run.result.proof if run.result else None
                    told = [*realism_sentences(t, made.realism), *([proof_sentence(t, proof)] if proof else [])]
                    for text, tone in told:
                        with box(f"tw-health {tone or 'off'}"):
                            icon("warning" if tone == "warn" else "check" if tone else "info", "small")
                            Text(text)
            heading(t("generate.result", n=total), 3)
            Text(t("generate.looks_wrong_help"), "tw-faint")
            thumbs = [Thumb(each, f"{index + 1}") for index, (each, _) in enumerate(results)]

            def mark(wafer_id: str) -> None:
                wrong.remove(wafer_id) if wafer_id in wrong else wrong.append(wafer_id)
                strip.mark_only(wrong)
                accept.label = t("generate.accept", n=total - len(wrong), name=self._class.name)

            strip = WaferStrip(
                thumbs, sheet, columns, t("generate.looks_wrong"), on_pick=mark, marking=True, crossing=True
            )

        async def add() -> None:
            async with self._view.doing():
                change = await self._room.accept(run.run_id, leave_out=wrong)
                self._window.close()
                await self._view.tell(change)

        def discard() -> None:
            self._ask()
            self._view.toast(t("generate.discarded"))

        with self._foot:
            button(t("generate.discard"), discard)
            accept = button(t("generate.accept", n=total, name=self._class.name), add, kind="primary")
