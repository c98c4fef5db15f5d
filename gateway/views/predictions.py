"""Answers of the model, most doubtful first, and as files."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gateway.i18n import Messages
from gateway.values import Answer, Decision, FileAnswers
from gateway.views.projects import problem_text

DECISION_TONES: Final = {
    Decision.ACCEPTED: "good",
    Decision.NOT_SURE: "warn",
    Decision.UNKNOWN: "warn",
    Decision.FAILED: "bad",
}
_DOUBT: Final = {Decision.FAILED: 0, Decision.UNKNOWN: 1, Decision.NOT_SURE: 2, Decision.ACCEPTED: 3}


@dataclass(frozen=True, slots=True)
class PredictionSummary:
    """How many answers can be used without a look.

    Attributes:
        total: All wafers.
        accepted: Sure enough to use.
        look: The rest.
        per_class: Accepted and doubtful answers by class name, the most frequent first.
    """

    total: int
    accepted: int
    look: int
    per_class: tuple[tuple[str, int], ...]


def by_doubt(answers: Sequence[Answer]) -> list[Answer]:
    """Sorts answers: failed, unknown (strangest first), not sure (least sure first), accepted (least sure first)."""

    def doubt(answer: Answer) -> tuple[int, float]:
        order = _DOUBT[answer.decision]
        return order, -answer.novelty if answer.decision is Decision.UNKNOWN else answer.probability

    return sorted(answers, key=doubt)


def summarise(answers: Sequence[Answer]) -> PredictionSummary:
    """Counts answers."""
    accepted = sum(answer.decision is Decision.ACCEPTED for answer in answers)
    names = Counter(answer.name for answer in answers if answer.decision is not Decision.FAILED)
    return PredictionSummary(len(answers), accepted, len(answers) - accepted, tuple(names.most_common()))


def decision_text(t: Messages, decision: Decision) -> str:
    """Names a decision."""
    return t("predict.decision_error" if decision is Decision.FAILED else f"predict.decision_{decision.value}")


def decision_chip(t: Messages, answer: Answer) -> tuple[str, str]:
    """Returns text and tone of the chip beside a tried wafer: the class only where the model is sure."""
    if answer.decision is Decision.ACCEPTED:
        return answer.name, "good"
    if answer.decision is Decision.FAILED:
        return t("predict.error"), "bad"
    return t(f"try.{answer.decision.value}"), "warn"


def decision_advice(t: Messages, answer: Answer) -> str:
    """Says what to do with an answer."""
    if answer.decision is Decision.FAILED:
        return problem_text(t, answer.problem) if answer.problem else t("predict.error")
    return t(f"try.{answer.decision.value}_text", name=answer.name)


def wafer_name(answer: Answer) -> str:
    """Names an answered wafer: lot and wafer where known, else the file."""
    identity = " ".join(part for part in (answer.map.identity.lot, answer.map.identity.wafer) if part)
    return identity or answer.source_name or "–"


def to_csv(result: FileAnswers) -> bytes:
    """Writes answers as CSV with a byte order mark, so that spreadsheets read Korean names right.

    Texts that a spreadsheet would take for a formula get an apostrophe before them.
    """
    classes = sorted({each.name for answer in result.answers for each in answer.probabilities})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(
        ["lot", "wafer", "file", "answer", "probability", "decision", "novelty", "model", "version"]
        + [_plain(f"p({name})") for name in classes]
    )
    for answer in result.answers:
        shares = {each.name: each.probability for each in answer.probabilities}
        writer.writerow(
            [
                _plain(answer.map.identity.lot),
                _plain(answer.map.identity.wafer),
                _plain(answer.source_name),
                _plain(answer.name),
                f"{answer.probability:.6f}",
                answer.decision.value,
                f"{answer.novelty:.4f}",
                result.model_id,
                result.version,
            ]
            + [f"{shares[name]:.6f}" if name in shares else "" for name in classes]
        )
    return "\ufeff".encode() + out.getvalue().encode()


def to_json(result: FileAnswers) -> bytes:
    """Writes answers as JSON."""
    rows = [
        {
            "lot": answer.map.identity.lot,
            "wafer": answer.map.identity.wafer,
            "file": answer.source_name,
            "class_id": answer.class_id,
            "answer": answer.name,
            "probability": answer.probability,
            "decision": answer.decision.value,
            "novelty": answer.novelty,
            "probabilities": {each.class_id: each.probability for each in answer.probabilities},
        }
        for answer in result.answers
    ]
    content = {"model": result.model_id, "version": result.version, "wafers": rows}
    return json.dumps(content, ensure_ascii=False, indent=1).encode()


def _plain(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
