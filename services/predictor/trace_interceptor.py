"""Notes which trace a gRPC call belongs to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from services.predictor.spans import HEADER, traceparent_var


class TraceInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Keeps what the caller says of its trace for the spans of the call."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Notes the trace."""
        told = next((value for key, value in handler_call_details.invocation_metadata or () if key == HEADER), "")
        # Each call is a task of its own with its own context, so nothing has to be put back.
        traceparent_var.set(str(told))
        return await continuation(handler_call_details)
