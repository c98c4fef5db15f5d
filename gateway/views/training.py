"""How a training stands, followed event by event."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gateway.i18n import Messages
from gateway.values import (
    EpochEnded,
    JobState,
    JobStateChanged,
    ModelPublished,
    Problem,
    PublishFailed,
    StageStarted,
    TrainingEvent,
    TrainingRun,
)
from gateway.views.projects import problem_text

LEARNING_STAGES = ("features", "training")
"""Stages in which epochs end: first of the head alone on the features, then of the whole network."""

TRAIN_COLOUR, TUNE_COLOUR = "#2251cc", "#c2570c"


@dataclass(slots=True)
class TrainingProgress:
    """What is known of a training so far.

    Attributes:
        state: Where it stands.
        queue_position: Trainings before this one.
        stage: Step of the work; "" before the first.
        device: Device it runs on.
        epochs: Epochs asked for.
        ended: Epochs that ended.
        progress: Share of the whole work done, 0 to 1.
        problem: Why it, or publishing its model, failed.
        version: Version that it was published as; 0 before.
        sequence: Last event seen.
    """

    state: JobState
    queue_position: int = 0
    stage: str = ""
    device: str = ""
    epochs: int = 0
    ended: list[EpochEnded] = field(default_factory=list)
    progress: float = 0.0
    problem: Problem | None = None
    version: int = 0
    sequence: int = 0

    @classmethod
    def of(cls, run: TrainingRun) -> TrainingProgress:
        """Begins with what the run itself says."""
        return cls(
            state=run.state,
            queue_position=run.queue_position,
            device=run.device,
            epochs=run.options.epochs,
            progress=run.progress,
            problem=run.problem,
            version=run.model_version,
        )

    def see(self, event: TrainingEvent) -> None:
        """Takes an event in."""
        self.sequence = max(self.sequence, event.sequence)
        match event:
            case JobStateChanged():
                # A second attempt teaches again from its checkpoint; epochs that come again replace the old ones.
                self.state = event.state
            case StageStarted():
                self.stage = event.stage
                self.progress = event.progress
                self.device = event.device or self.device
            case EpochEnded():
                self.ended = [each for each in self.ended if each.epoch < event.epoch] + [event]
                self.epochs = event.epochs
            case ModelPublished():
                self.version = event.version
                self.problem = None
            case PublishFailed():
                self.problem = event.problem

    @property
    def resting(self) -> bool:
        """Whether nothing more will come: failed, stopped, or succeeded and published (or not publishable)."""
        if self.state is JobState.SUCCEEDED:
            return self.version > 0 or self.problem is not None
        return self.state.ended

    @property
    def share(self) -> float:
        """Share of the work done for the bar, 0 to 1: epochs while there are some, the service's own word otherwise."""
        if self.state is JobState.SUCCEEDED:
            return 1.0
        if self.stage in LEARNING_STAGES and self.ended and self.epochs:
            return min(1.0, self.ended[-1].epoch / self.epochs)
        return self.progress

    def seconds_left(self) -> float | None:
        """Estimates the rest of the epochs from the last ones; None before two epochs have ended."""
        if self.state is not JobState.RUNNING or self.stage not in LEARNING_STAGES or len(self.ended) < 2:
            return None
        last = self.ended[-5:]
        return sum(each.seconds for each in last) / len(last) * (self.epochs - self.ended[-1].epoch)

    def headline(self, t: Messages) -> str:
        """Says where it stands."""
        if self.state is JobState.QUEUED:
            return t("train.queued", position=self.queue_position) if self.queue_position else t("train.queued_next")
        if self.state is JobState.STARTING:
            return t("train.starting")
        if self.state is JobState.RUNNING:
            if self.stage in LEARNING_STAGES and self.ended:
                return t("train.epoch", epoch=self.ended[-1].epoch, epochs=self.epochs)
            return t(f"train.stage_{self.stage}") if self.stage else t("train.starting")
        if self.state is JobState.SUCCEEDED:
            return t("train.stage_exporting") if not self.resting else ""
        if self.state is JobState.CANCELLED:
            return t("train.cancelled")
        return t("train.failed")

    def detail(self, t: Messages) -> str:
        """Says how long it will take, or why it failed."""
        if self.problem is not None:
            return problem_text(t, self.problem)
        left = self.seconds_left()
        return "" if left is None else t("train.left", time=t.duration(left))

    def series(self, kind: str) -> tuple[list[list[float]], list[list[float]]]:
        """Returns points (epoch, value) of the taught wafers and of those set aside.

        Args:
            kind: `accuracy` or `loss`.
        """
        tune = f"tune_{kind}"
        return (
            [[each.epoch, getattr(each, kind)] for each in self.ended],
            [[each.epoch, getattr(each, tune)] for each in self.ended],
        )


def curve_options(t: Messages, kind: str, progress: TrainingProgress) -> dict[str, Any]:
    """Describes a chart of both curves for ECharts.

    Args:
        t: Texts.
        kind: `accuracy` or `loss`.
        progress: The training.
    """
    taught, aside = progress.series(kind)
    last = progress.ended[-1].epoch if progress.ended else 0
    line = {"type": "line", "smooth": 0.15, "showSymbol": last <= 1, "symbolSize": 5}
    return {
        "animation": False,
        "grid": {"left": 44, "right": 14, "top": 10, "bottom": 24},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": {
            "type": "value",
            "min": 1,
            "max": max(last, 5),
            "minInterval": 1,
            "splitLine": {"show": False},
            "axisLabel": {"color": "#687385", "hideOverlap": True},
        },
        "yAxis": {
            "type": "value",
            "min": 0,
            **({"max": 1, "interval": 0.25} if kind == "accuracy" else {"splitNumber": 4}),
            "splitLine": {"lineStyle": {"color": "#eef1f5"}},
            "axisLabel": {"color": "#687385"},
        },
        "series": [
            {**line, "name": t("train.curve_train"), "data": taught, "color": TRAIN_COLOUR},
            {**line, "name": t("train.curve_tune"), "data": aside, "color": TUNE_COLOUR, "lineStyle": {"type": [6, 3]}},
        ],
    }
