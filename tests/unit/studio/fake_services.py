"""Trainer, generator and predictor that answer from a script, and complain about what was not asked."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from inference import grpc_service_pb2_grpc
from teachwafer.generator.v1 import generator_pb2_grpc
from teachwafer.predictor.v1 import predictor_pb2_grpc
from teachwafer.trainer.v1 import trainer_pb2_grpc

from services.common.errors import FailedPreconditionError, TeachwaferError
from services.common.server import GrpcServer

SERVICES: dict[str, tuple[type, Callable[..., None]]] = {
    "teachwafer.trainer.v1.TrainerService": (
        trainer_pb2_grpc.TrainerServiceServicer,
        trainer_pb2_grpc.add_TrainerServiceServicer_to_server,
    ),
    "teachwafer.generator.v1.GeneratorService": (
        generator_pb2_grpc.GeneratorServiceServicer,
        generator_pb2_grpc.add_GeneratorServiceServicer_to_server,
    ),
    "teachwafer.predictor.v1.PredictorService": (
        predictor_pb2_grpc.PredictorServiceServicer,
        predictor_pb2_grpc.add_PredictorServiceServicer_to_server,
    ),
    "inference.GRPCInferenceService": (
        grpc_service_pb2_grpc.GRPCInferenceServiceServicer,
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server,
    ),
}
_STREAMS = frozenset({"WatchTrainingJob", "WatchGenerationJob", "SimulateWafers"})


class FakeServices:
    """All services on one port.

    Attributes:
        requests: Requests received, by method.
    """

    def __init__(self) -> None:
        self._script: dict[str, list[Any]] = defaultdict(list)
        self._always: dict[str, Callable[[Any], Any]] = {}
        self.requests: dict[str, list[Any]] = defaultdict(list)
        self._server = GrpcServer(host="127.0.0.1", port=0, service_names=list(SERVICES), drain_seconds=0)
        for servicer, add in SERVICES.values():
            methods = {name for name, _ in inspect.getmembers(servicer, inspect.isfunction)}
            # Class attributes that are partials get no self.
            behaviours = {
                name: staticmethod(partial(self._many if name in _STREAMS else self._one, name)) for name in methods
            }
            add(type("Fake", (servicer,), behaviours)(), self._server.aio)

    @property
    def address(self) -> str:
        """Where all services listen."""
        return f"127.0.0.1:{self._server.port}"

    def answer(self, method: str, *answers: Any) -> None:
        """Answers the next requests: with a message, a list of messages for streams, or by raising an error."""
        self._script[method] += answers

    def always(self, method: str, answer: Callable[[Any], Any]) -> None:
        """Answers every request that the script does not answer; need not be asked."""
        self._always[method] = answer

    async def start(self) -> None:
        """Begins to serve."""
        await self._server.start()
        self._server.set_serving(True)

    async def stop(self) -> None:
        """Ends."""
        await self._server.drain()

    def assert_all_used(self) -> None:
        """Fails when the script has answers left."""
        left = {method: len(answers) for method, answers in self._script.items() if answers}
        assert not left, f"answers that nobody asked for: {left}"

    async def _one(self, method: str, request: Any, context: Any) -> Any:
        return self._next(method, request)

    async def _many(self, method: str, request: Any, context: Any) -> AsyncIterator[Any]:
        for each in self._next(method, request):
            if isinstance(each, TeachwaferError):
                raise each
            yield each

    def _next(self, method: str, request: Any) -> Any:
        self.requests[method].append(request)
        if self._script[method]:
            answer = self._script[method].pop(0)
        elif method in self._always:
            answer = self._always[method](request)
        else:
            raise FailedPreconditionError(f"The script has no answer to {method}.", reason="NOT_IN_SCRIPT")
        if isinstance(answer, TeachwaferError):
            raise answer
        return answer
