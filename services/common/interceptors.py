"""What every call to every service goes through: a request id, an access log line, one mapping of errors.

Handlers raise; they never set a code. An error of services.common.errors reaches the caller as a `google.rpc.Status`
with details. Anything else is a fault of ours: it is logged with its trace, and the caller gets INTERNAL with a fixed
text and the request id under which the trace can be found, never the text of the exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from services.common.errors import (
    STATUS_DETAILS_KEY,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    TeachwaferError,
    UnimplementedError,
    to_status,
)
from services.common.logs import request_id_var

REQUEST_ID_KEY = "x-request-id"
"""Metadata key of the request id: taken from the caller where it is sane, and always sent back."""

INTERNAL_MESSAGE = (
    "Something went wrong on our side. Report the request id {request_id}: the server's log has the cause."
)

_MOST_MESSAGE_BYTES = 1024
_MOST_STATUS_BYTES = 3072

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_QUIET_PREFIXES = ("/grpc.health.", "/teachwafer.predictor.workers.")
_FAULTS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})
_CODES = {code.value[0]: code for code in grpc.StatusCode}

logger = logging.getLogger(__name__)

Context = Any
Behaviour = Callable[[Any, Context], Any]


def default_interceptors(default_deadline_s: float = 300.0) -> Sequence[CallInterceptor]:
    """Returns the interceptors of every server.

    Args:
        default_deadline_s: Time for unary calls whose caller set no deadline, seconds.
    """
    return (CallInterceptor(default_deadline_s),)


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Gives each call a request id, one access log line and the mapping of errors.

    Args:
        default_deadline_s: Time for unary calls whose caller set no deadline, seconds.
    """

    def __init__(self, default_deadline_s: float = 300.0) -> None:
        self._default_deadline_s = default_deadline_s
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps the handler of one call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return grpc.unary_unary_rpc_method_handler(self._wrap_unary(_unknown_method(method), method))
        # A method has the same handler in each call: wrapping it costs more than much of what a small call does.
        made = self._wrapped.get(method)
        if made is None or made[0] is not handler:
            made = self._wrapped[method] = (handler, self._wrap(handler, method))
        return made[1]

    def _wrap(self, handler: Any, method: str) -> Any:
        """Returns a handler of the same kind that is observed."""
        make = HANDLER_FACTORIES[handler.request_streaming, handler.response_streaming]
        deserializer = handler.request_deserializer
        if deserializer is not None:
            deserializer = _undamaged(deserializer)
        behaviour: Behaviour = (
            handler.stream_stream or handler.stream_unary or handler.unary_stream or handler.unary_unary
        )
        if not handler.response_streaming:
            wrapped = self._wrap_unary(behaviour, method)
        elif inspect.isasyncgenfunction(behaviour):
            wrapped = self._wrap_generator(behaviour, method)
        else:
            wrapped = self._wrap_writer(behaviour, method)
        return make(wrapped, deserializer, handler.response_serializer)

    def _wrap_unary(self, behaviour: Behaviour, method: str) -> Behaviour:
        """Wraps a handler that returns one response.

        It ends after the default time where the caller set none; gRPC itself sees to the caller's.
        """

        async def handle(request: Any, context: Context) -> Any:
            async with _Observed(method, context):
                if context.time_remaining() is not None:
                    return await behaviour(_checked(request), context)
                try:
                    async with asyncio.timeout(self._default_deadline_s) as scope:
                        return await behaviour(_checked(request), context)
                except TimeoutError:
                    if not scope.expired():
                        raise
                    raise DeadlineExceededError(
                        f"Expected the work to end in {self._default_deadline_s:g} s, the limit for calls without a "
                        "deadline. Ask for less, or set a deadline."
                    ) from None

        return handle

    def _wrap_generator(self, behaviour: Behaviour, method: str) -> Behaviour:
        """Wraps a handler that yields its responses."""

        async def handle(request: Any, context: Context) -> AsyncIterator[Any]:
            async with (
                _Observed(method, context),
                contextlib.aclosing(behaviour(_checked(request), context)) as responses,
            ):
                async for response in responses:
                    yield response

        return handle

    def _wrap_writer(self, behaviour: Behaviour, method: str) -> Behaviour:
        """Wraps a handler that writes its responses to the context."""

        async def handle(request: Any, context: Context) -> None:
            async with _Observed(method, context):
                await behaviour(_checked(request), context)

        return handle


