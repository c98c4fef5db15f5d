"""Runs the portal: `python -m gateway`."""

from __future__ import annotations

import socket

import uvicorn

from gateway.app import make_app
from gateway.settings import GatewaySettings
from gateway.studio import Studio
from services.common.errors import UnavailableError
from services.common.program import run_program
from services.common.server import announce_listening

SERVICE = "gateway"


async def serve(settings: GatewaySettings) -> None:
    """Serves the portal until SIGTERM or SIGINT.

    Args:
        settings: Settings of the gateway.

    Raises:
        UnavailableError: The port is taken, or database or store cannot be reached.
    """
    listener = listen(settings.host, settings.gateway_port)
    async with await Studio.open(settings) as studio:
        await studio.sample.ensure()
        config = uvicorn.Config(
            make_app(settings, studio),
            log_config=None,
            access_log=False,
            server_header=False,
            ws="wsproto",
            timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        )
        await PortalServer(config, settings, listener.getsockname()[1]).serve(sockets=[listener])


class PortalServer(uvicorn.Server):
    """A server that says where it listens, once it does.

    Args:
        config: Configuration of uvicorn.
        settings: Settings of the gateway.
        port: Port of the socket that it serves.
    """

    def __init__(self, config: uvicorn.Config, settings: GatewaySettings, port: int) -> None:
        super().__init__(config)
        self._settings = settings
        self._port = port

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, then says so."""
        await super().startup(sockets=sockets)
        if self.started:
            announce_listening(SERVICE, self._port, self._settings.port_file_dir)


def listen(host: str, port: int) -> socket.socket:
    """Opens the port before anything else happens, so that a taken one is known at once.

    Raises:
        UnavailableError: It is taken, or the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise UnavailableError(
            f"Expected to listen on {host}:{port}. Received: {error.strerror}. Stop what uses the port, or set"
            " TEACHWAFER_GATEWAY_PORT to another one.",
            reason="PORT_IN_USE",
        ) from None
    return listener


def main() -> None:
    """Reads the settings and serves."""
    run_program(SERVICE, "gateway", "Serves the portal.", GatewaySettings, serve)


if __name__ == "__main__":
    main()
