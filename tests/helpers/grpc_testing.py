"""A real server on a free port, with handlers made of plain functions over bytes."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from services.common.client import connect
from services.common.server import GrpcServer

SERVICE = "teachwafer.testing.TestService"


@dataclass(frozen=True)
class Served:
    """A running server and a channel to it.

    Attributes:
        server: The server.
        channel: Channel made by services.common.client.
    """

    server: GrpcServer
    channel: grpc.aio.Channel

    @property
    def address(self) -> str:
        """Where the server listens."""
        return f"127.0.0.1:{self.server.port}"


@contextlib.asynccontextmanager
async def serving(
    *add: Callable[[grpc.aio.Server], None],
    service_names: tuple[str, ...] = (SERVICE,),
    drain_seconds: float = 0.0,
    client: dict[str, Any] | None = None,
    **server_arguments: Any,
) -> AsyncIterator[Served]:
    """Runs a server while inside.

    Args:
        *add: Functions that add servicers, as `partial(add_XServicer_to_server, servicer)`.
        service_names: Names for health and reflection.
        drain_seconds: Wait for running calls at the end.
        client: Further arguments of `connect`.
        **server_arguments: Further arguments of GrpcServer.
    """
    server = GrpcServer(
        host="127.0.0.1", port=0, service_names=service_names, drain_seconds=drain_seconds, **server_arguments
    )
    for each in add:
        each(server.aio)
    await server.start()
    server.set_serving(True)
    try:
        async with connect(f"127.0.0.1:{server.port}", **(client or {})) as channel:
            yield Served(server, channel)
    finally:
        await server.drain()


def unary(name: str, behaviour: Callable[..., Any]) -> Callable[[grpc.aio.Server], None]:
    """Returns a function that adds a unary method over bytes to a server."""
    return _adder({name: grpc.unary_unary_rpc_method_handler(behaviour)})


def stream(name: str, behaviour: Callable[..., Any]) -> Callable[[grpc.aio.Server], None]:
    """Returns a function that adds a method with a stream of responses over bytes to a server."""
    return _adder({name: grpc.unary_stream_rpc_method_handler(behaviour)})


def both_ways(name: str, behaviour: Callable[..., Any]) -> Callable[[grpc.aio.Server], None]:
    """Returns a function that adds a method with streams in both directions over bytes to a server."""
    return _adder({name: grpc.stream_stream_rpc_method_handler(behaviour)})


def upload(name: str, behaviour: Callable[..., Any]) -> Callable[[grpc.aio.Server], None]:
    """Returns a function that adds a method with a stream of requests over bytes to a server."""
    return _adder({name: grpc.stream_unary_rpc_method_handler(behaviour)})


def path(name: str) -> str:
    """Returns the full path of a test method."""
    return f"/{SERVICE}/{name}"


def _adder(handlers: dict[str, grpc.RpcMethodHandler]) -> Callable[[grpc.aio.Server], None]:
    def add(server: grpc.aio.Server) -> None:
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    return add
