"""Generated wafers in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.i18n import Messages
from gateway.values import GenerationProgress, JobState, Proof, Realism, VariationOptions

CLOSE, FAR = 0.5, 1.6
"""Bounds of the distance to real wafers, as a multiple of the real wafers' distance to one another."""
SEEN_LESS = 0.15
"""Share by which fewer generated than real wafers may be recognised before it is worth a warning."""
VARIATION_STEPS: Final = {"rotation_degrees": 5, "shear": 0.01, "shift": 0.01, "die_noise": 0.005, "strength": 0.05}
"""Step of each setting of variations that is a number; the others are yes or no."""


def variation_options(answers: Mapping[str, Any]) -> VariationOptions:
    """Returns settings of variations as a person left them.

    Args:
        answers: Of each setting a number or None, or `yes`, `no` or "". None and "" leave it to what suits the pattern.
    """
    words = {"": None, "yes": True, "no": False}
    values: dict[str, Any] = {
        name: words[answer] if isinstance(answer, str) else None if answer is None else float(answer)
        for name, answer in answers.items()
    }
    return VariationOptions(**values)


def realism_sentences(t: Messages, realism: Realism) -> list[tuple[str, str]]:
    """Says how true generated wafers are; each sentence with its tone."""
    sentences = []
    if realism.copied_share > 0:
        sentences.append((t("generate.copies", n=2, percent=t.percent(realism.copied_share)), "warn"))
    else:
        sentences.append((t("generate.copies_none"), "good"))
    if realism.nearest_distance_real > 0:
        ratio = realism.nearest_distance / realism.nearest_distance_real
        if ratio < CLOSE:
            sentences.append((t("generate.too_close"), ""))
        elif ratio > FAR:
            sentences.append((t("generate.too_far"), "warn"))
        else:
            sentences.append((t("generate.fresh"), "good"))
    sentences.append((t("generate.coverage", percent=t.percent(realism.coverage)), ""))
    made, real = t.percent(realism.fail_fraction, 1), t.percent(realism.fail_fraction_real, 1)
    sentences.append((t("generate.fails", made=made, real=real), ""))
    if realism.precision is not None and realism.recall is not None:
        among, covered = t.percent(realism.precision), t.percent(realism.recall)
        sentences.append((t("generate.among", made=among, real=covered), ""))
    if realism.frechet_distance is not None:
        made = f"{realism.frechet_distance:.3f}"
        if realism.frechet_distance_real is None:
            sentences.append((t("generate.frechet", made=made), ""))
        else:
            sentences.append((t("generate.frechet_both", made=made, real=f"{realism.frechet_distance_real:.3f}"), ""))
    if realism.recognised_share is not None and realism.recognised_share_real is not None:
        doubtful = realism.recognised_share < realism.recognised_share_real - SEEN_LESS
        made, real = t.percent(realism.recognised_share), t.percent(realism.recognised_share_real)
        sentences.append((t("generate.recognised", made=made, real=real), "warn" if doubtful else "good"))
    return sentences


def proof_sentence(t: Messages, proof: Proof) -> tuple[str, str]:
    """Says whether generated wafers help, with its tone."""
    text = t(
        f"generate.proof_{proof.verdict}",
        without=f"{proof.without:.3f}",
        made=f"{proof.with_generated:.3f}",
        difference=f"{proof.difference:+.3f}",
        low=f"{proof.low:+.3f}",
        high=f"{proof.high:+.3f}",
        wafers=proof.judged_wafers,
        lots=proof.judged_lots,
    )
    return text, {"helps": "good", "harms": "warn", "unclear": ""}[proof.verdict]


def progress_text(t: Messages, state: JobState, queue_position: int, last: GenerationProgress | None) -> str:
    """Says how far a generation is."""
    if state is JobState.QUEUED:
        return t("generate.waiting", position=queue_position + 1)
    if last is None or state is JobState.STARTING:
        return t("generate.starting")
    if last.stage == "checking":
        return t("generate.stage_checking")
    return t(f"generate.stage_{last.stage}", done=last.done, total=last.total)
