"""How good a model is."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from sqlalchemy import Connection

from gateway.catalogue import classes, projects, runs
from gateway.catalogue.patterns import NONE, guess_pattern
from gateway.studio.answers import UNKNOWN_COLOUR, class_faces
from gateway.studio.desk import Desk
from gateway.studio.minder import require_success
from gateway.studio.run_records import training_run
from gateway.values import CellWafer, Evaluation, EvaluationView, Task, TrainingRun
from services.common.dataset import DatasetWafer, Split, open_dataset
from services.common.errors import FailedPreconditionError, NotFoundError
from services.common.wafer_map import WaferMap

_KEPT_PARTS = 8


class EvaluationRoom:
    """Scores of trainings, and the wafers behind them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._cache: OrderedDict[tuple[str, Split], tuple[CellWafer, ...]] = OrderedDict()

    async def of_run(self, run_id: str, *, part: str = "") -> EvaluationView:
        """Returns the scores of a succeeded training.

        Args:
            run_id: The training.
            part: `test` or `tune`; "" means the locked test where there is one.

        Raises:
            NotFoundError: There is no such training, or its data set has no such part (reason NO_SUCH_PART).
            FailedPreconditionError: It has not succeeded (reason NOT_FINISHED).
        """
        run = await self._run(run_id)
        part, scores = _part(run, part)
        faces = await self._desk.read(lambda connection: class_faces(connection, run.model_id))
        normal = await self._desk.read(lambda connection: _normal_of(connection, run.model_id, scores))
        judged = sorted((each for each in scores.classes if each.wafers), key=lambda each: each.f1)
        if scores.task is not Task.SINGLE:
            # Of several patterns none is found best: it is what remains. A normal wafer is not noticed.
            judged = [each for each in judged if each.class_id != normal]
        if scores.task is Task.NORMAL:
            judged.sort(key=lambda each: each.recall)
        return EvaluationView(
            run_id=run_id,
            part=part,
            evaluation=scores,
            colours={each.class_id: faces.get(each.class_id, ("", UNKNOWN_COLOUR))[1] for each in scores.classes},
            names={each.class_id: faces.get(each.class_id, (each.name, ""))[0] for each in scores.classes},
            has_test=run.result is not None and run.result.test is not None,
            best_found=judged[-1].class_id if judged else "",
            worst_found=judged[0].class_id if judged else "",
            normal_id=normal,
        )

    async def cell(
        self, run_id: str, true_id: str, predicted_id: str, *, part: str = "", limit: int = 200
    ) -> tuple[CellWafer, ...]:
        """Returns the wafers of a confusion cell, the most certain first.

        Args:
            run_id: The training.
            true_id: Class that the wafers were taught as.
            predicted_id: Class that the model called them.
            part: As in `of_run`.
            limit: Most wafers to return.

        Raises:
            NotFoundError: There is no such training or part.
            FailedPreconditionError: It has not succeeded, or its model is not loaded (reason MODEL_NOT_LOADED).
            UnavailableError: The predictor cannot be reached.
        """
        run = await self._run(run_id)
        part, _ = _part(run, part)
        found = [
            each
            for each in await self._answers(run, Split(part))
            if each.true_id == true_id and each.predicted_id == predicted_id
        ]
        return tuple(sorted(found, key=lambda each: -each.probability)[: max(0, limit)])

    async def _run(self, run_id: str) -> TrainingRun:
        run = await self._desk.read(
            lambda connection: training_run(connection, runs.run(connection, run_id, "training"))
        )
        require_success(run.state, run_id)
        return run

    async def _answers(self, run: TrainingRun, part: Split) -> tuple[CellWafer, ...]:
        """Returns the answer on each wafer of a part; versions never change, so that the last few are kept."""
        key = (run.run_id, part)
        if key not in self._cache:
            self._cache[key] = await self._ask(run, part)
        self._cache.move_to_end(key)
        while len(self._cache) > _KEPT_PARTS:
            self._cache.popitem(last=False)
        return self._cache[key]

    async def _ask(self, run: TrainingRun, part: Split) -> tuple[CellWafer, ...]:
        def load() -> list[DatasetWafer]:
            return list(open_dataset(self._desk.store, run.dataset_id).iter_wafers(part))

        taught = await asyncio.to_thread(load)
        not_loaded = FailedPreconditionError(
            "Expected the model of this training to serve. Received: a training whose version is not loaded. Load it.",
            subject=run.run_id,
            reason="MODEL_NOT_LOADED",
        )
        if not run.model_version:
            raise not_loaded
        maps = [WaferMap(each.dies) for each in taught]
        try:
            _, told = await self._desk.clients.predictor.classify(run.model_id, maps, version=run.model_version)
        except NotFoundError:
            raise not_loaded from None
        return tuple(
            CellWafer(wafer.wafer_id, wafer.class_id, answer.class_id, answer.probability, wafer.lot)
            for wafer, answer in zip(taught, told, strict=True)
        )


def _normal_of(connection: Connection, model_id: str, scores: Evaluation) -> str:
    """Returns the id of the class of wafers without a pattern, "" when the model knows none."""
    project = projects.by_model(connection, model_id)
    present = {} if project is None else {each.class_id: each for each in classes.live(connection, project.project_id)}
    for each in scores.classes:
        known = present.get(each.class_id)
        if known.none if known else guess_pattern(each.name) == NONE:
            return each.class_id
    return ""


def _part(run: TrainingRun, part: str) -> tuple[str, Evaluation]:
    """Returns the part that was asked for, or the most honest one there is.

    Raises:
        NotFoundError: There is no such part (reason NO_SUCH_PART).
    """
    parts = {} if run.result is None else {"test": run.result.test, "tune": run.result.tune}
    chosen = part or ("test" if parts.get("test") is not None else "tune")
    scores = parts.get(chosen)
    if scores is None:
        raise NotFoundError("evaluation", chosen[:80], reason="NO_SUCH_PART", metadata={"part": chosen[:80]})
    return chosen, scores
