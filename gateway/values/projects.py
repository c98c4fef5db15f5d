"""Projects and their classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING

from services.common.task import Task

if TYPE_CHECKING:
    from gateway.values.training import TrainingRun


class ProjectState(StrEnum):
    """Where a project stands, for its row in the list."""

    EMPTY = "empty"
    """No wafer yet."""
    TEACHING = "teaching"
    """Some wafers, not enough to train."""
    READY = "ready"
    """Enough to train, never trained."""
    TRAINING = "training"
    """A training waits or runs."""
    TRAINED = "trained"
    """The last training ended well, and its model knows all wafers."""
    OUTDATED = "outdated"
    """There is a model, but wafers or classes changed since."""
    FAILED = "failed"
    """The last training failed and nothing changed since."""


class Level(StrEnum):
    """How loud a note is."""

    GOOD = "good"
    ADVICE = "advice"
    AMBER = "amber"
    RED = "red"


@dataclass(frozen=True, slots=True)
class Project:
    """A project.

    Attributes:
        project_id: Stable identifier.
        name: Name for people, 1 to 256 characters.
        task: What its model tells.
        product: Product whose wafers it is about; may be empty.
        sample: Whether it is the sample project.
        version: Grows with every change of the project itself; pass it as `expected_version` to notice others' changes.
        created_at: When it was made.
        changed_at: When it, a class or a wafer of it last changed.
        model_id: Name of its model in the model repository.
    """

    project_id: str
    name: str
    task: Task
    product: str
    sample: bool
    version: int
    created_at: datetime
    changed_at: datetime
    model_id: str


@dataclass(frozen=True, slots=True)
class ProjectSummary:
    """A row in the list of projects.

    Attributes:
        project: The project.
        classes: Its classes.
        wafers: Its wafers.
        state: Where it stands.
        score: Macro-F1 of its newest model, or AUROC where only normal wafers teach, on the locked test, or on the tune
            wafers when it has no test; None before.
    """

    project: Project
    classes: int
    wafers: int
    state: ProjectState
    score: float | None = None


@dataclass(frozen=True, slots=True)
class TrashedProject:
    """A project in the trash.

    Attributes:
        project: The project.
        deleted_at: When it was moved there.
        purge_at: When it will be gone for good.
        wafers: Wafers that come back with it.
    """

    project: Project
    deleted_at: datetime
    purge_at: datetime
    wafers: int


@dataclass(frozen=True, slots=True)
class WaferClass:
    """A class of a project.

    Attributes:
        class_id: Stable identifier; renaming never changes it.
        project_id: Its project.
        name: Name for people, unique in the project, 1 to 256 characters.
        colour: `#rrggbb`; kept wherever the class is shown.
        pattern: Canonical pattern (Center, Donut, Edge-Loc, Edge-Ring, Loc, Near-full, Random, Scratch, none), or "".
        position: Place among the cards, from 0; the none class stands first.
        enabled: Whether it takes part in training.
        version: Grows with every change of the class itself.
    """

    class_id: str
    project_id: str
    name: str
    colour: str
    pattern: str
    position: int
    enabled: bool
    version: int

    @property
    def none(self) -> bool:
        """Whether it is the pinned class of wafers without a pattern."""
        return self.pattern == "none"


@dataclass(frozen=True, slots=True)
class Counts:
    """What a class holds: every wafer that shows it.

    Attributes:
        wafers: All wafers, generated ones included.
        lots: Different known lots of the real ones.
        generated: Generated wafers.
        without_lot: Real wafers whose lot is unknown.
    """

    wafers: int = 0
    lots: int = 0
    generated: int = 0
    without_lot: int = 0

    @property
    def real(self) -> int:
        """Wafers that were not generated."""
        return self.wafers - self.generated

    def __add__(self, other: Counts) -> Counts:
        """Returns both together; their lots have to be different ones."""
        return Counts(
            self.wafers + other.wafers,
            self.lots + other.lots,
            self.generated + other.generated,
            self.without_lot + other.without_lot,
        )


@dataclass(frozen=True, slots=True)
class HealthNote:
    """What is missing or good about a class, in machine form.

    Attributes:
        key: `no_wafers`, `few_wafers` (below 5), `below_advised` (below 20), `one_lot`, `no_lots`, `imbalance`,
            `only_generated`, `disabled`, `good`; of classes that never teach `optional` (empty) or `only_measures`.
        level: How loud.
        params: Numbers of the text: `wafers`, `lots`, `needed`, `advised`, `ratio`, `largest`.
    """

    key: str
    level: Level
    params: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ClassCard:
    """A class with all that its card shows.

    Attributes:
        wafer_class: The class.
        counts: What it holds.
        health: Notes, the loudest first; never empty.
    """

    wafer_class: WaferClass
    counts: Counts
    health: tuple[HealthNote, ...]


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether something can be done now, and why not.

    Attributes:
        open: Whether it can.
        reason: When it cannot: `few_classes`, `few_wafers`, `few_normal`, `normal_disabled`, `already_training`;
            else "".
        params: Words and numbers of the reason: `classes`, `needed`, `name`, `wafers`, `run_id`.
    """

    open: bool
    reason: str = ""
    params: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Board:
    """Everything on the canvas of a project.

    Attributes:
        project: The project.
        cards: Its classes in order, the none class first.
        counts: Sum over the classes.
        state: Where the project stands.
        training: Whether Train can be pressed.
        latest_run: Its newest training, or None.
        model_version: Newest published version of its model, 0 before the first.
        outdated: Whether the model is older than the data.
    """

    project: Project
    cards: tuple[ClassCard, ...]
    counts: Counts
    state: ProjectState
    training: Gate
    latest_run: TrainingRun | None
    model_version: int
    outdated: bool
