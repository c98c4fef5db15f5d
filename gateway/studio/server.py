"""The server itself."""

from __future__ import annotations

from gateway.values import ServerState, Storage


class ServerRoom:
    """Are the services there, what lies where."""

    async def state(self) -> ServerState:
        """Asks all services at once; one that does not answer within two seconds counts as away."""
        raise NotImplementedError

    async def storage(self) -> Storage:
        """Counts what lies in the catalogue, the store and the model repository."""
        raise NotImplementedError
