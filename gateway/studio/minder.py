"""Looks after jobs until they have ended and the gateway has done its part: seen, published, loaded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final, TypeVar

from sqlalchemy import Connection

from gateway.catalogue import people, projects, runs
from gateway.catalogue.catalogue import now
from gateway.catalogue.runs import Kind, Published, RunRow
from gateway.studio.desk import Desk
from gateway.studio.people import current_person
from gateway.studio.run_records import GENERATION, PROBLEM, TRAINING, dumped, score, training_run
from gateway.values import (
    GenerationEvent,
    GenerationRun,
    JobState,
    JobStateChanged,
    Problem,
    TrainingEvent,
    TrainingRun,
)
from services.common.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    NotFoundError,
    TeachwaferError,
    UnavailableError,
)

_LOG: Final = logging.getLogger(__name__)
_RETRY_S: Final = 2.0
_LOOK_S: Final = 2.0
_GIVE_UP_S: Final = 60.0

Event = TypeVar("Event", TrainingEvent, GenerationEvent)


class Minder:
    """Follows jobs.

    Args:
        desk: What the studio works with.
        background: Whether to follow jobs in tasks of their own; else only what is asked for is done.
    """

    def __init__(self, desk: Desk, background: bool) -> None:
        self._desk = desk
        self._background = background
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._publishing: dict[str, asyncio.Lock] = {}

    async def start(self) -> None:
        """Follows every job that was left unfinished when the gateway ended last."""
        if self._background:
            for row in await self._desk.read(runs.unsettled):
                self.follow(row)

    def follow(self, row: RunRow) -> None:
        """Follows a job in the background, if there is a background."""
        if not self._background or row.run_id in self._tasks or row.settled:
            return
        task = asyncio.create_task(self._mind(row), name=f"minder-{row.run_id}")
        self._tasks[row.run_id] = task
        task.add_done_callback(lambda _: self._tasks.pop(row.run_id, None))

    async def close(self) -> None:
        """Stops following; the jobs go on."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self, row: RunRow) -> TrainingRun | GenerationRun:
        """Asks the service for a job and keeps the answer.

        Raises:
            UnavailableError: The service cannot be reached.
        """
        run: TrainingRun | GenerationRun
        if row.kind == "training":
            run = await self._desk.clients.trainer.get(row.run_id)
            seen = dumped(TRAINING, run)
        else:
            run = await self._desk.clients.generator.get(row.run_id)
            seen = dumped(GENERATION, run)
        await self._desk.write(lambda connection: runs.see(connection, row.run_id, run.state, seen))
        return run

    async def finish(self, row: RunRow, *, again: bool = False) -> Published | None:
        """Does the gateway's part for a job that has ended: publishes and loads the model of a succeeded training.

        Args:
            row: The job.
            again: Whether to load once more what was published and loaded before, or refused.

        Returns:
            What it was published as; None when there is nothing to publish.

        Raises:
            UnavailableError: Trainer or predictor cannot be reached; try again.
            TeachwaferError: The model was refused; the run keeps the problem.
        """
        async with self._publishing.setdefault(row.run_id, asyncio.Lock()):
            present = await self._desk.read(lambda connection: runs.run(connection, row.run_id, row.kind))
            if present.settled and not again:
                return await self._settled(present)
            if row.kind != "training" or present.state is not JobState.SUCCEEDED:
                await self._desk.write(lambda connection: runs.settle(connection, row.run_id))
                return None
            run = await self._desk.read(lambda connection: training_run(connection, present))
            try:
                published = await self._publish(run)
                await self._desk.clients.predictor.load(published.model_id)
            except (UnavailableError, DeadlineExceededError):
                raise
            except TeachwaferError as error:
                problem = dumped(PROBLEM, Problem.of(error))
                await self._desk.write(lambda connection: runs.settle(connection, row.run_id, problem))
                raise
            await self._desk.write(lambda connection: runs.settle(connection, row.run_id))
            return published

    async def _settled(self, row: RunRow) -> Published | None:
        """Returns what was done for a job before, or raises why it could not be done."""
        if row.problem is not None:
            problem = PROBLEM.validate_python(row.problem)
            raise FailedPreconditionError(problem.message, reason=problem.reason, metadata=problem.metadata)
        return await self._desk.read(lambda connection: runs.version_of_run(connection, row.run_id))

    async def _publish(self, run: TrainingRun) -> Published:
        """Publishes a model, or returns what it was published as."""
        known = await self._desk.read(lambda connection: runs.version_of_run(connection, run.run_id))
        if known is not None:
            return known
        project = await self._desk.read(lambda connection: projects.find(connection, run.project_id))
        # The same request makes the same version, so that dying between here and the catalogue costs nothing.
        version = await self._desk.clients.trainer.publish(run.run_id, project.model_id, f"publish-{run.run_id}"[:64])
        published = Published(project.model_id, version, project.project_id, run.run_id, score(run.result), now())

        def keep(connection: Connection) -> None:
            runs.add_version(connection, published)
            subject = f"models/{published.model_id}"
            people.log(connection, "local", "model.publish", subject, {"version": version, "run": run.run_id})

        await self._desk.write(keep)
        return published

    async def publish_quantised(self, row: RunRow) -> Published:
        """Publishes and loads the quantised variant of a training whose model was published; once done, loads it.

        Raises:
            UnavailableError: Trainer or predictor cannot be reached; try again.
            TeachwaferError: The training has none, it answers otherwise than the model, or the predictor refuses it.
        """
        async with self._publishing.setdefault(row.run_id, asyncio.Lock()):
            published = await self._desk.read(lambda connection: runs.quantised_version_of_run(connection, row.run_id))
            if published is None:
                published = await self._add_quantised(row)
            await self._desk.clients.predictor.load(published.model_id)
            return published

    async def _add_quantised(self, row: RunRow) -> Published:
        run = await self._desk.read(lambda connection: training_run(connection, row))
        request_id = f"quantised-{run.run_id}"[:64]
        version = await self._desk.clients.trainer.publish(run.run_id, run.model_id, request_id, quantised=True)
        figure = score(run.result.quantised if run.result else None)
        published = Published(run.model_id, version, run.project_id, run.run_id, figure, now(), quantised=True)
        person = current_person()

        def keep(connection: Connection) -> None:
            runs.add_quantised_version(connection, published)
            facts: dict[str, str | int] = {"version": version, "run": run.run_id, "variant": "quantised"}
            people.log(connection, person, "model.publish", f"models/{published.model_id}", facts)

        await self._desk.write(keep)
        return published

    async def _mind(self, row: RunRow) -> None:
        """Follows one job to its end, through restarts of the services."""
        ended = False
        while True:
            try:
                if not ended:
                    await self._follow_to_end(row)
                ended = True
                await self.finish(row)
            except NotFoundError as error:
                await self._lose(row, error)
                return
            except TeachwaferError as error:
                if ended and not isinstance(error, UnavailableError | DeadlineExceededError):
                    _LOG.warning("could not publish the model of run %s: %s", row.run_id, error.message)
                    return
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def _lose(self, row: RunRow, error: TeachwaferError) -> None:
        """Marks a job that its service does not know any more."""
        problem = dumped(PROBLEM, Problem.of(error))
        await self._desk.write(lambda connection: runs.lose(connection, row.run_id, problem))

    async def _follow_to_end(self, row: RunRow) -> None:
        loop = asyncio.get_running_loop()
        run = await self.look(row)
        looked = loop.time()
        while not run.state.ended:
            async for event in self.events(row.kind, row.run_id, 0):
                if isinstance(event, JobStateChanged) or loop.time() - looked > _LOOK_S:
                    run = await self.look(row)
                    looked = loop.time()
            run = await self.look(row)
            if not run.state.ended:
                await asyncio.sleep(_RETRY_S)

    def events(self, kind: Kind, run_id: str, after: int) -> AsyncIterator[TrainingEvent | GenerationEvent]:
        """Yields the events of a job as the service tells them."""
        clients = self._desk.clients
        if kind == "training":
            return clients.trainer.watch(run_id, after)
        return clients.generator.watch(run_id, after)


async def resilient(watch: Callable[[int], AsyncIterator[Event]], after: int) -> AsyncIterator[Event]:
    """Yields events through losses of the connection that last less than a minute, each event once.

    Args:
        watch: Begins to watch after a sequence.
        after: Sequence of the last event already seen.

    Raises:
        UnavailableError: The service stayed away.
    """
    loop = asyncio.get_running_loop()
    lost: float | None = None
    while True:
        try:
            async for event in watch(after):
                after, lost = event.sequence, None
                yield event
        except UnavailableError:
            lost = lost or loop.time()
            if loop.time() - lost > _GIVE_UP_S:
                raise
            await asyncio.sleep(_RETRY_S / 4)
        else:
            return


def require_success(state: JobState, run_id: str) -> None:
    """Refuses what needs a run that has succeeded.

    Raises:
        FailedPreconditionError: It has not (reason NOT_FINISHED).
    """
    if state is not JobState.SUCCEEDED:
        raise FailedPreconditionError(
            f"Expected a run that has succeeded. Received: {run_id!r}, which is {state.value}. Wait for its end.",
            subject=run_id,
            reason="NOT_FINISHED",
            metadata={"state": state.value},
        )
