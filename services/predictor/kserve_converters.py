"""Between the wire and what the predictor works with: the open inference protocol.

Nothing in a request is trusted: each part is compared with what the model takes before a byte is read as a number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from inference import grpc_service_pb2, model_config_pb2
from numpy.typing import NDArray

from services.common.errors import DataLossError, InvalidArgumentError, UnimplementedError
from services.common.model_repository import CONFIG_FILE
from services.common.wafer_map import MAX_SIDE
from services.predictor.batching import Outputs
from services.predictor.converters import MAX_WAFERS
from services.predictor.model_server import IndexEntry, LoadedModel
from services.predictor.session import TensorInfo

PLATFORM = "onnxruntime_onnx"

_TYPED_FIELD = "uint_contents"
_RESERVED_PREFIX = "triton_"
_SHARED_MEMORY, _CLASSIFICATION = "shared_memory_region", "classification"
_MAX_VERSION = 999_999_999


def version_from_text(text: str) -> int:
    """Returns the version that a text names; 0 for an empty one, which means the one that serves.

    Raises:
        InvalidArgumentError: It is not a whole number above 0.
    """
    if not text:
        return 0
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= _MAX_VERSION:
        raise InvalidArgumentError(
            f"Expected a version as a whole number above 0, or none. Received: {text[:50]!r}.", field="model_version"
        )
    return int(text)


def dies_from_proto(request: grpc_service_pb2.ModelInferRequest, info: TensorInfo) -> NDArray[np.uint8]:
    """Returns the die grids of a request, without a copy where they came as raw contents.

    As in the model itself, a value that is neither 0 nor 2 is a die that did not fail.

    Args:
        request: The request.
        info: Input of the model.

    Returns:
        uint8 (N, rows, columns).

    Raises:
        InvalidArgumentError: The request does not hold exactly this input, whole.
        UnimplementedError: It refers to shared memory.
    """
    _check_parameters(request.parameters, "parameters")
    names = [each.name for each in request.inputs]
    if names != [info.name]:
        raise InvalidArgumentError(f"Expected exactly the input {info.name!r}. Received: {names[:10]}.", "inputs")
    tensor = request.inputs[0]
    _check_parameters(tensor.parameters, "inputs[0].parameters")
    if tensor.datatype != info.datatype:
        raise InvalidArgumentError(
            f"Expected the data type {info.datatype!r}. Received: {tensor.datatype[:50]!r}.", "inputs[0].datatype"
        )
    shape = _checked_shape(list(tensor.shape))
    wanted = shape[0] * shape[1] * shape[2]
    if request.raw_input_contents:
        return _from_raw(request, wanted).reshape(shape)
    return _from_typed(tensor, wanted).reshape(shape)


def outputs_wanted(request: grpc_service_pb2.ModelInferRequest, infos: Sequence[TensorInfo]) -> list[str]:
    """Returns the names of the outputs that a request asks for; all of them where it names none.

    Raises:
        InvalidArgumentError: A name is unknown or comes twice.
        UnimplementedError: An output is wanted in a form that this server does not have.
    """
    known = [each.name for each in infos]
    wanted = [each.name for each in request.outputs] or known
    for index, output in enumerate(request.outputs):
        _check_parameters(output.parameters, f"outputs[{index}].parameters")
        if output.name not in known or wanted.count(output.name) > 1:
            raise InvalidArgumentError(
                f"Expected outputs out of {known}, each once. Received: {wanted[:10]}.", f"outputs[{index}].name"
            )
    return wanted


def infer_to_proto(
    request: grpc_service_pb2.ModelInferRequest, model: LoadedModel, outputs: Outputs
) -> grpc_service_pb2.ModelInferResponse:
    """Returns the response with the outputs as raw contents."""
    return grpc_service_pb2.ModelInferResponse(
        model_name=model.name,
        model_version=str(model.version),
        id=request.id,
        outputs=[
            grpc_service_pb2.ModelInferResponse.InferOutputTensor(name=name, datatype="FP32", shape=values.shape)
            for name, values in outputs.items()
        ],
        raw_output_contents=[np.ascontiguousarray(values, "<f4").tobytes() for values in outputs.values()],
    )


def metadata_to_proto(model: LoadedModel) -> grpc_service_pb2.ModelMetadataResponse:
    """Returns what a model takes and answers."""

    def tensors(infos: Sequence[TensorInfo]) -> list[grpc_service_pb2.ModelMetadataResponse.TensorMetadata]:
        tensor = grpc_service_pb2.ModelMetadataResponse.TensorMetadata
        return [tensor(name=each.name, datatype=each.datatype, shape=each.shape) for each in infos]

    return grpc_service_pb2.ModelMetadataResponse(
        name=model.name,
        versions=[str(model.version)],
        platform=PLATFORM,
        inputs=tensors(model.session.inputs),
        outputs=tensors(model.session.outputs),
    )


def read_config(folder: Path) -> grpc_service_pb2.ModelConfigResponse:
    """Returns the configuration that was published with a model.

    Args:
        folder: Folder of the model.

    Raises:
        DataLossError: It is missing or damaged.
    """
    try:
        config = text_format.Parse((folder / CONFIG_FILE).read_text(), model_config_pb2.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise DataLossError(
            f"Expected the configuration of {folder.name} in {CONFIG_FILE}. Received: {type(error).__name__}. "
            "Publish the model again."
        ) from error
    return grpc_service_pb2.ModelConfigResponse(config=config)


def index_to_proto(entries: Sequence[IndexEntry]) -> grpc_service_pb2.RepositoryIndexResponse:
    """Returns the index of the model repository."""
    entry = grpc_service_pb2.RepositoryIndexResponse.ModelIndex
    return grpc_service_pb2.RepositoryIndexResponse(
        models=[
            entry(name=each.name, version=str(each.version), state=each.state.value, reason=each.reason)
            for each in entries
        ]
    )


def statistics_to_proto(model: LoadedModel) -> grpc_service_pb2.ModelStatistics:
    """Returns what a model has done since it was loaded."""
    done = model.statistics

    def duration(count: int, seconds: float) -> grpc_service_pb2.StatisticDuration:
        return grpc_service_pb2.StatisticDuration(count=count, ns=int(seconds * 1e9))

    return grpc_service_pb2.ModelStatistics(
        name=model.name,
        version=str(model.version),
        last_inference=done.last_inference_ms,
        inference_count=done.wafers,
        execution_count=done.executions,
        inference_stats=grpc_service_pb2.InferStatistics(
            success=duration(done.successes, done.success_seconds), fail=duration(done.failures, done.failure_seconds)
        ),
    )


def _check_parameters(parameters: Any, field: str) -> None:
    """Refuses parameters that change the meaning of a request and are not known here; others are harmless."""
    for name in parameters:
        if name.startswith(_RESERVED_PREFIX):
            raise InvalidArgumentError(
                f"Expected no parameter beginning with {_RESERVED_PREFIX!r}, which is reserved. "
                f"Received: {name[:100]!r}.",
                field,
            )
        if name in (_SHARED_MEMORY, _CLASSIFICATION):
            raise UnimplementedError(
                f"Expected tensors in the message. Received the parameter {name!r}, which this server does not "
                "support. Send and receive raw contents; Classify of teachwafer.predictor.v1 names the classes."
            )


def _checked_shape(shape: list[int]) -> tuple[int, int, int]:
    limits = (MAX_WAFERS, MAX_SIDE, MAX_SIDE)
    if len(shape) != len(limits) or not all(1 <= side <= most for side, most in zip(shape, limits, strict=True)):
        raise InvalidArgumentError(
            f"Expected the shape [wafers, rows, columns] with 1 to {limits[0]} wafers and 1 to {MAX_SIDE} rows and "
            f"columns. Received: {shape[:8]}.",
            "inputs[0].shape",
        )
    return shape[0], shape[1], shape[2]


def _from_raw(request: grpc_service_pb2.ModelInferRequest, wanted: int) -> NDArray[np.uint8]:
    if len(request.raw_input_contents) != 1 or request.inputs[0].contents.ListFields():
        raise InvalidArgumentError(
            "Expected one raw buffer for the one input and no typed contents beside it. Received: "
            f"{len(request.raw_input_contents)} raw buffers"
            f"{' and typed contents' if request.inputs[0].contents.ListFields() else ''}.",
            "raw_input_contents",
        )
    raw = request.raw_input_contents[0]
    if len(raw) != wanted:
        raise InvalidArgumentError(
            f"Expected {wanted} bytes for the shape {list(request.inputs[0].shape)}. Received: {len(raw)}.",
            "raw_input_contents[0]",
        )
    return np.frombuffer(raw, np.uint8)


def _from_typed(tensor: grpc_service_pb2.ModelInferRequest.InferInputTensor, wanted: int) -> NDArray[np.uint8]:
    field = f"inputs[0].contents.{_TYPED_FIELD}"
    filled = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if filled != [_TYPED_FIELD]:
        raise InvalidArgumentError(
            f"Expected raw contents, or typed contents in {_TYPED_FIELD} alone. Received: {filled or 'neither'}.", field
        )
    if len(tensor.contents.uint_contents) != wanted:
        raise InvalidArgumentError(
            f"Expected {wanted} elements for the shape {list(tensor.shape)}. "
            f"Received: {len(tensor.contents.uint_contents)}.",
            field,
        )
    values = np.fromiter(tensor.contents.uint_contents, np.uint32, wanted)
    if values.max() > np.iinfo(np.uint8).max:
        raise InvalidArgumentError(f"Expected values of 0 to 255. Received: {values.max()}.", field)
    return values.astype(np.uint8)
