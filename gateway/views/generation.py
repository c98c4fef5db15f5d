"""Generated wafers in words."""

from __future__ import annotations

from gateway.i18n import Messages
from gateway.values import GenerationProgress, JobState, Realism

CLOSE, FAR = 0.5, 1.6
"""Bounds of the distance to real wafers, as a multiple of the real wafers' distance to one another."""
SEEN_LESS = 0.15
"""Share by which fewer generated than real wafers may be recognised before it is worth a warning."""


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


def progress_text(t: Messages, state: JobState, queue_position: int, last: GenerationProgress | None) -> str:
    """Says how far a generation is."""
    if state is JobState.QUEUED:
        return t("generate.waiting", position=queue_position + 1)
    if last is None or state is JobState.STARTING:
        return t("generate.starting")
    if last.stage == "checking":
        return t("generate.stage_checking")
    return t(f"generate.stage_{last.stage}", done=last.done, total=last.total)
