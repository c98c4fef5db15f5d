"""The studio: one object with a room for each thing that people do."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from gateway.settings import GatewaySettings
from gateway.studio.answers import AnswersRoom
from gateway.studio.classes import ClassesRoom
from gateway.studio.datasets import DatasetsRoom
from gateway.studio.evaluation import EvaluationRoom
from gateway.studio.generation import GenerationRoom
from gateway.studio.history import HistoryRoom
from gateway.studio.models import ModelsRoom
from gateway.studio.people import PeopleRoom
from gateway.studio.pictures import PicturesRoom
from gateway.studio.projects import ProjectsRoom
from gateway.studio.sample import SampleRoom
from gateway.studio.server import ServerRoom
from gateway.studio.training import TrainingRoom
from gateway.studio.uploads import UploadsRoom
from gateway.studio.wafers import WafersRoom


class Studio:
    """Everything that people can do with projects.

    Make one for a program: `studio = await Studio.open(settings)`, or `async with await Studio.open(settings) as studio`.
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
    """

    projects: ProjectsRoom
    classes: ClassesRoom
    wafers: WafersRoom
    pictures: PicturesRoom
    uploads: UploadsRoom
    history: HistoryRoom
    datasets: DatasetsRoom
    training: TrainingRoom
    generation: GenerationRoom
    models: ModelsRoom
    answers: AnswersRoom
    evaluation: EvaluationRoom
    sample: SampleRoom
    server: ServerRoom
    people: PeopleRoom

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
        raise NotImplementedError

    async def close(self) -> None:
        """Ends background work and closes everything."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        """Returns itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes."""
        await self.close()
