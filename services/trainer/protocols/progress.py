"""What a person at the terminal hears of a measurement, on stderr: stdout belongs to the result."""

from __future__ import annotations

import sys
import time

_SECONDS = 5.0


def say(text: str) -> None:
    """Writes a line."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Hears the share done, 0 to 1, and tells it every few seconds.

    Args:
        what: what is being done.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._told = time.monotonic()

    def __call__(self, share: float) -> None:
        """Tells the share done if the last telling is long enough ago."""
        now = time.monotonic()
        if now - self._told >= _SECONDS:
            self._told = now
            say(f"  {self._what}: {share:.0%}")
