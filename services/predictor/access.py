"""Who may call which model, and how often: keys that callers show, kept as hashes in a file.

The file is JSON, read anew when it changes:

    {"keys": [{"name": "line-3", "sha256": "...", "models": ["edge"], "requests_per_minute": 600}]}

`python -m services.predictor.keys` makes a key and its entry. A key is 32 random bytes, so that a plain hash of it can
be kept: there is nothing to guess. Without a file, everybody may do everything.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.common.errors import (
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)

HEADER, SCHEME = "authorization", "bearer "
ANY_MODEL = "*"

caller_var: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""Whose call is running; None where everybody may do everything."""

_LOOK_AGAIN_S = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """What a key stands for.

    Attributes:
        name: Name of the key, in logs and metrics.
        models: Models that it may call; ANY_MODEL is all.
        manages: Whether it may load and unload models and change settings.
        requests_per_minute: Requests to each model within a minute; 0 is no limit.
        wafers_per_minute: Wafers, or elements of batches, to each model within a minute; 0 is no limit.
    """

    name: str
    models: tuple[str, ...] = (ANY_MODEL,)
    manages: bool = False
    requests_per_minute: int = 0
    wafers_per_minute: int = 0

    def may_call(self, model: str) -> bool:
        """Returns whether it may call a model."""
        return ANY_MODEL in self.models or model in self.models


@dataclass(slots=True)
class _Bucket:
    """What is left of a quota: it fills steadily, to what a minute gives."""

    left: float
    filled: float


@dataclass(slots=True)
class _Quotas:
    """Quotas of all callers, by caller, model and what is counted."""

    buckets: dict[tuple[str, str, str], _Bucket] = field(default_factory=dict)

    def wait_s(self, key: tuple[str, str, str], a_minute: int, wanted: float, now: float) -> float:
        """Returns how long a caller has to wait until so much is left, seconds; 0 where it is now."""
        bucket = self.buckets.get(key)
        if bucket is None:
            bucket = self.buckets[key] = _Bucket(a_minute, now)
        bucket.left = min(a_minute, bucket.left + (now - bucket.filled) * a_minute / 60)
        bucket.filled = now
        # A request larger than a whole minute's quota is let through when the bucket is full, and paid off afterwards.
        missing = min(wanted, a_minute) - bucket.left
        return max(missing, 0.0) * 60 / a_minute

    def take(self, key: tuple[str, str, str], wanted: float) -> None:
        """Takes so much."""
        self.buckets[key].left -= wanted


