"""Names and texts that people or files give."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from services.common.errors import InvalidArgumentError

MAX_NAME: Final = 256
"""Longest name, characters."""

# Signs that turn the direction of the text behind them round: a name with one can pose as another name.
_DIRECTION: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def checked_name(text: str, field: str = "name") -> str:
    """Returns a name in its one written form, without blanks around it.

    Args:
        text: What a person wrote: any language, any sign that can be seen.
        field: Field of the error.

    Raises:
        InvalidArgumentError: It is empty (reason NAME_EMPTY), longer than 256 characters (NAME_TOO_LONG), or holds
            control characters (NAME_UNREADABLE).
    """
    name = " ".join(unicodedata.normalize("NFC", text).split())
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Cn") or letter in _DIRECTION for letter in name):
        raise InvalidArgumentError(
            f"Expected a name of readable characters. Received: {name[:80]!a}.", field, reason="NAME_UNREADABLE"
        )
    if not any(unicodedata.category(letter)[0] in "LNPS" for letter in name):
        raise InvalidArgumentError("Expected a name. Received: nothing.", field, reason="NAME_EMPTY")
    if len(name) > MAX_NAME:
        raise InvalidArgumentError(
            f"Expected a name of at most {MAX_NAME} characters. Received: {len(name):,}.",
            field,
            reason="NAME_TOO_LONG",
            metadata={"max": str(MAX_NAME), "length": str(len(name))},
        )
    return name


def name_key(name: str) -> str:
    """Returns the form in which names are compared: the same for names that look the same to people."""
    return unicodedata.normalize("NFKC", name).casefold()[:512]


def cleaned(text: str, limit: int = MAX_NAME) -> str:
    """Returns a text from a file fit for the database: no control or broken characters, at most `limit` characters."""
    letters = (letter for letter in text if unicodedata.category(letter) not in ("Cc", "Cs"))
    return "".join(letters).strip()[:limit]


def safe_file_name(name: str) -> str:
    """Returns a file name made of a name: no signs that any file system or header gives a meaning."""
    letters = unicodedata.normalize("NFC", name)
    kept = "".join(letter if letter.isalnum() or letter in "-_ " else "-" for letter in letters)
    stem = re.sub("-{2,}", "-", "-".join(kept.split())).strip("-_.")
    while len(stem.encode()) > 120:
        stem = stem[:-1]
    return stem or "project"
