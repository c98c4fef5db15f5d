"""The REST form of the open inference protocol: HTTP in, the handlers of the gRPC form, HTTP out.

It runs in a thread with an event loop of its own, so that large bodies of JSON hold up no gRPC call; the handlers run
in the loop of the gRPC server, where everything is that they share.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
import ssl
import threading
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import uvicorn
from inference import grpc_service_pb2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.common.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    TeachwaferError,
    UnavailableError,
)
from services.common.interceptors import INTERNAL_MESSAGE, REQUEST_ID_KEY
from services.common.logs import caller_name_var, request_id_var
from services.common.server import TlsFiles
from services.predictor import rest_converters as converters
from services.predictor.access import HEADER, Access, caller_var
from services.predictor.kserve_servicer import KServeServicer
from services.predictor.spans import HEADER as TRACE_HEADER
from services.predictor.spans import traceparent_var

HEADER_LENGTH = "Inference-Header-Content-Length"

STATUS = {
    "OK": 200,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""HTTP status of each code, Triton's where it has the code; 500 of the others."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_PROBES = "/v2/health/"
_LEAST_COMPRESSED = 1024
_WINDOW_BITS = {"gzip": 31, "deflate": 15}

logger = logging.getLogger(__name__)

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


class RestServer:
    """Answers HTTP from a thread of its own. Make it inside the running event loop of the handlers.

    Args:
        handlers: What answers.
        host: Address to listen on.
        port: Port; 0 takes a free one.
        max_body_bytes: Largest body, also after it was unpacked, bytes.
        deadline_s: Time for a call, seconds.
        max_concurrent: Calls served at a time; further ones get 503. None: no limit.
        tls: Certificate and key. None: not encrypted.
        access: Knows callers by their keys. Default: everybody may call.
        so_reuseport: Whether several servers may share the port.

    Attributes:
        port: Port that it listens on.

    Raises:
        FailedPreconditionError: The port is not to be had.
        InvalidArgumentError: A TLS file is missing or unreadable.
    """

    def __init__(
        self,
        handlers: KServeServicer,
        host: str,
        port: int,
        *,
        max_body_bytes: int,
        deadline_s: float = 300.0,
        max_concurrent: int | None = None,
        tls: TlsFiles | None = None,
        access: Access | None = None,
        so_reuseport: bool = False,
    ) -> None:
        app = _Application(handlers, asyncio.get_running_loop(), max_body_bytes, deadline_s, access or Access())
        context = _context(tls)
        config = uvicorn.Config(
            app.app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="off",
            loop="asyncio",
            limit_concurrency=max_concurrent,
            timeout_graceful_shutdown=5,
            ssl_context_factory=None if context is None else lambda _config, _default: context,
        )
        self._socket = _listening(host, port, so_reuseport)
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name="rest", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Takes no new calls, gives the running ones a few seconds, then ends."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))


class _Application:
    """The addresses of the protocol.

    Args:
        handlers: What answers.
        loop: Where it does.
        max_body_bytes: Largest body, bytes.
        deadline_s: Time for a call, seconds.
        access: Knows callers by their keys.
    """

    def __init__(
        self,
        handlers: KServeServicer,
        loop: asyncio.AbstractEventLoop,
        max_body_bytes: int,
        deadline_s: float,
        access: Access,
    ) -> None:
        self._handlers = handlers
        self._loop = loop
        self._max_body_bytes = max_body_bytes
        self._deadline_s = deadline_s
        self._access = access
        get, post = ["GET"], ["POST"]
        routes = [
            ("/v2", get, self._server_metadata),
            ("/v2/health/live", get, self._live),
            ("/v2/health/ready", get, self._ready),
            ("/v2/models/stats", get, self._statistics),
            ("/v2/repository/index", post, self._index),
            ("/v2/repository/models/{model}/load", post, self._load),
            ("/v2/repository/models/{model}/unload", post, self._unload),
            ("/v2/systemsharedmemory/status", get, self._regions),
            ("/v2/systemsharedmemory/region/{region}/status", get, self._regions),
            ("/v2/systemsharedmemory/region/{region}/register", post, self._register),
            ("/v2/systemsharedmemory/unregister", post, self._unregister),
            ("/v2/systemsharedmemory/region/{region}/unregister", post, self._unregister),
            ("/v2/cudasharedmemory/status", get, self._cuda),
            ("/v2/cudasharedmemory/unregister", post, self._cuda),
            ("/v2/cudasharedmemory/region/{region}/{what}", ["GET", "POST"], self._cuda),
            ("/v2/logging", ["GET", "POST"], self._logging),
        ]
        for path in ("/v2/trace/setting", "/v2/models/{model}/trace/setting"):
            routes.append((path, ["GET", "POST"], self._trace))
        for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                (path, get, self._model_metadata),
                (f"{path}/ready", get, self._model_ready),
                (f"{path}/config", get, self._model_config),
                (f"{path}/stats", get, self._statistics),
                (f"{path}/infer", post, self._infer),
            ]
        self.app = Starlette(
            routes=[Route(path, _observed(self._known(handler)), methods=methods) for path, methods, handler in routes],
            exception_handlers={HTTPException: _no_such_address},
        )

    def _known(self, handler: Handler) -> Handler:
        """Returns a handler that notes whose call and trace it is; whether the server is ready is for everybody."""

        async def handle(request: Request) -> Response:
            if not request.url.path.startswith(_PROBES):
                # It goes with the call into the loop of the handlers, as the request id does.
                caller = self._access.caller(request.headers.get(HEADER, ""))
                caller_var.set(caller)
                caller_name_var.set(caller.name if caller else "")
                traceparent_var.set(request.headers.get(TRACE_HEADER, ""))
            return await handler(request)

        return handle

    async def _live(self, request: Request) -> Response:
        answer = await self._ask(self._handlers.ServerLive(grpc_service_pb2.ServerLiveRequest()))
        return Response(status_code=200 if answer.live else 400)

    async def _ready(self, request: Request) -> Response:
        answer = await self._ask(self._handlers.ServerReady(grpc_service_pb2.ServerReadyRequest()))
        return Response(status_code=200 if answer.ready else 400)

    async def _model_ready(self, request: Request) -> Response:
        answer = await self._ask(self._handlers.ModelReady(grpc_service_pb2.ModelReadyRequest(**_named(request))))
        return Response(status_code=200 if answer.ready else 400)

    async def _server_metadata(self, request: Request) -> Response:
        return _json(
            converters.message_to_json(
                await self._ask(self._handlers.ServerMetadata(grpc_service_pb2.ServerMetadataRequest()))
            )
        )

    async def _model_metadata(self, request: Request) -> Response:
        answer = await self._ask(self._handlers.ModelMetadata(grpc_service_pb2.ModelMetadataRequest(**_named(request))))
        return _json(converters.message_to_json(answer))

    async def _model_config(self, request: Request) -> Response:
        answer = await self._ask(self._handlers.ModelConfig(grpc_service_pb2.ModelConfigRequest(**_named(request))))
        return _json(converters.message_to_json(answer.config))

    async def _statistics(self, request: Request) -> Response:
        asked = grpc_service_pb2.ModelStatisticsRequest(**_named(request))
        return _json(converters.message_to_json(await self._ask(self._handlers.ModelStatistics(asked))))

    async def _infer(self, request: Request) -> Response:
        body = await self._body(request)
        named = _named(request)
        header_length = request.headers.get(HEADER_LENGTH)
        if header_length == "0":
            metadata = await self._ask(self._handlers.ModelMetadata(grpc_service_pb2.ModelMetadataRequest(**named)))
            asked, binary = converters.infer_from_bytes(body, metadata, named["version"])
        else:
            asked, binary = converters.infer_from_body(body, header_length, named["name"], named["version"])
        answer = await self._ask(self._handlers.ModelInfer(asked))
        content, json_length = converters.infer_to_body(answer, binary)
        headers = {} if json_length is None else {HEADER_LENGTH: str(json_length)}
        content, encoding = _packed(content, request.headers.get("accept-encoding", ""))
        if encoding:
            headers["Content-Encoding"] = encoding
        kind = "application/json" if json_length is None else "application/octet-stream"
        return Response(content, media_type=kind, headers=headers)

    async def _index(self, request: Request) -> Response:
        asked = converters.index_from_json(converters.json_from_body(await self._body(request)))
        answer = await self._ask(self._handlers.RepositoryIndex(asked))
        return _json([converters.message_to_json(each) for each in answer.models])

    async def _load(self, request: Request) -> Response:
        told = converters.json_from_body(await self._body(request))
        await self._ask(
            self._handlers.RepositoryModelLoad(converters.load_from_json(request.path_params["model"], told))
        )
        return Response()

    async def _unload(self, request: Request) -> Response:
        told = converters.json_from_body(await self._body(request))
        await self._ask(
            self._handlers.RepositoryModelUnload(converters.unload_from_json(request.path_params["model"], told))
        )
        return Response()

    async def _regions(self, request: Request) -> Response:
        asked = grpc_service_pb2.SystemSharedMemoryStatusRequest(name=request.path_params.get("region", ""))
        answer = await self._ask(self._handlers.SystemSharedMemoryStatus(asked))
        return _json([converters.message_to_json(each) for each in answer.regions.values()])

    async def _register(self, request: Request) -> Response:
        told = converters.json_from_body(await self._body(request))
        asked = converters.region_from_json(request.path_params["region"], told)
        await self._ask(self._handlers.SystemSharedMemoryRegister(asked))
        return Response()

    async def _unregister(self, request: Request) -> Response:
        asked = grpc_service_pb2.SystemSharedMemoryUnregisterRequest(name=request.path_params.get("region", ""))
        await self._ask(self._handlers.SystemSharedMemoryUnregister(asked))
        return Response()

    async def _cuda(self, request: Request) -> Response:
        await self._ask(self._handlers.CudaSharedMemoryStatus(grpc_service_pb2.CudaSharedMemoryStatusRequest()))
        return Response()

    async def _trace(self, request: Request) -> Response:
        told = converters.json_from_body(await self._body(request))
        asked = converters.trace_from_json(request.path_params.get("model", ""), told)
        return _json(converters.trace_to_json(await self._ask(self._handlers.TraceSetting(asked))))

    async def _logging(self, request: Request) -> Response:
        asked = converters.log_from_json(converters.json_from_body(await self._body(request)))
        answer = await self._ask(self._handlers.LogSettings(asked))
        return _json(converters.parameters_to_json(answer.settings))

    async def _ask(self, call: Coroutine[Any, Any, T]) -> T:
        """Runs a handler where it belongs; it is cancelled when its time is over."""
        answer = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self._loop))
        try:
            async with asyncio.timeout(self._deadline_s) as scope:
                return await answer
        except TimeoutError:
            if not scope.expired():
                raise
            raise DeadlineExceededError(
                f"Expected the work to end in {self._deadline_s:g} s, the limit for calls. Ask for less at a time."
            ) from None

    async def _body(self, request: Request) -> bytes:
        """Returns the body, unpacked; one that is too large is not read to its end."""
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "", *_WINDOW_BITS):
            raise InvalidArgumentError(
                f"Expected a body as it is or in gzip or deflate. Received: {encoding[:50]!r}.", "Content-Encoding"
            )
        unpack = zlib.decompressobj(_WINDOW_BITS[encoding]) if encoding in _WINDOW_BITS else None
        parts: list[bytes] = []
        size = 0
        async for chunk in request.stream():
            part = chunk
            if unpack is not None:
                try:
                    part = unpack.decompress(chunk, self._max_body_bytes - size + 1)
                except zlib.error:
                    raise InvalidArgumentError(f"Expected a body in {encoding}. Received: another.", "body") from None
            size += len(part)
            if size > self._max_body_bytes:
                raise _TooLargeError(
                    f"Expected a body of at most {self._max_body_bytes} bytes. Received: more. Send less at a time.",
                    retry_after_s=0.0,
                    reason="BODY_TOO_LARGE",
                )
            parts.append(part)
        if unpack is not None and parts and not unpack.eof:
            raise InvalidArgumentError(f"Expected a whole body in {encoding}. Received: the beginning of one.", "body")
        return b"".join(parts)


class _TooLargeError(ResourceExhaustedError):
    """RESOURCE_EXHAUSTED because of the body alone, which HTTP has a status for."""


def _observed(handler: Handler) -> Handler:
    """Gives a call a request id, one line in the log and the mapping of errors, as the gRPC server does."""

    async def handle(request: Request) -> Response:
        started = time.perf_counter()
        given = request.headers.get(REQUEST_ID_KEY, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        request_id_var.set(request_id)
        code = "OK"
        try:
            response = await handler(request)
        except TeachwaferError as error:
            code = error.code.name
            response = _refusal(error)
        except Exception:
            code = "INTERNAL"
            logger.exception("unexpected error", extra={"method": request.url.path})
            response = _json({"error": INTERNAL_MESSAGE.format(request_id=request_id)}, 500)
        response.headers[REQUEST_ID_KEY] = request_id
        _log(request, code, time.perf_counter() - started)
        return response

    return handle


def _log(request: Request, code: str, seconds: float) -> None:
    probe = request.url.path.startswith(_PROBES)
    level = logging.DEBUG if probe else logging.WARNING if code in ("INTERNAL", "DATA_LOSS") else logging.INFO
    peer = f"{request.client.host}:{request.client.port}" if request.client else ""
    facts = {"method": f"{request.method} {request.url.path}", "code": code, "ms": round(seconds * 1000, 2)}
    logger.log(level, "call", extra={**facts, "peer": peer})


def _refusal(error: TeachwaferError) -> Response:
    status = 413 if isinstance(error, _TooLargeError) else STATUS.get(error.code.name, 500)
    response = _json({"error": error.message}, status)
    if isinstance(error, (ResourceExhaustedError, UnavailableError)) and error.retry_after_s:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    return response


async def _no_such_address(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _json(
        {
            "error": f"Expected an address of the open inference protocol, as /v2/models/<model>/infer. "
            f"Received: {request.method} {request.url.path[:200]}."
        },
        status,
    )


def _named(request: Request) -> dict[str, str]:
    return {"name": request.path_params.get("model", ""), "version": request.path_params.get("version", "")}


def _json(value: Any, status: int = 200) -> Response:
    return Response(converters.to_body(value), status, media_type="application/json")


def _packed(content: bytes, accepted: str) -> tuple[bytes, str]:
    """Returns a body in an encoding that the caller takes, and its name, or the body itself."""
    names = [each.split(";")[0].strip().lower() for each in accepted.split(",") if not each.strip().endswith("q=0")]
    encoding = next((each for each in names if each in _WINDOW_BITS), "")
    if not encoding or len(content) < _LEAST_COMPRESSED:
        return content, ""
    pack = zlib.compressobj(1, wbits=_WINDOW_BITS[encoding])
    packed = pack.compress(content) + pack.flush()
    return (packed, encoding) if len(packed) < len(content) else (content, "")


def _listening(host: str, port: int, so_reuseport: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024, reuse_port=so_reuseport)
    except OSError as error:
        raise FailedPreconditionError(
            f"Expected to listen on {host}:{port} for REST. Received: {error.strerror}. Stop what listens there, or "
            "set another TEACHWAFER_PREDICTOR_REST_PORT; 0 takes any free one.",
            reason="PORT_IN_USE",
        ) from None


def _context(tls: TlsFiles | None) -> ssl.SSLContext | None:
    """Returns what encrypts; the files are read anew at a handshake after they changed, as the gRPC server does."""
    if tls is None:
        return None
    if tls.certificate is None or tls.key is None:
        raise InvalidArgumentError("Expected both a TLS certificate and its key. Set both or neither.")
    files = [path for path in (tls.certificate, tls.key, tls.ca) if path is not None]

    def stamps() -> list[int]:
        return [path.stat().st_mtime_ns for path in files]

    try:
        seen, current = stamps(), _read(tls)
    except (OSError, ssl.SSLError) as error:
        raise InvalidArgumentError(f"Expected readable TLS files. Received: {str(error)[:200]}.") from None

    def renew(connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        nonlocal seen, current
        try:
            if (now := stamps()) != seen:
                seen, current = now, _read(tls)
        except (OSError, ssl.SSLError):
            logger.warning("could not read TLS files again; the old ones stay in use")
        connection.context = current

    listening = _read(tls)
    listening.sni_callback = renew
    return listening


def _read(tls: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(tls.certificate), tls.key)
    if tls.ca is not None:
        context.load_verify_locations(tls.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextlib.asynccontextmanager
async def serving_rest(server: RestServer) -> AsyncIterator[RestServer]:
    """Closes a REST server at the end, without holding up the loop that its calls need."""
    try:
        yield server
    finally:
        await asyncio.to_thread(server.close)
