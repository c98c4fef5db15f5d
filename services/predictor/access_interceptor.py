"""Asks callers of the gRPC server for their key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from services.common.errors import UnauthenticatedError
from services.common.interceptors import HANDLER_FACTORIES
from services.common.logs import caller_name_var
from services.predictor.access import HEADER, Access, caller_var

_OPEN = ("/grpc.health.", "/grpc.reflection.")
_OPEN_METHODS = ("ServerLive", "ServerReady")


class AccessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Finds out whose call it is. Health, reflection and whether the server is ready are for everybody.

    Args:
        access: Knows the keys.
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Notes the caller, or lets the handler refuse the call."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_OPEN) or method.rpartition("/")[2] in _OPEN_METHODS:
            return handler
        shown = next((value for key, value in handler_call_details.invocation_metadata or () if key == HEADER), "")
        try:
            caller = self._access.caller(str(shown))
        except UnauthenticatedError as error:
            return _refusal(handler, error)
        # Each call is a task of its own with its own context, so nothing has to be put back.
        caller_var.set(caller)
        caller_name_var.set(caller.name if caller else "")
        return handler


def _refusal(handler: Any, error: UnauthenticatedError) -> Any:
    """Returns a handler of the same kind that refuses."""

    async def one(request: Any, context: Any) -> Any:
        raise error

    async def many(request: Any, context: Any) -> AsyncIterator[Any]:
        nothing: tuple[Any, ...] = ()
        for response in nothing:  # what makes it a generator
            yield response
        raise error

    make = HANDLER_FACTORIES[handler.request_streaming, handler.response_streaming]
    return make(many if handler.response_streaming else one, handler.request_deserializer, handler.response_serializer)
