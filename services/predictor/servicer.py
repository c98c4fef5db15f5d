"""The predictor's own gRPC service: from the wire, one call, to the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from teachwafer.predictor.v1 import predictor_pb2, predictor_pb2_grpc

from services.common.errors import TeachwaferError
from services.common.server import GrpcServer
from services.common.streams import until_draining
from services.common.wafer_map import WaferMap
from services.predictor import converters
from services.predictor.access import allowed, check_model
from services.predictor.batching import Outputs
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
        wafers = converters.wafers_from_proto(request.wafers)
        good = [wafer for wafer in wafers if isinstance(wafer, WaferMap)]
        names = [PROBABILITIES, NOVELTY, *([HEAT] if request.explain else []), *([EMBEDDING] if request.embed else [])]
        outputs = await self._runner.run(model, [wafer.dies for wafer in good], names)
        answered = iter(
            await asyncio.to_thread(_answers, model, good, outputs, request.top_k)
            if request.explain
            else _answers(model, good, outputs, request.top_k)
        )
        answers: list[Answer | TeachwaferError] = [
            wafer if isinstance(wafer, TeachwaferError) else next(answered) for wafer in wafers
        ]
        return predictor_pb2.ClassifyResponse(
            answers=[converters.answer_to_proto(each) for each in answers], model=model.name, version=model.version
        )


def add_to(server: GrpcServer, servicer: PredictorServicer) -> None:
    """Adds the service to a server."""
    predictor_pb2_grpc.add_PredictorServiceServicer_to_server(servicer, server.aio)  # type: ignore[no-untyped-call]


def _answers(model: LoadedModel, wafers: Sequence[WaferMap], outputs: Outputs, top_k: int) -> list[Answer]:
    """Returns the answers on wafers from the rows of the outputs."""
    manifest = model.session.manifest
    answers = []
    for index, wafer in enumerate(wafers):
        probabilities, novelty = outputs[PROBABILITIES][index], float(outputs[NOVELTY][index])
        answers.append(
            Answer(
                classes=rank(manifest, probabilities, top_k),
                patterns=patterns_of(manifest, probabilities),
                novelty=novelty,
                decision=decide(manifest, confidence_of(manifest, probabilities), novelty),
                heat=heat_on_dies(outputs[HEAT][index, int(probabilities.argmax())], wafer.dies)
                if HEAT in outputs
                else None,
                embedding=outputs[EMBEDDING][index] if EMBEDDING in outputs else None,
            )
        )
    return answers
