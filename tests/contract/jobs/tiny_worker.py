"""A worker whose work is told by its spec: `python -m tests.contract.jobs.tiny_worker --run-folder F --attempt N`."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from services.common import errors
from services.common.jobs.worker import JobContext, JobStopped, run_worker

FAILURES: dict[str, BaseException] = {
    "config": errors.InvalidArgumentError("Expected epochs over 0. Received: -1.", field="config.epochs"),
    "data": errors.DataLossError("Expected the hash of the manifest. Received: another one."),
    "precondition": errors.FailedPreconditionError("Expected two classes or more. Received: 1."),
    "missing": errors.NotFoundError("data set version", "datasetVersions/gone"),
    "surprise": RuntimeError("secret /path/of/the/server"),
    "memory": MemoryError(),
    "disk": OSError(errno.ENOSPC, "No space left on device"),
}


def work(context: JobContext) -> dict[str, Any]:
    """Counts to spec["to"] from the checkpoint on; spec["hold_at"] waits there for the file spec["gate"]."""
    spec = context.spec
    if spec.get("ignore_sigterm"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if spec.get("child"):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if context.attempt in spec.get("fail_attempts", []):
        print("about to fail \x1b[31mred\x1b[0m at https://user:pass" + "word@host/", flush=True)
        raise FAILURES[spec["failure"]]
    if context.attempt in spec.get("exit_attempts", []):
        os._exit(spec["exit_code"])
    checkpoint = context.checkpoints / "count"
    begin = count = int(checkpoint.read_text()) if checkpoint.exists() else 0
    try:
        while count < spec.get("to", 0):
            context.check_cancelled()
            if count == spec.get("hold_at"):
                hold(context, Path(spec["gate"]), deaf=spec.get("ignore_sigterm", False))
            count += 1
            if not spec.get("checkpoint_on_stop"):
                checkpoint.write_text(str(count))
            context.report("epoch", progress=count / spec["to"], device="tiny", epoch=count, attempt=context.attempt)
    except JobStopped:
        checkpoint.write_text(str(count))
        raise
    return {"count": count, "begin": begin, "attempt": context.attempt, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}


def hold(context: JobContext, gate: Path, *, deaf: bool) -> None:
    """Says that it waits, and does so until the gate is there or the work is stopped."""
    context.report("holding", pid=os.getpid())
    while not gate.exists():
        if not deaf:
            context.check_cancelled()
        time.sleep(0.01)


if __name__ == "__main__":
    run_worker(work)
