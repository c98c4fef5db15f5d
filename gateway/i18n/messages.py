"""Message catalogues: one TOML file a language beside this module.

A message is a text with named gaps, `"{count} wafers"`, or a table of plural forms (`one`, `other`) chosen by the value
`n`. Gaps are filled in the manner of the language: whole numbers get separators, and `{name:을/를}` appends the Korean
particle that fits the sound before it.
"""

from __future__ import annotations

import functools
import string
import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from services.common.errors import TeachwaferError

LANGUAGES: Final[dict[str, str]] = {"en": "English", "ko": "한국어"}
"""Languages by code, each named in itself."""

Text = str | dict[str, str]


@functools.cache
def catalogue(language: str) -> Mapping[str, Text]:
    """Reads the catalogue of a language.

    Args:
        language: Code of the language, one of LANGUAGES.

    Returns:
        Messages by dotted key.
    """
    content = tomllib.loads((Path(__file__).parent / f"{language}.toml").read_text(encoding="utf-8"))
    return dict(_flatten(content))


def choose_language(chosen: object, accepted: str, default: str) -> str:
    """Picks the language of a person.

    Args:
        chosen: What the person chose in the portal, if anything.
        accepted: Accept-Language header of the browser.
        default: Language to use when neither helps.
    """
    if chosen in LANGUAGES:
        return str(chosen)
    for part in accepted.split(","):
        code = part.split(";")[0].strip().lower().split("-")[0]
        if code in LANGUAGES:
            return code
    return default


class Messages:
    """The texts of one language.

    Args:
        language: Code of the language, one of LANGUAGES.
    """

    def __init__(self, language: str) -> None:
        self.language = language
        self._texts = catalogue(language)
        self._formatter = _Formatter()

    def __call__(self, key: str, **values: Any) -> str:
        """Returns a message.

        Args:
            key: Dotted key, as `home.title`.
            **values: What fills the gaps; `n` also chooses the plural form.

        Raises:
            KeyError: The catalogue lacks the key, or a gap has no value.
        """
        text = self._texts[key]
        if isinstance(text, dict):
            text = text["one"] if "one" in text and values.get("n") == 1 else text["other"]
        return self._formatter.vformat(text, (), values)

    def has(self, key: str) -> bool:
        """Whether the catalogue has a message under the key."""
        return key in self._texts

    def error(self, error: Exception) -> str:
        """Says an error in words of this language, with the next step.

        The reason that the server sent chooses the text. Errors without a text of their own keep the server's words
        behind a sentence about their kind, because those name the file or field at fault.

        Args:
            error: Any exception; those that are not ours become the text for a fault of the program.
        """
        if not isinstance(error, TeachwaferError):
            return self("reason.INTERNAL")
        key = f"reason.{error.reason}"
        if self.has(key):
            try:
                return self(key, **error.metadata)
            except KeyError:
                pass
        kind = f"error_kind.{error.code.name}"
        return self(kind if self.has(kind) else "error_kind.UNKNOWN", detail=error.message)

    def percent(self, share: float, digits: int = 0) -> str:
        """Writes a share as a percentage."""
        return f"{share * 100:.{digits}f}%"

    def score(self, value: float) -> str:
        """Writes a score between 0 and 1 with two decimals."""
        return f"{value:.2f}"

    def size(self, size: int) -> str:
        """Writes a size in bytes with a fitting unit."""
        value = float(size)
        for unit in ("B", "KB", "MB", "GB"):
            if value < 1024 or unit == "GB":
                return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
            value /= 1024
        raise AssertionError("unreachable")

    def duration(self, seconds: float) -> str:
        """Writes a length of time in its two largest units."""
        whole = max(0, round(seconds))
        if whole < 60:
            return self("time.seconds", n=whole)
        if whole < 3600:
            return self("time.minutes", minutes=whole // 60, seconds=whole % 60)
        return self("time.hours", hours=whole // 3600, minutes=whole % 3600 // 60)

    def moment(self, when: datetime | None, now: datetime | None = None) -> str:
        """Writes a point in time as people say it: how long ago for today, the date before that."""
        if when is None:
            return "–"
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        passed = ((now or datetime.now(UTC)) - when).total_seconds()
        if passed < 60:
            return self("time.just_now")
        if passed < 3600:
            return self("time.minutes_ago", n=int(passed // 60))
        if passed < 24 * 3600:
            return self("time.hours_ago", n=int(passed // 3600))
        month_name = _MONTHS[when.month - 1]
        return self("time.date", year=str(when.year), month=str(when.month), month_name=month_name, day=str(when.day))


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class _Formatter(string.Formatter):
    """Fills gaps: whole numbers with separators, `{name:을/를}` with a particle."""

    def format_field(self, value: Any, format_spec: str) -> str:
        if "/" in format_spec:
            text = self.format_field(value, "")
            return text + particle(text, format_spec)
        if isinstance(value, int) and not isinstance(value, bool) and not format_spec:
            return f"{value:,}"
        return str(format(value, format_spec))

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return kwargs[str(key)]


def particle(word: str, pair: str) -> str:
    """Chooses the Korean particle that follows a word.

    Args:
        word: Word before the particle, in Hangul, Latin letters or digits.
        pair: Both forms, that after a consonant first: `을/를`, `이/가`, `은/는`, `과/와`, `으로/로`.
    """
    after_consonant, after_vowel = pair.split("/")
    letters = [letter for letter in word if letter.isalnum()]
    if not letters:
        return after_vowel
    last = letters[-1].lower()
    if "가" <= last <= "힣":
        final = (ord(last) - ord("가")) % 28
        # 으로 becomes 로 after ㄹ as after a vowel.
        closed = final != 0 and not (final == 8 and after_consonant == "으로")
    elif last.isdigit():
        closed = last in ("036" if after_consonant == "으로" else "013678")
    else:
        closed = word.lower().endswith("ng") or last in ("bckmnpt" if after_consonant == "으로" else "bcklmnpt")
    return after_consonant if closed else after_vowel


def _flatten(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Text]]:
    """Turns nested tables into dotted keys; a table of plural forms stays whole."""
    entries: list[tuple[str, Text]] = []
    for key, value in content.items():
        if isinstance(value, dict) and "other" not in value:
            entries += _flatten(value, f"{prefix}{key}.")
        else:
            entries.append((prefix + key, value))
    return entries
