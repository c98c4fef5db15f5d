"""Classify wafers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from gateway.catalogue import classes, projects, wafers
from gateway.studio.desk import Desk
from gateway.studio.intake import read_files
from gateway.studio.neighbours import MAX_NEIGHBOURS, TaughtWafers
from gateway.values import Answer, Answers, ClassProbability, FileAnswers, Neighbour, PredictorAnswer, Task, UploadFile
from services.common.errors import InvalidArgumentError
from services.common.wafer_map import WaferMap

UNKNOWN_COLOUR = "#8a8f98"
"""Colour of classes of which the catalogue knows nothing."""


class AnswersRoom:
    """Ask a model about wafers."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._neighbours = TaughtWafers(desk)

    async def classify(
        self,
        model_id: str,
        maps: Sequence[WaferMap],
        *,
        version: int = 0,
        explain: bool = False,
        neighbours: int = 0,
    ) -> Answers:
        """Classifies wafers. A wafer that cannot be classified does not sink the others.

        Args:
            model_id: Name of the model, as `Project.model_id`.
            maps: Any number of wafers of any mix of sizes.
            version: Version of the model; 0 means the newest that is loaded.
            explain: Whether to answer with heat maps.
            neighbours: How many of the nearest taught wafers to answer with, 0 to 10.

        Raises:
            NotFoundError: No such model is loaded.
            UnavailableError: The predictor cannot be reached.
        """
        told_version, told = await self._desk.clients.predictor.classify(
            model_id, maps, version=version, explain=explain, embed=neighbours > 0
        )
        near: list[tuple[Neighbour, ...]] = [()] * len(maps)
        if neighbours > 0:
            near = await self._neighbours.of(model_id, told_version, told, min(neighbours, MAX_NEIGHBOURS))

        def known(connection: Connection) -> tuple[Task, dict[str, tuple[str, str]]]:
            project = projects.by_model(connection, model_id)
            return Task.SINGLE if project is None else project.task, class_faces(connection, model_id)

        task, faces = await self._desk.read(known)
        answers = tuple(
            _answer(task, wafer, each, faces, nearest) for wafer, each, nearest in zip(maps, told, near, strict=True)
        )
        return Answers(model_id, told_version, answers)

    async def classify_wafers(
        self, model_id: str, wafer_ids: Sequence[str], *, version: int = 0, explain: bool = False, neighbours: int = 0
    ) -> Answers:
        """Classifies wafers of the catalogue.

        Raises:
            NotFoundError: A wafer does not exist, or no such model is loaded.
            UnavailableError: The predictor cannot be reached.
        """
        found = await self._desk.read(lambda connection: wafers.details(connection, wafer_ids))
        return await self.classify(
            model_id, [each.map for each in found], version=version, explain=explain, neighbours=neighbours
        )

    async def classify_files(
        self,
        model_id: str,
        files: Sequence[UploadFile],
        *,
        version: int = 0,
        explain: bool = False,
        neighbours: int = 0,
    ) -> FileAnswers:
        """Reads files and classifies what they hold. Nothing is stored.

        Raises:
            NotFoundError: No such model is loaded.
            InvalidArgumentError: There is no file, too many, or none holds a wafer (reason NO_WAFER_FOUND).
            ResourceExhaustedError: A file is larger than allowed (reason UPLOAD_TOO_LARGE).
            UnavailableError: The predictor cannot be reached.
        """
        began = time.monotonic()
        intake = await asyncio.to_thread(read_files, files, self._desk.settings)
        if not intake.wafers:
            reasons = "; ".join(f"{each.name}: {each.message}" for each in intake.skipped[:3])
            raise InvalidArgumentError(
                f"Expected files with wafer maps. Received: none in {len(files)} files. {reasons}",
                "files",
                reason="NO_WAFER_FOUND",
                metadata={"files": str(len(files)), "detail": reasons[:500]},
            )
        found = await self.classify(
            model_id, [each.map for each in intake.wafers], version=version, explain=explain, neighbours=neighbours
        )
        answers = tuple(
            replace(answer, source_name=wafer.source_name)
            for answer, wafer in zip(found.answers, intake.wafers, strict=True)
        )
        return FileAnswers(model_id, found.version, answers, tuple(intake.skipped), time.monotonic() - began)


def class_faces(connection: Connection, model_id: str) -> dict[str, tuple[str, str]]:
    """Returns present name and colour of the classes of a model's project, by id; {} for models of others."""
    project = projects.by_model(connection, model_id)
    if project is None:
        return {}
    return {each.class_id: (each.name, each.colour) for each in classes.live(connection, project.project_id)}


def _answer(
    task: Task,
    wafer: WaferMap,
    told: PredictorAnswer,
    faces: dict[str, tuple[str, str]],
    nearest: tuple[Neighbour, ...],
) -> Answer:
    """Returns an answer in the project's present names and colours."""

    def face(class_id: str, taught_name: str) -> tuple[str, str]:
        return faces.get(class_id, (taught_name, UNKNOWN_COLOUR))

    def each(told: Sequence[tuple[str, str, float]]) -> tuple[ClassProbability, ...]:
        return tuple(
            ClassProbability(class_id, *face(class_id, name), probability) for class_id, name, probability in told
        )

    return Answer(
        map=wafer,
        source_name="",
        decision=told.decision,
        class_id=told.class_id,
        name=face(told.class_id, told.name)[0],
        probability=told.probability,
        probabilities=each(told.probabilities),
        novelty=told.novelty,
        task=task,
        patterns=each(told.patterns),
        heat=told.heat,
        neighbours=nearest,
        problem=told.problem,
    )
