"""What all rooms of the studio work with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection

from gateway.catalogue.catalogue import Catalogue
from gateway.clients import Clients
from gateway.settings import GatewaySettings
from services.common.store import BlobStore

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Desk:
    """The open catalogue, store and connections.

    Attributes:
        settings: Settings of the gateway.
        catalogue: Projects, classes, wafers.
        store: Originals and data set versions.
        clients: The services.
    """

    settings: GatewaySettings
    catalogue: Catalogue
    store: BlobStore
    clients: Clients

    async def read(self, work: Callable[[Connection], Found]) -> Found:
        """Does something in a reading transaction, in a thread.

        Args:
            work: What; it must not keep the connection.
        """

        def in_thread() -> Found:
            with self.catalogue.read() as connection:
                return work(connection)

        return await asyncio.to_thread(in_thread)

    async def write(self, work: Callable[[Connection], Found]) -> Found:
        """Does something in a writing transaction, in a thread: all of it, or nothing."""

        def in_thread() -> Found:
            with self.catalogue.write() as connection:
                return work(connection)

        return await asyncio.to_thread(in_thread)
