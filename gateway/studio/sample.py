"""The sample project."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy import Connection

from gateway.catalogue import changes, classes, people, projects, wafers
from gateway.catalogue.patterns import NONE
from gateway.catalogue.wafer_rows import NewWafer
from gateway.studio.desk import Desk
from gateway.values import Problem, SampleProgress, SampleState, Task
from services.common.dataset import Origin
from services.common.errors import DeadlineExceededError, NotFoundError, TeachwaferError, UnavailableError
from services.common.wafer_map import WaferMap

_LOG = logging.getLogger(__name__)

PATTERNS = (NONE, "Center", "Donut", "Edge-Loc", "Edge-Ring", "Scratch")
"""Classes of the sample project."""
WAFERS = 24
"""Wafers of each of them."""
WAFERS_PER_LOT = 4
"""Wafers of a lot."""
NAMES = {"en": "Sample wafers", "ko": "예제 웨이퍼"}
"""Name of the sample project."""

_TOTAL = len(PATTERNS) * WAFERS

_SEED = 811
_RETRY_S = 2.0
_GIVE_UP_S = 600.0
# Under this preference of nobody stands the id of the sample project, for ever: it is made once.
_MARK = ("", "sample_project")


class SampleRoom:
    """A project of simulated wafers to look around in."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._task: asyncio.Task[None] | None = None
        self._progress = SampleProgress(SampleState.ABSENT, 0, _TOTAL)

    async def ensure(self) -> SampleProgress:
        """Begins to make the sample project in the background unless it is there or being made; returns at once.

        Made once: a sample project that a person deleted stays away.
        """
        idle = self._task is None or self._task.done()
        if idle and await self._find() is SampleState.MAKING:
            self._task = asyncio.create_task(self._make(), name="sample-project")
        return self._progress

    def progress(self) -> SampleProgress:
        """Returns how far it is. Not a coroutine."""
        return self._progress

    async def close(self) -> None:
        """Stops making it; nothing of it is kept then."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _find(self) -> SampleState:
        """Looks for a sample project that was made before and sets the progress; MAKING when it has to be made."""

        def work(connection: Connection) -> SampleProgress:
            project_id = people.preference(connection, *_MARK)
            if project_id is None:
                return SampleProgress(SampleState.MAKING, 0, _TOTAL)
            try:
                projects.get(connection, project_id)
            except NotFoundError:
                return SampleProgress(SampleState.ABSENT)
            return SampleProgress(SampleState.READY, _TOTAL, _TOTAL, project_id)

        self._progress = await self._desk.read(work)
        return self._progress.state

    async def _make(self) -> None:
        try:
            found = await self._simulate()
            project_id = await self._desk.write(lambda connection: self._keep(connection, found))
        except TeachwaferError as error:
            _LOG.warning("could not make the sample project: %s", error.message)
            self._progress = SampleProgress(SampleState.FAILED, 0, _TOTAL, problem=Problem.of(error))
        else:
            self._progress = SampleProgress(SampleState.READY, _TOTAL, _TOTAL, project_id)

    async def _simulate(self) -> list[tuple[int, WaferMap]]:
        """Simulates the wafers; waits for the generator, which starts at the same time as the portal."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + _GIVE_UP_S
        while True:
            found: list[tuple[int, WaferMap]] = []
            wanted = [((pattern,), WAFERS) for pattern in PATTERNS]
            try:
                async for each in self._desk.clients.generator.simulate(
                    wanted, seed=_SEED, wafers_per_lot=WAFERS_PER_LOT
                ):
                    found.append(each)
                    self._progress = SampleProgress(SampleState.MAKING, len(found), _TOTAL)
            except (UnavailableError, DeadlineExceededError):
                if loop.time() > give_up:
                    raise
                await asyncio.sleep(_RETRY_S)
            else:
                return found

    def _keep(self, connection: Connection, found: list[tuple[int, WaferMap]]) -> str:
        """Makes the project with all wafers in one transaction; returns its id."""
        known = people.preference(connection, *_MARK)
        if known is not None:
            return known
        name = NAMES[self._desk.settings.gateway_language]
        project = projects.create(connection, name, Task.SINGLE, "", sample=True)
        people.set_preference(connection, *_MARK, project.project_id)
        class_ids = [classes.add(connection, project.project_id, each, each).class_id for each in PATTERNS]
        _, number = changes.record(
            connection, project.project_id, "add_wafers", "", {"name": name, "count": len(found)}
        )
        new = [NewWafer(wafer, class_ids[index], Origin.SIMULATED) for index, wafer in found]
        wafers.insert_all(connection, project.project_id, new, number)
        return project.project_id
