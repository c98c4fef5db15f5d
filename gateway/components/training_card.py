"""The training card: one button, how far it is, its curves, the Advanced box."""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from nicegui import ui

from gateway.components.base import Text, bar, box, button, heading, link, note, set_attributes, set_share
from gateway.components.frame import View
from gateway.components.setting import setting
from gateway.components.wires import Wires
from gateway.values import Board, Evaluation, JobState, ModelSize, Task, TrainingOptions, TrainingRun
from gateway.views.evaluation import outcome_sentence
from gateway.views.projects import gate_text, problem_text
from gateway.views.training import TRAIN_COLOUR, TUNE_COLOUR, TrainingProgress, curve_options
from services.common.errors import TeachwaferError

CHART_SECONDS: Final = 0.5
"""Least time between two drawings of the curves."""

RETRY_SECONDS: Final = 5.0


class TrainingCard:
    """The training card of a project.

    Args:
        view: The page's view.
        board: The canvas as it is.
        wires: Lines of the canvas, which flow while a model is taught.

    Attributes:
        on_trained: Called when a new version serves.
    """

    def __init__(self, view: View, board: Board, wires: Wires) -> None:
        self._view = view
        self._board = board
        self._project_id = board.project.project_id
        self._wires = wires
        self._following = ""
        self.on_trained: list[Callable[[], Awaitable[None] | None]] = []
        t = view.t
        with box("tw-card padded tw-stack loose", data_wire="train"):
            heading(t("train.title"), 2)
            self._button_place = box("tw-stack")
            self._status = box("tw-stack")
            self._status.props("aria-live=polite")
            self._outcome = box("tw-stack")
            self._curves = _Curves(view)
            self._advanced = _Advanced(view, board.project.task)
        view.on_changed.append(self._refresh)
        self._show()
        run = board.latest_run
        if run is not None:
            view.later(self._follow(run))

    async def _refresh(self) -> None:
        self._board = await self._view.portal.studio.projects.board(self._project_id)
        self._show()

    def _show(self) -> None:
        """Shows the button, and what came out of the last training."""
        t, board = self._view.t, self._board
        run = board.latest_run
        busy = run is not None and not run.state.ended
        self._button_place.clear()
        with self._button_place:
            if busy:
                button(t("train.stop"), self._stop, kind="large stretch danger", sign="stop")
            else:
                why = gate_text(t, board.training)
                label = t("train.again" if board.model_version else "train.start")
                button(label, self._start, kind="primary large stretch", sign="play", why=why)
                if why:
                    Text(why, "tw-faint")
        self._outcome.clear()
        if not busy and run is not None:
            with self._outcome:
                self._last(run)

    def _last(self, run: TrainingRun) -> None:
        """Says what came out of the last training."""
        t = self._view.t
        if run.state is JobState.CANCELLED:
            note(t("train.cancelled"))
        elif run.problem is not None:
            note(f"{t('train.failed')}. {problem_text(t, run.problem)}", "bad")
        if run.result is not None:
            if self._board.outdated:
                note(t("train.outdated"), "warn")
            measured: Evaluation | None = run.result.test or run.result.tune
            with box("tw-stack tight"):
                if measured is not None:
                    Text(outcome_sentence(t, measured, self._normal_id()), tag="strong")
                    if run.result.test:
                        Text(t("train.on_locked_test"), "tw-faint")
                time = t.duration(run.result.seconds)
                if run.result.epochs:
                    epochs = {"epoch": run.result.best_epoch, "epochs": run.result.epochs}
                    Text(t("train.best_epoch", **epochs, time=time), "tw-faint")
                else:
                    Text(t("train.took", time=time), "tw-faint")
            link(t("train.see_score"), f"/projects/{self._project_id}/evaluate", "tw-button stretch", sign="eye")

    def _normal_id(self) -> str:
        """Returns the id of the class of wafers without a pattern."""
        return next((card.wafer_class.class_id for card in self._board.cards if card.wafer_class.none), "")

    async def _start(self) -> None:
        async with self._view.doing():
            run = await self._view.portal.studio.training.start(
                self._project_id, self._advanced.options(), request_id=secrets.token_hex(16)
            )
            await self._refresh()
            self._view.later(self._follow(run))

    async def _stop(self) -> None:
        async with self._view.doing():
            if self._board.latest_run is not None:
                await self._view.portal.studio.training.cancel(self._board.latest_run.run_id)

    async def _follow(self, run: TrainingRun) -> None:
        """Shows a training event by event until it rests; tries again while the trainer is away."""
        if self._following == run.run_id:
            return
        self._following = run.run_id
        progress = TrainingProgress.of(run)
        ended_before = progress.resting
        self._wires.set_live(not run.state.ended)
        if not ended_before:
            self._tell(progress)
        drawn = 0.0
        while True:
            try:
                async for event in self._view.portal.studio.training.watch(
                    run.run_id, after_sequence=progress.sequence
                ):
                    progress.see(event)
                    now = asyncio.get_running_loop().time()
                    if not ended_before:
                        self._tell(progress)
                    if now - drawn > CHART_SECONDS:
                        self._curves.show(progress)
                        drawn = now
                break
            except TeachwaferError as error:
                if ended_before or error.code.name != "UNAVAILABLE":
                    break
                self._say(self._view.t.error(error), "", progress.share)
                await asyncio.sleep(RETRY_SECONDS)
        self._curves.show(progress)
        self._wires.set_live(False)
        self._status.clear()
        if not ended_before:
            self._following = ""
            await self._view.changed()
            for callback in self.on_trained:
                result = callback()
                if inspect.isawaitable(result):
                    await result

    def _tell(self, progress: TrainingProgress) -> None:
        t = self._view.t
        self._say(progress.headline(t), progress.detail(t), progress.share, progress.device)

    def _say(self, headline: str, detail: str, share: float, device: str = "") -> None:
        t = self._view.t
        self._status.clear()
        with self._status:
            with box("tw-row between wrap"):
                Text(headline, "tw-number", tag="strong")
                Text(detail, "tw-faint tw-number")
            set_share(bar(share, headline), share)
            Text(t("train.safe"), "tw-faint")
            if device:
                Text(t("train.device", device=device), "tw-faint")


