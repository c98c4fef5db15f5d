"""Long work in processes of its own: queue, workers, events, retries, and taking over after a crash.

A service makes an `engine.JobEngine` from a `store.JobStore` and a `local.LocalBackend`; its worker module calls
`worker.run_worker`. This package itself names only what both sides share, so that a worker, which starts anew for every
attempt, does not load the database.
"""

from services.common.jobs.model import EndReason, ExitCode, Job, JobEvent, JobState

__all__ = ["EndReason", "ExitCode", "Job", "JobEvent", "JobState"]
