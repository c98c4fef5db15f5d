"""What can go wrong, once for all services.

    TeachwaferError
    ├── InvalidArgumentError      the request itself is wrong; send a different one
    ├── NotFoundError             the thing named in the request does not exist
    ├── AlreadyExistsError        the thing to be made exists already
    ├── FailedPreconditionError   right request, wrong state; change the state first
    ├── AbortedError              somebody else was quicker; read again, then retry
    ├── ResourceExhaustedError    a quota, a queue or a disk is full; wait, then retry
    ├── UnavailableError          not ready, draining or not reachable; retry soon
    ├── DeadlineExceededError     the caller's time is over; ask for less or wait longer
    ├── CancelledByCallerError    the caller hung up; nothing to do
    ├── PermissionDeniedError     known caller, not allowed; ask for the right
    ├── UnauthenticatedError      unknown caller; log in or send credentials
    ├── UnimplementedError        this server cannot do it; use another one or a newer version
    ├── DataLossError             stored data are damaged or missing; restore them
    └── InternalError             a fault of ours; report the request id

A message says what was expected, what was received and what to do next, because people read it. Machines read `reason`
(stable, UPPER_SNAKE_CASE) and `metadata`. On the wire an error is a `google.rpc.Status` with details from
`google/rpc/error_details.proto`; services.common.interceptors sends it, services.common.client turns it back into
the class it was.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import grpc
from google.protobuf import any_pb2, message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

DOMAIN = "teachwafer"
STATUS_DETAILS_KEY = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """What is wrong with one field of a request.

    Attributes:
        field: Path of the field, as `wafers[3].rows`.
        description: What was expected and what was received.
    """

    field: str
    description: str


class TeachwaferError(Exception):
    """Base of all errors that callers may see.

    Args:
        message: What was expected, what was received, what to do next; for people.
        reason: Stable UPPER_SNAKE_CASE name of the cause; for machines. Default: the class's own.
        metadata: Further facts for machines.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    default_reason: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, *, reason: str = "", metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata: dict[str, str] = dict(metadata or {})

    def details(self) -> list[message.Message]:
        """Returns the `google.rpc` details of this class beside ErrorInfo."""
        return []

    def restore(self, details: Sequence[any_pb2.Any]) -> None:
        """Takes back what `details` gave away.

        Args:
            details: Details of a received status.
        """


