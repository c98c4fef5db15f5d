"""A gRPC server as all services run it: interceptors, health, reflection, limits, TLS, draining.

server = GrpcServer.from_settings(settings, service="trainer", port=settings.trainer_port, service_names=[NAME])
add_TrainerServiceServicer_to_server(servicer, server.aio)
await server.start()
...                      # load what has to be loaded; health answers NOT_SERVING meanwhile
server.set_serving(True)
await server.run()       # until SIGTERM: NOT_SERVING, then running calls get their time, then it returns
...                      # close workers, only now
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.common.errors import FailedPreconditionError, InvalidArgumentError, TeachwaferError
from services.common.health import HealthServicer
from services.common.interceptors import default_interceptors
from services.common.settings import ServiceSettings

HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
DEFAULT_MAX_MESSAGE_BYTES = 64 * 1024 * 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of one side of a connection.

    Attributes:
        certificate: Certificate chain; required on servers, on clients only where the server asks for it.
        key: Private key of the certificate.
        ca: Authorities to trust. On servers: callers must show a certificate of theirs.
    """

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    @classmethod
    def from_settings(cls, settings: ServiceSettings) -> TlsFiles | None:
        """Returns the files that the settings name, or None where they name none."""
        files = cls(settings.tls_certificate, settings.tls_key, settings.tls_ca)
        return files if any((files.certificate, files.key, files.ca)) else None


