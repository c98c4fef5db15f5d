"""Between the wire and what the predictor works with: requests for inference of the open protocol, and their answers.

Nothing in a request is trusted: each part is compared with what the model takes before a byte is read as a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from inference import grpc_service_pb2

from services.common.errors import InvalidArgumentError
from services.common.wafer_map import MAX_SIDE
from services.predictor.ensemble import Ensemble
from services.predictor.inference import Wishes
from services.predictor.model_server import LoadedModel
from services.predictor.shared_memory import Region, SharedMemory
from services.predictor.tensors import (
    BYTES,
    DTYPES,
    LONGEST_SIDE,
    Tensor,
    TensorInfo,
    check_batch_sizes,
    checked_shape,
    classified,
    tensor_from_bytes,
    tensor_to_bytes,
)

FINAL_RESPONSE = "triton_final_response"
WANTS_FINAL_RESPONSE = "triton_enable_empty_final_response"
REGION, REGION_OFFSET, REGION_BYTES = "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"
CLASSIFICATION = "classification"

_RESERVED_PREFIX = "triton_"
_SEQUENCE_PREFIX = "sequence_"
_TYPED_FIELDS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
_TYPED_DTYPES = {"uint_contents": np.dtype(np.uint32), "int_contents": np.dtype(np.int32)}


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output that a request asks for.

    Attributes:
        name: Its name.
        classes: Best classes wanted in its place; 0 wants the tensor itself.
        region: Region of shared memory that it is to be written into. None: it goes into the message.
        offset: Where in the region, bytes.
        byte_size: How many bytes there are for it.
    """

    name: str
    classes: int = 0
    region: Region | None = None
    offset: int = 0
    byte_size: int = 0


def inputs_from_proto(
    request: grpc_service_pb2.ModelInferRequest, model: LoadedModel, shared_memory: SharedMemory
) -> dict[str, Tensor]:
    """Returns the inputs of a request, without a copy where they came as raw contents or in shared memory.

    Args:
        request: The request.
        model: The model that it is for.
        shared_memory: Registered regions.

    Returns:
        All inputs of the model by name, in the shapes of its configuration.

    Raises:
        InvalidArgumentError: The request does not hold exactly the model's inputs, whole.
        NotFoundError: It names an unknown region of shared memory.
    """
    config = model.session.config
    infos = model.session.taken
    inputs = list(request.inputs)
    names = [each.name for each in inputs]
    if len(names) != len(infos) or infos.keys() != set(names):
        raise InvalidArgumentError(
            f"Expected exactly the input{'s' * (len(infos) > 1)} {', '.join(map(repr, infos))}. "
            f"Received: {names[:10]}.",
            "inputs",
        )
    # Each look into a message costs as much as a small copy: what most requests do not have is looked for once.
    parameters = [each.parameters for each in inputs]
    in_message = [index for index, each in enumerate(parameters) if not each or REGION not in each]
    raw = _raw_contents(request.raw_input_contents, inputs, in_message)
    longest = MAX_SIDE if model.session.takes_wafers else LONGEST_SIDE
    tensors: dict[str, Tensor] = {}
    position = 0
    for index, (tensor, name) in enumerate(zip(inputs, names, strict=True)):
        field = f"inputs[{index}]"
        info = infos[name]
        if parameters[index]:
            _check_parameters(parameters[index], f"{field}.parameters")
        if tensor.datatype != info.datatype:
            raise InvalidArgumentError(
                f"Expected the data type {info.datatype!r}. Received: {tensor.datatype[:50]!r}.", f"{field}.datatype"
            )
        shape = checked_shape(tuple(tensor.shape), info, config.max_batch_size, longest, f"{field}.shape")
        if parameters[index] and REGION in parameters[index]:
            tensors[name] = _from_region(tensor, shape, shared_memory, field)
        elif raw:
            tensors[name] = tensor_from_bytes(raw[position], info.datatype, shape, f"raw_input_contents[{position}]")
            position += 1
        else:
            tensors[name] = _from_typed(tensor, info.datatype, shape, field)
    if config.max_batch_size and len(tensors) > 1:
        check_batch_sizes(tensors.values())
    return tensors


def outputs_from_proto(
    request: grpc_service_pb2.ModelInferRequest, model: LoadedModel, shared_memory: SharedMemory
) -> list[WantedOutput]:
    """Returns the outputs that a request asks for; all of them where it names none.

    Raises:
        InvalidArgumentError: A name is unknown or comes twice, or a parameter is wrong.
        NotFoundError: It names an unknown region of shared memory.
    """
    infos = model.session.answered
    outputs = list(request.outputs)
    if not outputs:
        return [_whole(name) for name in infos]
    names = [each.name for each in outputs]
    return [_wanted(output, infos, names, shared_memory, f"outputs[{index}]") for index, output in enumerate(outputs)]


