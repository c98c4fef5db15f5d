"""Long work in processes of its own: queue, workers, events, retries, and taking over after a crash.

A service makes a `JobEngine`; its worker module calls `services.common.jobs.worker.run_worker`.
"""

from services.common.jobs.backend import JobBackend
from services.common.jobs.engine import JobEngine
from services.common.jobs.local import LocalBackend
from services.common.jobs.model import EndReason, ExitCode, Job, JobEvent, JobState
from services.common.jobs.settings import JobSettings
from services.common.jobs.store import JobStore

__all__ = [
    "EndReason",
    "ExitCode",
    "Job",
    "JobBackend",
    "JobEngine",
    "JobEvent",
    "JobSettings",
    "JobState",
    "JobStore",
    "LocalBackend",
]