class _Observed:
    """What one call runs inside of: request id before, mapping of errors and access log line after.

    A class, because a generator in its place costs a small call more than all that is done here.

    Args:
        method: Full name of the method.
        context: Context of the call.
    """

    __slots__ = ("_context", "_method", "_peer", "_request_id", "_started")

    def __init__(self, method: str, context: Context) -> None:
        self._method, self._context = method, context

    async def __aenter__(self) -> None:
        self._started = time.perf_counter()
        self._request_id = _request_id_of(self._context)
        # Each call is a task of its own with its own context, so nothing has to be put back.
        request_id_var.set(self._request_id)
        self._context.set_trailing_metadata(((REQUEST_ID_KEY, self._request_id),))
        # Asked for now: once a call was cut off, gRPC has freed it, and asking it for its peer crashes the process.
        self._peer = self._context.peer()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        code, told = self._outcome(error)
        try:
            if told is not None:
                await _abort(self._context, told, self._request_id)
        finally:
            _log_access(self._method, self._peer, code, time.perf_counter() - self._started)

    def _outcome(self, error: BaseException | None) -> tuple[grpc.StatusCode, TeachwaferError | None]:
        """Returns the code of the call, and the error that the caller is told where it has not been yet."""
        if error is None or isinstance(error, grpc.aio.AbortError):
            return _code_of(self._context), None
        if isinstance(error, asyncio.CancelledError):
            remaining = self._context.time_remaining()
            expired = remaining is not None and remaining <= 0
            return grpc.StatusCode.DEADLINE_EXCEEDED if expired else grpc.StatusCode.CANCELLED, None
        if not isinstance(error, Exception):  # GeneratorExit: nobody reads the responses any more
            return grpc.StatusCode.CANCELLED, None
        if isinstance(error, TeachwaferError):
            return error.code, error
        logger.error("unexpected error", exc_info=error, extra={"method": self._method})
        return grpc.StatusCode.INTERNAL, InternalError(INTERNAL_MESSAGE.format(request_id=self._request_id))


@dataclass(frozen=True, slots=True)
class _Damaged:
    """What stands for a request whose bytes are no message.

    Attributes:
        size: How many bytes came.
    """

    size: int


def _undamaged(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Returns a deserializer that never raises: gRPC would answer UNKNOWN with the class and text of the exception."""

    def deserialize(data: bytes) -> Any:
        try:
            return deserializer(data)
        except DecodeError:
            return _Damaged(len(data))

    return deserialize


def _checked(request: Any) -> Any:
    """Returns a request, or the requests of a stream, of which the first that is no message raises."""
    if hasattr(request, "__aiter__"):
        return _checked_stream(request)
    if isinstance(request, _Damaged):
        raise InvalidArgumentError(
            f"Expected a message of this method. Received: {request.size} bytes that are none. Send it with the "
            "published protocol definitions.",
            reason="DAMAGED_MESSAGE",
        )
    return request


async def _checked_stream(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _checked(request)


async def _abort(context: Context, error: TeachwaferError, request_id: str) -> None:
    """Ends the call with an error and its details."""
    status = _fitting(to_status(error, request_id))
    trailing = ((STATUS_DETAILS_KEY, status.SerializeToString()), (REQUEST_ID_KEY, request_id))
    await context.abort(error.code, status.message, trailing)


def _fitting(status: Any) -> Any:
    """Shortens a `google.rpc.Status` that quotes much of its request.

    It travels as metadata, of which a caller takes 8 KiB: a larger one would reach it as RESOURCE_EXHAUSTED.
    """
    if status.ByteSize() <= _MOST_STATUS_BYTES and len(status.message) <= _MOST_MESSAGE_BYTES // 3:
        return status
    message = status.message.encode()
    if len(message) > _MOST_MESSAGE_BYTES:
        status.message = message[: _MOST_MESSAGE_BYTES - 4].decode(errors="ignore") + " ..."
    details = list(status.details)
    del status.details[:]
    for detail in details:
        if status.ByteSize() + detail.ByteSize() + 8 <= _MOST_STATUS_BYTES:
            status.details.append(detail)
    return status


def _log_access(method: str, peer: str, code: grpc.StatusCode, seconds: float) -> None:
    """Writes the access log line; what comes every few seconds, as probes do, is written at DEBUG."""
    level = logging.WARNING if code in _FAULTS else logging.INFO
    if method.startswith(_QUIET_PREFIXES):
        level = logging.DEBUG
    if not logger.isEnabledFor(level):
        return
    facts = {"method": method, "code": code.name, "ms": round(seconds * 1000, 2), "peer": peer}
    logger.log(level, "call", extra=facts)


def _request_id_of(context: Context) -> str:
    """Returns the caller's request id, or a new one where there is none fit for a log."""
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return secrets.token_hex(16)


def _code_of(context: Context) -> grpc.StatusCode:
    """Returns the code that a handler's own abort has set; gRPC keeps it as a number."""
    code = context.code()
    return _CODES.get(code, grpc.StatusCode.UNKNOWN) if isinstance(code, int) else code or grpc.StatusCode.OK


def _unknown_method(method: str) -> Behaviour:
    """Returns a handler that says that there is no such method."""

    async def handle(request: Any, context: Context) -> None:
        raise UnimplementedError(f"Expected a method of this server. Received: {method!r}. List them by reflection.")

    return handle


HANDLER_FACTORIES: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""What makes a handler, by whether its requests and its responses are streams."""
