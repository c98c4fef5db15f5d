"""Processes of this machine, told apart by more than their number: the kernel uses numbers again."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from services.common.jobs.launch import start_time


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process that can be found again.

    Attributes:
        pid: Its number.
        started: When it started: kernel ticks since the boot, or seconds since 1970 where the kernel has no ticks.
    """

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        """Returns the identity of a running process; None when there is none or it has ended but for its parent."""
        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            started = start_time(pid)
            return cls(pid, process.create_time() if started is None else started)
        except psutil.NoSuchProcess:
            return None

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return ProcessIdentity.of(self.pid) == self

    def signal_group(self, number: signal.Signals) -> None:
        """Signals the process and its children. The process must lead its group; one that has ended is left alone."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


class Child:
    """A process that this one started and that may outlive it.

    Not subprocess.Popen, which takes a child that still runs when it is let go for a mistake.

    Args:
        command: Program by its path, and its arguments.
        environment: All of its environment.
        output: File that its output is appended to.

    Raises:
        OSError: If no process can be started.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], output: Path) -> None:
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(output), append, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        self.pid = os.posix_spawn(command[0], command, environment, file_actions=actions, setsigmask=[])
        self._lock = threading.Lock()
        self._exit_code: int | None = None

    def poll(self) -> int | None:
        """Returns the exit code, 128 + signal when it was killed; None while it runs."""
        with self._lock:
            if self._exit_code is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    code = os.waitstatus_to_exitcode(status)
                    self._exit_code = 128 - code if code < 0 else code
            return self._exit_code


def kill_group_members(group: int, marker: tuple[str, str]) -> None:
    """Kills what a worker left running after its own end.

    Args:
        group: Process group of the worker.
        marker: Environment variable and value that its children inherited. Without it a process is a stranger that got
            the number of the group later.
    """
    name, value = marker
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.environ().get(name) == value:
                process.kill()
        except (psutil.Error, ProcessLookupError, PermissionError):
            continue


def this_host() -> str:
    """Names what process numbers are good for: this machine, since its last boot, and this container's numbering."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return "/".join(parts)
