"""What the job messages of all services have in common: the same fields, the same limits."""

from __future__ import annotations

from typing import Any

from services.common.errors import InvalidArgumentError
from services.common.jobs.model import Job, JobState

VALIDATED_ID = "validate-only"
"""Id in the name of a job that was only checked."""
_MAX_DISPLAY_NAME = 256
_MAX_REQUEST_ID = 64


def check_request_id(request_id: str) -> None:
    """Checks the id of a request.

    Raises:
        InvalidArgumentError: It is too long.
    """
    _check_length(request_id, _MAX_REQUEST_ID, "request_id")


def check_display_name(display_name: str, field: str) -> None:
    """Checks the text for people of a job.

    Raises:
        InvalidArgumentError: It is too long.
    """
    _check_length(display_name, _MAX_DISPLAY_NAME, field)


def fill_in(message: Any, job: Job, name: str) -> None:
    """Writes where a job stands into its message: every output-only field but the result.

    Args:
        message: `TrainingJob`, `GenerationJob` or another message with the same fields.
        job: The job.
        name: Resource name of the job.
    """
    message.name = name
    message.display_name = job.display_name
    message.state = message.State.Value(f"STATE_{job.state.value}")
    message.progress = job.progress
    message.attempt = job.attempt
    message.queue_position = job.queue_position
    message.device = job.device
    message.create_time.FromDatetime(job.created_at)
    if job.started_at is not None:
        message.start_time.FromDatetime(job.started_at)
    if job.ended_at is not None:
        message.end_time.FromDatetime(job.ended_at)
    if job.state is JobState.FAILED and job.error is not None:
        message.error.CopyFrom(job.error)


def _check_length(text: str, most: int, field: str) -> None:
    if len(text) > most:
        raise InvalidArgumentError(f"Expected at most {most} characters. Received: {len(text)}.", field=field)