def wishes_from_proto(request: grpc_service_pb2.ModelInferRequest, *, stream: bool = False) -> Wishes:
    """Returns what else a request asks for.

    Args:
        request: The request.
        stream: Whether it came in a stream, where more is allowed.

    Raises:
        InvalidArgumentError: A parameter is reserved, of the wrong type or means something that there is not here.
    """
    parameters = request.parameters
    if not parameters:
        return Wishes(request_id=request.id)
    for name in parameters:
        if name.startswith(_SEQUENCE_PREFIX):
            raise InvalidArgumentError(
                f"Expected no parameter of a sequence, because no model here has a state. Received: {name[:100]!r}.",
                "parameters",
            )
    _check_parameters(parameters, "parameters", {WANTS_FINAL_RESPONSE} if stream else set())
    return Wishes(
        priority=_number(parameters, "priority", "parameters"),
        timeout_us=_number(parameters, "timeout", "parameters"),
        request_id=request.id,
    )


def wants_final_response(request: grpc_service_pb2.ModelInferRequest) -> bool:
    """Returns whether the response of a stream is to say that it is the last one of its request."""
    name = WANTS_FINAL_RESPONSE
    return name in request.parameters and request.parameters[name].bool_param


def infer_to_proto(
    request: grpc_service_pb2.ModelInferRequest,
    model: LoadedModel,
    wanted: Sequence[WantedOutput],
    values: Mapping[str, Tensor],
) -> grpc_service_pb2.ModelInferResponse:
    """Returns the response; each output as raw contents, or in shared memory and an empty one.

    Raises:
        InvalidArgumentError: An output does not fit into its part of shared memory.
    """
    infos = model.session.answered
    response = grpc_service_pb2.ModelInferResponse(
        model_name=model.name, model_version=str(model.version), id=request.id
    )
    for each in wanted:
        value, datatype = values[each.name], infos[each.name].datatype
        if each.classes:
            value, datatype = classified(value, each.classes, _labels(model, each.name)), BYTES
        output = response.outputs.add(name=each.name, datatype=datatype, shape=value.shape)
        raw = tensor_to_bytes(value, datatype)
        if each.region is None:
            response.raw_output_contents.append(raw)
            continue
        _write(each, raw)
        output.parameters[REGION].string_param = each.region.name
        output.parameters[REGION_BYTES].int64_param = len(raw)
        if each.offset:
            output.parameters[REGION_OFFSET].int64_param = each.offset
        # Clients count on one for each output.
        response.raw_output_contents.append(b"")
    return response


def _labels(model: LoadedModel, output: str) -> Sequence[str]:
    """Returns the names of an output's classes: from its file of labels, or those of the model that gives it."""
    told = model.session.config.labels.get(output)
    if told is not None:
        return told
    if isinstance(model.session, Ensemble):
        source = model.session.source(output)
        return _labels(*source) if source else ()
    return [each.display_name for each in model.session.manifest.classes] if model.session.takes_wafers else ()


def _check_parameters(parameters: Any, field: str, allowed: set[str] | frozenset[str] = frozenset()) -> None:
    """Refuses reserved parameters; others that are not known here are harmless."""
    for name in parameters:
        if name.startswith(_RESERVED_PREFIX) and name not in allowed:
            raise InvalidArgumentError(
                f"Expected no parameter beginning with {_RESERVED_PREFIX!r}, which is reserved. "
                f"Received: {name[:100]!r}.",
                field,
            )


def _number(parameters: Any, name: str, field: str) -> int:
    """Returns a parameter that is a whole number of at least 0; 0 where it is not there."""
    if name not in parameters:
        return 0
    choice = parameters[name].WhichOneof("parameter_choice")
    value = getattr(parameters[name], choice) if choice in ("int64_param", "uint64_param") else -1
    if value < 0:
        raise InvalidArgumentError(
            f"Expected a whole number of at least 0 in {name}. Received: {choice or 'nothing'}"
            f"{f' {value}' if choice == 'int64_param' else ''}.",
            f"{field}.{name}",
        )
    return int(value)


def _region_part(parameters: Any, shared_memory: SharedMemory, field: str) -> tuple[Region, int, int]:
    """Returns the region that parameters name, where in it and how many bytes."""
    if parameters[REGION].WhichOneof("parameter_choice") != "string_param" or REGION_BYTES not in parameters:
        raise InvalidArgumentError(
            f"Expected {REGION} with a name and {REGION_BYTES} with a number. Received: {sorted(parameters)[:5]}.",
            f"{field}.parameters",
        )
    region = shared_memory.region(parameters[REGION].string_param)
    offset = _number(parameters, REGION_OFFSET, f"{field}.parameters")
    return region, offset, _number(parameters, REGION_BYTES, f"{field}.parameters")


