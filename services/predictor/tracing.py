"""Traces of requests: when each part of a request happened, written to a file that Triton's tools read."""

from __future__ import annotations

import fcntl
import itertools
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from services.common.errors import InvalidArgumentError, UnimplementedError
from services.predictor.statistics import Run

OFF, TIMESTAMPS = "OFF", "TIMESTAMPS"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """What is traced.

    Attributes:
        level: OFF or TIMESTAMPS.
        rate: One of so many requests is traced.
        count: So many traces are still to come; -1 is no limit.
        log_frequency: Traces of a file of their own, `<trace_file>.<n>`; 0 writes them all to `trace_file`.
    """

    level: str = OFF
    rate: int = 1000
    count: int = -1
    log_frequency: int = 0


class Tracer:
    """Decides which requests are traced, and writes their traces. Used from one event loop.

    Args:
        file: File of the traces. None: nothing can be traced.
        numbers: Numbers of the traces, from 1; processes that share a file take different ones. Default: all.
    """

    def __init__(self, file: Path | None = None, numbers: Iterator[int] | None = None) -> None:
        self._file = file
        self._numbers = numbers or itertools.count(1)
        self._everywhere = TraceSettings()
        self._of_model: dict[str, TraceSettings] = {}
        self._seen: dict[str, int] = {}

    @property
    def models(self) -> list[str]:
        """Names of the models with settings of their own."""
        return list(self._of_model)

    def settings(self, model: str = "") -> dict[str, list[str]]:
        """Returns the settings, values as text.

        Args:
            model: Name of a model. Empty: those of all models without their own.
        """
        settings = self._of_model.get(model, self._everywhere)
        return {
            "trace_file": [str(self._file or "")],
            "trace_level": [settings.level],
            "trace_rate": [str(settings.rate)],
            "trace_count": [str(settings.count)],
            "log_frequency": [str(settings.log_frequency)],
            "trace_mode": ["triton"],
        }

    def change(self, changes: Mapping[str, Sequence[str]], model: str = "") -> None:
        """Changes settings, all of them or none.

        Args:
            changes: Values by name; none puts a setting back to what holds for all models, or to where it began.
            model: Name of a model. Empty: all models without their own.

        Raises:
            InvalidArgumentError: There is no such setting, or no such value of it.
            UnimplementedError: It cannot be set from afar.
        """
        base = self._everywhere if model else TraceSettings()
        settings = self._of_model.get(model, self._everywhere)
        for name, values in changes.items():
            settings = _changed(settings, base, name, list(values))
        if settings.level != OFF and self._file is None:
            raise UnimplementedError(
                "Expected a file for traces. Received: none at the start of the server. Set "
                "TEACHWAFER_PREDICTOR_TRACE_FILE."
            )
        if not model:
            self._everywhere = settings
        elif changes and all(not values for values in changes.values()) and settings == self._everywhere:
            self._of_model.pop(model, None)
        elif changes:
            self._of_model[model] = settings
        self._seen.pop(model, None)
        logger.info("trace settings changed", extra={"model": model or "all", "settings": self.settings(model)})

    def wants(self, model: str) -> bool:
        """Returns whether the request that has come is to be traced; counts it."""
        owner = model if model in self._of_model else ""
        settings = self._of_model.get(model, self._everywhere)
        if settings.level == OFF or settings.count == 0:
            return False
        seen = self._seen[owner] = self._seen.get(owner, 0) + 1
        if seen % settings.rate:
            return False
        if settings.count > 0:
            settings = replace(settings, count=settings.count - 1)
            if owner:
                self._of_model[owner] = settings
            else:
                self._everywhere = settings
        return True

    def write(self, model: str, version: int, request_id: str, started: float, runs: Sequence[Run]) -> None:
        """Writes the trace of a request; a file that cannot be written is told in the log and ends no request.

        Args:
            model: Name of the model.
            version: Its version.
            request_id: Identifier that the caller gave, or empty.
            started: When the request came, seconds of `time.perf_counter`.
            runs: Runs that it had a part in.
        """
        number = next(self._numbers)
        now = time.perf_counter()
        offset = time.time() - now
        moments = [("REQUEST_START", started), ("QUEUE_START", started)]
        for run in runs:
            moments += [
                ("COMPUTE_START", run.begun),
                ("COMPUTE_INPUT_END", run.made),
                ("COMPUTE_OUTPUT_START", run.inferred),
                ("COMPUTE_END", run.ended),
            ]
        moments.append(("REQUEST_END", now))
        what = {"id": number, "model_name": model, "model_version": version, "request_id": request_id}
        stamps = [{"name": name, "ns": int((moment + offset) * 1e9)} for name, moment in moments]
        settings = self._of_model.get(model, self._everywhere)
        index = (number - 1) // settings.log_frequency if settings.log_frequency else -1
        try:
            _append(self._path(index), [what, {"id": number, "timestamps": stamps}])
        except OSError as error:
            logger.warning("could not write a trace", extra={"error": str(error)})

    def _path(self, index: int) -> Path:
        if self._file is None:
            raise OSError("no file for traces")
        return self._file if index < 0 else self._file.with_name(f"{self._file.name}.{index}")


def _append(path: Path, entries: Sequence[object]) -> None:
    """Adds entries to a file that is one JSON array at all times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ",\n".join(json.dumps(each) for each in entries)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        if size > 2:
            file.seek(size - 2)
            file.write(f",\n{text}\n]".encode())
        else:
            file.write(f"[\n{text}\n]".encode())


def _changed(settings: TraceSettings, base: TraceSettings, name: str, values: list[str]) -> TraceSettings:
    """Returns settings with one of them changed."""
    if name == "trace_file":
        raise UnimplementedError(
            "Expected settings other than trace_file, because callers do not choose files of the server. Received: "
            "trace_file. Set TEACHWAFER_PREDICTOR_TRACE_FILE and start the server again."
        )
    if name == "trace_mode":
        if values and values != ["triton"]:
            raise InvalidArgumentError(f"Expected the trace_mode 'triton'. Received: {values[:3]}.", f"settings.{name}")
        return settings
    if name == "trace_level":
        if not set(values) <= {OFF, TIMESTAMPS}:
            raise InvalidArgumentError(
                f"Expected the trace_level OFF or TIMESTAMPS; tensors are never written to files. Received: "
                f"{values[:5]}.",
                f"settings.{name}",
            )
        level = base.level if not values else TIMESTAMPS if TIMESTAMPS in values else OFF
        return replace(settings, level=level)
    numbers = {"trace_rate": 1, "trace_count": -1, "log_frequency": 0}
    if name not in numbers:
        raise InvalidArgumentError(
            f"Expected a trace setting out of trace_level, {', '.join(numbers)} and trace_mode. Received: "
            f"{name[:50]!r}.",
            f"settings.{name[:50]}",
        )
    least = numbers[name]
    if not values:
        values = [str({"trace_rate": base.rate, "trace_count": base.count}.get(name, base.log_frequency))]
    try:
        number = int(values[0])
    except ValueError:
        number = least - 1
    if len(values) != 1 or number < least:
        raise InvalidArgumentError(
            f"Expected one whole number of at least {least}. Received: {values[:3]}.", f"settings.{name}"
        )
    if name == "trace_rate":
        return replace(settings, rate=number)
    return replace(settings, count=number) if name == "trace_count" else replace(settings, log_frequency=number)
