"""The worker's side of a job: runs the work in a process of its own and tells the engine how it goes.

A worker module is a few lines::

    def work(context: JobContext) -> dict[str, Any]:
        for epoch in ...:
            context.check_cancelled()
            context.report("epoch", progress=epoch / epochs, loss=loss)
        return {"score": 0.98}

    if __name__ == "__main__":
        run_worker(work)

Stopping: SIGTERM sets a flag, and the next `check_cancelled` (or the first `report`) raises `JobStopped`. The work may
catch it to write a checkpoint, and raises it again; the process then exits with 143, and the job goes on from that
checkpoint.
"""

from __future__ import annotations

import argparse
import errno
import math
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from services.common import errors
from services.common.files import write_file
from services.common.jobs.model import ExitCode
from services.common.jobs.run_folder import AttemptFolder, RunFolder, WorkerEvent, WorkOrder, to_json
from services.common.store import BlobStore, open_store

PROGRESS_KIND = "progress"
"""Kind of events that only say how far the work is; they are thinned out, all others are always written."""
PROGRESS_INTERVAL_S = 0.25
"""Least time between two written progress events, seconds."""
_FULL_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class JobStopped(BaseException):
    """The work was asked to stop. Write a checkpoint and raise it again.

    No `Exception`, so that a broad `except Exception` in the work does not swallow it.
    """


