"""One of several processes of the predictor; its parent starts it: `python -m services.predictor.worker`.

It serves its parent on a socket in the parent's folder, and callers on the public ports, which it shares with the
others. What changes the server goes to the parent, which hands it to all: see `services.predictor.workers`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import grpc.aio
from inference import grpc_service_pb2_grpc
from teachwafer.predictor.workers.v1 import workers_pb2_grpc

from services.common import logs
from services.common.client import connect
from services.common.errors import TeachwaferError, UnavailableError
from services.common.interceptors import default_interceptors
from services.common.server import run_service
from services.common.settings import load_settings
from services.predictor import kserve_servicer, servicer
from services.predictor import worker_converters as converters
from services.predictor.canary import Trial, Verdict
from services.predictor.cores import usable_cores
from services.predictor.log_settings import LogSettings
from services.predictor.parts import SERVICE, Parts
from services.predictor.rest_server import serving_rest
from services.predictor.settings import PredictorSettings
from services.predictor.worker_servicers import SharedPredictorServicer, SharingServicer, WorkerServicer

PARENT_SOCKET = "parent.sock"
LONGEST_CHANGE_S = 3600.0
"""Longest time for a load in all processes, seconds; callers set their own deadlines."""
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
"""Options of the channels between processes: what a caller may send, they may pass on."""


async def serve(settings: PredictorSettings, folder: Path, number: int, sock: Path, ports: tuple[int, int]) -> None:
    """Serves until the process is asked to stop.

    Args:
        settings: Settings of this process.
        folder: Folder of the sockets.
        number: Number of this process, from 0.
        sock: Socket for the parent.
        ports: Public ports of gRPC and REST.
    """
    log_settings = LogSettings()
    with Parts(settings, number) as parts:
        server = parts.grpc_server(ports[0], so_reuseport=True)
        async with connect(
            f"unix:{folder / PARENT_SOCKET}", default_timeout_s=LONGEST_CHANGE_S, idempotent={}, max_message_bytes=-1
        ) as channel:
            parent = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            parts.models.judge = _Judge(workers_pb2_grpc.ParentServiceStub(channel))  # type: ignore[no-untyped-call]
            everything = (parts.models, parts.runner, server.draining, parts.shared_memory, parts.tracer, log_settings)
            handlers = SharingServicer(parent, *everything)
            servicer.add_to(server, SharedPredictorServicer(parent, parts.models, parts.runner, server.draining))
            kserve_servicer.add_to(server, handlers)

            private = WorkerServicer(parts, log_settings, server.draining)
            alone = grpc.aio.server(interceptors=default_interceptors(LONGEST_CHANGE_S), options=UNLIMITED)
            grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(private, alone)  # type: ignore[no-untyped-call]
            workers_pb2_grpc.add_WorkerServiceServicer_to_server(private, alone)  # type: ignore[no-untyped-call]
            alone.add_insecure_port(f"unix:{sock}")
            await alone.start()
            try:
                opened = await private.asked_to_open
                try:
                    await server.start()
                    rest = parts.rest_server(handlers, ports[1], so_reuseport=True)
                except TeachwaferError as error:
                    opened.set_exception(error)
                    raise
                async with serving_rest(rest):
                    server.set_serving(True)
                    opened.set_result(None)
                    await server.run()
            finally:
                await alone.stop(1.0)


class _Judge:
    """Tells the parent how a trial has ended, which then ends it in all processes.

    Args:
        parent: The parent.
    """

    def __init__(self, parent: workers_pb2_grpc.ParentServiceStub) -> None:
        self._parent = parent
        self._loop = asyncio.get_running_loop()
        self._telling: set[Future[None]] = set()

    def __call__(self, name: str, trial: Trial, verdict: Verdict) -> None:
        """Tells; from any thread, because ensembles look for their models in the one that loads them."""
        told = asyncio.run_coroutine_threadsafe(self._tell(name, trial, verdict), self._loop)
        self._telling.add(told)
        told.add_done_callback(self._telling.discard)

    async def _tell(self, name: str, trial: Trial, verdict: Verdict) -> None:
        try:
            await self._parent.EndTrial(converters.verdict_to_proto(name, trial.candidate.version, verdict))
        except UnavailableError:
            trial.judged = False  # The next request tries again.


def main() -> None:
    """Reads the settings and serves."""
    parser = argparse.ArgumentParser(description="One of several processes of the predictor, which starts it.")
    parser.add_argument("folder", type=Path, help="folder of the sockets")
    parser.add_argument("number", type=int, help="number of this process, from 0")
    parser.add_argument("socket", type=Path, help="socket to listen on for the parent")
    parser.add_argument("grpc_port", type=int)
    parser.add_argument("rest_port", type=int)
    told = parser.parse_args()
    settings = load_settings(PredictorSettings).of_process(told.number, usable_cores())
    logs.configure(settings, SERVICE, batched=True)
    threading.Thread(
        target=_end_with_parent, args=(told.folder, settings.drain_seconds), name="parent", daemon=True
    ).start()
    run_service(serve(settings, told.folder, told.number, told.socket, (told.grpc_port, told.rest_port)))


def _end_with_parent(folder: Path, drain_seconds: float) -> None:
    """Ends this process when its parent has ended without asking it to: standard input ends then."""
    os.read(0, 1)
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(drain_seconds + 10)
    os._exit(1)


if __name__ == "__main__":
    main()