def _wanted(
    output: grpc_service_pb2.ModelInferRequest.InferRequestedOutputTensor,
    infos: Mapping[str, TensorInfo],
    names: list[str],
    shared_memory: SharedMemory,
    field: str,
) -> WantedOutput:
    name, parameters = output.name, output.parameters
    if name not in infos or names.count(name) > 1:
        raise InvalidArgumentError(
            f"Expected outputs out of {list(infos)}, each once. Received: {names[:10]}.", f"{field}.name"
        )
    if not parameters:
        return _whole(name)
    _check_parameters(parameters, f"{field}.parameters")
    classes = _number(parameters, CLASSIFICATION, f"{field}.parameters")
    info = infos[name]
    if CLASSIFICATION in parameters and (classes < 1 or info.datatype in (BYTES, "BOOL", "BF16")):
        raise InvalidArgumentError(
            f"Expected at least 1 class of an output of numbers. Received: {classes} of {name} of the data "
            f"type {info.datatype}.",
            f"{field}.parameters.{CLASSIFICATION}",
        )
    if REGION not in parameters:
        return WantedOutput(name, classes)
    region, offset, size = _region_part(parameters, shared_memory, field)
    region.view(offset, size, f"{field}.parameters")
    return WantedOutput(name, classes, region, offset, size)


@lru_cache(1024)
def _whole(name: str) -> WantedOutput:
    """Returns the wish for an output as it is, made once for each name of a loaded model."""
    return WantedOutput(name)


def _write(wanted: WantedOutput, raw: bytes) -> None:
    """Writes an output into shared memory."""
    if wanted.region is None:
        return
    field = f"outputs.{wanted.name}.parameters.{REGION_BYTES}"
    if len(raw) > wanted.byte_size:
        raise InvalidArgumentError(
            f"Expected at least {len(raw)} bytes of shared memory for the output {wanted.name}. "
            f"Received: {wanted.byte_size}.",
            field,
        )
    wanted.region.view(wanted.offset, len(raw), field)[:] = raw


def _raw_contents(raw: Sequence[bytes], inputs: Sequence[Any], in_message: list[int]) -> Sequence[bytes]:
    """Returns the raw contents, one for each input in the message, or none where they are typed."""
    typed = [index for index, each in enumerate(inputs) if each.HasField("contents") and each.contents.ListFields()]
    if raw and (len(raw) != len(in_message) or typed):
        raise InvalidArgumentError(
            f"Expected one raw buffer for each of the {len(in_message)} inputs in the message and no typed contents "
            f"beside it. Received: {len(raw)} raw buffers{' and typed contents' if typed else ''}.",
            "raw_input_contents",
        )
    if any(index not in in_message for index in typed):
        raise InvalidArgumentError(
            "Expected no contents of an input in shared memory. Received: typed contents.", "inputs"
        )
    return raw


def _from_region(
    tensor: grpc_service_pb2.ModelInferRequest.InferInputTensor,
    shape: tuple[int, ...],
    shared_memory: SharedMemory,
    field: str,
) -> Tensor:
    region, offset, size = _region_part(tensor.parameters, shared_memory, field)
    part = region.view(offset, size, f"{field}.parameters")
    # The caller can write into it while the model runs: what is read must not change under the checks.
    return tensor_from_bytes(bytes(part), tensor.datatype, shape, f"{field}.parameters.{REGION_BYTES}")


def _from_typed(
    tensor: grpc_service_pb2.ModelInferRequest.InferInputTensor, datatype: str, shape: tuple[int, ...], field: str
) -> Tensor:
    name = _TYPED_FIELDS.get(datatype, "")
    filled = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if not name or filled != [name]:
        alone = f", or typed contents in {name} alone" if name else f", because {datatype} has no typed form"
        raise InvalidArgumentError(
            f"Expected raw contents{alone}. Received: {filled or 'neither'}.", f"{field}.contents"
        )
    contents = getattr(tensor.contents, name)
    field = f"{field}.contents.{name}"
    wanted = math.prod(shape)
    if len(contents) != wanted:
        raise InvalidArgumentError(
            f"Expected {wanted} elements for the shape {list(shape)}. Received: {len(contents)}.", field
        )
    if datatype == BYTES:
        strings = np.empty(wanted, np.object_)
        strings[:] = list(contents)
        return strings.reshape(shape)
    dtype = DTYPES[datatype]
    values = np.fromiter(contents, _TYPED_DTYPES.get(name, dtype), wanted)
    if values.dtype != dtype:
        limits = np.iinfo(dtype)
        if values.min() < limits.min or values.max() > limits.max:
            raise InvalidArgumentError(
                f"Expected values of {limits.min} to {limits.max}. Received: {values.min()} to {values.max()}.", field
            )
    return values.astype(dtype, copy=False).reshape(shape)
