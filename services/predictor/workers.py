"""Several processes of the predictor on the same ports, and the parent that keeps them alike.

Each worker listens on the public ports by itself, and the kernel spreads the connections over them; no call passes
through the parent. It starts the workers, and another one in the place of one that has died, which loads what its
siblings serve before it listens. What changes the server (loads, unloads, regions, settings, the end of a trial) comes
to it from the worker that was called, and it hands it to all, one change after the other; a load that one of them
cannot do is undone in the others. It adds up what all of them count.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
from inference import grpc_service_pb2, grpc_service_pb2_grpc
from teachwafer.predictor.workers.v1 import workers_pb2, workers_pb2_grpc

from services.common.client import connect
from services.common.errors import (
    FailedPreconditionError,
    TeachwaferError,
    UnavailableError,
    with_context,
)
from services.common.interceptors import default_interceptors
from services.common.server import announce_listening, signals_set
from services.predictor import worker_converters as converters
from services.predictor.metrics import CollectorServer
from services.predictor.parts import METRICS, REST, SERVICE, following
from services.predictor.settings import PredictorSettings
from services.predictor.worker import LONGEST_CHANGE_S, PARENT_SOCKET, UNLIMITED
from services.predictor.worker_metrics import SumCollector

MOST_FAILED_STARTS = 3
"""So many workers in a row that die before they serve end the whole server, unless another one still serves."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Wait before a worker is started in the place of one that has died; it doubles from one to the next."""
STEADY_S = 60.0
"""A worker that has served for so long has not died of its start, seconds."""

_METRICS_TIMEOUT_S = 5.0
_GOING_S = 1.0

logger = logging.getLogger(__name__)

T = TypeVar("T")


async def serve(settings: PredictorSettings) -> None:
    """Serves until the process is asked to stop.

    Raises:
        FailedPreconditionError: A port is not to be had, or workers keep dying at their start.
    """
    stop = asyncio.Event()
    with (
        signals_set(stop),
        tempfile.TemporaryDirectory(prefix="teachwafer-predictor-", ignore_cleanup_errors=True) as folder,
        _held(settings.host, settings.predictor_grpc_port, "GRPC") as grpc_port,
        _held(settings.host, settings.predictor_rest_port, "REST") as rest_port,
    ):
        workers = Workers(settings, Path(folder), grpc_port, rest_port)
        loop = asyncio.get_running_loop()

        def ask() -> Mapping[int, bytes]:
            return asyncio.run_coroutine_threadsafe(workers.metrics(), loop).result(2 * _METRICS_TIMEOUT_S)

        with contextlib.closing(
            CollectorServer(SumCollector(ask), settings.host, settings.predictor_metrics_port)
        ) as metrics:
            announce_listening(METRICS, metrics.port, settings.port_file_dir)
            async with _answering(ParentServicer(workers), Path(folder)), following(workers.poll, settings):
                await workers.run(stop)


@dataclass(frozen=True, slots=True, eq=False)
class _Worker:
    """A running process.

    Attributes:
        number: Its place among the processes, from 0.
        serial: Another number for each process.
        process: The process.
        inference: What it answers of the open inference protocol.
        own: What else it answers its parent.
    """

    number: int
    serial: int
    process: asyncio.subprocess.Process
    inference: grpc_service_pb2_grpc.GRPCInferenceServiceStub
    own: workers_pb2_grpc.WorkerServiceStub


