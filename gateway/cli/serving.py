"""`teachwafer serve`: all programs, until told to stop."""

from __future__ import annotations

import asyncio
import signal
from typing import Annotated

import typer

from gateway.cli.options import Home, Json, Reach
from gateway.cli.output import Output
from gateway.settings import GatewaySettings
from gateway.supervisor import SERVICES, Supervisor, home_locked


def serve(
    no_portal: Annotated[bool, typer.Option("--no-portal", help="Run the services without the portal.")] = False,
    free_ports: Annotated[
        bool, typer.Option("--free-ports", help="Take free ports instead of the ones in the settings.")
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Run the portal and its services until Ctrl-C or SIGTERM.

    Ports are settings: TEACHWAFER_GATEWAY_PORT (8080), _TRAINER_PORT (8021), _GENERATOR_PORT (8011),
    _PREDICTOR_GRPC_PORT (8001), _PREDICTOR_METRICS_PORT (8002), _PREDICTOR_REST_PORT (8000). A program that crashes is
    started again.
    """
    settings = Reach(home).settings()
    asyncio.run(_serve(Output(as_json), settings, portal=not no_portal, free_ports=free_ports))


async def _serve(output: Output, settings: GatewaySettings, *, portal: bool, free_ports: bool) -> None:
    """Starts, waits, stops."""
    names = (*SERVICES, "gateway") if portal else SERVICES
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with home_locked(settings.home) as note:
        output.say(f"Starting {', '.join(names)} on {settings.home} ...")
        supervisor = Supervisor(
            settings, names, free_ports=free_ports, tell=lambda name, sentence: output.say(f"{name} {sentence}")
        )
        starting = asyncio.create_task(supervisor.start())
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        stopped.cancel()
        await starting
        note(supervisor.addresses)
        _tell_ready(output, settings, supervisor, portal=portal)
        watching = asyncio.create_task(supervisor.watch())
        try:
            await stop.wait()
            output.say("Stopping; running jobs write a checkpoint and go on at the next start ...")
        finally:
            await supervisor.stop()
            await watching
        output.say("Stopped.")


def _tell_ready(output: Output, settings: GatewaySettings, supervisor: Supervisor, *, portal: bool) -> None:
    """Says where everything is."""
    ports = supervisor.ports
    url = f"http://{_shown(settings.host)}:{ports['gateway']}" if portal else ""
    if portal:
        output.say(f"\nThe portal is ready: {url}\nStop with Ctrl-C.\n")
    else:
        output.say("\nThe services are ready. Stop with Ctrl-C.\n")
    output.result({"portal": url, "ports": ports, "home": str(settings.home)})


def _shown(host: str) -> str:
    """Returns the host of an address that people can open."""
    return "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host  # noqa: S104
