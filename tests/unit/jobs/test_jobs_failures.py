"""What follows from how an attempt ended."""

from __future__ import annotations

import pytest

from services.common import errors
from services.common.jobs import EndReason
from services.common.jobs.backend import AttemptStatus, JobRef, Phase
from services.common.jobs.failures import clean_lines, judge, verdict_of

REF = JobRef("job", 1)


@pytest.mark.parametrize(
    ("exit_code", "reason", "retry", "failed"),
    [
        (64, EndReason.BAD_CONFIG, False, True),
        (65, EndReason.BAD_DATA, False, True),
        (74, EndReason.STORAGE, True, True),
        (75, EndReason.TRY_AGAIN, True, True),
        (137, EndReason.OOM, True, True),
        (143, EndReason.PREEMPTED, True, False),
        (1, EndReason.UNKNOWN, True, True),
        (0, EndReason.UNKNOWN, True, True),
        (None, EndReason.UNKNOWN, True, True),
    ],
)
def test_exit_codes(exit_code: int | None, reason: EndReason, retry: bool, failed: bool) -> None:
    verdict = judge(AttemptStatus(REF, Phase.FAILED, exit_code), None)
    assert (verdict.reason, verdict.retry, verdict.failed) == (reason, retry, failed)


def test_the_backend_s_reason_goes_before_the_exit_code() -> None:
    verdict = judge(AttemptStatus(REF, Phase.GONE, 137, EndReason.NODE_LOST), None)
    assert (verdict.reason, verdict.retry) == (EndReason.NODE_LOST, True)


def test_the_worker_s_own_error_is_the_job_s_and_a_broken_one_is_not() -> None:
    own = errors.to_status(errors.InvalidArgumentError("Expected 1.", field="epochs")).SerializeToString()
    verdict = judge(AttemptStatus(REF, Phase.FAILED, 64), own)
    assert (verdict.error, verdict.message) == (own, "Expected 1.")
    assert judge(AttemptStatus(REF, Phase.FAILED, 64), b"\xff\xff").message != ""


@pytest.mark.parametrize("reason", [reason for reason in EndReason if reason is not EndReason.CANCELLED])
def test_every_reason_has_an_error_that_says_what_to_do(reason: EndReason) -> None:
    from google.rpc import status_pb2

    status = status_pb2.Status.FromString(verdict_of(reason).error)
    error = errors.from_status(status)
    assert error.reason == f"JOB_{reason}"
    assert error.message.count(". ") >= 1


def test_a_log_tail_loses_colours_control_characters_and_passwords() -> None:
    text = clean_lines(["\x1b[31mred\x1b[0m\r\x00\x07", "s3://key:pass" + "word@host/x", "한국어"])
    assert text == "red\ns3://***@host/x\n한국어"
    assert len(clean_lines(["x" * 9000])) == 4000
