"""The job engine of a service: its queue, its workers, and what clients may do with jobs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import shutil
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from services.common.errors import FailedPreconditionError, InvalidArgumentError, TeachwaferError
from services.common.jobs.attempts import Attempt, AttemptStore
from services.common.jobs.backend import JobBackend
from services.common.jobs.model import Job, JobEvent
from services.common.jobs.processes import ProcessIdentity, this_host
from services.common.jobs.settings import JobSettings
from services.common.jobs.store import JobStore
from services.common.jobs.supervisor import Supervisor
from services.common.pagination import decode_page_token, encode_page_token, page_size_of

_LOG = logging.getLogger(__name__)
MAX_REQUEST_ID = 64
MAX_DISPLAY_NAME = 256
_IDLE_S = 1.0
_RENEW_S = 2.0


class JobEngine:
    """Runs the jobs of one kind. Several engines, in as many replicas of the service, may share one database.

    Args:
        kind: Kind of the jobs; one a service.
        worker_module: Python module whose `__main__` calls `run_worker`.
        store: The jobs in the database.
        backend: What runs the attempts.
        settings: Settings of the service.
        store_url: Store that the workers use.
    """

    def __init__(
        self,
        kind: str,
        worker_module: str,
        store: JobStore,
        backend: JobBackend,
        settings: JobSettings,
        store_url: str,
    ) -> None:
        self._kind = kind
        self._worker_module = worker_module
        self._store = store
        self._backend = backend
        self._settings = settings
        self._store_url = store_url
        self._attempts = AttemptStore(store.database, kind, _owner_name(), settings.job_lease_s)
        self._supervisors: dict[tuple[str, int], Supervisor] = {}
        self._followers: set[asyncio.Task[None]] = set()
        self._scheduler: asyncio.Task[None] | None = None
        self._helpers: list[asyncio.Task[None]] = []
        self._stopping = False
        self._wake = asyncio.Event()
        self._news: dict[str, asyncio.Event] = {}

    async def start(self) -> None:
        """Makes the tables, takes over what an earlier service left running, and begins to work off the queue.

        Raises:
            UnavailableError: If the database cannot be reached.
        """
        await asyncio.to_thread(self._store.migrate)
        self._scheduler = asyncio.create_task(self._schedule())
        self._helpers = [asyncio.create_task(self._observe()), asyncio.create_task(self._renew())]

    async def stop(self) -> None:
        """Stops working. `jobs_on_stop` says what happens to running jobs; they go on at the next start."""
        self._stopping = True
        self._wake.set()
        if self._scheduler is not None:
            # Not cancelled: a claim under way would be lost with its answer.
            await self._scheduler
        for supervisor in self._supervisors.values():
            supervisor.stop(leave=self._settings.jobs_on_stop == "leave")
        await asyncio.gather(*self._followers, return_exceptions=True)
        for helper in self._helpers:
            helper.cancel()
        await asyncio.gather(*self._helpers, return_exceptions=True)

    async def create(self, spec: dict[str, Any], *, request_id: str = "", display_name: str = "") -> Job:
        """Puts a job into the queue. When this returns, the job is stored.

        Args:
            spec: What to do; JSON values.
            request_id: Id of the request, at most 64 characters; the same id again returns the same job.
            display_name: Text for people, at most 256 characters.

        Raises:
            InvalidArgumentError: If an argument is out of range.
            AlreadyExistsError: If the request id was used for another job.
            UnavailableError: If the database cannot be reached.
        """
        _check_text("request_id", request_id, MAX_REQUEST_ID)
        _check_text("display_name", display_name, MAX_DISPLAY_NAME)
        try:
            json.dumps(spec)
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"Expected a spec of JSON values. Received: {error}.", field="spec") from error
        create = partial(self._store.create, self._kind, spec, request_id=request_id, display_name=display_name)
        job = await asyncio.to_thread(create)
        self._wake.set()
        return job

    async def get(self, job_id: str) -> Job:
        """Returns one job.

        Raises:
            NotFoundError: If there is none.
        """
        return await asyncio.to_thread(self._store.get, self._kind, job_id)

    async def list(self, page_size: int = 0, page_token: str = "") -> tuple[list[Job], str]:
        """Returns a page of jobs, newest first, and the token of the next one; empty on the last.

        Args:
            page_size: Most jobs to return; 0 means the usual number.
            page_token: Token that the page before came with.

        Raises:
            InvalidArgumentError: If the size is negative or the token is not one of this list.
        """
        collection = f"jobs/{self._kind}"
        cursor = decode_page_token(collection, page_token)
        before: int | None = None
        if cursor is not None:
            if len(cursor) != 1 or not isinstance(cursor[0], int):
                raise InvalidArgumentError("Expected the next_page_token of an earlier page.", field="page_token")
            before = cursor[0]
        jobs, following = await asyncio.to_thread(self._store.page, self._kind, page_size_of(page_size), before)
        return jobs, "" if following is None else encode_page_token(collection, [following])

    async def cancel(self, job_id: str) -> Job:
        """Asks a job to stop. One that waits is cancelled at once; one that has ended stays as it is.

        Raises:
            NotFoundError: If there is no such job.
        """
        job = await asyncio.to_thread(self._store.cancel, self._kind, job_id)
        supervisor = self._supervisors.get((job_id, job.attempt))
        if supervisor is not None and job.cancel_requested:
            supervisor.cancel()
        self._tell(job_id)
        return job

    async def delete(self, job_id: str) -> None:
        """Deletes a job that has ended, its events and its files.

        Raises:
            NotFoundError: If there is no such job.
            FailedPreconditionError: If the job has not ended, or its files cannot be deleted.
        """
        job = await self.get(job_id)
        if job.state.at_rest:
            # Files first: when the service dies in between, the job is still there to be deleted again.
            folder = self._settings.runs_folder / job_id
            try:
                await asyncio.to_thread(shutil.rmtree, folder)
            except FileNotFoundError:
                pass
            except OSError as error:
                raise FailedPreconditionError(
                    f"Files of job {job_id} cannot be deleted ({error.strerror}). Correct the rights and try again.",
                    reason="JOB_FILES_NOT_DELETED",
                ) from error
        await asyncio.to_thread(self._store.delete, self._kind, job_id)
        self._tell(job_id)

    async def watch(self, job_id: str, after_sequence: int = 0) -> AsyncIterator[JobEvent]:
        """Yields the events of a job after a sequence, past ones first, and ends when the job is at rest.

        Ending the iteration never stops the job.

        Raises:
            NotFoundError: If there is no such job, or it is deleted meanwhile.
            InvalidArgumentError: If the sequence is negative.
        """
        if after_sequence < 0:
            raise InvalidArgumentError(f"Expected 0 or more. Received: {after_sequence}.", field="after_sequence")
        try:
            while True:
                news = self._news.setdefault(job_id, asyncio.Event())
                job, events = await asyncio.to_thread(self._store.events, self._kind, job_id, after_sequence)
                for event in events:
                    yield event
                    after_sequence = event.sequence
                if job.state.at_rest and after_sequence >= job.last_sequence:
                    return
                if not events:
                    # The wait is bounded because another replica may be the one that runs the job.
                    await _wait(news, max(self._settings.job_poll_s, 0.05))
        finally:
            self._tell(job_id)

    async def _schedule(self) -> None:
        """Takes jobs over and out of the queue while there are places."""
        while not self._stopping:
            self._wake.clear()
            try:
                held = [job_id for job_id, _ in self._supervisors]
                for attempt in await asyncio.to_thread(self._attempts.take_over, _is_dead, held):
                    self._look_after(attempt)
                places = (await self._backend.capacity()).total
                while len(self._supervisors) < places:
                    claimed = await asyncio.to_thread(self._attempts.claim)
                    if claimed is None:
                        break
                    self._look_after(claimed)
            except TeachwaferError:
                _LOG.warning("the queue cannot be read", extra={"job_kind": self._kind}, exc_info=True)
            except Exception:
                # The one loop that everything hangs on goes on whatever happens.
                _LOG.exception("the queue cannot be worked off", extra={"job_kind": self._kind})
            await _wait(self._wake, _IDLE_S)

    def _look_after(self, attempt: Attempt) -> None:
        supervisor = Supervisor(
            attempt,
            self._attempts,
            self._backend,
            self._settings,
            self._worker_module,
            self._store_url,
            partial(self._tell, attempt.job_id),
        )
        self._supervisors[supervisor.key] = supervisor
        self._tell(attempt.job_id)
        task = asyncio.create_task(supervisor.run())
        self._followers.add(task)
        task.add_done_callback(partial(self._followed, supervisor))

    def _followed(self, supervisor: Supervisor, task: asyncio.Task[None]) -> None:
        self._followers.discard(task)
        self._supervisors.pop(supervisor.key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Its lease is no longer renewed; when it lapses, this engine or another takes the job over again.
            _LOG.error("an attempt is no longer looked after", extra={"job": supervisor.key[0]}, exc_info=error)
        self._wake.set()

    async def _observe(self) -> None:
        """Passes on what the backend sees."""
        while True:
            try:
                async for status in self._backend.observe():
                    if supervisor := self._supervisors.get(status.ref.key):
                        supervisor.observe(status)
            except Exception:
                _LOG.exception("the backend cannot be observed", extra={"job_kind": self._kind})
            await asyncio.sleep(_IDLE_S)

    async def _renew(self) -> None:
        """Keeps the lease, and learns of jobs that were cancelled through another replica or taken over by one."""
        while True:
            await asyncio.sleep(min(_RENEW_S, self._settings.job_lease_s / 4))
            supervisors = dict(self._supervisors)
            if not supervisors:
                continue
            try:
                owned = await asyncio.to_thread(self._attempts.renew, [job_id for job_id, _ in supervisors])
            except TeachwaferError:
                _LOG.warning("the lease cannot be renewed", extra={"job_kind": self._kind}, exc_info=True)
                continue
            for key, supervisor in supervisors.items():
                if key not in owned:
                    supervisor.doubt()
                elif owned[key]:
                    supervisor.cancel()

    def _tell(self, job_id: str) -> None:
        """Wakes those who watch a job."""
        if event := self._news.pop(job_id, None):
            event.set()


def _owner_name() -> str:
    """Names this engine so that others on the machine can tell whether its process is alive."""
    identity = ProcessIdentity.of(os.getpid())
    started = 0.0 if identity is None else identity.started
    return json.dumps([this_host(), os.getpid(), started, secrets.token_hex(4)], separators=(",", ":"))


def _is_dead(owner: str) -> bool:
    """Whether the process of an engine is known to have ended; one of another machine is never known to."""
    host, pid, started, _ = json.loads(owner)
    return bool(host == this_host() and not ProcessIdentity(pid, started).alive)


def _check_text(field: str, value: str, limit: int) -> None:
    # PostgreSQL keeps no NUL in a text.
    if "\0" in value:
        raise InvalidArgumentError("Expected a text without NUL characters. Received: one with.", field=field)
    if len(value) > limit:
        raise InvalidArgumentError(f"Expected at most {limit} characters. Received: {len(value)}.", field=field)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
