"""Published models and how they serve."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from services.common.task import Task


class ModelState(StrEnum):
    """State of a version in the model server."""

    READY = "ready"
    LOADING = "loading"
    UNLOADED = "unloaded"
    REJECTED = "rejected"
    """The server refused it; `reason` says why. The version before keeps serving."""
    UNKNOWN = "unknown"
    """The model server cannot be asked now."""


@dataclass(frozen=True, slots=True)
class ModelClass:
    """A class that a model answers."""

    class_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model.

    Attributes:
        model_id: Name of the model.
        version: Version, from 1.
        state: State in the model server.
        reason: The server's words about the state; may be empty.
        project_id: Project it was taught in; "" when unknown.
        run_id: Training that made it; "" when unknown.
        classes: What it answers; empty while it is not loaded.
        published_at: When it was published; None when unknown.
        score: Macro-F1, or AUROC where only normal wafers teach, on the locked test, else on the tune wafers; None when
            unknown.
        device: What runs it, as `CPUExecutionProvider`; "" while it is not loaded.
        wafers: Wafers answered since it was loaded.
        latency_ms: Median time of a request, milliseconds; 0 before the first.
        task: What it tells; SINGLE while it is not loaded.
        quantised: Whether it is the quantised variant of what a training made.
    """

    model_id: str
    version: int
    state: ModelState
    reason: str = ""
    project_id: str = ""
    run_id: str = ""
    classes: tuple[ModelClass, ...] = ()
    published_at: datetime | None = None
    score: float | None = None
    device: str = ""
    wafers: int = 0
    latency_ms: float = 0.0
    task: Task = Task.SINGLE
    quantised: bool = False
