"""The one place that knows which job backends there are."""

from __future__ import annotations

from services.common.errors import UnimplementedError
from services.common.jobs.backend import JobBackend
from services.common.jobs.local import LocalBackend
from services.common.jobs.settings import JobSettings


def open_backend(settings: JobSettings) -> JobBackend:
    """Returns the backend that the settings name.

    Raises:
        UnimplementedError: If this version does not have it.
    """
    if settings.job_backend == "local":
        return LocalBackend(settings.runs_folder, slots=settings.job_slots, poll_s=settings.job_poll_s)
    raise UnimplementedError(
        f"Expected TEACHWAFER_JOB_BACKEND=local. Received: {settings.job_backend}, which this version cannot run. "
        "Unset the variable to run jobs as child processes."
    )
