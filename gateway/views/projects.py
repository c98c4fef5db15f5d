"""Projects, classes and what was done with them, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from gateway.i18n import Messages
from gateway.values import Board, Change, Counts, Gate, HealthNote, Level, Problem, ProjectState, ServerState, WaferInfo

STATE_TONES: Final = {
    ProjectState.EMPTY: "",
    ProjectState.TEACHING: "",
    ProjectState.READY: "accent",
    ProjectState.TRAINING: "accent",
    ProjectState.TRAINED: "good",
    ProjectState.OUTDATED: "warn",
    ProjectState.FAILED: "bad",
}
LEVEL_TONES: Final = {Level.GOOD: "good", Level.ADVICE: "off", Level.AMBER: "warn", Level.RED: "bad"}


def counts_text(t: Messages, counts: Counts) -> str:
    """Says what a class holds: `24 wafers · 3 lots · 6 generated`."""
    parts = [t("count.wafers", n=counts.wafers)]
    if counts.lots:
        parts.append(t("count.lots", n=counts.lots))
    if counts.generated:
        parts.append(t("count.generated", n=counts.generated))
    return " · ".join(parts)


def health_text(t: Messages, note: HealthNote) -> str:
    """Says what is missing or good about a class."""
    params = dict(note.params)
    count = params.get("wafers", 0)
    return t(f"health.{note.key}", **{"n": count, **params})


def gate_text(t: Messages, gate: Gate) -> str:
    """Says why something cannot be done now; empty when it can."""
    return "" if gate.open else t(f"gate.{gate.reason}", **gate.params)


def change_text(t: Messages, change: Change) -> str:
    """Says what was changed."""
    key = f"change.{change.kind}"
    try:
        return t(key, **{"n": change.params.get("count", 0), **change.params})
    except KeyError:
        return t("change.anything")


def problem_text(t: Messages, problem: Problem) -> str:
    """Says why something failed."""
    key = f"reason.{problem.reason}"
    if t.has(key):
        try:
            return t(key, **problem.metadata)
        except KeyError:
            pass
    kind = f"error_kind.{problem.code}"
    return t(kind if t.has(kind) else "error_kind.UNKNOWN", detail=problem.message)


def server_text(t: Messages, state: ServerState) -> str:
    """Says whether all services answer."""
    away = [t(f"server.{service.name}") for service in state.services if not service.reachable]
    return t("server.down", names=", ".join(away)) if away else t("server.ok")


def wafer_label(t: Messages, info: WaferInfo, number: int, further: Sequence[str] = ()) -> str:
    """Names a wafer for screen readers: its number and how it came into being, and what else is known.

    Args:
        t: Texts.
        info: The wafer.
        number: Its place in the list, from 1.
        further: Names of the classes that it shows beside the one on whose card it lies.
    """
    parts = [t("wafer.enlarge", number=number, origin=t(f"origin.{info.origin.value}"))]
    parts += [" ".join(part for part in (info.lot, info.wafer) if part)]
    parts += [t("wafer.also", names=", ".join(further))] if further else []
    return ", ".join(part for part in parts if part)


def further_names(info: WaferInfo, class_id: str, names: Mapping[str, str]) -> list[str]:
    """Names the classes that a wafer shows beside the one on whose card it lies.

    Args:
        info: The wafer.
        class_id: The class of the card.
        names: Name of each class id.
    """
    return [names[each] for each in (info.class_id, *info.also) if each != class_id and each in names]


def wafer_badge(info: WaferInfo, further: Sequence[str]) -> str:
    """Returns the letters over the picture of a wafer: G for a generated one, how many further classes it shows."""
    return " ".join(part for part in ("G" if info.generated else "", f"+{len(further)}" if further else "") if part)


def can_try(board: Board) -> bool:
    """Whether the project has a model to ask."""
    return board.model_version > 0