class GrpcServer:
    """One `grpc.aio` server. Make it inside the running event loop.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one, see the attribute `port` after `start`.
        service_names: Full names of the gRPC services that will be added, for health and reflection.
        service: Short name, as "trainer", for the log line and the port file that `start` writes.
        max_message_bytes: Largest message received or sent, bytes.
        drain_seconds: Longest wait for running calls at the end, seconds.
        max_concurrent_rpcs: Calls served at a time; further ones get RESOURCE_EXHAUSTED. None: no limit.
        max_connection_age_s: Age at which connections are closed gently, so that clients find new replicas, seconds.
        default_deadline_s: Time for unary calls whose caller set no deadline, seconds.
        extra_options: Further gRPC channel arguments.
        so_reuseport: Whether several servers may share the port. Off, so that a port in use is an error.
        tls: Certificate and key. None: not encrypted.
        port_file_dir: Folder into which `start` writes `<service>.port`. None: nowhere.
        interceptors: Further interceptors, inside of those that all services have.

    Attributes:
        aio: The server that servicers are added to.
        port: Port that it listens on, after `start`.
        draining: Set when the server starts to drain; long streams end when it is.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        service_names: Sequence[str],
        service: str = "",
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        drain_seconds: float = 20.0,
        max_concurrent_rpcs: int | None = None,
        max_connection_age_s: float = 60.0,
        default_deadline_s: float = 300.0,
        extra_options: Sequence[tuple[str, Any]] = (),
        so_reuseport: bool = False,
        tls: TlsFiles | None = None,
        port_file_dir: Path | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = (),
    ) -> None:
        self.aio: grpc.aio.Server = grpc.aio.server(
            interceptors=[*default_interceptors(default_deadline_s), *interceptors],
            maximum_concurrent_rpcs=max_concurrent_rpcs,
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                ("grpc.so_reuseport", int(so_reuseport)),
                ("grpc.max_connection_age_ms", int(max_connection_age_s * 1000)),
                ("grpc.max_connection_age_grace_ms", int(max(drain_seconds, 30) * 1000)),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                # Clients of services.common.client ping every 30 s, also between calls; faster ones are cut off.
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                *extra_options,
            ],
        )
        self.port = port
        self.draining = asyncio.Event()
        self._address = f"[{host}]" if ":" in host else host
        self._service = service
        self._service_names = tuple(service_names)
        self._drain_seconds = drain_seconds
        self._tls = tls
        self._port_file_dir = port_file_dir
        self._health = HealthServicer(service_names)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.aio)
        reflection.enable_server_reflection((*service_names, HEALTH_NAME, reflection.SERVICE_NAME), self.aio)

    @classmethod
    def from_settings(
        cls,
        settings: ServiceSettings,
        *,
        service: str,
        port: int,
        service_names: Sequence[str],
        interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = (),
        so_reuseport: bool = False,
    ) -> GrpcServer:
        """Makes a server from the settings that all services share.

        Args:
            settings: Settings.
            service: Short name, as "trainer".
            port: Port to listen on.
            service_names: Full names of the gRPC services that will be added.
            interceptors: Further interceptors.
            so_reuseport: Whether several servers may share the port.
        """
        return cls(
            host=settings.host,
            port=port,
            service_names=service_names,
            service=service,
            max_message_bytes=settings.max_message_bytes,
            drain_seconds=settings.drain_seconds,
            max_concurrent_rpcs=settings.max_concurrent_rpcs,
            max_connection_age_s=settings.max_connection_age_seconds,
            default_deadline_s=settings.default_deadline_seconds,
            tls=TlsFiles.from_settings(settings),
            port_file_dir=settings.port_file_dir,
            interceptors=interceptors,
            so_reuseport=so_reuseport,
        )

    async def start(self) -> None:
        """Listens. Health answers NOT_SERVING until `set_serving(True)`.

        Raises:
            FailedPreconditionError: The port is not to be had.
            InvalidArgumentError: A TLS file is missing or unreadable.
        """
        target = f"{self._address}:{self.port}"
        try:
            self.port = (
                self.aio.add_secure_port(target, _server_credentials(self._tls))
                if self._tls
                else self.aio.add_insecure_port(target)
            )
        except RuntimeError:
            raise FailedPreconditionError(
                f"Expected to listen on {target}, but the address is in use or not allowed. Stop what listens there "
                "(perhaps a teachwafer that runs already), or set another port; 0 takes any free one.",
                subject=target,
                reason="PORT_IN_USE",
            ) from None
        await self.aio.start()
        announce_listening(self._service, self.port, self._port_file_dir)

    def set_serving(self, serving: bool, service: str = "") -> None:
        """Sets what health probes are answered.

        Args:
            serving: Whether calls are welcome.
            service: One health name to set alone, as "startup". Default: readiness and all that goes with it.
        """
        self._health.set_serving(serving, service)

    async def drain(self) -> None:
        """Answers NOT_SERVING, takes no new calls, gives the running ones their time, then closes everything."""
        logger.info("draining", extra={"seconds": self._drain_seconds})
        self._health.drain()
        self.draining.set()
        await self.aio.stop(self._drain_seconds)
        logger.info("stopped")

    async def run(self, until: asyncio.Event | None = None) -> None:
        """Serves until SIGTERM or SIGINT, then drains.

        Args:
            until: A further reason to stop, when set.
        """
        stop = until or asyncio.Event()
        with signals_set(stop):
            await stop.wait()
            await self.drain()


def announce_listening(service: str, port: int, port_file_dir: Path | None) -> None:
    """Says where a service listens: one log line, and a file for whoever asked for one.

    Args:
        service: Short name; the file is `<service>.port`. Empty: nothing is said.
        port: Port.
        port_file_dir: Folder of the file, made when missing. None: no file.
    """
    if not service:
        return
    logger.info("listening", extra={"port": port})
    if port_file_dir is not None:
        port_file_dir.mkdir(parents=True, exist_ok=True)
        # Renamed into place, so that a reader never sees half a number.
        partial = port_file_dir / f".{service}.port.partial"
        partial.write_text(f"{port}\n")
        partial.replace(port_file_dir / f"{service}.port")


def run_service(main: Coroutine[Any, Any, None]) -> None:
    """Runs a service to its end. What the operator can mend ends in one log line and exit code 1, without a trace.

    Args:
        main: The service.
    """
    try:
        asyncio.run(main)
    except TeachwaferError as error:
        logger.critical("could not run", extra={"error": error.message, "reason": error.reason})
        sys.exit(1)


@contextlib.contextmanager
def signals_set(event: asyncio.Event) -> Any:
    """Sets an event at SIGTERM and SIGINT while inside."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, event.set)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def _server_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    """Makes credentials that are read anew at each handshake after a file has changed, so that secrets can rotate."""
    files = [path for path in (tls.certificate, tls.key, tls.ca) if path is not None]
    if tls.certificate is None or tls.key is None:
        raise InvalidArgumentError("Expected both a TLS certificate and its key. Set both or neither.")

    def stamps() -> list[int]:
        return [path.stat().st_mtime_ns for path in files]

    def read() -> Any:
        chain, key = Path(str(tls.certificate)).read_bytes(), Path(str(tls.key)).read_bytes()
        return grpc.ssl_server_certificate_configuration([(key, chain)], tls.ca.read_bytes() if tls.ca else None)

    try:
        seen, configuration = stamps(), read()
    except OSError as error:
        raise InvalidArgumentError(
            f"Expected a readable TLS file. Received: {error.filename} ({error.strerror})."
        ) from None

    def fetch() -> Any:
        nonlocal seen
        try:
            if (now := stamps()) != seen:
                fresh = read()
                seen = now
                return fresh
        except OSError:
            logger.warning("could not read TLS files again; the old ones stay in use")
        return None

    return grpc.dynamic_ssl_server_credentials(configuration, fetch, require_client_authentication=tls.ca is not None)
