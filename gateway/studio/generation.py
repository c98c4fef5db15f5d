"""More wafers of a class."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice

from sqlalchemy import Connection

from gateway.catalogue import changes, classes, people, projects, runs, wafers
from gateway.catalogue.catalogue import new_id
from gateway.catalogue.runs import RunRow
from gateway.catalogue.wafer_rows import NewWafer
from gateway.studio.desk import Desk
from gateway.studio.freezing import freeze
from gateway.studio.minder import Minder, require_success, resilient
from gateway.studio.people import current_person
from gateway.studio.run_records import REQUESTS, dumped, generation_run
from gateway.values import Change, GenerationEvent, GenerationRequest, GenerationRun, Method, Task
from services.common.dataset import Dataset, Origin, open_dataset
from services.common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from services.common.store import BlobStore
from services.common.wafer_map import WaferIdentity, WaferMap

LEARNED_FLOOR = 20
"""Fewest real wafers of a class for a learned generator."""


class GenerationRoom:
    """Generate wafers and add those that look right."""

    def __init__(self, desk: Desk, minder: Minder) -> None:
        self._desk = desk
        self._minder = minder

    async def start(
        self,
        project_id: str,
        requests: Sequence[GenerationRequest],
        *,
        seed: int = 0,
        request_id: str = "",
        prove: bool = False,
    ) -> GenerationRun:
        """Freezes the project and starts generating from its training wafers.

        Args:
            project_id: The project.
            requests: What to make, one entry a class.
            seed: Seed of everything random, 0 to 2^32-1.
            request_id: The same id again returns the generation that it started the first time.
            prove: Whether to teach a classifier with and without the wafers made and tell what they change.

        Raises:
            NotFoundError: There is no such project or class.
            InvalidArgumentError: Nothing is asked for, or a setting is out of range.
            FailedPreconditionError: A class has no wafer in training (reason NO_PARENTS), or fewer than 20 for a
                learned generator (reason TOO_FEW_WAFERS); a learned generator where wafers show several patterns
                (reason LEARNED_ONE_PATTERN); anything where only normal wafers teach (reason ONLY_REAL_TEACH); a proof
                without wafers in lots set aside (reason NOTHING_TO_JUDGE).
            UnavailableError: The generator cannot be reached.
        """
        if not requests:
            raise InvalidArgumentError("Expected at least one class to generate. Received: none.", "requests")
        if request_id:
            known = await self._desk.read(lambda connection: runs.run_by_request(connection, request_id))
            if known is not None:
                return await self._seen(known.run_id)
        await self._desk.read(lambda connection: _check_classes(connection, project_id, requests))
        frozen, data_version = await asyncio.to_thread(freeze, self._desk.catalogue, self._desk.store, project_id, 0)
        project = await self._desk.read(lambda connection: projects.get(connection, project_id))
        request = request_id or new_id()
        run = await self._desk.clients.generator.create(
            frozen.dataset_id, requests, seed=seed, display_name=project.name, request_id=request, prove=prove
        )
        person = current_person()
        spec = {"requests": dumped(REQUESTS, tuple(requests)), "seed": seed}

        def work(connection: Connection) -> RunRow:
            people.log(connection, person, "generation.start", f"projects/{project_id}", {"run": run.run_id})
            return runs.add_run(
                connection, run.run_id, "generation", project_id, frozen.dataset_id, data_version, spec, request
            )

        self._minder.follow(await self._desk.write(work))
        return await self._seen(run.run_id)

    async def get(self, run_id: str) -> GenerationRun:
        """Returns a generation as it stands; one that ended also while the generator is away.

        Raises:
            NotFoundError: There is none.
            UnavailableError: The generator cannot be reached.
        """
        row = await self._row(run_id)
        if not row.state.ended:
            await self._minder.look(row)
        return await self._seen(run_id)

    async def list(self, project_id: str) -> tuple[GenerationRun, ...]:
        """Returns the generations of a project, newest first, as they were last seen."""

        def work(connection: Connection) -> tuple[GenerationRun, ...]:
            projects.get(connection, project_id)
            return tuple(generation_run(row) for row in runs.runs(connection, project_id, "generation"))

        return await self._desk.read(work)

    async def watch(self, run_id: str, *, after_sequence: int = 0) -> AsyncIterator[GenerationEvent]:
        """Yields the events of a generation, past ones first, and ends when it is at rest.

        Raises:
            NotFoundError: There is none.
            UnavailableError: The generator went away for longer than a minute; watch again later.
        """
        row = await self._row(run_id)
        async for event in resilient(partial(self._desk.clients.generator.watch, run_id), after_sequence):
            yield event
        await self._minder.look(row)

    async def cancel(self, run_id: str) -> GenerationRun:
        """Asks a generation to stop; one that has ended is returned as it is."""
        row = await self._row(run_id)
        if not row.state.ended:
            await self._desk.clients.generator.cancel(run_id)
            await self._minder.look(row)
        return await self._seen(run_id)

    async def results(
        self, run_id: str, class_id: str = "", *, offset: int = 0, limit: int = 60
    ) -> tuple[tuple[str, WaferMap], ...]:
        """Returns generated wafers, not yet in a class, with the ids under which they will be.

        Args:
            run_id: A succeeded generation.
            class_id: Only of this class; "" of all.
            offset: Wafers to pass over.
            limit: Most wafers to return, at most 1,000.

        Raises:
            NotFoundError: There is no such generation.
            FailedPreconditionError: It has not succeeded (reason NOT_FINISHED).
        """
        run = await self.get(run_id)
        require_success(run.state, run_id)
        if run.result is None:
            return ()
        dataset_id, limit = run.result.dataset_id, max(0, min(limit, 1000))

        def work() -> tuple[tuple[str, WaferMap], ...]:
            with open_dataset(self._desk.store, dataset_id) as dataset:
                found = islice(_generated(dataset, run_id, class_id), offset, offset + limit)
                return tuple((each.wafer_id, each.map) for each in found)

        return await asyncio.to_thread(work)

    async def accept(self, run_id: str, *, leave_out: Sequence[str] = ()) -> Change:
        """Adds generated wafers to their classes, marked as generated. Doing so twice adds them once.

        Variations show every class that their parents showed when they were made.

        Args:
            run_id: A succeeded generation.
            leave_out: Ids of wafers that look wrong.

        Raises:
            NotFoundError: There is no such generation, or all of its classes are gone.
            FailedPreconditionError: It has not succeeded (reason NOT_FINISHED).
        """
        run = await self.get(run_id)
        require_success(run.state, run_id)
        unwanted = frozenset(leave_out)
        project = await self._desk.read(lambda connection: projects.find(connection, run.project_id))
        several = project.task is Task.SEVERAL
        person = current_person()

        def work() -> Change:
            assert run.result is not None  # noqa: S101 - it has succeeded
            # Wafers go from the file into the database, some at a time: there may be a million of them.
            with open_dataset(self._desk.store, run.result.dataset_id) as made:
                shown = _shown(self._desk.store, run.dataset_id) if several else {}
                new = (
                    replace(each, base_dataset=run.dataset_id, also=_inherited(each, shown))
                    for each in _generated(made, run_id)
                    if each.wafer_id not in unwanted
                )
                with self._desk.catalogue.write() as connection:
                    return _accept(connection, run, new, person)

        return await asyncio.to_thread(work)

    async def _row(self, run_id: str) -> RunRow:
        return await self._desk.read(lambda connection: runs.run(connection, run_id, "generation"))

    async def _seen(self, run_id: str) -> GenerationRun:
        return generation_run(await self._row(run_id))


def _check_classes(connection: Connection, project_id: str, requests: Sequence[GenerationRequest]) -> None:
    """Refuses what cannot be made of a class; raises as `GenerationRoom.start`."""
    project = projects.get(connection, project_id)
    if project.task is Task.NORMAL:
        raise FailedPreconditionError(
            "Expected a project that teaches patterns. Received: one that only real, normal wafers teach, which would "
            "not use generated ones.",
            subject=f"projects/{project_id}",
            reason="ONLY_REAL_TEACH",
        )
    present = {each.class_id: each for each in classes.live(connection, project_id)}
    counts = wafers.own_counts(connection, project_id)
    for request in requests:
        if request.class_id not in present:
            raise NotFoundError("class", request.class_id[:80], reason="CLASS_NOT_FOUND")
        found = present[request.class_id]
        if project.task is Task.SEVERAL and request.method is Method.LEARNED:
            raise FailedPreconditionError(
                "Expected quick variations, which keep every pattern of a wafer. Received: a learned generator, which "
                "draws one pattern only.",
                subject=f"classes/{found.class_id}",
                reason="LEARNED_ONE_PATTERN",
            )
        real = counts[request.class_id].real if request.class_id in counts else 0
        needed = LEARNED_FLOOR if request.method is Method.LEARNED else 1
        if real < needed or not found.enabled:
            raise FailedPreconditionError(
                f"Expected at least {needed} real wafers in the enabled class {found.name!r}. Received: {real}. "
                "Add wafers first.",
                subject=f"classes/{found.class_id}",
                reason="TOO_FEW_WAFERS" if real else "NO_PARENTS",
                metadata={"name": found.name, "wafers": str(real), "needed": str(needed)},
            )


def _generated(dataset: Dataset, run_id: str, class_id: str = "") -> Iterator[NewWafer]:
    """Yields the wafers that a generation made, under the ids that they will have in the catalogue."""
    for each in dataset.iter_wafers():
        if class_id and each.class_id != class_id:
            continue
        yield NewWafer(
            map=WaferMap(each.dies, WaferIdentity(lot=each.lot)),
            class_id=each.class_id,
            origin=each.origin,
            # The same generation always gives the same ids, so that accepting it twice adds nothing twice.
            wafer_id=uuid.uuid5(uuid.NAMESPACE_URL, f"teachwafer:{run_id}:{each.wafer_id}").hex,
            parent_id=each.parent_id,
            source_name=run_id,
        )


def _shown(store: BlobStore, dataset_id: str) -> dict[str, tuple[str, ...]]:
    """Returns the classes that wafers of a data set version show, the own one first, where they show several."""
    batches = open_dataset(store, dataset_id).iter_batches(["wafer_id", "class_id", "also"])
    rows = (row for batch in batches for row in batch.to_pylist())
    return {row["wafer_id"]: (row["class_id"], *row["also"]) for row in rows if row["also"]}


def _inherited(child: NewWafer, shown: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Returns the further classes of a generated wafer: a variation keeps all patterns of its parent."""
    if child.origin is not Origin.VARIATION:
        return ()
    return tuple(each for each in shown.get(child.parent_id, ()) if each != child.class_id)


