"""Spans of requests for OpenTelemetry: sent as OTLP over HTTP in its JSON form, which any collector takes.

A request belongs to the trace that its caller names in `traceparent` (W3C Trace Context), and is traced when the caller
traces it; one without becomes a trace of its own, as often as the settings say. Spans go out from a thread of their
own, and those that a slow collector has no time for are dropped: no request ever waits for one.
"""

from __future__ import annotations

import json
import logging
import queue
import random
import re
import secrets
import threading
import time
import urllib.request
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from services.common.errors import TeachwaferError
from services.predictor.statistics import Run

HEADER = "traceparent"
SERVICE_NAME = "teachwafer-predictor"

traceparent_var: ContextVar[str] = ContextVar("traceparent", default="")
"""What the caller of the running call says of its trace; empty where it says nothing."""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_SERVER, _INTERNAL = 2, 1
_OK, _ERROR = 1, 2
_MOST_WAITING = 4096
_MOST_SENT = 512
_TIMEOUT_S = 5.0
_TOLD_EVERY_S = 60.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Parent:
    """The caller's span."""

    trace_id: str
    span_id: str
    sampled: bool


class Spans:
    """Makes the spans of requests and sends them. Used from one event loop.

    Args:
        endpoint: Address of the collector, as `http://collector:4318`. Empty: nothing is traced.
        share: Share of the requests without a trace of their caller's that are traced, 0 to 1.

    Attributes:
        dropped: Spans that were not sent.
    """

    def __init__(self, endpoint: str = "", share: float = 1.0) -> None:
        self._url = f"{endpoint.rstrip('/')}/v1/traces" if endpoint else ""
        self._share = share
        self.dropped = 0
        self._told = -_TOLD_EVERY_S
        self._waiting: queue.Queue[list[dict[str, Any]] | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._send_all, name="spans", daemon=True) if endpoint else None
        if self._thread is not None:
            self._thread.start()

    def wants(self) -> bool:
        """Returns whether the running call is to be traced."""
        if not self._url:
            return False
        parent = _parent()
        return random.random() < self._share if parent is None else parent.sampled

    def add(
        self,
        model: str,
        version: int,
        items: int,
        started: float,
        runs: Sequence[Run],
        error: BaseException | None = None,
    ) -> None:
        """Takes the spans of a request: one of the whole, and one of each part of its runs.

        Args:
            model: Name of the model.
            version: Its version.
            items: Wafers, or elements of the batch.
            started: When the request came, seconds of `time.perf_counter`.
            runs: Runs that it had a part in.
            error: What it ended in; None where it was answered.
        """
        now = time.perf_counter()
        offset = time.time() - now
        parent = _parent()
        trace_id = parent.trace_id if parent else secrets.token_hex(16)
        whole = _span(trace_id, parent.span_id if parent else "", f"infer {model}", _SERVER, started, now, offset)
        whole["attributes"] = [
            {"key": "model.name", "value": {"stringValue": model}},
            {"key": "model.version", "value": {"intValue": str(version)}},
            {"key": "batch.items", "value": {"intValue": str(items)}},
        ]
        if error is not None:
            told = error.code.name if isinstance(error, TeachwaferError) else type(error).__name__
            whole["status"] = {"code": _ERROR, "message": told}
        spans = [whole]
        for run in runs:
            for name, begin, end in (
                ("queue", started, run.begun),
                ("compute input", run.begun, run.made),
                ("compute infer", run.made, run.inferred),
                ("compute output", run.inferred, run.ended),
            ):
                spans.append(_span(trace_id, whole["spanId"], name, _INTERNAL, begin, end, offset))
        try:
            self._waiting.put_nowait(spans)
        except queue.Full:
            self.dropped += len(spans)

    def close(self) -> None:
        """Sends what waits, and ends."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(2 * _TIMEOUT_S)

    def _send_all(self) -> None:
        while (spans := self._waiting.get()) is not None:
            while len(spans) < _MOST_SENT:
                try:
                    more = self._waiting.get(timeout=0.2)
                except queue.Empty:
                    break
                if more is None:
                    self._send(spans)
                    return
                spans = spans + more
            self._send(spans)

    def _send(self, spans: list[dict[str, Any]]) -> None:
        resource = {"attributes": [{"key": "service.name", "value": {"stringValue": SERVICE_NAME}}]}
        scope = {"scope": {"name": SERVICE_NAME}, "spans": spans}
        body = {"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}
        request = urllib.request.Request(  # noqa: S310 - the operator's own address
            self._url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310
                return
        except (OSError, ValueError) as error:
            self.dropped += len(spans)
            if time.monotonic() - self._told > _TOLD_EVERY_S:
                self._told = time.monotonic()
                logger.warning("could not send spans", extra={"error": str(error)[:200], "dropped": self.dropped})


def _parent() -> _Parent | None:
    found = _TRACEPARENT.fullmatch(traceparent_var.get())
    if found is None or not found[1].strip("0") or not found[2].strip("0"):
        return None
    return _Parent(found[1], found[2], bool(int(found[3], 16) & 1))


def _span(trace_id: str, parent: str, name: str, kind: int, begin: float, end: float, offset: float) -> dict[str, Any]:
    return {
        "traceId": trace_id,
        "spanId": secrets.token_hex(8),
        "parentSpanId": parent,
        "name": name,
        "kind": kind,
        "startTimeUnixNano": str(int((begin + offset) * 1e9)),
        "endTimeUnixNano": str(int((end + offset) * 1e9)),
        "status": {"code": _OK},
    }