class Access:
    """Knows callers by their keys and counts what they ask for. Used from one event loop.

    Args:
        file: File of the keys. None: everybody may do everything.
        clock: Seconds.

    Attributes:
        counts: Requests by name of the key, model and whether they were let through.

    Raises:
        InvalidArgumentError: The file cannot be read or is wrong.
    """

    def __init__(self, file: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._callers: dict[str, Caller] = {}
        self._stamp: tuple[int, int] | None = None
        self._looked = clock()
        self._quotas = _Quotas()
        self.counts: Counter[tuple[str, str, bool]] = Counter()
        if file is not None:
            self._stamp, self._callers = _stamp(file), read_callers(file)

    @property
    def guarded(self) -> bool:
        """Whether callers need a key."""
        return self._file is not None

    def caller(self, header: str) -> Caller | None:
        """Returns who shows a key; None where nobody needs one.

        Args:
            header: `Bearer <key>`, or empty.

        Raises:
            UnauthenticatedError: It is no key.
        """
        if self._file is None:
            return None
        self._look_again()
        key = header[len(SCHEME) :].strip() if header[: len(SCHEME)].lower() == SCHEME else ""
        caller = self._callers.get(hash_of(key)) if key else None
        if caller is None:
            raise UnauthenticatedError(
                f"Expected a known key in the header {HEADER}, as `Bearer <key>`. Received: "
                f"{'another one' if key else 'none'}. Ask whoever runs this server for one.",
                reason="UNKNOWN_KEY",
            )
        return caller

    def admit(self, model: str, items: int) -> None:
        """Lets the running call through to a model, and counts it.

        Args:
            model: Name of the model.
            items: Wafers, or elements of the batch.

        Raises:
            PermissionDeniedError: The caller may not call this model.
            ResourceExhaustedError: Its quota is used up.
        """
        caller = caller_var.get()
        if caller is None:
            return
        try:
            check_model(model)
            self._spend(caller, model, items)
        except (PermissionDeniedError, ResourceExhaustedError):
            # Names of models that a key does not have come from outside: they are no label of a metric.
            self.counts[caller.name, model if caller.may_call(model) else "", False] += 1
            raise
        self.counts[caller.name, model, True] += 1

    def _spend(self, caller: Caller, model: str, items: int) -> None:
        now = self._clock()
        limits = [
            (a_minute, what, wanted)
            for a_minute, what, wanted in (
                (caller.requests_per_minute, "requests", 1),
                (caller.wafers_per_minute, "wafers", items),
            )
            if a_minute
        ]
        for a_minute, what, wanted in limits:
            wait_s = self._quotas.wait_s((caller.name, model, what), a_minute, wanted, now)
            if wait_s > 0:
                raise ResourceExhaustedError(
                    f"Expected at most {a_minute} {what} a minute to {model} with the key {caller.name}. "
                    f"Received: more. Try again in {wait_s:.1f} s.",
                    retry_after_s=wait_s,
                    reason="QUOTA_USED_UP",
                )
        for _, what, wanted in limits:
            self._quotas.take((caller.name, model, what), wanted)

    def _look_again(self) -> None:
        """Reads the file anew when it has changed; a wrong one changes nothing."""
        now = self._clock()
        if self._file is None or now - self._looked < _LOOK_AGAIN_S:
            return
        self._looked = now
        try:
            stamp = _stamp(self._file)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._callers = read_callers(self._file)
        except InvalidArgumentError as error:
            logger.warning("the keys stay as they were", extra={"error": error.message})


def allowed(model: str) -> bool:
    """Returns whether the running call's key is good for a model."""
    caller = caller_var.get()
    return caller is None or caller.may_call(model)


def check_model(model: str) -> None:
    """Raises PermissionDeniedError unless the running call's key is good for a model."""
    caller = caller_var.get()
    if caller is not None and not caller.may_call(model):
        raise PermissionDeniedError(
            f"Expected a model that the key {caller.name} is good for: {', '.join(caller.models[:20])}. "
            f"Received: {model[:100]!r}. Ask for a key for it.",
            reason="MODEL_NOT_ALLOWED",
        )


def check_manager() -> None:
    """Raises PermissionDeniedError unless the running call may change what the server does."""
    caller = caller_var.get()
    if caller is not None and not caller.manages:
        raise PermissionDeniedError(
            f"Expected a key that manages the server. Received: the key {caller.name}, which does not. "
            'Give it "manages": true, or use another.',
            reason="NOT_ALLOWED",
        )


def hash_of(key: str) -> str:
    """Returns what is kept of a key: its SHA-256, 64 hexadecimal digits."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_callers(file: Path) -> dict[str, Caller]:
    """Returns the callers of a file by the hash of their keys.

    Raises:
        InvalidArgumentError: It cannot be read, or an entry is wrong.
    """
    try:
        entries = json.loads(file.read_bytes())["keys"]
        callers = {_text(each, "sha256").lower(): _caller(each) for each in entries}
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"Expected a file of keys as the documentation shows it. Received from {file.name}: "
            f"{type(error).__name__}: {str(error)[:200]}. Correct it.",
            field="TEACHWAFER_PREDICTOR_KEYS_FILE",
            reason="BAD_KEYS",
        ) from None
    if len(callers) != len(entries) or len({each.name for each in callers.values()}) != len(entries):
        raise InvalidArgumentError(
            f"Expected keys and names that come once each. Received: two of a kind in {file.name}. Correct it.",
            field="TEACHWAFER_PREDICTOR_KEYS_FILE",
            reason="BAD_KEYS",
        )
    return callers


def _caller(entry: Any) -> Caller:
    known = {"name", "sha256", "models", "manages", "requests_per_minute", "wafers_per_minute"}
    if not isinstance(entry, dict) or set(entry) - known:
        raise ValueError(f"expected {sorted(known)}")
    if len(_text(entry, "sha256")) != 64:
        raise ValueError("expected 64 hexadecimal digits in sha256")
    models: Sequence[Any] = entry.get("models", [ANY_MODEL])
    if not isinstance(models, list) or not all(isinstance(each, str) for each in models):
        raise ValueError("expected a list of names in models")
    limits = [entry.get(name, 0) for name in ("requests_per_minute", "wafers_per_minute")]
    if not all(type(each) is int and each >= 0 for each in limits):
        raise ValueError("expected whole numbers of at least 0 as quotas")
    return Caller(_text(entry, "name"), tuple(models), entry.get("manages") is True, *limits)


def _text(entry: Any, name: str) -> str:
    value = entry[name]
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected a text in {name}")
    return value


def _stamp(file: Path) -> tuple[int, int]:
    try:
        facts = file.stat()
    except OSError as error:
        raise InvalidArgumentError(
            f"Expected a file of keys. Received: {error.strerror} for {file.name}. Make it, or unset the setting.",
            field="TEACHWAFER_PREDICTOR_KEYS_FILE",
            reason="BAD_KEYS",
        ) from None
    return facts.st_mtime_ns, facts.st_size
