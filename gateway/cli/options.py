"""Options that several commands have, and how they reach the services."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.output import Output
from gateway.clients import Clients
from gateway.settings import GatewaySettings
from gateway.supervisor import running, serving_addresses
from services.common.settings import load_settings

Json = Annotated[bool, typer.Option("--json", help="Write one JSON object to standard output.")]
Home = Annotated[
    Path | None, typer.Option(help="Folder of data, jobs and models. Default: TEACHWAFER_HOME, else ./.teachwafer.")
]
Local = Annotated[
    bool, typer.Option("--local", help="Run the services needed for this command alone, even if some run already.")
]
TrainerAddress = Annotated[str, typer.Option(help="host:port of a running trainer.")]
GeneratorAddress = Annotated[str, typer.Option(help="host:port of a running generator.")]
PredictorAddress = Annotated[str, typer.Option(help="host:port of a running predictor.")]
Model = Annotated[str, typer.Option(help="Model in the repository, NAME or NAME:VERSION.", show_default=False)]


@dataclass(frozen=True, slots=True)
class Session:
    """Services that serve.

    Attributes:
        settings: Settings with their addresses.
        clients: Clients of them.
        embedded: Names of those that were started for this command and end with it.
    """

    settings: GatewaySettings
    clients: Clients
    embedded: frozenset[str]


@dataclass(frozen=True, slots=True)
class Reach:
    """How a command reaches the services.

    Attributes:
        home: Home; None takes the setting.
        local: Whether to start services whatever runs already.
        addresses: Addresses of running services that were named, by service.
    """

    home: Path | None = None
    local: bool = False
    addresses: tuple[tuple[str, str], ...] = ()

    @classmethod
    def to(cls, home: Path | None, local: bool, **addresses: str) -> Reach:
        """Makes one from the options of a command."""
        return cls(home, local, tuple((name, address) for name, address in addresses.items() if address))

    def settings(self) -> GatewaySettings:
        """Returns the settings that the options and the environment come to."""
        overrides: dict[str, Any] = {f"{name}_address": address for name, address in self.addresses}
        if self.home is not None:
            overrides["home"] = self.home
        return load_settings(GatewaySettings, **overrides)

    @contextlib.asynccontextmanager
    async def services(self, output: Output, *needed: str) -> AsyncIterator[Session]:
        """Connects to the services that a command needs.

        In this order: those whose address was given as an option or in the environment; those of a `teachwafer serve`
        that runs on the same home; else ones started for this command.

        Args:
            output: Where to say what is started.
            *needed: Names of the services.

        Raises:
            UnavailableError: A service cannot be started, or does not serve where it should.
        """
        settings = self.settings()
        async with contextlib.AsyncExitStack() as stack:
            if not self.local:
                settings = settings.model_copy(update=self._serving(settings))
            missing = [name for name in needed if self.local or f"{name}_address" not in settings.model_fields_set]
            if missing:
                output.say(f"Starting {_listed(missing)} for this command ...")
                settings = await stack.enter_async_context(running(settings, missing))
            clients = Clients.open(settings)
            stack.push_async_callback(clients.close)
            for name in needed:
                await clients.check(name, timeout_s=10)
            yield Session(settings, clients, frozenset(missing))

    def _serving(self, settings: GatewaySettings) -> dict[str, str]:
        """Returns addresses of a `teachwafer serve` on this home, where no other one was named."""
        found = serving_addresses(settings.home)
        return {key: value for key, value in found.items() if key not in settings.model_fields_set}


def parse_model(text: str) -> tuple[str, int]:
    """Splits NAME or NAME:VERSION.

    Args:
        text: The option.

    Returns:
        Name, and version or 0 for the newest.

    Raises:
        typer.BadParameter: The version is no number.
    """
    name, colon, version = text.partition(":")
    if not name or (colon and not (version.isdecimal() and int(version) > 0)):
        raise typer.BadParameter(f"Expected NAME or NAME:VERSION. Received: {text!r}.", param_hint="--model")
    return name, int(version or 0)


def _listed(names: Sequence[str]) -> str:
    """Returns names as in a sentence."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
