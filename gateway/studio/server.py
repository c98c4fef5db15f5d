"""The server itself."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.engine import make_url

from gateway.catalogue import projects, wafers
from gateway.catalogue.catalogue import now
from gateway.studio.desk import Desk
from gateway.values import Problem, QueueState, ServerState, ServiceState, Storage
from services.common.errors import TeachwaferError

_TIMEOUT_S = 2.0


class ServerRoom:
    """Are the services there, what lies where."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def state(self) -> ServerState:
        """Asks all services at once; one that does not answer within two seconds counts as away."""
        services = await asyncio.gather(*(self._service(name) for name in self._desk.clients.addresses))
        return ServerState(tuple(services), now())

    async def storage(self) -> Storage:
        """Counts what lies in the catalogue, the store and the model repository."""

        def rows(connection: Connection) -> tuple[int, int, int]:
            return len(projects.live(connection)), len(projects.in_trash(connection)), wafers.total(connection)

        live, trashed, total = await self._desk.read(rows)
        store, database, models, free = await asyncio.to_thread(self._sizes)
        return Storage(live, trashed, total, store, database, models, free)

    async def _service(self, name: str) -> ServiceState:
        clients = self._desk.clients
        address = clients.addresses[name]
        try:
            async with asyncio.timeout(_TIMEOUT_S * 2):
                await clients.check(name, _TIMEOUT_S)
                queue: QueueState | None = None
                models = 0
                if name == "predictor":
                    models = len({each.model_id for each in await clients.predictor.loaded()})
                elif name == "trainer":
                    queue = await clients.trainer.queue()
                else:
                    queue = await clients.generator.queue()
        except TeachwaferError as error:
            return ServiceState(name, address, reachable=False, problem=Problem.of(error))
        except TimeoutError:
            problem = Problem("DEADLINE_EXCEEDED", f"The {name} did not answer in time.", code="DEADLINE_EXCEEDED")
            return ServiceState(name, address, reachable=False, problem=problem)
        return ServiceState(name, address, reachable=True, queue=queue, models=models)

    def _sizes(self) -> tuple[int, int, int, int]:
        """Returns bytes of the store, the database and the models, and free bytes of the home folder."""
        settings = self._desk.settings
        store = sum(blob.size for blob in self._desk.store.list())
        database = 0
        url = make_url(settings.resolved_database_url)
        if url.get_backend_name() == "sqlite" and url.database:
            file = Path(url.database)
            database = sum(part.stat().st_size for part in file.parent.glob(f"{file.name}*") if part.is_file())
        models = sum(file.stat().st_size for file in settings.resolved_model_repository.rglob("*") if file.is_file())
        return store, database, models, shutil.disk_usage(settings.home).free
