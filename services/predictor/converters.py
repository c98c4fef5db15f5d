"""Between the wire and what the predictor works with: `teachwafer.predictor.v1`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from google.rpc import status_pb2  # type: ignore[import-untyped]
from numpy.typing import NDArray
from teachwafer.predictor.v1 import predictor_pb2
from teachwafer.type import wafer_map_pb2

from services.common.errors import InvalidArgumentError, TeachwaferError, to_status
from services.common.task import Task
from services.common.wafer_map_converter import dies_from_proto
from services.predictor.domain import Answer, Decision
from services.predictor.model_server import LoadedModel

MAX_WAFERS = 1024
"""Most wafers of one call."""

_TASKS = {
    Task.SINGLE: predictor_pb2.LoadedModel.TASK_SINGLE_PATTERN,
    Task.SEVERAL: predictor_pb2.LoadedModel.TASK_SEVERAL_PATTERNS,
    Task.NORMAL: predictor_pb2.LoadedModel.TASK_ONLY_NORMAL,
}
_OK = status_pb2.Status()
_DECISIONS = {
    Decision.ACCEPTED: predictor_pb2.WaferAnswer.DECISION_ACCEPTED,
    Decision.NOT_SURE: predictor_pb2.WaferAnswer.DECISION_NOT_SURE,
    Decision.UNKNOWN: predictor_pb2.WaferAnswer.DECISION_UNKNOWN,
}


def check_request(request: predictor_pb2.ClassifyRequest) -> None:
    """Checks everything in a request but the wafers themselves.

    Raises:
        InvalidArgumentError: No name, a negative version or number of classes, no wafer or too many.
    """
    if not request.model:
        raise InvalidArgumentError("Expected the name of a model. Received: none.", field="model")
    if request.version < 0:
        raise InvalidArgumentError(
            f"Expected a version, or 0 for the newest. Received: {request.version}.", field="version"
        )
    if not 1 <= len(request.wafers) <= MAX_WAFERS:
        raise InvalidArgumentError(
            f"Expected 1 to {MAX_WAFERS} wafers. Received: {len(request.wafers)}. Send more of them in several calls.",
            field="wafers",
        )
    if request.top_k < 0:
        raise InvalidArgumentError(
            f"Expected a number of classes, or 0 for all. Received: {request.top_k}.", field="top_k"
        )


def grids_from_proto(
    messages: Sequence[wafer_map_pb2.WaferMap],
) -> tuple[list[NDArray[np.uint8]], dict[int, TeachwaferError]]:
    """Returns the die grids of the wafers of a request, in order, but for those with which something is wrong.

    Args:
        messages: Wafers as received.

    Returns:
        Grids, uint8 (rows, columns) each, and what is wrong with the other wafers, by their index.
    """
    grids: list[NDArray[np.uint8]] = []
    errors: dict[int, TeachwaferError] = {}
    for index, message in enumerate(messages):
        try:
            grids.append(dies_from_proto(message, f"wafers[{index}]"))
        except InvalidArgumentError as error:
            errors[index] = error
    return grids, errors


def response_to_proto(
    model: LoadedModel, answers: Iterable[Answer | TeachwaferError]
) -> predictor_pb2.ClassifyResponse:
    """Returns the wire form of the answers on wafers, and of the reasons why there is none."""
    response = predictor_pb2.ClassifyResponse(model=model.name, version=model.version)
    # Messages are made where they are to be: made apart, they would be copied, which takes as long again.
    for answer in answers:
        if isinstance(answer, TeachwaferError):
            response.answers.add(status=to_status(answer))
            continue
        best, probability = answer.classes[0]
        message = response.answers.add(
            status=_OK,
            class_id=best.class_id,
            display_name=best.display_name,
            probability=probability,
            decision=_DECISIONS[answer.decision],
            novelty=answer.novelty,
        )
        for to, ranking in ((message.classes, answer.classes), (message.patterns, answer.patterns)):
            for each, probability in ranking:
                to.add(class_id=each.class_id, display_name=each.display_name, probability=probability)
        if answer.heat is not None:
            rows, columns = answer.heat.shape
            message.heat_map.CopyFrom(predictor_pb2.HeatMap(rows=rows, columns=columns, heat=answer.heat.tobytes()))
        if answer.embedding is not None:
            message.embedding.extend(answer.embedding.tolist())
    return response


def loaded_to_proto(model: LoadedModel) -> predictor_pb2.LoadedModel:
    """Returns the wire form of a version in service."""
    return predictor_pb2.LoadedModel(
        model=model.name,
        version=model.version,
        classes=[
            predictor_pb2.ModelClass(class_id=each.class_id, display_name=each.display_name)
            for each in model.session.manifest.classes
        ],
        execution_provider=model.session.provider,
        wafers=model.statistics.wafers,
        latency_ms_p50=model.statistics.latency_ms_p50,
        task=_TASKS[model.session.manifest.task],
        quantised=model.session.manifest.quantised,
    )