class Workers:
    """The processes of one predictor.

    Args:
        settings: Settings of the predictor.
        folder: Folder of the sockets, which nobody else may enter.
        grpc_port: Public port of gRPC.
        rest_port: Public port of REST.
    """

    def __init__(self, settings: PredictorSettings, folder: Path, grpc_port: int, rest_port: int) -> None:
        self._settings = settings
        self._folder = folder
        self._ports = grpc_port, rest_port
        self._count = settings.predictor_processes
        self._serials = itertools.count(1)
        self._alike: dict[int, _Worker] = {}
        self._one_at_a_time = asyncio.Lock()
        self._all_loaded = asyncio.Event()
        self._listening: set[int] = set()
        self._announced = False
        self._failed_starts = 0
        self._stopping = asyncio.Event()
        self._processes: set[asyncio.subprocess.Process] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Keeps the workers running until it is asked to stop, then lets them drain.

        Args:
            stop: Set when it is.

        Raises:
            FailedPreconditionError: Workers keep dying at their start.
        """
        keeping = [asyncio.create_task(self._keep(number)) for number in range(self._count)]
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([stopping, *keeping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopping.set()
            stopping.cancel()
            await self._end_all()
            for each in keeping:
                each.cancel()
            ended = await asyncio.gather(*keeping, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def change(
        self,
        call: Callable[[_Worker], Awaitable[T]],
        settle: Callable[[_Worker, str], Awaitable[object]] | None = None,
    ) -> T:
        """Has all workers do the same, one change after the other.

        A worker that dies meanwhile is none that fails: the next one in its place takes over from those that have not.

        Args:
            call: What each of them is to do.
            settle: What each of them is to do afterwards, given why everything is to be as it was before, or nothing
                where it has worked. Default: nothing.

        Returns:
            The answer of one of them.

        Raises:
            TeachwaferError: What one of them has answered; the others are as they were before.
            UnavailableError: There is none now.
        """
        async with self._one_at_a_time:
            workers = list(self._alike.values())
            answers = await asyncio.gather(*(call(each) for each in workers), return_exceptions=True)
            done: list[T] = []
            errors: list[BaseException] = []
            for worker, answer in zip(workers, answers, strict=True):
                if not isinstance(answer, BaseException):
                    done.append(answer)
                elif not (isinstance(answer, UnavailableError) and await _going(worker)):
                    errors.append(answer)
            error = errors[0] if errors else None
            if isinstance(error, TeachwaferError) and done:
                error = with_context(
                    error, f"{len(errors)} of {len(workers)} processes could not, and the others went back"
                )
            if settle is not None:
                why = str(error) if error is not None else ""
                await asyncio.gather(*(settle(each, why) for each in workers), return_exceptions=True)
            if error is not None:
                raise error
            if not done:
                raise UnavailableError(
                    "Expected a process of the predictor that works. Received: none, they are started again. Try "
                    "again soon.",
                    1.0,
                    reason="NO_WORKER",
                )
            return done[0]

    async def ask(self, call: Callable[[_Worker], Awaitable[T]]) -> dict[int, T]:
        """Returns what each worker answers, by its serial; those that cannot are left out, unless all cannot.

        Raises:
            TeachwaferError: What one of them has answered, when none has answered well.
        """
        workers = list(self._alike.values())
        answers = await asyncio.gather(*(call(each) for each in workers), return_exceptions=True)
        good = {
            worker.serial: answer
            for worker, answer in zip(workers, answers, strict=True)
            if not isinstance(answer, BaseException)
        }
        for answer in answers:
            if isinstance(answer, BaseException) and not good:
                raise answer
        return good

    async def metrics(self) -> dict[int, bytes]:
        """Returns the metrics of each worker in the text format of Prometheus, by its serial."""
        request = workers_pb2.GetMetricsRequest()
        try:
            answers = await self.ask(lambda worker: worker.own.GetMetrics(request, timeout=_METRICS_TIMEOUT_S))
        except TeachwaferError as error:
            logger.warning("no worker told its metrics", extra={"error": error.message})
            return {}
        return {serial: answer.text for serial, answer in answers.items()}

    async def poll(self) -> None:
        """Has all workers look at the model repository."""
        try:
            await self.change(lambda worker: worker.own.Poll(workers_pb2.PollRequest()))
        except TeachwaferError as error:
            logger.warning("could not look at the model repository", extra={"error": error.message})

    async def _keep(self, number: int) -> None:
        """Runs one worker, and another one in its place whenever it has died.

        Raises:
            FailedPreconditionError: They keep dying at their start.
        """
        deaths = 0
        while True:
            begun = time.monotonic()
            async with self._started(number) as worker:
                listened = await self._brought_up(worker)
                code = await worker.process.wait()
            if self._stopping.is_set():
                return
            self._failed_starts += not listened
            deaths = 1 if time.monotonic() - begun > STEADY_S else deaths + 1
            if self._failed_starts >= MOST_FAILED_STARTS and not self._listening:
                raise FailedPreconditionError(
                    f"Expected workers that serve. Received: {self._failed_starts} in a row that ended before, the "
                    f"last with exit code {code}. Their own lines before this one say why.",
                    subject=f"worker {number}",
                    reason="WORKERS_DIE",
                )
            wait_s = min(FIRST_WAIT_S * 2 ** (deaths - 1), LONGEST_WAIT_S)
            logger.error(
                "a worker has ended and is started again",
                extra={"worker": number, "pid": worker.process.pid, "exit_code": code, "wait_s": wait_s},
            )
            await asyncio.sleep(wait_s)

    @contextlib.asynccontextmanager
    async def _started(self, number: int) -> AsyncIterator[_Worker]:
        """Runs a process while inside, away from the terminal, so that Ctrl-C reaches the parent alone."""
        serial = next(self._serials)
        sock = self._folder / f"{serial}.sock"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.predictor.worker",
            *map(str, (self._folder, number, sock, *self._ports)),
            # It ends when the parent does, however that comes about, and a worker sees it.
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._processes.add(process)
        try:
            async with connect(
                f"unix:{sock}", default_timeout_s=LONGEST_CHANGE_S, idempotent={}, max_message_bytes=-1
            ) as channel:
                worker = _Worker(
                    number,
                    serial,
                    process,
                    grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel),  # type: ignore[no-untyped-call]
                    workers_pb2_grpc.WorkerServiceStub(channel),  # type: ignore[no-untyped-call]
                )
                yield worker
        finally:
            self._alike.pop(number, None)
            self._listening.discard(number)
            if process.returncode is None:
                process.kill()
            await process.wait()
            self._processes.discard(process)
            sock.unlink(missing_ok=True)

    async def _brought_up(self, worker: _Worker) -> bool:
        """Makes a worker one of the others; returns whether it came to listen before it ended."""
        joining = asyncio.create_task(self._join(worker))
        ending = asyncio.create_task(worker.process.wait())
        try:
            await asyncio.wait([joining, ending], return_when=asyncio.FIRST_COMPLETED)
            if not joining.done():
                return False
            joining.result()
        except TeachwaferError as error:
            if not await _going(worker):
                logger.error(  # noqa: TRY400 - the worker has logged where it came from
                    "a worker could not start", extra={"worker": worker.number, "error": error.message}
                )
                worker.process.kill()
            return False
        finally:
            joining.cancel()
            ending.cancel()
            await asyncio.gather(joining, ending, return_exceptions=True)
        return True

    async def _join(self, worker: _Worker) -> None:
        # Its interpreter starts while the others work; it is waited for until it listens or ends.
        await worker.own.GetMetrics(workers_pb2.GetMetricsRequest(), wait_for_ready=True)
        async with self._one_at_a_time:
            state = await self._state()
            await worker.own.TakeOver(workers_pb2.TakeOverRequest(state=state))
            self._alike[worker.number] = worker
        if len(self._alike) == self._count:
            self._all_loaded.set()
        await self._all_loaded.wait()
        await worker.own.Open(workers_pb2.OpenRequest())
        self._listening.add(worker.number)
        self._failed_starts = 0
        logger.info("a worker serves", extra={"worker": worker.number, "pid": worker.process.pid})
        if len(self._listening) == self._count and not self._announced:
            self._announced = True
            announce_listening(REST, self._ports[1], self._settings.port_file_dir)
            announce_listening(SERVICE, self._ports[0], self._settings.port_file_dir)

    async def _state(self) -> workers_pb2.State | None:
        """Returns what the workers serve; None where there are none."""
        for each in list(self._alike.values()):
            with contextlib.suppress(UnavailableError):
                state: workers_pb2.State = await each.own.GetState(workers_pb2.GetStateRequest())
                return state
        if self._all_loaded.is_set():
            logger.error("no worker is left to take over from: the model repository tells what to serve")
        return None

    async def _end_all(self) -> None:
        """Has all workers drain, and kills those that do not end."""
        running = list(self._processes)
        for each in running:
            with contextlib.suppress(ProcessLookupError):
                each.terminate()
        waits = [asyncio.create_task(each.wait()) for each in running]
        if waits:
            await asyncio.wait(waits, timeout=self._settings.drain_seconds + 15)
        for each in running:
            if each.returncode is None:
                logger.error("a worker did not drain in time and is killed", extra={"pid": each.pid})
                each.kill()
        await asyncio.gather(*waits)


class ParentServicer(grpc_service_pb2_grpc.GRPCInferenceServiceServicer, workers_pb2_grpc.ParentServiceServicer):
    """Hands on what one worker was asked to all of them.

    Args:
        workers: The workers.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._changing: set[asyncio.Task[Any]] = set()

    async def RepositoryModelLoad(
        self, request: grpc_service_pb2.RepositoryModelLoadRequest, context: Any
    ) -> grpc_service_pb2.RepositoryModelLoadResponse:
        """Loads a model in all workers, or in none."""
        return await self._change(lambda worker: worker.inference.RepositoryModelLoad(request), _settle)

    async def RepositoryModelUnload(
        self, request: grpc_service_pb2.RepositoryModelUnloadRequest, context: Any
    ) -> grpc_service_pb2.RepositoryModelUnloadResponse:
        """Unloads a model in all workers, or in none."""
        return await self._change(lambda worker: worker.inference.RepositoryModelUnload(request), _settle)

    async def SystemSharedMemoryRegister(
        self, request: grpc_service_pb2.SystemSharedMemoryRegisterRequest, context: Any
    ) -> grpc_service_pb2.SystemSharedMemoryRegisterResponse:
        """Registers a region in all workers, or in none."""
        forget = grpc_service_pb2.SystemSharedMemoryUnregisterRequest(name=request.name)
        done: set[int] = set()

        async def register(worker: _Worker) -> grpc_service_pb2.SystemSharedMemoryRegisterResponse:
            response: grpc_service_pb2.SystemSharedMemoryRegisterResponse
            response = await worker.inference.SystemSharedMemoryRegister(request)
            done.add(worker.serial)
            return response

        async def settle(worker: _Worker, undo_reason: str) -> None:
            # Where it could not, a region of the same name may be that of somebody else.
            if undo_reason and worker.serial in done:
                await worker.inference.SystemSharedMemoryUnregister(forget)

        return await self._change(register, settle)

    async def SystemSharedMemoryUnregister(
        self, request: grpc_service_pb2.SystemSharedMemoryUnregisterRequest, context: Any
    ) -> grpc_service_pb2.SystemSharedMemoryUnregisterResponse:
        """Forgets regions in all workers."""
        return await self._change(lambda worker: worker.inference.SystemSharedMemoryUnregister(request))

    async def TraceSetting(
        self, request: grpc_service_pb2.TraceSettingRequest, context: Any
    ) -> grpc_service_pb2.TraceSettingResponse:
        """Changes what all workers trace."""
        return await self._change(lambda worker: worker.inference.TraceSetting(request))

    async def LogSettings(
        self, request: grpc_service_pb2.LogSettingsRequest, context: Any
    ) -> grpc_service_pb2.LogSettingsResponse:
        """Changes what all workers log."""
        return await self._change(lambda worker: worker.inference.LogSettings(request))

    async def ModelStatistics(
        self, request: grpc_service_pb2.ModelStatisticsRequest, context: Any
    ) -> grpc_service_pb2.ModelStatisticsResponse:
        """Returns what all workers have done."""
        answers = await self._workers.ask(lambda worker: worker.inference.ModelStatistics(request))
        return converters.statistics_together(answers.values())

    async def EndTrial(self, request: workers_pb2.EndTrialRequest, context: Any) -> workers_pb2.EndTrialResponse:
        """Ends the trial of a new version in all workers."""
        return await self._change(lambda worker: worker.own.EndTrial(request))

    async def _change(
        self,
        call: Callable[[_Worker], Awaitable[T]],
        settle: Callable[[_Worker, str], Awaitable[object]] | None = None,
    ) -> T:
        """Comes to its end even when the caller leaves, so that no worker is left behind."""
        task = asyncio.create_task(self._workers.change(call, settle))
        self._changing.add(task)
        task.add_done_callback(self._changing.discard)
        return await asyncio.shield(task)


