"""Channels to the services, as the gateway, the command line and programs of others use them.

Every call gets a deadline and a request id; only UNAVAILABLE is retried, and only on methods that may safely be sent
twice; errors are raised as the classes of services.common.errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from services.common.errors import InvalidArgumentError, UnavailableError, from_rpc_error
from services.common.interceptors import REQUEST_ID_KEY
from services.common.logs import request_id_var
from services.common.server import DEFAULT_MAX_MESSAGE_BYTES, TlsFiles

AUTHORIZATION_KEY = "authorization"
"""Metadata key under which callers show who they are."""
STREAM_TIMEOUT_S = 24 * 3600.0
"""Deadline of streams whose caller sets none: watching a long job."""

IDEMPOTENT_METHODS: Mapping[str, Sequence[str]] = {
    "grpc.health.v1.Health": ("Check",),
    "teachwafer.generator.v1.GeneratorService": (
        "GetGenerationJob",
        "ListGenerationJobs",
        "CancelGenerationJob",
        "WatchGenerationJob",
        "SimulateWafers",
    ),
    "teachwafer.trainer.v1.TrainerService": (
        "GetTrainingJob",
        "ListTrainingJobs",
        "CancelTrainingJob",
        "WatchTrainingJob",
        "ListBackbones",
    ),
    "teachwafer.predictor.v1.PredictorService": ("Classify", "ListModels"),
    "inference.GRPCInferenceService": (
        "ServerLive",
        "ServerReady",
        "ModelReady",
        "ServerMetadata",
        "ModelMetadata",
        "ModelConfig",
        "ModelStatistics",
        "ModelInfer",
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
    ),
}
"""Methods that may be sent twice, by service. Creates and PublishModel are safe only with a request_id: not listed."""


def connect(
    address: str,
    *,
    default_timeout_s: float = 30.0,
    idempotent: Mapping[str, Sequence[str]] = IDEMPOTENT_METHODS,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    tls: TlsFiles | None = None,
    key: str = "",
) -> grpc.aio.Channel:
    """Opens a channel. It connects by itself and again after a loss; make one for a program, not one for a call.

    Args:
        address: `host:port`, or `dns:///host:port` to spread calls over replicas.
        default_timeout_s: Deadline of unary calls whose caller sets none, seconds.
        idempotent: Methods to retry when the service is UNAVAILABLE, by full service name.
        max_message_bytes: Largest message sent or received, bytes.
        tls: Certificates. None: not encrypted.
        key: Key to show where the service asks for one.

    Raises:
        InvalidArgumentError: A certificate file cannot be read.
    """
    settings: dict[str, Any] = {
        "options": _channel_options(idempotent, max_message_bytes),
        "interceptors": [
            _UnaryUnary(default_timeout_s, key),
            _UnaryStream(STREAM_TIMEOUT_S, key),
            _StreamUnary(STREAM_TIMEOUT_S, key),
            _StreamStream(STREAM_TIMEOUT_S, key),
        ],
    }
    if tls is None:
        return grpc.aio.insecure_channel(address, **settings)
    return grpc.aio.secure_channel(address, _channel_credentials(tls), **settings)


async def replicas_of(address: str) -> list[str]:
    """Returns the address of each replica behind an address, for what all of them must hear.

    Args:
        address: As for `connect`; also `ipv4:host:port,host:port`.

    Raises:
        UnavailableError: The name is not known.
    """
    scheme, _, rest = address.partition(":")
    if scheme in ("ipv4", "ipv6"):
        return rest.split(",")
    if scheme == "unix":
        return [address]
    target = address.rpartition("/")[2]
    host, _, port = target.rpartition(":")
    host = host.strip("[]")
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return [target]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UnavailableError(
            f"Expected {address} to name a service. Received: {error.strerror}. Is it running, and the address right?"
        ) from error
    hosts = dict.fromkeys(each[4][0] for each in found)
    return [f"[{each}]:{port}" if ":" in str(each) else f"{each}:{port}" for each in hosts]


def connect_sync(
    address: str,
    *,
    default_timeout_s: float = 30.0,
    idempotent: Mapping[str, Sequence[str]] = IDEMPOTENT_METHODS,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    tls: TlsFiles | None = None,
) -> grpc.Channel:
    """Opens a channel for blocking calls; otherwise like `connect`."""
    options = _channel_options(idempotent, max_message_bytes)
    channel = (
        grpc.insecure_channel(address, options)
        if tls is None
        else grpc.secure_channel(address, _channel_credentials(tls), options)
    )
    return grpc.intercept_channel(channel, _BlockingInterceptor(default_timeout_s))


class _Interceptor:
    """What the interceptors of the four kinds of calls share.

    Args:
        timeout_s: Deadline of calls whose caller sets none, seconds.
        key: Key to show, or empty.
    """

    def __init__(self, timeout_s: float, key: str = "") -> None:
        self._timeout_s = timeout_s
        self._key = key

    def _prepare(self, details: Any) -> Any:
        """Returns call details with deadline and request id."""
        metadata = grpc.aio.Metadata(*(details.metadata or ()))
        if REQUEST_ID_KEY not in metadata:
            metadata[REQUEST_ID_KEY] = request_id_var.get() or uuid.uuid4().hex
        if self._key:
            metadata[AUTHORIZATION_KEY] = f"Bearer {self._key}"
        return grpc.aio.ClientCallDetails(
            details.method,
            self._timeout_s if details.timeout is None else details.timeout,
            metadata,
            details.credentials,
            details.wait_for_ready,
        )

    async def _one(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        """Makes a call with one response and returns it, ended."""
        try:
            call = await continuation(self._prepare(details), request)
            await call
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        return call

    async def _many(self, continuation: Callable[..., Any], details: Any, request: Any) -> AsyncIterator[Any]:
        """Starts a call with a stream of responses."""
        return _mapped(await continuation(self._prepare(details), request))


# gRPC looks for the first base class that it knows and ignores the others, so each kind needs a class of its own.
class _UnaryUnary(_Interceptor, grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._one(continuation, client_call_details, request)


class _UnaryStream(_Interceptor, grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._many(continuation, client_call_details, request)


class _StreamUnary(_Interceptor, grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[type-arg]
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._one(continuation, client_call_details, request_iterator)


class _StreamStream(_Interceptor, grpc.aio.StreamStreamClientInterceptor):  # type: ignore[type-arg]
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._many(continuation, client_call_details, request_iterator)


async def _mapped(call: Any) -> AsyncIterator[Any]:
    """Yields the responses of a call and raises its error as one of ours; leaving early cancels the call."""
    try:
        async for response in call:
            yield response
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
    finally:
        call.cancel()


class _BlockingInterceptor(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg]
):
    """The same for blocking calls.

    Args:
        timeout_s: Deadline of unary calls whose caller sets none, seconds.
    """

    def __init__(self, timeout_s: float) -> None:
        self._unary = _Interceptor(timeout_s)
        self._stream = _Interceptor(STREAM_TIMEOUT_S)

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return _finished(continuation(self._unary._prepare(client_call_details), request))

    def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return _finished(continuation(self._stream._prepare(client_call_details), request_iterator))

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return _BlockingStream(continuation(self._stream._prepare(client_call_details), request))

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return _BlockingStream(continuation(self._stream._prepare(client_call_details), request_iterator))


def _finished(call: Any) -> Any:
    """Waits for a blocking call and raises its error as one of ours."""
    error = call.exception()
    if isinstance(error, grpc.RpcError):
        raise from_rpc_error(error) from None
    return call


class _BlockingStream:
    """Responses of a blocking call; `cancel` ends it."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._call)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def cancel(self) -> None:
        """Ends the call."""
        self._call.cancel()