def _accept(connection: Connection, run: GenerationRun, new: Iterator[NewWafer], person: str) -> Change:
    """Adds generated wafers in one transaction."""
    row = runs.run(connection, run.run_id, "generation")
    projects.lock(connection, row.project_id)
    row = runs.run(connection, run.run_id, "generation")
    if row.accepted_change:
        return changes.get(connection, row.accepted_change)
    present = {each.class_id: each.name for each in classes.live(connection, row.project_id)}
    made = [each.class_id for each in run.result.classes] if run.result else []
    if made and present.keys().isdisjoint(made):
        raise NotFoundError("class", made[0], reason="CLASS_NOT_FOUND")
    wanted = (
        replace(each, also=tuple(class_id for class_id in each.also if class_id in present))
        for each in new
        if each.class_id in present
    )
    _, number = changes.record(connection, row.project_id, "add_wafers", person, {"count": 0})
    added = wafers.insert_all(connection, row.project_id, wanted, number)
    name, count = ", ".join(present[class_id] for class_id in added)[:256], sum(added.values())
    change = changes.reword(connection, number, {"name": name, "count": count, "generated": count})
    runs.set_accepted(connection, run.run_id, change.change_id)
    people.log(connection, person, "generation.accept", f"projects/{row.project_id}", {"count": count})
    return change