class JobContext:
    """All that the work sees of the job it is part of.

    Attributes:
        spec: What to do.
        job_id: Id of the job.
        attempt: Number of this attempt, from 1.
        folder: Folder of this attempt's outputs.
        checkpoints: Folder of checkpoints, shared by the attempts of the job. Call `check_cancelled` before writing
            there: it also stops an attempt that was replaced while it was frozen.
    """

    def __init__(self, run_folder: RunFolder, attempt: int, order: WorkOrder) -> None:
        self.spec = order.spec
        self.job_id = order.job_id
        self.attempt = attempt
        self.folder: Path = run_folder.attempt(attempt).path
        self.checkpoints: Path = run_folder.checkpoints
        self._run_folder = run_folder
        self._attempt_folder = run_folder.attempt(attempt)
        self._store_url = order.store_url
        self._stop = threading.Event()
        self._stop_delivered = False
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._last_progress = -PROGRESS_INTERVAL_S
        self._write_failed = False

    @cached_property
    def store(self) -> BlobStore:
        """Store of data sets and other large objects."""
        return open_store(self._store_url)

    def report(self, kind: str, progress: float | None = None, device: str | None = None, **data: Any) -> None:
        """Reports that something happened. Cheap, and a full disk or an odd value never fails the work.

        Args:
            kind: Kind of the event, such as "epoch". "progress" events are thinned out to a few a second.
            progress: Share of the whole work done, 0 to 1.
            device: Device in use, for people.
            **data: What happened; JSON values, NumPy scalars and arrays.

        Raises:
            JobStopped: Once, if the work was asked to stop; the event is written first.
            ValueError: If the kind is one of the engine's own.
        """
        if kind in ("", "state"):
            raise ValueError(f'Expected any kind but "state", which the engine writes. Received: {kind!r}.')
        now = time.monotonic()
        with self._lock:
            if kind != PROGRESS_KIND or now - self._last_progress >= PROGRESS_INTERVAL_S:
                if kind == PROGRESS_KIND:
                    self._last_progress = now
                if progress is not None:
                    progress = min(max(float(progress), 0.0), 1.0) if math.isfinite(progress) else None
                self._append(WorkerEvent(datetime.now(UTC), kind, data, progress, device))
        if self._stop.is_set() and not self._stop_delivered:
            # Once only, so that the code which writes the checkpoint may report.
            self._stop_delivered = True
            raise JobStopped

    def check_cancelled(self) -> None:
        """Returns at once while the work may go on.

        Raises:
            JobStopped: If the job was cancelled, the service is stopping, or a newer attempt has replaced this one.
        """
        if self._stop.is_set() or self._replaced():
            self._stop_delivered = True
            raise JobStopped

    def elapsed_s(self) -> float:
        """Returns the wall time since the attempt's work began, seconds."""
        return time.monotonic() - self._started

    @staticmethod
    def peak_memory_bytes() -> int:
        """Returns the peak resident memory of this process, bytes."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024

    def request_stop(self) -> None:
        """Makes the next `check_cancelled` or `report` raise `JobStopped`."""
        self._stop.set()

    def announce(self) -> None:
        """Tells the engine that the worker has started."""
        with self._lock:
            self._append(WorkerEvent(datetime.now(UTC), "", {"pid": os.getpid()}))

    def _replaced(self) -> bool:
        return self._run_folder.current_attempt() > self.attempt

    def _append(self, event: WorkerEvent) -> None:
        try:
            with self._attempt_folder.events.open("ab") as file:
                file.write(event.to_line())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if not self._write_failed:
                print(f"Events cannot be written: {error}. The work goes on.", file=sys.stderr, flush=True)
            self._write_failed = True


def open_context(run_folder: Path, attempt: int) -> JobContext:
    """Returns the context of an attempt whose folder the engine has prepared.

    Raises:
        OSError: If spec.json cannot be read.
    """
    folder = RunFolder(run_folder)
    return JobContext(folder, attempt, folder.read_order())


def run_worker(work: Callable[[JobContext], dict[str, Any]], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the work of one attempt and exits with the code that says how it ended.

    Args:
        work: The work; returns the job's result as JSON values.
        argv: Command line, `--run-folder FOLDER --attempt NUMBER`; the process's own by default.
    """
    parser = argparse.ArgumentParser(description="Runs one attempt of a job. Started by the service that owns the job.")
    parser.add_argument("--run-folder", type=Path, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    arguments = parser.parse_args(argv)
    context = open_context(arguments.run_folder, arguments.attempt)
    attempt_folder = RunFolder(arguments.run_folder).attempt(arguments.attempt)

    def on_stop(_signal: int, _frame: FrameType | None) -> None:
        context.request_stop()

    signal.signal(signal.SIGTERM, on_stop)
    code = _run(work, context, attempt_folder)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: threads that a library left behind must not keep a finished job alive.
    os._exit(code)


def outcome_of(work: Callable[[], None]) -> tuple[ExitCode, errors.TeachwaferError | None]:
    """Runs some work; returns the exit code that says how it ended, and the error where it is one of the project's."""
    try:
        work()
    except JobStopped:
        return ExitCode.STOPPED, None
    except errors.TeachwaferError as failure:
        traceback.print_exc()
        return _exit_code(failure), failure
    except MemoryError:
        traceback.print_exc()
        return ExitCode.OUT_OF_MEMORY, None
    except OSError as failure:
        traceback.print_exc()
        return ExitCode.STORAGE if failure.errno in _FULL_DISK else ExitCode.FAILED, None
    except Exception:
        traceback.print_exc()
        return ExitCode.FAILED, None
    return ExitCode.OK, None


def _run(work: Callable[[JobContext], dict[str, Any]], context: JobContext, folder: AttemptFolder) -> ExitCode:
    """Runs the work, writes its result or its error, and returns the exit code."""

    def whole() -> None:
        context.announce()
        write_file(folder.result, to_json(work(context)))

    code, error = outcome_of(whole)
    if code is ExitCode.OK:
        return code
    try:
        if error is not None:
            write_file(folder.error, errors.to_status(error).SerializeToString())
        write_file(folder.exit_code, str(int(code)).encode())
    except OSError:
        traceback.print_exc()
    return code


def _exit_code(error: errors.TeachwaferError) -> ExitCode:
    """Says whether trying again can help: not with bad settings, not with bad data."""
    if isinstance(error, errors.InvalidArgumentError):
        return ExitCode.BAD_CONFIG
    if isinstance(error, errors.DataLossError | errors.FailedPreconditionError):
        return ExitCode.BAD_DATA
    return ExitCode.FAILED
