"""Runs the programs of teachwafer as child processes: for `teachwafer serve`, and for commands without a server.

The supervisor knows only processes, ports and health: it starts the services, waits until they serve, starts the
gateway with their addresses, starts again what has crashed, and stops all in order: the gateway first, then the
services whose jobs write checkpoints, the predictor last.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.settings import GatewaySettings
from services.common.client import connect
from services.common.errors import FailedPreconditionError, TeachwaferError, UnavailableError
from services.common.files import write_file
from services.common.health import STARTUP

START_TIMEOUT_S = 120.0
"""Longest wait for a program to serve, seconds."""

_KILL_AFTER_DRAIN_S = 20.0
_CALM_S = 60.0
_MAX_BACKOFF_S = 30.0
_MAX_LOG_BYTES = 16 << 20

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Program:
    """One of the programs.

    Attributes:
        module: Module to run.
        ports: Environment variables of its ports.
        is_grpc: Whether it answers gRPC health probes; the gateway is up when it listens.
    """

    module: str
    ports: tuple[str, ...]
    is_grpc: bool = True


PROGRAMS: Mapping[str, Program] = {
    "generator": Program("services.generator", ("TEACHWAFER_GENERATOR_PORT",)),
    "trainer": Program("services.trainer", ("TEACHWAFER_TRAINER_PORT",)),
    "predictor": Program(
        "services.predictor",
        ("TEACHWAFER_PREDICTOR_GRPC_PORT", "TEACHWAFER_PREDICTOR_METRICS_PORT", "TEACHWAFER_PREDICTOR_REST_PORT"),
    ),
    "gateway": Program("gateway", ("TEACHWAFER_GATEWAY_PORT",), is_grpc=False),
}
SERVICES = ("generator", "trainer", "predictor")
"""The programs that the gateway calls."""

_STOP_ORDER = (("gateway",), ("generator", "trainer"), ("predictor",))


@dataclass(slots=True)
class _Child:
    """A running program.

    Attributes:
        process: Its process.
        port: Port that it listens on.
        started: When it was started, on the monotonic clock.
        crashes: Crashes in a row, for the back-off.
    """

    process: asyncio.subprocess.Process
    port: int = 0
    started: float = field(default_factory=time.monotonic)
    crashes: int = 0


class Supervisor:
    """Starts, watches and stops programs.

    Args:
        settings: Settings of the gateway: home, addresses.
        names: Programs to run, of PROGRAMS.
        free_ports: Whether each program takes a free port instead of the one that it is set to.
        tell: Called with the name of a program and a sentence about it, for people.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        names: Sequence[str],
        *,
        free_ports: bool = False,
        tell: Callable[[str, str], None] = lambda name, sentence: None,
    ) -> None:
        self._settings = settings
        self._names = tuple(names)
        self._free_ports = free_ports
        self._tell = tell
        self._children: dict[str, _Child] = {}
        self._stopping = asyncio.Event()
        self._folder = tempfile.TemporaryDirectory(prefix="teachwafer-")
        self._logs = settings.home / "logs"

    @property
    def ports(self) -> dict[str, int]:
        """Port of each running program."""
        return {name: child.port for name, child in self._children.items()}

    @property
    def addresses(self) -> dict[str, str]:
        """Settings of the gateway that say where the running services listen."""
        return {
            f"{name}_address": f"{_reachable(self._settings.host)}:{child.port}"
            for name, child in self._children.items()
            if PROGRAMS[name].is_grpc
        }

    async def start(self) -> None:
        """Starts all programs and waits until they serve.

        Raises:
            UnavailableError: One of them ended or did not serve in time; the others were stopped again.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        services = [name for name in self._names if PROGRAMS[name].is_grpc]
        try:
            async with asyncio.TaskGroup() as group:
                for name in services:
                    group.create_task(self._bring_up(name))
            for name in self._names:
                if name not in services:
                    await self._bring_up(name)
        except BaseException as error:
            await self.stop()
            raise _first(error) from None

    async def watch(self) -> None:
        """Starts again what crashes, waiting longer each time; returns when `stop` is called."""
        async with asyncio.TaskGroup() as group:
            for name in self._names:
                group.create_task(self._keep_up(name))

    async def stop(self) -> None:
        """Stops all programs in order. Those that do not end in time are killed."""
        self._stopping.set()
        for names in _STOP_ORDER:
            await asyncio.gather(*(self._bring_down(name) for name in names if name in self._children))
        self._folder.cleanup()

    async def _keep_up(self, name: str) -> None:
        """Restarts one program as long as needed."""
        while True:
            child = self._children[name]
            code = await child.process.wait()
            if self._stopping.is_set():
                return
            calm = time.monotonic() - child.started > _CALM_S
            crashes = 1 if calm else child.crashes + 1
            delay = min(0.5 * 2 ** (crashes - 1), _MAX_BACKOFF_S)
            self._tell(name, f"ended unexpectedly ({_ending(code)}); starts again in {delay:g} s")
            await asyncio.sleep(delay)
            if self._stopping.is_set():
                return
            try:
                await self._bring_up(name)
            except UnavailableError as error:
                logger.warning("could not start again", extra={"program": name, "error": error.message})
            self._children[name].crashes = crashes

    async def _bring_up(self, name: str) -> None:
        """Starts one program and waits until it serves."""
        port_file = Path(self._folder.name) / f"{name}.port"
        port_file.unlink(missing_ok=True)
        before = self._children.get(name)
        process = await self._spawn(name, before.port if before else 0)
        child = self._children[name] = _Child(process, before.port if before else 0)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not port_file.exists():
                    self._check_alive(name)
                    await asyncio.sleep(0.05)
                child.port = int(port_file.read_text())
                while PROGRAMS[name].is_grpc and not await self._serves(child.port):
                    self._check_alive(name)
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise UnavailableError(
                f"Expected the {name} to serve within {START_TIMEOUT_S:g} s. See {self._log(name)}.",
                reason="START_TIMEOUT",
            ) from None
        self._tell(name, f"serves on port {child.port}")

    async def _spawn(self, name: str, port: int) -> asyncio.subprocess.Process:
        """Starts the process of one program; a restarted one gets the port that it had."""
        program = PROGRAMS[name]
        environment = {
            **os.environ,
            "TEACHWAFER_HOME": str(self._settings.home),
            "TEACHWAFER_PORT_FILE_DIR": self._folder.name,
            **{f"TEACHWAFER_{key.upper()}": value for key, value in self.addresses.items()},
        }
        if self._free_ports:
            environment |= dict.fromkeys(program.ports, "0")
        if port:
            environment[program.ports[0]] = str(port)
        with _log_file(self._log(name)) as log:
            # A session of its own: Ctrl-C reaches the supervisor alone, which then stops all in order.
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gateway.launcher", str(os.getpid()), program.module),
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def _serves(self, port: int) -> bool:
        """Returns whether a service has started up."""
        async with connect(f"{_reachable(self._settings.host)}:{port}", idempotent={}) as channel:
            request = health_pb2.HealthCheckRequest(service=STARTUP)
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=2)
            except TeachwaferError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _check_alive(self, name: str) -> None:
        """Raises when a program has ended, with what it said last."""
        code = self._children[name].process.returncode
        if code is not None:
            reason = _last_words(self._log(name))
            raise UnavailableError(
                f"The {name} did not start ({_ending(code)}). {reason}See {self._log(name)}.", reason="START_FAILED"
            )

    async def _bring_down(self, name: str) -> None:
        """Stops one program."""
        process = self._children[name].process
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(self._settings.drain_seconds + _KILL_AFTER_DRAIN_S):
                    await process.wait()
            except TimeoutError:
                self._tell(name, "did not stop in time and was killed")
        # Also what it left behind in its session, as a process that it was just starting.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()

    def _log(self, name: str) -> Path:
        """Returns the log file of a program."""
        return self._logs / f"{name}.log"


@contextlib.asynccontextmanager
async def running(
    settings: GatewaySettings, names: Sequence[str], tell: Callable[[str, str], None] = lambda name, sentence: None
) -> AsyncIterator[GatewaySettings]:
    """Runs services on free ports while inside, for one command.

    Args:
        settings: Settings of the gateway.
        names: Services to run.
        tell: Called with the name of a program and a sentence about it.

    Yields:
        The settings with the addresses of these services.

    Raises:
        UnavailableError: A service could not be started.
    """
    supervisor = Supervisor(settings, names, free_ports=True, tell=tell)
    await supervisor.start()
    try:
        yield settings.model_copy(update=supervisor.addresses)
    finally:
        await asyncio.shield(supervisor.stop())


@contextlib.contextmanager
def home_locked(home: Path) -> Iterator[Callable[[Mapping[str, str]], None]]:
    """Keeps a second `teachwafer serve` away from a home while inside.

    Args:
        home: The home.

    Yields:
        A function that writes down where the services listen, for `serving_addresses`.

    Raises:
        FailedPreconditionError: One runs there already.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "serve.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPreconditionError(
                f"teachwafer serve runs on {home} already. Use that one, stop it, or set TEACHWAFER_HOME to another "
                "folder.",
                subject=str(home),
                reason="ALREADY_SERVING",
            ) from None
        notes = home / "serve.json"
        notes.unlink(missing_ok=True)
        try:
            yield lambda addresses: write_file(notes, json.dumps(dict(addresses)).encode())
        finally:
            notes.unlink(missing_ok=True)


def serving_addresses(home: Path) -> dict[str, str]:
    """Returns where the services of a running `teachwafer serve` on a home listen, or nothing where none runs.

    Args:
        home: The home.
    """
    try:
        with (home / "serve.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads((home / "serve.json").read_text()))
    except OSError:
        pass
    return {}


def _log_file(path: Path) -> IO[bytes]:
    """Opens a log file to append to; a long one is put aside first."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > _MAX_LOG_BYTES:
            path.replace(path.with_suffix(".old.log"))
    return path.open("ab")


def _last_words(log: Path) -> str:
    """Returns the error that a program wrote last, or its last line."""
    with log.open(errors="replace") as lines:
        last = deque((line.strip() for line in lines if line.strip()), maxlen=1)
    if not last:
        return ""
    with contextlib.suppress(ValueError, AttributeError):
        entry = json.loads(last[0])
        return f"{entry.get('error') or entry.get('event')} "
    return f"It wrote: {last[0][:500]}. "


def _ending(code: int) -> str:
    """Says how a process ended."""
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def _reachable(host: str) -> str:
    """Returns where to call a service that listens on a host."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"[{host}]" if ":" in host else host


def _first(error: BaseException) -> BaseException:
    """Returns the first error of a group, or an error that is none as it is."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
