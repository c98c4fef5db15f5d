"""Answers of the model, most doubtful first, and as files."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from gateway.catalogue.patterns import NONE
from gateway.i18n import Messages
from gateway.values import Answer, ClassProbability, Decision, FileAnswers, Task
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
        per_class: Accepted and doubtful answers by name, the most frequent first; a wafer with several patterns counts
            for each of them.
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


def summarise(t: Messages, answers: Sequence[Answer]) -> PredictionSummary:
    """Counts answers."""
    accepted = sum(answer.decision is Decision.ACCEPTED for answer in answers)
    names: Counter[str] = Counter()
    for answer in answers:
        if answer.decision is not Decision.FAILED:
            names.update([each.name for each in answer.patterns] if shows_several(answer) else [answer_name(t, answer)])
    return PredictionSummary(len(answers), accepted, len(answers) - accepted, tuple(names.most_common()))


def shows_several(answer: Answer) -> bool:
    """Whether an answer names the patterns of a wafer that may show several, and names at least one."""
    return answer.task is Task.SEVERAL and bool(answer.patterns)


def answer_name(t: Messages, answer: Answer) -> str:
    """Names what a wafer shows, in the words of the type of project."""
    if answer.decision is Decision.FAILED or answer.task is Task.SINGLE:
        return answer.name
    if answer.task is Task.NORMAL:
        return t("try.normal" if answer.decision is Decision.ACCEPTED else "try.unlike_normal")
    return " + ".join(each.name for each in answer.patterns) or t("try.no_pattern")


def decision_text(t: Messages, answer: Answer) -> str:
    """Names the decision on a wafer."""
    if answer.decision is Decision.FAILED:
        return t("predict.decision_error")
    if answer.task is Task.NORMAL and answer.decision is not Decision.ACCEPTED:
        return t("predict.decision_look")
    return t(f"predict.decision_{answer.decision.value}")


def bar_name(t: Messages, answer: Answer, each: ClassProbability) -> str:
    """Names a bar: the class; where only normal wafers teach, what its probability is of."""
    return t("try.normal") if answer.task is Task.NORMAL else each.name


def decision_chips(t: Messages, answer: Answer) -> list[tuple[str, str, str]]:
    """Returns text, tone and colour of the chips beside a tried wafer; a class alone only where the model is sure.

    Where wafers show several patterns, each has a chip with its probability, behind the doubt if there is some.
    """
    if answer.decision is Decision.FAILED:
        return [(t("predict.error"), "bad", "")]
    sure = answer.decision is Decision.ACCEPTED
    if answer.task is Task.NORMAL:
        return [(answer_name(t, answer), "good" if sure else "warn", "")]
    chips = [] if sure else [(t(f"try.{answer.decision.value}"), "warn", "")]
    if answer.task is Task.SINGLE:
        colour = next((each.colour for each in answer.probabilities if each.class_id == answer.class_id), "")
        return chips or [(answer.name, "good", colour)]
    tone = "good" if sure else ""
    if not answer.patterns:
        return [*chips, (t("try.no_pattern"), tone, "")]
    return chips + [(f"{each.name} {t.percent(each.probability)}", tone, each.colour) for each in answer.patterns]


def decision_advice(t: Messages, answer: Answer) -> str:
    """Says what to do with an answer."""
    if answer.decision is Decision.FAILED:
        return problem_text(t, answer.problem) if answer.problem else t("predict.error")
    if answer.task is Task.NORMAL:
        return t("try.normal_text" if answer.decision is Decision.ACCEPTED else "try.unlike_normal_text")
    return t(f"try.{answer.decision.value}_text", name=answer_name(t, answer))


def wafer_name(answer: Answer) -> str:
    """Names an answered wafer: lot and wafer where known, else the file."""
    identity = " ".join(part for part in (answer.map.identity.lot, answer.map.identity.wafer) if part)
    return identity or answer.source_name or "–"


def to_csv(result: FileAnswers) -> bytes:
    """Writes answers as CSV with a byte order mark, so that spreadsheets read Korean names right.

    Texts that a spreadsheet would take for a formula get an apostrophe before them. The patterns of a wafer are joined
    by `+`, as in the labels of an upload.
    """
    classes = sorted({each.name for answer in result.answers for each in answer.probabilities})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(
        ["lot", "wafer", "file", "answer", "patterns", "probability", "decision", "novelty", "model", "version"]
        + [_plain(f"p({name})") for name in classes]
    )
    for answer in result.answers:
        shares = {each.name: each.probability for each in answer.probabilities}
        writer.writerow(
            [
                _plain(answer.map.identity.lot),
                _plain(answer.map.identity.wafer),
                _plain(answer.source_name),
                _plain(_answer_word(answer)),
                _plain("+".join(each.name for each in answer.patterns)),
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
            "answer": _answer_word(answer),
            "patterns": [
                {"class_id": each.class_id, "name": each.name, "probability": each.probability}
                for each in answer.patterns
            ],
            "probability": answer.probability,
            "decision": answer.decision.value,
            "novelty": answer.novelty,
            "probabilities": {each.class_id: each.probability for each in answer.probabilities},
        }
        for answer in result.answers
    ]
    content = {"model": result.model_id, "version": result.version, "wafers": rows}
    return json.dumps(content, ensure_ascii=False, indent=1).encode()


def _answer_word(answer: Answer) -> str:
    """Returns the answer in one word for programs, the same in every language."""
    if answer.task is Task.SINGLE or answer.decision is Decision.FAILED:
        return answer.name
    if answer.task is Task.NORMAL:
        return "normal" if answer.decision is Decision.ACCEPTED else "unlike_normal"
    return "+".join(each.name for each in answer.patterns) or NONE


def _plain(text: str) -> str:
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
