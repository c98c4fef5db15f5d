"""Trainings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

from sqlalchemy import Connection

from gateway.catalogue import classes, people, projects, runs, wafers
from gateway.catalogue.catalogue import new_id, now
from gateway.catalogue.runs import RunRow
from gateway.studio import health
from gateway.studio.desk import Desk
from gateway.studio.freezing import freeze
from gateway.studio.minder import Minder, resilient
from gateway.studio.people import current_person
from gateway.studio.run_records import OPTIONS, dumped, training_run
from gateway.values import (
    Backbone,
    JobState,
    ModelPublished,
    Problem,
    PublishFailed,
    Task,
    TrainingEvent,
    TrainingOptions,
    TrainingRun,
)
from services.common.errors import FailedPreconditionError, TeachwaferError


class TrainingRoom:
    """Teach the model of a project."""

    def __init__(self, desk: Desk, minder: Minder) -> None:
        self._desk = desk
        self._minder = minder

    async def start(
        self, project_id: str, options: TrainingOptions | None = None, *, request_id: str = ""
    ) -> TrainingRun:
        """Freezes the project and starts teaching. The model is published and loaded when it succeeds.

        Args:
            project_id: The project.
            options: How; None takes the defaults.
            request_id: The same id again returns the training that it started the first time.

        Raises:
            NotFoundError: There is no such project.
            FailedPreconditionError: It cannot be trained now; the reason is that of `Board.training`, in capitals.
            InvalidArgumentError: An option is out of range.
            UnavailableError: The trainer cannot be reached.
        """
        chosen = options or TrainingOptions()
        if request_id:
            known = await self._desk.read(lambda connection: runs.run_by_request(connection, request_id))
            if known is not None:
                return await self._seen(known.run_id)
        await self._desk.read(lambda connection: _check_gate(connection, project_id))
        frozen, data_version = await asyncio.to_thread(
            freeze, self._desk.catalogue, self._desk.store, project_id, chosen.seed
        )
        project = await self._desk.read(lambda connection: projects.get(connection, project_id))
        use_generated = chosen.use_generated and project.task is not Task.NORMAL
        generated = [frozen.generated_dataset_id] if frozen.generated_dataset_id and use_generated else []
        request = request_id or new_id()
        run = await self._desk.clients.trainer.create(
            frozen.dataset_id,
            chosen,
            task=project.task,
            generated=generated,
            display_name=project.name,
            request_id=request,
        )
        person = current_person()
        spec = dumped(OPTIONS, run.options)

        def work(connection: Connection) -> RunRow:
            people.log(connection, person, "training.start", f"projects/{project_id}", {"run": run.run_id})
            return runs.add_run(
                connection, run.run_id, "training", project_id, frozen.dataset_id, data_version, spec, request
            )

        self._minder.follow(await self._desk.write(work))
        return await self._seen(run.run_id)

    async def get(self, run_id: str) -> TrainingRun:
        """Returns a training as it stands.

        When the trainer cannot be reached, a training that ended is still returned as it was last seen.

        Raises:
            NotFoundError: There is none.
            UnavailableError: The trainer cannot be reached.
        """
        row = await self._row(run_id)
        if not row.state.ended:
            await self._minder.look(row)
        return await self._seen(run_id)

    async def list(self, project_id: str) -> tuple[TrainingRun, ...]:
        """Returns the trainings of a project, newest first, as they were last seen."""

        def work(connection: Connection) -> tuple[TrainingRun, ...]:
            projects.get(connection, project_id)
            return tuple(training_run(connection, row) for row in runs.runs(connection, project_id, "training"))

        return await self._desk.read(work)

    async def watch(self, run_id: str, *, after_sequence: int = 0) -> AsyncIterator[TrainingEvent]:
        """Yields the events of a training, past ones first, and ends when it is at rest.

        After the job has SUCCEEDED comes ModelPublished or PublishFailed. Leaving the loop never stops the training.

        Args:
            run_id: The training.
            after_sequence: Sequence of the last event already seen.

        Raises:
            NotFoundError: There is none.
            UnavailableError: The trainer went away for longer than a minute; watch again later.
        """
        row = await self._row(run_id)
        last = after_sequence
        async for event in resilient(partial(self._desk.clients.trainer.watch, run_id), after_sequence):
            last = event.sequence
            yield event
        run = await self._minder.look(row)
        if run.state is not JobState.SUCCEEDED:
            return
        try:
            published = await self._minder.finish(row)
        except TeachwaferError as error:
            yield PublishFailed(last, now(), Problem.of(error))
        else:
            if published is not None:
                yield ModelPublished(last, now(), published.model_id, published.version)

    async def cancel(self, run_id: str) -> TrainingRun:
        """Asks a training to stop; one that has ended is returned as it is."""
        row = await self._row(run_id)
        if not row.state.ended:
            await self._desk.clients.trainer.cancel(run_id)
            await self._minder.look(row)
            person = current_person()
            await self._desk.write(
                lambda connection: people.log(connection, person, "training.cancel", f"trainings/{run_id}")
            )
        return await self._seen(run_id)

    async def backbones(self) -> tuple[Backbone, ...]:
        """Returns the pretrained models; the default of each size comes first.

        Raises:
            UnavailableError: The trainer cannot be reached.
        """
        return await self._desk.clients.trainer.backbones()

    async def _row(self, run_id: str) -> RunRow:
        return await self._desk.read(lambda connection: runs.run(connection, run_id, "training"))

    async def _seen(self, run_id: str) -> TrainingRun:
        return await self._desk.read(
            lambda connection: training_run(connection, runs.run(connection, run_id, "training"))
        )


def _check_gate(connection: Connection, project_id: str) -> None:
    """Refuses a training that could not start.

    Raises:
        FailedPreconditionError: With the reason of the gate, in capitals.
    """
    project = projects.get(connection, project_id)
    counts = wafers.counts(connection, project_id)
    cards = health.cards(project.task, classes.live(connection, project_id), counts)
    rows = runs.runs(connection, project_id, "training")
    gate = health.gate(project.task, cards, training_run(connection, rows[0]) if rows else None)
    if not gate.open:
        facts = {key: str(value) for key, value in gate.params.items()}
        raise FailedPreconditionError(
            f"Expected a project that can be trained. Received: {gate.reason.replace('_', ' ')}, "
            f"{', '.join(f'{key} {value}' for key, value in facts.items())}.",
            subject=f"projects/{project_id}",
            reason=gate.reason.upper(),
            metadata=facts,
        )