class InvalidArgumentError(TeachwaferError):
    """INVALID_ARGUMENT: the request is wrong whatever the state of the system.

    Next step: correct the fields in `violations` and send again; the same request never succeeds.

    Args:
        message: What was expected and received.
        field: Path of the wrong field, where it is one.
        violations: All wrong fields, where they are several.
        reason: Stable name of the cause.
        metadata: Further facts.
    """

    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_ARGUMENT"

    def __init__(
        self,
        message: str,
        field: str = "",
        *,
        violations: Sequence[FieldViolation] = (),
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.violations = tuple(violations) or ((FieldViolation(field, message),) if field else ())

    @property
    def field(self) -> str:
        """Path of the first wrong field, or empty."""
        return self.violations[0].field if self.violations else ""

    def details(self) -> list[message.Message]:
        """Returns a BadRequest with the violations."""
        if not self.violations:
            return []
        violation = error_details_pb2.BadRequest.FieldViolation
        fields = [violation(field=each.field, description=each.description) for each in self.violations]
        return [error_details_pb2.BadRequest(field_violations=fields)]

    def restore(self, details: Sequence[any_pb2.Any]) -> None:
        """Takes the violations back."""
        bad_request = error_details_pb2.BadRequest()
        if _unpack(details, bad_request):
            self.violations = tuple(FieldViolation(v.field, v.description) for v in bad_request.field_violations)


class _ResourceError(TeachwaferError):
    """An error about one resource.

    Args:
        resource_type: Kind of the resource in plain words, as "model" or "training job".
        name: Name that was received.
        message: Replaces the standard message.
        reason: Stable name of the cause.
        metadata: Further facts.
    """

    standard_message: ClassVar[str] = "{type} {name!r}."

    def __init__(
        self,
        resource_type: str = "resource",
        name: str = "",
        message: str = "",
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        text = message or self.standard_message.format(type=resource_type, name=name)
        super().__init__(text, reason=reason, metadata=metadata)
        self.resource_type = resource_type
        self.name = name

    def details(self) -> list[message.Message]:
        """Returns a ResourceInfo."""
        return [error_details_pb2.ResourceInfo(resource_type=self.resource_type, resource_name=self.name)]

    def restore(self, details: Sequence[any_pb2.Any]) -> None:
        """Takes type and name back."""
        info = error_details_pb2.ResourceInfo()
        if _unpack(details, info):
            self.resource_type, self.name = info.resource_type, info.resource_name


class NotFoundError(_ResourceError):
    """NOT_FOUND: the resource named in the request does not exist, or no longer.

    Next step: list what there is and name one of those.
    """

    code = grpc.StatusCode.NOT_FOUND
    default_reason = "NOT_FOUND"
    standard_message = (
        "Expected the name of an existing {type}. Received: {name!r}. List what there is, and use one of those."
    )


class AlreadyExistsError(_ResourceError):
    """ALREADY_EXISTS: the resource to be made exists already and differs from the one asked for.

    Next step: choose another name, or use the one that exists.
    """

    code = grpc.StatusCode.ALREADY_EXISTS
    default_reason = "ALREADY_EXISTS"
    standard_message = "The {type} {name!r} exists already. Choose another name, or use the one that exists."


class FailedPreconditionError(TeachwaferError):
    """FAILED_PRECONDITION: the request is right, but the system is not in the state that it needs.

    Next step: bring about that state (the message says how), then send again.

    Args:
        message: Which state was expected, which was found, how to get there.
        subject: What is in the wrong state, as a resource name.
        reason: Stable name of the cause.
        metadata: Further facts.
    """

    code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "FAILED_PRECONDITION"

    def __init__(
        self, message: str, *, subject: str = "", reason: str = "", metadata: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.subject = subject

    def details(self) -> list[message.Message]:
        """Returns a PreconditionFailure."""
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=self.reason, subject=self.subject, description=self.message
        )
        return [error_details_pb2.PreconditionFailure(violations=[violation])]

    def restore(self, details: Sequence[any_pb2.Any]) -> None:
        """Takes the subject back."""
        failure = error_details_pb2.PreconditionFailure()
        if _unpack(details, failure) and failure.violations:
            self.subject = failure.violations[0].subject


class AbortedError(TeachwaferError):
    """ABORTED: another request changed the same thing in between.

    Next step: read the present state, decide anew, then retry.
    """

    code = grpc.StatusCode.ABORTED
    default_reason = "CONFLICT"


class _RetryableError(TeachwaferError):
    """An error that passes by waiting.

    Args:
        message: What is short or away, and for how long.
        retry_after_s: Seconds to wait before the next try; 0 says nothing about it.
        reason: Stable name of the cause.
        metadata: Further facts.
    """

    def __init__(
        self,
        message: str,
        retry_after_s: float = 0.0,
        *,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.retry_after_s = retry_after_s

    def details(self) -> list[message.Message]:
        """Returns a RetryInfo where a waiting time is known."""
        if self.retry_after_s <= 0:
            return []
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromMilliseconds(math.ceil(self.retry_after_s * 1000))
        return [info]

    def restore(self, details: Sequence[any_pb2.Any]) -> None:
        """Takes the waiting time back."""
        info = error_details_pb2.RetryInfo()
        if _unpack(details, info):
            self.retry_after_s = info.retry_delay.ToMilliseconds() / 1000


class ResourceExhaustedError(_RetryableError):
    """RESOURCE_EXHAUSTED: a queue, quota, message size or disk is full.

    Next step: wait `retry_after_s`, or send less at once.
    """

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "RESOURCE_EXHAUSTED"


class UnavailableError(_RetryableError):
    """UNAVAILABLE: the service is starting, draining or not reachable.

    Next step: retry after `retry_after_s`; the only error that clients retry by themselves.
    """

    code = grpc.StatusCode.UNAVAILABLE
    default_reason = "UNAVAILABLE"


class DeadlineExceededError(TeachwaferError):
    """DEADLINE_EXCEEDED: the work was not done in the time that the caller gave.

    Next step: give more time or ask for less; whether the work went on is not known.
    """

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"


class CancelledByCallerError(TeachwaferError):
    """CANCELLED: the caller hung up before the answer.

    Next step: none.
    """

    code = grpc.StatusCode.CANCELLED
    default_reason = "CANCELLED"


class PermissionDeniedError(TeachwaferError):
    """PERMISSION_DENIED: the caller is known, but may not do this.

    Next step: ask an administrator for the right that the message names.
    """

    code = grpc.StatusCode.PERMISSION_DENIED
    default_reason = "PERMISSION_DENIED"


class UnauthenticatedError(TeachwaferError):
    """UNAUTHENTICATED: nobody vouches for the caller.

    Next step: log in, or send valid credentials.
    """

    code = grpc.StatusCode.UNAUTHENTICATED
    default_reason = "UNAUTHENTICATED"


class UnimplementedError(TeachwaferError):
    """UNIMPLEMENTED: this server does not have what was asked for.

    Next step: use a server or a version that has it.
    """

    code = grpc.StatusCode.UNIMPLEMENTED
    default_reason = "UNIMPLEMENTED"


class DataLossError(TeachwaferError):
    """DATA_LOSS: stored data are damaged, truncated or missing.

    Next step: restore the file named in the message; retrying does not help.
    """

    code = grpc.StatusCode.DATA_LOSS
    default_reason = "DATA_LOSS"


class InternalError(TeachwaferError):
    """INTERNAL: a fault of this program.

    Next step: report the request id; the server's log has the cause under it.
    """

    code = grpc.StatusCode.INTERNAL
    default_reason = "INTERNAL"


_CLASSES: tuple[type[TeachwaferError], ...] = (
    InvalidArgumentError,
    NotFoundError,
    AlreadyExistsError,
    FailedPreconditionError,
    AbortedError,
    ResourceExhaustedError,
    UnavailableError,
    DeadlineExceededError,
    CancelledByCallerError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnimplementedError,
    DataLossError,
    InternalError,
)
_CLASS_OF_CODE: dict[int, type[TeachwaferError]] = {_class.code.value[0]: _class for _class in _CLASSES}


def to_status(error: TeachwaferError, request_id: str = "") -> status_pb2.Status:
    """Writes an error as it goes over the wire.

    Args:
        error: The error.
        request_id: Request that it ended; sent as RequestInfo unless empty.
    """
    status = status_pb2.Status(code=error.code.value[0], message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    details = [info, *error.details()]
    if request_id:
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    for detail in details:
        status.details.add().Pack(detail)
    return status


def from_status(status: status_pb2.Status) -> TeachwaferError:
    """Reads an error as it came over the wire or out of a job's record.

    Args:
        status: Status with any code but OK. A code without a class of its own becomes InternalError.
    """
    error_class = _CLASS_OF_CODE.get(status.code, InternalError)
    info = error_details_pb2.ErrorInfo()
    _unpack(status.details, info)
    text = status.message or error_class.default_reason
    if issubclass(error_class, _ResourceError):
        error: TeachwaferError = error_class(message=text, reason=info.reason, metadata=dict(info.metadata))
    else:
        error = error_class(text, reason=info.reason, metadata=dict(info.metadata))
    error.restore(status.details)
    request = error_details_pb2.RequestInfo()
    if _unpack(status.details, request) and request.request_id:
        error.metadata.setdefault("request_id", request.request_id)
    return error


def from_rpc_error(error: grpc.RpcError) -> TeachwaferError:
    """Turns what a gRPC call raised back into one of our errors.

    Args:
        error: A `grpc.aio.AioRpcError`, or the `grpc.RpcError` of a blocking call (which is a call, too).
    """
    code, text = error.code(), error.details() or ""
    # The published stubs know only the old form of metadata.
    trailing = cast("Iterable[tuple[str, bytes]]", error.trailing_metadata() or ())
    for key, value in trailing:
        if key == STATUS_DETAILS_KEY:
            status = status_pb2.Status.FromString(value)
            if status.code == code.value[0]:
                return from_status(status)
    return from_status(status_pb2.Status(code=code.value[0], message=text))


def with_context(error: TeachwaferError, context: str) -> TeachwaferError:
    """Returns a copy of an error whose message says in which connection it came up.

    Args:
        error: The error.
        context: What was being done, as "Could not train"; goes before the message.
    """
    copied = copy.copy(error)
    copied.message = f"{context}: {error.message}"
    copied.args = (copied.message,)
    return copied


def _unpack(details: Sequence[any_pb2.Any], into: message.Message) -> bool:
    """Unpacks the first detail of the type of `into`; returns whether there was one."""
    return any(detail.Unpack(into) for detail in details)
