"""Layout of a job's folder, through which the engine and the worker speak.

    <runs>/<job id>/spec.json             what to do; written once by the engine
    <runs>/<job id>/fence                 number of the current attempt; written by the engine before it starts one
    <runs>/<job id>/checkpoints/          shared by the attempts of the job
    <runs>/<job id>/attempts/<n>/         written by attempt n alone:
        process.json                      who runs it (see launch.py)
        events.jsonl                      one event a line, appended and flushed to the disk
        result.json | error.bin           how it ended; result.json is written last and by rename
        exit_code                         how the process meant to exit; lets an adopting service know
        log.txt                           standard output and standard error

Plain files outlive the service, so that nothing a worker reported is lost when the service dies.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.common.files import write_file

MAX_READ_BYTES = 4 * 1024 * 1024
"""Most bytes of events that one read takes, so that a long backlog is stored in portions."""

MAX_KIND = 64
"""Longest kind of an event, characters."""
MAX_DEVICE = 256
"""Longest name of a device, characters."""


@dataclass(frozen=True, slots=True)
class WorkOrder:
    """Content of spec.json.

    Attributes:
        job_id: Id of the job.
        kind: Kind of the job.
        store_url: Store that the work reads from and writes to.
        spec: What to do.
    """

    job_id: str
    kind: str
    store_url: str
    spec: dict[str, Any]


@dataclass(frozen=True, slots=True)
class WorkerEvent:
    """One line of events.jsonl.

    Attributes:
        time: When it was reported, UTC.
        kind: Kind of the event; empty for a line that only says that the worker has started.
        data: What happened.
        progress: Share of the work done, 0 to 1; None when not said.
        device: Device in use; None when not said.
    """

    time: datetime
    kind: str
    data: dict[str, Any]
    progress: float | None = None
    device: str | None = None

    def to_line(self) -> bytes:
        """Returns the event as one line of JSON with its line end."""
        line: dict[str, Any] = {"time": self.time.timestamp(), "kind": self.kind, "data": self.data}
        if self.progress is not None:
            line["progress"] = self.progress
        if self.device is not None:
            line["device"] = self.device
        return to_json(line) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> WorkerEvent:
        """Parses one line.

        Raises:
            ValueError: If the line is not an event.
        """
        value = json.loads(line)
        if not isinstance(value, dict) or not isinstance(value.get("data"), dict):
            raise ValueError(  # noqa: TRY004 - one error for all that is no event
                f"Expected an object with time, kind and data. Received: {line[:200]!r}."
            )
        progress = value.get("progress")
        return cls(
            time=datetime.fromtimestamp(float(value["time"]), UTC),
            kind=str(value["kind"])[:MAX_KIND],
            data=value["data"],
            progress=None if progress is None else float(progress),
            device=None if value.get("device") is None else str(value["device"])[:MAX_DEVICE],
        )


@dataclass(frozen=True, slots=True)
class AttemptFolder:
    """The folder of one attempt."""

    path: Path

    @property
    def process(self) -> Path:
        """File that says which process runs the attempt."""
        return self.path / "process.json"

    @property
    def events(self) -> Path:
        """File of the reported events."""
        return self.path / "events.jsonl"

    @property
    def result(self) -> Path:
        """File of the result."""
        return self.path / "result.json"

    @property
    def error(self) -> Path:
        """File of the final error, a serialised google.rpc.Status."""
        return self.path / "error.bin"

    @property
    def exit_code(self) -> Path:
        """File of the exit code that the worker meant to end with."""
        return self.path / "exit_code"

    @property
    def log(self) -> Path:
        """File of the worker's output."""
        return self.path / "log.txt"

    def read_result(self) -> dict[str, Any] | None:
        """Returns the result, or None when the attempt left none."""
        content = _read_or_none(self.result)
        if content is None:
            return None
        value = json.loads(content)
        return value if isinstance(value, dict) else None

    def read_error(self) -> bytes | None:
        """Returns the serialised error, or None when the attempt left none."""
        return _read_or_none(self.error)

    def read_exit_code(self) -> int | None:
        """Returns the exit code that the worker noted, or None when it was killed before it could."""
        content = _read_or_none(self.exit_code)
        return int(content) if content and content.strip().isdigit() else None

    def read_event_lines(self, offset: int) -> tuple[list[bytes], int]:
        """Reads whole lines from a byte offset on.

        Args:
            offset: Bytes of the file that were read before.

        Returns:
            The lines without their ends, and the offset after the last of them. A line still being written stays.
        """
        try:
            with self.events.open("rb") as file:
                file.seek(offset)
                chunk = file.read(MAX_READ_BYTES)
                if b"\n" not in chunk and len(chunk) == MAX_READ_BYTES:
                    chunk += file.readline()
        except (FileNotFoundError, NotADirectoryError):
            return [], offset
        end = chunk.rfind(b"\n") + 1
        return chunk[:end].splitlines(), offset + end

    def tail_log(self, lines: int, max_bytes: int = 16_384) -> list[str]:
        """Returns the last lines of the worker's output, undecodable bytes replaced; none when it cannot be read."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - max_bytes))
                return file.read().decode(errors="replace").splitlines()[-lines:]
        except OSError:
            return []


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of one job."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints, shared by the attempts."""
        return self.path / "checkpoints"

    def attempt(self, number: int) -> AttemptFolder:
        """Returns the folder of an attempt; it need not exist."""
        return AttemptFolder(self.path / "attempts" / str(number))

    def prepare(self, order: WorkOrder, attempt: int) -> AttemptFolder:
        """Makes the folders of an attempt, writes spec.json and raises the fence.

        Raises:
            OSError: If the disk is full or the folder cannot be written.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        folder = self.attempt(attempt)
        folder.path.mkdir(parents=True, exist_ok=True)
        content = {"job_id": order.job_id, "kind": order.kind, "store_url": order.store_url, "spec": order.spec}
        write_file(self.path / "spec.json", json.dumps(content, indent=2).encode())
        if attempt > self.current_attempt():
            write_file(self.path / "fence", str(attempt).encode())
        return folder

    def read_order(self) -> WorkOrder:
        """Reads spec.json.

        Raises:
            OSError: If it cannot be read.
        """
        value: Mapping[str, Any] = json.loads((self.path / "spec.json").read_bytes())
        return WorkOrder(value["job_id"], value["kind"], value["store_url"], dict(value["spec"]))

    def current_attempt(self) -> int:
        """Returns the number of the newest attempt that was started here; 0 before the first."""
        content = _read_or_none(self.path / "fence")
        return int(content) if content else 0


def to_json(value: Any) -> bytes:
    """Writes a value as JSON; NumPy scalars and arrays become numbers and lists, all else that JSON lacks its text."""
    return json.dumps(value, default=_plain, separators=(",", ":")).encode()


def _read_or_none(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _plain(value: Any) -> Any:
    """Turns a value that JSON lacks into one that it has: reporting must never fail for a type."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
