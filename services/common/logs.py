"""Structured logs: one JSON object a line, each with the request id of the call that it belongs to.

Facts go into `extra`, never into the message, so that they can be searched:

    logger.info("epoch ended", extra={"job": name, "epoch": 3})
"""

from __future__ import annotations

import contextvars
import json
import logging
import sys
import threading
import time
import traceback
from collections import deque
from datetime import UTC, datetime
from typing import TextIO

from services.common.settings import ServiceSettings

request_id_var: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""Request id of the running call; empty outside of calls."""
caller_name_var: contextvars.ContextVar[str] = contextvars.ContextVar("caller_name", default="")
"""Who makes the running call, where the service knows; empty otherwise."""

_STANDARD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


_ENCODER = json.JSONEncoder(default=str, ensure_ascii=False)
_BATCH_S = 0.05


def configure(settings: ServiceSettings, service: str, stream: TextIO | None = None, *, batched: bool = False) -> None:
    """Sends all logs of this process to one stream.

    Args:
        settings: Level and format.
        service: Name of the service, in every line.
        stream: Where to. Default: standard error, as standard output belongs to results.
        batched: Whether lines below WARNING may be written a moment later, many at a time: for services whose calls
            take less time than a line.
    """
    target = stream or sys.stderr
    handler: logging.Handler = BatchingHandler(target) if batched else logging.StreamHandler(target)
    handler.setFormatter(JsonFormatter(service) if settings.log_format == "json" else TextFormatter(service))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    logging.captureWarnings(True)


class BatchingHandler(logging.Handler):
    """Writes lines many at a time, a moment after they came; from WARNING on, at once and all that wait before it.

    Each write lets go of the interpreter's lock, and a busy server waits longer to get it back than the line took.

    Args:
        stream: Where to.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: deque[str] = deque()
        self._waiting = threading.Event()
        self._writing = threading.Lock()
        threading.Thread(target=self._write_all, name="logs", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Formats one record now, because the running call is known now, and writes it a moment later."""
        try:
            self._lines.append(self.format(record))
        except Exception:
            self.handleError(record)
            return
        if record.levelno >= logging.WARNING:
            self.flush()
        elif not self._waiting.is_set():
            self._waiting.set()

    def flush(self) -> None:
        """Writes what waits."""
        with self._writing:
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if lines:
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()

    def _write_all(self) -> None:
        while True:
            self._waiting.wait()
            time.sleep(_BATCH_S)
            self._waiting.clear()
            self.flush()


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, severity, service, logger, event, request_id, caller, then the extra facts.

    Args:
        service: Name of the service.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Formats one record; values that JSON does not know are written as text."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "severity": record.levelname,
            "service": self._service,
            "logger": record.name,
            "event": record.getMessage(),
        }
        if request_id := request_id_var.get():
            line["request_id"] = request_id
        if caller := caller_name_var.get():
            line["caller"] = caller
        line.update(extra_of(record))
        if trace := _trace_of(record):
            line["trace"] = trace
        return _ENCODER.encode(line)


class TextFormatter(logging.Formatter):
    """Short lines for people: time, severity, service, event, facts.

    Args:
        service: Name of the service.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Formats one record."""
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        facts = "".join(f" {key}={value}" for key, value in extra_of(record).items())
        text = f"{time} {record.levelname:<7} {self._service} {record.getMessage()}{facts}"
        trace = _trace_of(record)
        return f"{text}\n{trace}" if trace else text


def extra_of(record: logging.LogRecord) -> dict[str, object]:
    """Returns the facts that a log call passed as `extra`."""
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD_FIELDS}


def _trace_of(record: logging.LogRecord) -> str:
    """Returns the formatted exception of a record, or nothing."""
    return "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