class _Curves:
    """Accuracy and loss per epoch."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._charts: dict[str, ui.echart] = {}
        with box("tw-stack") as self._root:
            with box("tw-row wrap between"):
                heading(view.t("train.curves"), 3)
                with box("tw-key"):
                    for key, colour, css in (("train", TRAIN_COLOUR, ""), ("tune", TUNE_COLOUR, "dashed")):
                        with box(css, tag="span"):
                            box(tag="i", aria_hidden="true").style(f"--swatch:{colour}")
                            Text(view.t(f"train.curve_{key}"))
            for kind in ("accuracy", "loss"):
                name = view.t(f"train.{kind}")
                with box():
                    Text(name, "tw-label")
                    chart = ui.echart(curve_options(view.t, kind, TrainingProgress(JobState.QUEUED)), renderer="svg")
                    chart.classes("tw-chart")
                    set_attributes(chart, role="img", aria_label=view.t("train.curves_label", name=name))
                    self._charts[kind] = chart
        self._root.set_visibility(False)

    def show(self, progress: TrainingProgress) -> None:
        """Draws the curves anew; they hide as long as there is nothing to draw."""
        if not progress.ended:
            return
        self._root.set_visibility(True)
        for kind, chart in self._charts.items():
            chart.options.clear()
            chart.options.update(curve_options(self._view.t, kind, progress))
            chart.update()


class _Advanced:
    """The Advanced box: every setting with a help text.

    Args:
        view: The page's view.
        task: What the model tells. Where only normal wafers teach there are no epochs and no generated wafers.
    """

    def __init__(self, view: View, task: Task) -> None:
        self._view = view
        self._defaults = TrainingOptions()
        self._inputs: dict[str, Any] = {}
        t = view.t
        with box("tw-advanced", tag="details"):
            Text(t("train.advanced"), tag="summary")
            with box("tw-stack"):
                with box():
                    if task is not Task.NORMAL:
                        self._number("epochs", 1, 1000, 1)
                        self._number("batch_size", 1, 4096, 1)
                        self._number("learning_rate", 0.000001, 1, 0.0001)
                    sizes = {size.value: t(f"train.model_{size.value}") for size in ModelSize}
                    self._add("model_size", lambda: ui.select(sizes, value=self._defaults.model_size.value))
                    self._number("augmentation", 0, 1, 0.1)
                    if task is not Task.NORMAL:
                        self._add("use_generated", lambda: ui.switch(value=self._defaults.use_generated))
                    self._add("quantise", lambda: ui.switch(value=self._defaults.quantise))
                    self._number("seed", 0, 2**32 - 1, 1)
                button(t("train.reset"), self._reset, kind="quiet small", sign="undo")

    def _number(self, key: str, low: float, high: float, step: float) -> None:
        value = getattr(self._defaults, key)
        self._add(key, lambda: ui.number(value=value, min=low, max=high, step=step))

    def _add(self, key: str, make: Callable[[], Any]) -> None:
        self._inputs[key] = setting(self._view, f"train.{key}", make)

    def _reset(self) -> None:
        for key, element in self._inputs.items():
            value = getattr(self._defaults, key)
            element.value = value.value if isinstance(value, ModelSize) else value

    def options(self) -> TrainingOptions:
        """Returns the settings as they stand; empty fields take their defaults."""
        values: dict[str, Any] = {}
        for key, element in self._inputs.items():
            default = getattr(self._defaults, key)
            if element.value is not None:
                values[key] = type(default)(element.value)
        return replace(self._defaults, **values)
