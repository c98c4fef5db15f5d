"""What is missing in a class or a project, in machine form. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from gateway.catalogue.patterns import NONE
from gateway.values import (
    ClassCard,
    Counts,
    Gate,
    HealthNote,
    JobState,
    Level,
    ProjectState,
    Task,
    TrainingRun,
    WaferClass,
)

FLOOR: Final = 5
"""Fewest real wafers of a class that can be taught."""
ADVISED: Final = 20
"""Wafers from which a class is taught well."""
GOOD: Final = 50
"""Wafers from which more hardly help."""
NORMAL_FLOOR: Final = 20
"""Fewest normal wafers where only these teach."""
MAX_RATIO: Final = 20
"""Largest class against smallest class, from which the small one suffers."""


def cards(task: Task, classes: Sequence[WaferClass], counts: dict[str, Counts]) -> tuple[ClassCard, ...]:
    """Returns the cards of a project.

    Args:
        task: What its model shall tell.
        classes: Its classes in order.
        counts: What they hold, by class id; empty ones may be missing.
    """
    enabled = [counts.get(each.class_id, Counts()).real for each in classes if each.enabled]
    # Where only normal wafers teach, the others need no balance.
    largest = 0 if task is Task.NORMAL else max(enabled, default=0)
    return tuple(
        ClassCard(each, held, _notes(task, each, held, largest))
        for each in classes
        for held in (counts.get(each.class_id, Counts()),)
    )


def gate(task: Task, class_cards: Sequence[ClassCard], latest: TrainingRun | None) -> Gate:
    """Returns whether a project can be trained now.

    Args:
        task: What its model shall tell.
        class_cards: Its cards.
        latest: Its newest training.
    """
    if latest is not None and not latest.state.ended:
        return Gate(False, "already_training", {"run_id": latest.run_id})
    if task is Task.NORMAL:
        return _normal_gate(class_cards)
    taught = [card for card in class_cards if card.wafer_class.enabled and card.counts.real > 0]
    if len(taught) < 2:
        return Gate(False, "few_classes", {"classes": len(taught), "needed": 2})
    for card in taught:
        if card.counts.real < FLOOR:
            params: dict[str, int | str] = {"name": card.wafer_class.name, "wafers": card.counts.real, "needed": FLOOR}
            return Gate(False, "few_wafers", params)
    return Gate(True)


def _normal_gate(class_cards: Sequence[ClassCard]) -> Gate:
    """Returns whether there are normal wafers enough."""
    card = next((each for each in class_cards if each.wafer_class.none), None)
    if card is None:
        return Gate(False, "few_normal", {"name": NONE, "wafers": 0, "needed": NORMAL_FLOOR})
    if not card.wafer_class.enabled:
        return Gate(False, "normal_disabled", {"name": card.wafer_class.name})
    if card.counts.real < NORMAL_FLOOR:
        params: dict[str, int | str] = {
            "name": card.wafer_class.name,
            "wafers": card.counts.real,
            "needed": NORMAL_FLOOR,
        }
        return Gate(False, "few_normal", params)
    return Gate(True)


def state(wafers: int, can_train: Gate, latest: TrainingRun | None, published: bool, outdated: bool) -> ProjectState:
    """Returns where a project stands.

    Args:
        wafers: Its wafers.
        can_train: Whether it can be trained.
        latest: Its newest training.
        published: Whether it has a model.
        outdated: Whether the data changed since the newest training.
    """
    if latest is not None and not latest.state.ended:
        return ProjectState.TRAINING
    if latest is not None and latest.problem is not None and not outdated:
        return ProjectState.FAILED
    if published:
        return ProjectState.OUTDATED if outdated else ProjectState.TRAINED
    if latest is not None and latest.state is JobState.FAILED and not outdated:
        return ProjectState.FAILED
    if wafers == 0:
        return ProjectState.EMPTY
    return ProjectState.READY if can_train.open else ProjectState.TEACHING


def _notes(task: Task, wafer_class: WaferClass, held: Counts, largest: int) -> tuple[HealthNote, ...]:
    """Returns the notes of a card, the loudest first."""
    real, numbers = held.real, {"wafers": held.real, "lots": held.lots}
    if not wafer_class.enabled:
        return (HealthNote("disabled", Level.ADVICE, numbers),)
    if task is Task.NORMAL and not wafer_class.none:
        return (HealthNote("only_measures" if real else "optional", Level.ADVICE, numbers),)
    floor = NORMAL_FLOOR if task is Task.NORMAL else FLOOR
    advised = GOOD if task is Task.NORMAL else ADVISED
    if real == 0 and held.generated > 0:
        return (HealthNote("only_generated", Level.RED, {**numbers, "generated": held.generated}),)
    if real == 0:
        return (HealthNote("no_wafers", Level.ADVICE, {**numbers, "needed": floor}),)
    notes = []
    if real < floor:
        notes.append(HealthNote("few_wafers", Level.RED, {**numbers, "needed": floor}))
    elif real < advised:
        notes.append(HealthNote("below_advised", Level.ADVICE, {**numbers, "advised": advised}))
    if held.lots == 1 and held.without_lot == 0:
        notes.append(HealthNote("one_lot", Level.AMBER, numbers))
    elif held.lots == 0:
        notes.append(HealthNote("no_lots", Level.ADVICE, numbers))
    if real >= FLOOR and largest > MAX_RATIO * real:
        ratio = round(largest / real)
        notes.append(HealthNote("imbalance", Level.AMBER, {**numbers, "ratio": ratio, "largest": largest}))
    loudness = [Level.RED, Level.AMBER, Level.ADVICE]
    notes.sort(key=lambda note: loudness.index(note.level))
    return tuple(notes) or (HealthNote("good", Level.GOOD, {**numbers, "good": GOOD}),)
