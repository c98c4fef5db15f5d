"""The predictor's own gRPC service: from the wire, one call, to the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from teachwafer.predictor.v1 import predictor_pb2, predictor_pb2_grpc

from services.common.server import GrpcServer
from services.common.streams import until_draining
from services.predictor import converters
from services.predictor.access import allowed, check_model
from services.predictor.batching import Grids, Outputs
from services.predictor.domain import STREAM_AGAIN, Answer, confidence_of, decide, heat_on_dies, patterns_of, rank
from services.predictor.inference import InferenceRunner
from services.predictor.model_server import LoadedModel, ModelServer
from services.predictor.session import EMBEDDING, HEAT, NOVELTY, PROBABILITIES

SERVICE_NAME: str = predictor_pb2.DESCRIPTOR.services_by_name["PredictorService"].full_name

_Context = grpc.aio.ServicerContext[Any, Any]


class PredictorServicer(predictor_pb2_grpc.PredictorServiceServicer):
    """Classifies wafers.

    Args:
        models: Models in service.
        runner: Runs them.
        draining: Set when the server starts to stop; streams end then, and the caller opens them elsewhere.
    """

    def __init__(self, models: ModelServer, runner: InferenceRunner, draining: asyncio.Event) -> None:
        self._models = models
        self._runner = runner
        self._draining = draining

    async def Classify(
        self, request: predictor_pb2.ClassifyRequest, context: _Context
    ) -> predictor_pb2.ClassifyResponse:
        """Classifies the wafers of one request."""
        return await self._classify(request)

    async def StreamClassify(
        self, requests: AsyncIterator[predictor_pb2.ClassifyRequest], context: _Context
    ) -> AsyncIterator[predictor_pb2.ClassifyResponse]:
        """Classifies request after request, in order."""
        async for request in until_draining(requests, self._draining, STREAM_AGAIN):
            yield await self._classify(request)

    async def ListModels(
        self, request: predictor_pb2.ListModelsRequest, context: _Context
    ) -> predictor_pb2.ListModelsResponse:
        """Returns the versions in service of models of wafers."""
        return predictor_pb2.ListModelsResponse(
            models=[
                converters.loaded_to_proto(each)
                for each in self._models.loaded()
                if each.session.takes_wafers and allowed(each.name)
            ]
        )

    async def _classify(self, request: predictor_pb2.ClassifyRequest) -> predictor_pb2.ClassifyResponse:
        converters.check_request(request)
        check_model(request.model)
        # Held from here on, so that a swap in between does not mix the answers of two versions.
        model = self._models.get(request.model, request.version)
        if not model.session.takes_wafers:
            raise model.session.no_wafers()
        grids, errors = converters.grids_from_proto(request.wafers)
        names = [PROBABILITIES, NOVELTY, *([HEAT] if request.explain else []), *([EMBEDDING] if request.embed else [])]
        outputs = await self._runner.run(model, grids, names)
        answered = iter(
            await asyncio.to_thread(_answers, model, grids, outputs, request.top_k)
            if request.explain
            else _answers(model, grids, outputs, request.top_k)
        )
        answers = [errors[index] if index in errors else next(answered) for index in range(len(request.wafers))]
        return converters.response_to_proto(model, answers)


def add_to(server: GrpcServer, servicer: PredictorServicer) -> None:
    """Adds the service to a server."""
    predictor_pb2_grpc.add_PredictorServiceServicer_to_server(servicer, server.aio)  # type: ignore[no-untyped-call]


def _answers(model: LoadedModel, grids: Grids, outputs: Outputs, top_k: int) -> list[Answer]:
    """Returns the answers on wafers from the rows of the outputs."""
    if not len(grids):
        return []
    manifest, probabilities = model.session.manifest, outputs[PROBABILITIES]
    found = zip(
        rank(manifest, probabilities, top_k),
        patterns_of(manifest, probabilities),
        confidence_of(manifest, probabilities),
        outputs[NOVELTY].tolist(),
        strict=True,
    )
    return [
        Answer(
            classes=classes,
            patterns=patterns,
            novelty=novelty,
            decision=decide(manifest, confidence, novelty),
            heat=heat_on_dies(outputs[HEAT][index, int(probabilities[index].argmax())], grids[index])
            if HEAT in outputs
            else None,
            embedding=outputs[EMBEDDING][index] if EMBEDDING in outputs else None,
        )
        for index, (classes, patterns, confidence, novelty) in enumerate(found)
    ]