def _channel_options(idempotent: Mapping[str, Sequence[str]], max_message_bytes: int) -> list[tuple[str, Any]]:
    """Returns the channel arguments of every client."""
    names = [{"service": service, "method": method} for service, methods in idempotent.items() for method in methods]
    retry = {
        "maxAttempts": 5,
        "initialBackoff": "0.2s",
        "maxBackoff": "3s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if names:
        config["methodConfig"] = [{"name": names, "retryPolicy": retry}]
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 3_000),
        # Connections are otherwise shared between all channels of a process, and with them the wait after a failure:
        # a channel opened just when a service came back would refuse its first call.
        ("grpc.use_local_subchannel_pool", 1),
        # Services talk inside a machine or a cluster; a proxy for the internet only breaks that.
        ("grpc.enable_http_proxy", 0),
    ]


def _channel_credentials(tls: TlsFiles) -> grpc.ChannelCredentials:
    """Reads the certificates of a client."""

    def read(path: Path | None) -> bytes | None:
        return None if path is None else path.read_bytes()

    try:
        return grpc.ssl_channel_credentials(read(tls.ca), read(tls.key), read(tls.certificate))
    except OSError as error:
        raise InvalidArgumentError(
            f"Expected a readable TLS file. Received: {error.filename} ({error.strerror})."
        ) from None