async def _settle(worker: _Worker, undo_reason: str) -> None:
    await worker.own.Settle(workers_pb2.SettleRequest(undo_reason=undo_reason))


async def _going(worker: _Worker) -> bool:
    """Returns whether a worker that could not be reached has ended; its connections close a moment before it does."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(worker.process.wait(), _GOING_S)
    return worker.process.returncode is not None


@contextlib.asynccontextmanager
async def _answering(servicer: ParentServicer, folder: Path) -> AsyncIterator[None]:
    """Answers the workers while inside."""
    server = grpc.aio.server(interceptors=default_interceptors(LONGEST_CHANGE_S), options=UNLIMITED)
    grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    workers_pb2_grpc.add_ParentServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{folder / PARENT_SOCKET}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


@contextlib.contextmanager
def _held(host: str, port: int, what: str) -> Iterator[int]:
    """Holds a port that the workers share, without listening on it, so that nobody else gets it between two of them.

    Yields:
        The port; a free one where 0 was asked for.

    Raises:
        FailedPreconditionError: The port is not to be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if port:
            # Other servers of this user may share their ports, too: only without sharing it is seen that one is taken.
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        holder = socket.socket(family)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
    except OSError as error:
        raise FailedPreconditionError(
            f"Expected to listen on {host}:{port}. Received: {error.strerror}. Stop what listens there (perhaps a "
            f"teachwafer that runs already), or set another TEACHWAFER_PREDICTOR_{what}_PORT; 0 takes any free one.",
            subject=f"{host}:{port}",
            reason="PORT_IN_USE",
        ) from None
    with holder:
        yield int(holder.getsockname()[1])
