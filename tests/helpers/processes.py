"""Services in processes of their own, as people run them, on free ports."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.client import connect_sync
from services.common.errors import TeachwaferError

PORT_VARIABLES = (
    "TEACHWAFER_TRAINER_PORT",
    "TEACHWAFER_GENERATOR_PORT",
    "TEACHWAFER_PREDICTOR_GRPC_PORT",
    "TEACHWAFER_PREDICTOR_METRICS_PORT",
    "TEACHWAFER_PREDICTOR_REST_PORT",
    "TEACHWAFER_GATEWAY_PORT",
)


class ServiceProcess:
    """A Python module that runs as a service.

    Args:
        module: Module to run, as `services.trainer`.
        home: TEACHWAFER_HOME.
        environment: Further variables.
        arguments: Command line arguments.
    """

    def __init__(
        self, module: str, home: Path, environment: Mapping[str, str] | None = None, arguments: Sequence[str] = ()
    ) -> None:
        self.module = module
        self.service = module.rpartition(".")[2]
        self.home = home
        self._ports = home / "ports"
        self._log = home / f"{self.service}.test.log"
        home.mkdir(parents=True, exist_ok=True)
        (self._ports / f"{self.service}.port").unlink(missing_ok=True)
        settings = {"TEACHWAFER_HOME": str(home), "TEACHWAFER_PORT_FILE_DIR": str(self._ports)}
        with self._log.open("ab") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env={**os.environ, **dict.fromkeys(PORT_VARIABLES, "0"), **settings, **(environment or {})},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        """What the process wrote."""
        return self._log.read_text(errors="replace")

    @property
    def address(self) -> str:
        """Where the service listens; waits until it does."""
        return f"127.0.0.1:{self.port()}"

    def port(self, name: str = "", timeout_s: float = 60.0) -> int:
        """Returns a port of the service; waits until it is known.

        Args:
            name: Name of the port file. Default: the service's.
            timeout_s: Time to wait at most, seconds.
        """
        file = self._ports / f"{name or self.service}.port"
        self._wait(file.exists, f"{file.name} to be written", timeout_s)
        return int(file.read_text())

    def wait_serving(self, timeout_s: float = 60.0) -> None:
        """Waits until health says SERVING."""
        end = time.monotonic() + timeout_s
        with connect_sync(f"127.0.0.1:{self.port(timeout_s=timeout_s)}", default_timeout_s=2) as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            def serving() -> bool:
                with contextlib.suppress(TeachwaferError):
                    answer = stub.Check(health_pb2.HealthCheckRequest(service="readiness"))
                    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
                return False

            self._wait(serving, "health to be SERVING", end - time.monotonic())

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.popen.terminate()

    def kill(self) -> None:
        """Sends SIGKILL to the service alone; its job processes live on."""
        self.popen.kill()
        self.popen.wait(10)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Waits for the end and returns the exit code."""
        return self.popen.wait(timeout_s)

    def stop(self, timeout_s: float = 30.0) -> None:
        """Ends the service: SIGTERM, then SIGKILL to its whole group."""
        if self.popen.poll() is None:
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(timeout_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(10)

    def _wait(self, check: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Polls until the check holds; says what the process wrote when it does not."""
        end = time.monotonic() + timeout_s
        while not check():
            ended = self.popen.poll()
            if ended is not None or time.monotonic() > end:
                state = "is running" if ended is None else f"ended with {ended}"
                raise AssertionError(f"Expected {what}; {self.module} {state}. Its log:\n{self.log[-4000:]}")
            time.sleep(0.05)


@contextlib.contextmanager
def service_process(
    module: str, home: Path, environment: Mapping[str, str] | None = None, arguments: Sequence[str] = ()
) -> Iterator[ServiceProcess]:
    """Runs a service in a process while inside; see ServiceProcess."""
    process = ServiceProcess(module, home, environment, arguments)
    try:
        yield process
    finally:
        process.stop()
