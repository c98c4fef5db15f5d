"""The job backend of one machine: each attempt is a child process in a session of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any

from services.common.errors import UnavailableError
from services.common.jobs import launch
from services.common.jobs.backend import AttemptSpec, AttemptStatus, Capacity, JobRef, Phase
from services.common.jobs.model import EndReason, ExitCode
from services.common.jobs.processes import Child, ProcessIdentity, kill_group_members, this_host
from services.common.jobs.run_folder import AttemptFolder, RunFolder

_MARKER = "TEACHWAFER_JOB_ATTEMPT"


@dataclass(slots=True)
class _Running:
    """An attempt that this backend looks after; `child` is None when an earlier service started it."""

    ref: JobRef
    folder: AttemptFolder
    identity: ProcessIdentity
    slot: int
    child: Child | None = None
    last: AttemptStatus | None = None


class LocalBackend:
    """Runs attempts as child processes that outlive the service.

    Args:
        runs: Folder with one folder a job.
        slots: Attempts that run at once; 0 means one a GPU, or one without a GPU.
        poll_s: Time between two looks at the processes, seconds.
        gpus: Ids of the GPUs to use, as CUDA_VISIBLE_DEVICES knows them; found out by default.
        host: Name of this machine; a process noted under another name cannot be seen from here.
    """

    def __init__(
        self, runs: Path, *, slots: int = 0, poll_s: float = 0.25, gpus: list[str] | None = None, host: str = ""
    ) -> None:
        self._runs = runs
        self._gpus = visible_gpus() if gpus is None else gpus
        self._slots = slots or max(1, len(self._gpus))
        self._poll_s = poll_s
        self._host = host or this_host()
        self._running: dict[tuple[str, int], _Running] = {}
        self._submitting = asyncio.Lock()
        self._wake = asyncio.Event()

    async def submit(self, spec: AttemptSpec) -> JobRef:
        """Starts a process for an attempt, or finds the one that was started before.

        Raises:
            UnavailableError: If all slots are taken.
            OSError: If the run folder cannot be written or no process can be started.
        """
        key = (spec.order.job_id, spec.attempt)
        # One after the other, so that two submissions never share a slot and the same one twice starts one process.
        async with self._submitting:
            if found := self._running.get(key):
                return found.ref
            folder = RunFolder(spec.run_folder).attempt(spec.attempt)
            note = await asyncio.to_thread(_read_note, folder)
            child: Child | None = None
            slot = self._free_slot()
            if note is None:
                if slot is None:
                    raise UnavailableError("All places for jobs are taken. Wait until one is free.", reason="NO_SLOT")
                child, started = await asyncio.to_thread(self._start, spec, folder, slot)
                note = started
            identity = _identity(note)
            handle = {"pid": identity.pid, "started": identity.started, "host": self._host, "slot": slot or 0}
            return self._track(JobRef(*key, handle), child).ref

    async def observe(self) -> AsyncIterator[AttemptStatus]:
        """Yields the state of every attempt that it looks after, then each change."""
        for running in self._running.values():
            running.last = None
        while True:
            self._wake.clear()
            for running in list(self._running.values()):
                status = await asyncio.to_thread(self._look, running)
                if status != running.last:
                    running.last = status
                    yield status
            await _wait(self._wake, self._poll_s)

    async def get(self, ref: JobRef) -> AttemptStatus:
        """Returns the state of an attempt, and looks after it from now on.

        One of another machine is lost: nobody here can see or stop it.
        """
        if ref.handle.get("host") != self._host:
            return AttemptStatus(ref, Phase.GONE, reason=EndReason.NODE_LOST)
        running = self._running.get(ref.key) or self._track(ref, None)
        return await asyncio.to_thread(self._look, running)

    async def cancel(self, ref: JobRef, grace_s: float) -> None:
        """SIGTERM to the process group, SIGKILL after the grace. Returns when nothing runs any more."""
        running = self._running.get(ref.key)
        if running is None:
            return
        await asyncio.to_thread(running.identity.signal_group, SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self._until_ended(running)
        except TimeoutError:
            await asyncio.to_thread(running.identity.signal_group, SIGKILL)
            await self._until_ended(running)

    async def release(self, ref: JobRef) -> None:
        """Forgets an attempt and frees its slot. When the worker has ended, children that it left behind are killed."""
        running = self._running.pop(ref.key, None)
        if running is None:
            return
        if (await asyncio.to_thread(self._look, running)).phase.ended:
            await asyncio.to_thread(kill_group_members, running.identity.pid, (_MARKER, _marker(ref)))

    async def tail(self, ref: JobRef, lines: int) -> list[str]:
        """Returns the last lines of the worker's output."""
        return await asyncio.to_thread(self._folder(ref).tail_log, lines)

    async def capacity(self) -> Capacity:
        """Returns the slots of this machine."""
        free = max(0, self._slots - len(self._running))
        count = len(self._gpus)
        device = f"GPU x {count}" if count else f"CPU, {os.cpu_count() or 1} cores"
        return Capacity(total=self._slots, free=free, gpus=count, device=device)

    def _free_slot(self) -> int | None:
        taken = {running.slot for running in self._running.values()}
        return next((slot for slot in range(self._slots) if slot not in taken), None)

    def _start(self, spec: AttemptSpec, folder: AttemptFolder, slot: int) -> tuple[Child | None, dict[str, Any]]:
        """Starts the process and waits the moment until it, or a faster one, has noted itself."""
        RunFolder(spec.run_folder).prepare(spec.order, spec.attempt)
        environment = dict(os.environ)
        environment[_MARKER] = _marker(JobRef(spec.order.job_id, spec.attempt))
        environment["PYTHONUNBUFFERED"] = "1"
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
        token = uuid.uuid4().hex
        worker = [sys.executable, "-m", spec.worker_module]
        worker += ["--run-folder", str(spec.run_folder), "--attempt", str(spec.attempt)]
        command = [sys.executable, "-S", "-E", launch.__file__, str(folder.process), token, *worker]
        child = Child(command, environment, folder.log)
        while (note := _read_note(folder)) is None:
            if child.poll() is not None and not folder.process.exists():
                raise OSError(f"The worker process ended before it began. {' '.join(folder.tail_log(1))}"[:500])
            time.sleep(0.005)
        if note["token"] == token:
            return child, note
        while child.poll() is None:
            time.sleep(0.005)
        return None, note

    def _track(self, ref: JobRef, child: Child | None) -> _Running:
        identity = ProcessIdentity(int(ref.handle["pid"]), float(ref.handle["started"]))
        running = _Running(ref, self._folder(ref), identity, int(ref.handle["slot"]), child)
        self._running[ref.key] = running
        self._wake.set()
        return running

    def _look(self, running: _Running) -> AttemptStatus:
        """Looks at the process and, when it has ended, at what it left."""
        code: int | None = None
        if running.child is not None:
            code = running.child.poll()
            if code is None:
                return AttemptStatus(running.ref, Phase.RUNNING)
        elif running.identity.alive:
            return AttemptStatus(running.ref, Phase.RUNNING)
        noted = running.folder.read_exit_code()
        exit_code = code if noted is None else noted
        if running.folder.result.exists():
            return AttemptStatus(running.ref, Phase.SUCCEEDED, int(ExitCode.OK))
        if exit_code is None:
            return AttemptStatus(running.ref, Phase.GONE)
        return AttemptStatus(running.ref, Phase.FAILED, exit_code)

    async def _until_ended(self, running: _Running) -> None:
        while not (await asyncio.to_thread(self._look, running)).phase.ended:  # noqa: ASYNC110 - not our child, no event
            await asyncio.sleep(min(self._poll_s, 0.05))
        self._wake.set()

    def _folder(self, ref: JobRef) -> AttemptFolder:
        return RunFolder(self._runs / ref.job_id).attempt(ref.attempt)


def visible_gpus(environment: dict[str, str] | None = None, devices: Callable[[], int] | None = None) -> list[str]:
    """Returns the ids of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES knows them.

    Args:
        environment: Environment to read; this process's own by default.
        devices: Counts the NVIDIA devices of the machine; by its device files by default.
    """
    allowed = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [gpu.strip() for gpu in allowed.split(",") if gpu.strip() not in ("", "-1")]
    count = (devices or _count_devices)()
    return [str(index) for index in range(count)]


def _count_devices() -> int:
    return sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia*"))


def _read_note(folder: AttemptFolder) -> dict[str, Any] | None:
    try:
        note: dict[str, Any] = json.loads(folder.process.read_bytes())
    except FileNotFoundError:
        return None
    return note


def _identity(note: dict[str, Any]) -> ProcessIdentity:
    pid = int(note["pid"])
    if note["started"] is not None:
        return ProcessIdentity(pid, float(note["started"]))
    return ProcessIdentity.of(pid) or ProcessIdentity(pid, 0.0)


def _marker(ref: JobRef) -> str:
    return f"{ref.job_id}/{ref.attempt}"


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        pass
