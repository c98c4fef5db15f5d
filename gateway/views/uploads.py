"""What an upload holds, in words."""

from __future__ import annotations

from gateway.i18n import Messages
from gateway.values import ImportPreview, SkippedEntry

SHOWN_SKIPPED = 3


def preview_lines(t: Messages, preview: ImportPreview) -> list[tuple[str, str]]:
    """Says what was read and what was not; each line with its tone.

    Red: the grid was guessed and may be wrong. Amber: something was left out.
    """
    lines = [(t("upload.read", n=preview.read), "")]
    if preview.guessed_geometry:
        lines.append((t("upload.guessed"), "bad"))
    for other in preview.already:
        lines.append((t("upload.elsewhere", n=other.count, name=other.name), "warn"))
    if preview.duplicates:
        lines.append((t("upload.repeated", n=preview.duplicates), "warn"))
    if preview.skipped_count:
        lines.append((skipped_text(t, preview.skipped, preview.skipped_count), "warn"))
    if preview.lot_missing:
        lines.append((t("upload.no_lot", n=preview.lot_missing), ""))
    return lines


def skipped_text(t: Messages, skipped: tuple[SkippedEntry, ...], count: int) -> str:
    """Names what could not be read and why: the first few, then how many more."""
    parts = []
    for entry in skipped[:SHOWN_SKIPPED]:
        key = f"reason.{entry.reason}"
        parts.append(t("upload.skipped_item", name=entry.name, reason=t(key) if t.has(key) else entry.message))
    more = count - len(parts)
    if more > 0:
        parts.append(t("upload.skipped_more", n=more))
    return f"{t('upload.skipped', n=count)}. {'; '.join(parts)}"
