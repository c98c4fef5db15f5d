"""Runs the generator's worker on a job of its own, without a service around it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.common.dataset import DatasetClass, DatasetWafer, DatasetWriter, Origin
from services.common.jobs.run_folder import RunFolder, WorkOrder
from services.common.store import open_store
from services.generator.domain import JOB_KIND, GenerationSpec
from services.generator.simulator import SimulatedClass, simulate


@dataclass(frozen=True, slots=True)
class WorkerRun:
    """How a job went.

    Attributes:
        result: What the job made.
        cpu_s: Processor time of its process, seconds.
        peak_bytes: Peak resident memory of its process, bytes.
    """

    result: dict[str, Any]
    cpu_s: float
    peak_bytes: int


def freeze_parents(home: Path, pattern: str = "Donut", count: int = 100, side: int = 52) -> None:
    """Puts a data set version `parents` of one simulated class into the store of a folder."""
    class_ = DatasetClass("c", pattern, pattern)
    batches = simulate([SimulatedClass((pattern,), count)], seed=99, rows=side, columns=side)
    wafers = ((dies, lot) for batch in batches for dies, lot in zip(batch.dies, batch.lots, strict=True))
    with DatasetWriter(open_store(store_url(home)), "parents", [class_]) as writer:
        writer.add(
            DatasetWafer(f"w{number}", dies, "c", lot, Origin.UPLOADED) for number, (dies, lot) in enumerate(wafers)
        )
        writer.finish()


def store_url(home: Path) -> str:
    """Returns the address of the store of a folder."""
    return (home / "store").as_uri()


def prepared(home: Path, job_id: str, spec: GenerationSpec, attempt: int = 1) -> list[str]:
    """Prepares an attempt of a job; returns the command that runs it."""
    folder = RunFolder(home / "runs" / job_id)
    folder.prepare(WorkOrder(job_id, JOB_KIND, store_url(home), spec.to_json()), attempt)
    module = [sys.executable, "-m", "services.generator.worker"]
    return [*module, "--run-folder", str(folder.path), "--attempt", str(attempt)]


def run_job(home: Path, job_id: str, spec: GenerationSpec, attempt: int = 1) -> WorkerRun:
    """Runs a job to its end, which must be a good one."""
    process = subprocess.Popen(prepared(home, job_id, spec, attempt))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    result = RunFolder(home / "runs" / job_id).attempt(attempt).read_result()
    if process.returncode != 0 or result is None:
        raise AssertionError(f"Expected a job that ends well. Received: exit code {process.returncode}.")
    return WorkerRun(result, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)
