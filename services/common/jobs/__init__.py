"""Long work in processes of its own: queue, workers, events, retries, and taking over after a crash."""

from services.common.jobs.model import EndReason, ExitCode, Job, JobEvent, JobState

__all__ = ["EndReason", "ExitCode", "Job", "JobEvent", "JobState"]
