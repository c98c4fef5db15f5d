"""Settings of the job engine, shared by the services that run jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.common.settings import ServiceSettings


class JobSettings(ServiceSettings):
    """Settings of a service that runs jobs; its own settings class derives from this one."""

    jobs_on_stop: Literal["checkpoint", "leave"] = "checkpoint"
    """What happens to running jobs when the service stops: "checkpoint" asks the workers to write a checkpoint and end,
    and the jobs go on at the next start; "leave" lets them run on, and the next start takes them over."""
    job_max_attempts: int = Field(default=3, ge=1, le=100)
    """Failed attempts after which a job has failed."""
    job_retry_delay_s: float = Field(default=2.0, ge=0)
    """Wait before the second attempt, seconds; doubles with each further one."""
    job_slots: int = Field(default=0, ge=0, le=1024)
    """Jobs of this service that run at once on this machine; 0 means one a GPU, or one without a GPU."""
    job_grace_s: float = Field(default=60.0, ge=0)
    """Time that a worker gets between being asked to stop and being killed, seconds."""
    job_deadline_s: float = Field(default=0.0, ge=0)
    """Longest wall time of an attempt, seconds; 0 means no limit."""
    job_poll_s: float = Field(default=0.25, gt=0)
    """Time between two looks at workers and queue, seconds."""
    job_lease_s: float = Field(default=30.0, gt=0)
    """Time after which another replica of the service takes over the jobs of one that does not answer, seconds."""

    @property
    def runs_folder(self) -> Path:
        """Folder with one folder a job."""
        return self.home / "runs"
