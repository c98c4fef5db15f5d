"""Looks after one attempt from its submission to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from services.common.errors import ResourceExhaustedError, TeachwaferError, UnavailableError
from services.common.jobs.attempts import Attempt, AttemptReplacedError, AttemptStore, End
from services.common.jobs.backend import AttemptSpec, AttemptStatus, JobBackend, JobRef, Phase
from services.common.jobs.failures import Verdict, clean_lines, judge, verdict_of, verdict_of_error
from services.common.jobs.model import EndReason, ExitCode
from services.common.jobs.run_folder import RunFolder, WorkerEvent, WorkOrder
from services.common.jobs.settings import JobSettings

_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)
_LOG_LINES = 30
_SUBMIT_DELAY_S = 2.0
_DATABASE_DELAY_S = 1.0


class Supervisor:
    """Submits an attempt, or adopts it, stores what its worker reports, and brings its job to the next state.

    Args:
        attempt: The attempt; claimed or taken over by this engine.
        attempts: Fenced writes of this engine.
        backend: What runs the attempt.
        settings: Settings of the engine.
        worker_module: Module of the worker.
        store_url: Store that the worker uses.
        on_news: Called after each stored change.
    """

    def __init__(
        self,
        attempt: Attempt,
        attempts: AttemptStore,
        backend: JobBackend,
        settings: JobSettings,
        worker_module: str,
        store_url: str,
        on_news: Callable[[], None],
    ) -> None:
        self._attempt = attempt
        self._attempts = attempts
        self._backend = backend
        self._settings = settings
        self._worker_module = worker_module
        self._store_url = store_url
        self._on_news = on_news
        self._run_folder: Path = settings.runs_folder / attempt.job_id
        self._folder = RunFolder(self._run_folder).attempt(attempt.number)
        self._ref = JobRef(attempt.job_id, attempt.number, attempt.handle or {})
        self._status = AttemptStatus(self._ref, Phase.STARTING)
        self._changed = asyncio.Event()
        self._cancel_requested = attempt.cancel_requested
        self._stopping = False
        self._leaving = False
        self._doubted = False

    @property
    def key(self) -> tuple[str, int]:
        """Identifies the attempt."""
        return self._ref.key

    def observe(self, status: AttemptStatus) -> None:
        """Takes notice of what the backend saw."""
        # An end is final; an older look at the process may be told after it.
        if not self._status.phase.ended:
            self._status = status
            self._changed.set()

    def cancel(self) -> None:
        """Stops the work because the job was cancelled."""
        self._cancel_requested = True
        self._changed.set()

    def stop(self, *, leave: bool) -> None:
        """Prepares for the end of the service: leaves the worker alone, or asks it to write a checkpoint and end."""
        self._leaving, self._stopping = leave, True
        self._changed.set()

    def doubt(self) -> None:
        """Makes it check that the attempt is still this engine's."""
        self._doubted = True
        self._changed.set()

    async def run(self) -> None:
        """Looks after the attempt until its job is at rest, back in the queue, or somebody else's."""
        try:
            if await self._submit():
                await self._follow()
        except AttemptReplacedError as replaced:
            _LOG.warning("attempt replaced", extra=self._facts())
            if replaced.superseded:
                await self._backend.cancel(self._ref, self._settings.job_grace_s)
        except UnavailableError:
            # Nothing is known to be wrong with the attempt: it is taken over again when its lease lapses.
            raise
        except Exception:
            _LOG.exception("attempt cannot be followed", extra=self._facts())
            await self._backend.cancel(self._ref, self._settings.job_grace_s)
            await self._conclude(verdict_of(EndReason.UNKNOWN))
        finally:
            await self._backend.release(self._ref)
            self._on_news()

    async def _submit(self) -> bool:
        """Starts the attempt or finds it again; returns whether there is something to follow."""
        if self._attempt.handle is None:
            order = WorkOrder(self._attempt.job_id, self._attempt.kind, self._store_url, self._attempt.spec)
            spec = AttemptSpec(order, self._attempt.number, self._worker_module, self._run_folder)
            try:
                self._ref = await self._backend.submit(spec)
            except UnavailableError as error:
                end = End(f"Waits: {error.message}", reason=EndReason.TRY_AGAIN)
                await self._persist(self._attempts.requeue, self._attempt, end, failed=False, delay_s=_SUBMIT_DELAY_S)
                return False
            except TeachwaferError as error:
                await self._conclude(verdict_of_error(error, EndReason.BAD_CONFIG))
                return False
            except OSError:
                _LOG.exception("attempt cannot be started", extra=self._facts())
                await self._conclude(verdict_of(EndReason.STORAGE))
                return False
            self._attempt = await self._persist(self._attempts.set_handle, self._attempt, self._ref.handle)
        self.observe(await self._backend.get(self._ref))
        return True

    async def _follow(self) -> None:
        stop: asyncio.Task[None] | None = None
        late = False
        while True:
            self._changed.clear()
            # Looked at before the events: those of an attempt seen ended are all there.
            status = self._status
            await self._store_events()
            if status.phase.ended:
                break
            if self._doubted:
                self._doubted = False
                await self._persist(self._attempts.check, self._attempt)
            if self._leaving:
                await self._persist(self._attempts.leave, self._attempt)
                return
            late = late or self._past_deadline()
            if stop is None and (self._cancel_requested or self._stopping or late):
                stop = asyncio.create_task(self._backend.cancel(self._ref, self._settings.job_grace_s))
            await self._wait(self._settings.job_poll_s)
        if stop is not None:
            await stop
        await self._end(status, late=late)

    async def _store_events(self) -> None:
        while True:
            offset = self._attempt.events_offset
            lines, end = await asyncio.to_thread(self._folder.read_event_lines, offset)
            if end == offset:
                return
            events = [event for line in lines if (event := self._parse(line)) is not None]
            self._attempt = await self._persist(self._attempts.append, self._attempt, events, end)
            self._on_news()

    async def _end(self, status: AttemptStatus, *, late: bool) -> None:
        code = status.exit_code
        if status.phase is Phase.SUCCEEDED:
            result = await asyncio.to_thread(self._folder.read_result)
            if result is not None:
                await self._persist(self._attempts.succeed, self._attempt, result, End("", code))
                return
        if self._cancel_requested:
            end = End("Cancelled while it ran.", code, EndReason.CANCELLED)
            await self._persist(self._attempts.cancelled, self._attempt, end)
            return
        if late:
            await self._conclude(verdict_of(EndReason.DEADLINE), code)
            return
        if self._stopping and code in (ExitCode.STOPPED, ExitCode.OUT_OF_MEMORY, None):
            end = End("The service stopped. Goes on from the last checkpoint.", code, EndReason.PREEMPTED)
            await self._persist(self._attempts.requeue, self._attempt, end, failed=False)
            return
        await self._conclude(judge(status, await asyncio.to_thread(self._folder.read_error)), code)

    async def _conclude(self, verdict: Verdict, exit_code: int | None = None) -> None:
        """Begins another attempt, or brings the job to rest with an error."""
        failures = self._attempt.failures + int(verdict.failed)
        limit = self._settings.job_max_attempts
        tail = clean_lines(await self._backend.tail(self._ref, _LOG_LINES))
        facts = {**self._facts(), "reason": verdict.reason, "exit_code": exit_code, "worker_log": tail}
        _LOG.error("attempt failed", extra=facts)
        if verdict.retry and failures < limit:
            text = f"Attempt {self._attempt.number} ended ({verdict.reason}): {verdict.message} Trying again."
            delay = self._settings.job_retry_delay_s * 2 ** max(0, failures - 1) if verdict.failed else 0.0
            await self._persist(
                self._attempts.requeue,
                self._attempt,
                End(text, exit_code, verdict.reason),
                failed=verdict.failed,
                delay_s=delay,
            )
            return
        end = End(f"{verdict.reason}: {verdict.message}", exit_code, verdict.reason)
        await self._persist(self._attempts.fail, self._attempt, verdict.error, end)

    async def _persist(self, write: Callable[..., _T], *args: object, **options: object) -> _T:
        """Writes to the database, however long it is away: the files of the run hold the truth meanwhile.

        Raises:
            AttemptReplacedError: If the attempt is not this engine's current one.
            TeachwaferError: If the database is away while the service stops; the next start finds the files.
        """
        while True:
            try:
                return await asyncio.to_thread(write, *args, **options)
            except (UnavailableError, ResourceExhaustedError):
                if self._stopping:
                    raise
                _LOG.warning("the database cannot be written", extra=self._facts(), exc_info=True)
            await asyncio.sleep(_DATABASE_DELAY_S)

    def _past_deadline(self) -> bool:
        limit = self._settings.job_deadline_s
        return limit > 0 and (datetime.now(UTC) - self._attempt.started_at).total_seconds() > limit

    def _parse(self, line: bytes) -> WorkerEvent | None:
        try:
            return WorkerEvent.from_line(line)
        except (ValueError, KeyError, TypeError, OverflowError):
            _LOG.warning("event cannot be read", extra={**self._facts(), "line": line[:200].decode(errors="replace")})
            return None

    def _facts(self) -> dict[str, object]:
        return {"job": self._attempt.job_id, "job_kind": self._attempt.kind, "attempt": self._attempt.number}

    async def _wait(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            pass
