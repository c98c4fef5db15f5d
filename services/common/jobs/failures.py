"""What follows from how an attempt ended: another attempt, or an error that says what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from google.rpc import status_pb2  # type: ignore[import-untyped]

from services.common.errors import (
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    TeachwaferError,
    UnavailableError,
    to_status,
)
from services.common.jobs.backend import AttemptStatus
from services.common.jobs.model import EndReason, ExitCode

_REASONS = {
    ExitCode.BAD_CONFIG: EndReason.BAD_CONFIG,
    ExitCode.BAD_DATA: EndReason.BAD_DATA,
    ExitCode.STORAGE: EndReason.STORAGE,
    ExitCode.TRY_AGAIN: EndReason.TRY_AGAIN,
    ExitCode.OUT_OF_MEMORY: EndReason.OOM,
    ExitCode.STOPPED: EndReason.PREEMPTED,
}
_NEVER_AGAIN = frozenset(
    {EndReason.BAD_CONFIG, EndReason.BAD_DATA, EndReason.DEADLINE, EndReason.IMAGE, EndReason.UNSCHEDULABLE}
)
_ERRORS: dict[EndReason, tuple[type[TeachwaferError], str]] = {
    EndReason.OOM: (
        ResourceExhaustedError,
        "The work was killed, most likely because memory ran out. Use a smaller batch size, a smaller model or fewer "
        "wafers, or give the machine more memory.",
    ),
    EndReason.DEADLINE: (
        DeadlineExceededError,
        "The work took longer than its deadline. Ask for less, or raise TEACHWAFER_JOB_DEADLINE_S.",
    ),
    EndReason.NODE_LOST: (UnavailableError, "The machine that ran the work was lost. Start the job again."),
    EndReason.PREEMPTED: (UnavailableError, "The work had to make room for other work. Start the job again."),
    EndReason.BAD_CONFIG: (
        InvalidArgumentError,
        "The settings of the job are wrong. Correct them and start a new job.",
    ),
    EndReason.BAD_DATA: (DataLossError, "The data of the job cannot be used. Correct them and start a new job."),
    EndReason.IMAGE: (
        FailedPreconditionError,
        "The program of the work could not be fetched. Check the image's name and the registry's credentials.",
    ),
    EndReason.UNSCHEDULABLE: (
        ResourceExhaustedError,
        "No machine fits the work. Ask for fewer GPUs or less memory, or add a machine.",
    ),
    EndReason.STORAGE: (
        ResourceExhaustedError,
        "The work could not write its files: the disk is full or may not be written. Free some space under "
        "TEACHWAFER_HOME or correct its rights, then start the job again.",
    ),
    EndReason.TRY_AGAIN: (
        UnavailableError,
        "Something that the work needs could not be reached. Start the job again later.",
    ),
}
_UNKNOWN_TEXT = "The work ended unexpectedly. Start the job again; if it fails again, the service's log says why."


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from an attempt's end.

    Attributes:
        reason: Why it ended, in one word.
        retry: Whether another attempt can help.
        failed: Whether it counts as a failed attempt.
        error: The job's error, a serialised google.rpc.Status, should there be no other attempt.
        message: The same for people.
    """

    reason: EndReason
    retry: bool
    failed: bool
    error: bytes
    message: str


def judge(status: AttemptStatus, error: bytes | None) -> Verdict:
    """Says what follows from an attempt that ended without a result.

    Args:
        status: How it ended, seen by the backend.
        error: Serialised google.rpc.Status that the worker left; None without one.
    """
    reason = status.reason
    if reason is None:
        reason = _REASONS.get(ExitCode(code), EndReason.UNKNOWN) if (code := status.exit_code) in _REASONS else None
    verdict = verdict_of(reason or EndReason.UNKNOWN)
    if error is None:
        return verdict
    message = _message(error)
    return Verdict(verdict.reason, verdict.retry, verdict.failed, error, message) if message else verdict


def verdict_of(reason: EndReason) -> Verdict:
    """Returns what follows from a reason alone."""
    error_class, text = _ERRORS.get(reason, (InternalError, _UNKNOWN_TEXT))
    status = to_status(error_class(text, reason=f"JOB_{reason}"))
    return Verdict(
        reason=reason,
        retry=reason not in _NEVER_AGAIN,
        failed=reason is not EndReason.PREEMPTED,
        error=status.SerializeToString(),
        message=text,
    )


def verdict_of_error(error: TeachwaferError, reason: EndReason) -> Verdict:
    """Returns the verdict of an attempt that a backend refused for good."""
    return Verdict(reason, False, True, to_status(error).SerializeToString(), error.message)


def clean_lines(lines: Sequence[str], max_characters: int = 4000) -> str:
    """Prepares the end of a worker's output for the service's log.

    Control characters, which could forge log lines or drive a terminal, and passwords in URLs are taken out.
    """
    text = "\n".join(lines)
    text = re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]", "", text)
    text = re.sub(r"[^\n\t\x20-\x7e\xa0-\uffff]", "", text)
    text = re.sub(r"(?<=://)[^/\s:@]*:[^/\s@]*@", "***@", text)
    return text[-max_characters:]


def _message(error: bytes) -> str:
    try:
        return str(status_pb2.Status.FromString(error).message)
    except DecodeError:
        return ""
