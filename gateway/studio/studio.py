"""The studio: one object with a room for each thing that people do."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Final, Self

from gateway.catalogue import changes
from gateway.catalogue.catalogue import Catalogue, now
from gateway.clients import Clients
from gateway.settings import GatewaySettings
from gateway.studio.answers import AnswersRoom
from gateway.studio.classes import ClassesRoom
from gateway.studio.datasets import DatasetsRoom
from gateway.studio.desk import Desk
from gateway.studio.evaluation import EvaluationRoom
from gateway.studio.generation import GenerationRoom
from gateway.studio.history import HistoryRoom
from gateway.studio.minder import Minder
from gateway.studio.models import ModelsRoom
from gateway.studio.people import PeopleRoom
from gateway.studio.pictures import PicturesRoom
from gateway.studio.projects import ProjectsRoom
from gateway.studio.sample import SampleRoom
from gateway.studio.server import ServerRoom
from gateway.studio.training import TrainingRoom
from gateway.studio.uploads import UploadsRoom
from gateway.studio.wafers import WafersRoom
from services.common.errors import TeachwaferError
from services.common.store import open_store

_LOG: Final = logging.getLogger(__name__)
_HOUSEKEEPING_S: Final = 6 * 3600.0


class Studio:
    """Everything that people can do with projects.

    Make one for a program: `async with await Studio.open(settings) as studio`, or `open` and, at the end, `close`.
    Every method is a coroutine unless it says otherwise, blocks nothing, takes and returns the values of
    `gateway.values`, and raises only TeachwaferError.

    Attributes:
        projects: Make, list, rename, trash, export and open projects; the canvas.
        classes: Add, rename, recolour, switch, clear, merge and delete classes.
        wafers: List, draw, add, move and delete wafers.
        pictures: PNGs of wafers.
        uploads: Files on their way into a class.
        history: Undo.
        datasets: Data set versions.
        training: Trainings.
        generation: More wafers of a class.
        models: Published models and the model server.
        answers: Classify wafers.
        evaluation: How good a model is, and on which wafers it errs.
        sample: The sample project.
        server: Are the services there, what lies where.
        people: Preferences, feedback, audit.

    Args:
        desk: Open catalogue, store and connections; see `open`.
        background: See `open`.
    """

    def __init__(self, desk: Desk, *, background: bool) -> None:
        self._desk = desk
        self._background = background
        self._minder = Minder(desk, background)
        self._keeper: asyncio.Task[None] | None = None
        self.projects = ProjectsRoom(desk)
        self.classes = ClassesRoom(desk)
        self.wafers = WafersRoom(desk)
        self.pictures = PicturesRoom(desk)
        self.uploads = UploadsRoom(desk)
        self.history = HistoryRoom(desk)
        self.datasets = DatasetsRoom(desk)
        self.training = TrainingRoom(desk, self._minder)
        self.generation = GenerationRoom(desk, self._minder)
        self.models = ModelsRoom(desk, self._minder)
        self.answers = AnswersRoom(desk)
        self.evaluation = EvaluationRoom(desk)
        self.sample = SampleRoom(desk)
        self.server = ServerRoom(desk)
        self.people = PeopleRoom(desk)

    @classmethod
    async def open(cls, settings: GatewaySettings, *, background: bool = True) -> Self:
        """Opens the catalogue and the store, brings the tables up to date and connects to the services.

        The services need not be there: whatever needs one that is away raises UnavailableError.

        Args:
            settings: Settings of the gateway.
            background: Whether to finish trainings (publish and load their models) and to empty the trash in the
                background, as the portal does. Programs that end soon say False.

        Raises:
            UnavailableError: The database or the store cannot be reached.
        """
        catalogue = await asyncio.to_thread(Catalogue.open, settings.resolved_database_url)
        store = await asyncio.to_thread(open_store, settings.resolved_store_url)
        studio = cls(Desk(settings, catalogue, store, Clients.open(settings)), background=background)
        await studio._minder.start()
        if background:
            studio._keeper = asyncio.create_task(studio._keep_house(), name="housekeeping")
        return studio

    async def close(self) -> None:
        """Ends background work and closes everything."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self.sample.close()
        await self._minder.close()
        await self._desk.clients.close()
        await asyncio.to_thread(self._desk.catalogue.close)

    async def __aenter__(self) -> Self:
        """Returns itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes."""
        await self.close()

    async def _keep_house(self) -> None:
        """Once at start and then every few hours, deletes for good what has been in the trash for long enough."""
        while True:
            try:
                for each in await self.projects.trashed():
                    if each.purge_at < now():
                        await self.projects.purge(each.project.project_id)
                await self._desk.write(changes.forget_old)
            except TeachwaferError as error:
                _LOG.warning("could not empty the trash: %s", error.message)
            await asyncio.sleep(_HOUSEKEEPING_S)
