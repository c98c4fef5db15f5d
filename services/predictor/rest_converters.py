"""Between the REST form of the open inference protocol and its messages: JSON, and tensors as bytes behind it."""

from __future__ import annotations

import base64
import binascii
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from google.protobuf.message import Message
from inference import grpc_service_pb2

from services.common.errors import InvalidArgumentError
from services.predictor.infer_converters import REGION
from services.predictor.model_sources import FILE_PREFIX
from services.predictor.tensors import BF16, BYTES, DTYPES, Tensor, tensor_from_bytes, tensor_to_bytes

BINARY_SIZE, BINARY, ALL_BINARY = "binary_data_size", "binary_data", "binary_data_output"

_JSON_TYPES: Mapping[str, frozenset[type]] = {"b": frozenset({bool}), "f": frozenset({int, float})}
_WHOLE_NUMBERS = frozenset({int})
_MAX_UINT32, _MAX_INT64, _MAX_UINT64 = 2**32 - 1, 2**63 - 1, 2**64 - 1

Json = Any


def json_from_body(body: bytes) -> dict[str, Json]:
    """Returns the object in a body; an empty body is an empty object.

    Raises:
        InvalidArgumentError: It is no JSON object.
    """
    if not body.strip():
        return {}
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidArgumentError(
            f"Expected a JSON object. Received: {len(body)} bytes that are none ({str(error)[:200]}).", "body"
        ) from None
    return _object(value, "body")


def infer_from_body(
    body: bytes, header_length: str | None, model: str, version: str
) -> tuple[grpc_service_pb2.ModelInferRequest, dict[str, bool]]:
    """Returns a request, and which outputs come back as bytes: by name, "" for those that are not named.

    Args:
        body: JSON, and the bytes of tensors behind it.
        header_length: Length of the JSON as the header says, or None where everything is JSON.
        model: Name of the model.
        version: Its version, or empty.

    Raises:
        InvalidArgumentError: It is no request of this protocol.
    """
    text, tail = _split(body, header_length)
    told = json_from_body(text)
    parameters = dict(_object(told.get("parameters", {}), "parameters"))
    binary = {"": _flag(parameters.pop(ALL_BINARY, False), f"parameters.{ALL_BINARY}")}
    request = grpc_service_pb2.ModelInferRequest(
        model_name=model, model_version=version, id=_text(told.get("id", ""), "id")
    )
    _fill_parameters(request.parameters, parameters, "parameters")
    for index, each in enumerate(_list(told.get("inputs", []), "inputs")):
        tail = _add_input(request, _object(each, f"inputs[{index}]"), tail, f"inputs[{index}]")
    if len(tail):
        raise InvalidArgumentError(
            f"Expected as many bytes behind the JSON as the inputs say. Received: {len(tail)} bytes more.", "body"
        )
    for index, each in enumerate(_list(told.get("outputs", []), "outputs")):
        field = f"outputs[{index}]"
        output = _object(each, field)
        wishes = dict(_object(output.get("parameters", {}), f"{field}.parameters"))
        name = _text(output.get("name", ""), f"{field}.name")
        binary[name] = _flag(wishes.pop(BINARY, binary[""]), f"{field}.parameters.{BINARY}")
        _fill_parameters(request.outputs.add(name=name).parameters, wishes, f"{field}.parameters")
    return request, binary


def infer_from_bytes(
    body: bytes, metadata: grpc_service_pb2.ModelMetadataResponse, version: str
) -> tuple[grpc_service_pb2.ModelInferRequest, dict[str, bool]]:
    """Returns a request whose body is the bytes of the only input; its outputs come back as bytes.

    Args:
        body: Bytes of the input: of one element of the batch, whose shape is known but for one side at most.
        metadata: What the model takes.
        version: Its version, or empty.

    Raises:
        InvalidArgumentError: The shape cannot be told from the number of bytes.
    """
    if len(metadata.inputs) != 1:
        raise InvalidArgumentError(
            f"Expected a model with one input for a body without JSON. Received: {len(metadata.inputs)} inputs. Send "
            "JSON and its length in Inference-Header-Content-Length.",
            "body",
        )
    info = metadata.inputs[0]
    shape = list(info.shape)
    # The first free side is the batch; a body without JSON is one element of it.
    if shape.count(-1) > 1:
        shape[shape.index(-1)] = 1
    if info.datatype == BYTES:
        parts, sides = [len(body).to_bytes(4, "little"), body], 1
    else:
        parts, sides = [body], max(len(body) // DTYPES[info.datatype].itemsize, 1)
    known = math.prod(side for side in shape if side != -1)
    if shape.count(-1) == 1:
        shape[shape.index(-1)] = max(sides // known, 1)
    request = grpc_service_pb2.ModelInferRequest(
        model_name=metadata.name, model_version=version, raw_input_contents=[b"".join(parts)]
    )
    request.inputs.add(name=info.name, datatype=info.datatype, shape=shape)
    return request, {"": True}


def infer_to_body(
    response: grpc_service_pb2.ModelInferResponse, binary: Mapping[str, bool]
) -> tuple[bytes, int | None]:
    """Returns the body of a response, and the length of its JSON where bytes stand behind it.

    Raises:
        InvalidArgumentError: An output has no form in JSON.
    """
    told: dict[str, Json] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        told["id"] = response.id
    told["outputs"] = outputs = []
    tails = []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        entry: dict[str, Json] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        outputs.append(entry)
        if REGION in output.parameters:
            entry["parameters"] = parameters_to_json(output.parameters)
        elif binary.get(output.name, binary[""]):
            entry["parameters"] = {BINARY_SIZE: len(raw)}
            tails.append(raw)
        else:
            entry["data"] = _json_data(raw, output.datatype, list(output.shape), output.name)
    # A header tells where the bytes begin, also where they are none, as clients look for it by it.
    text = orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)
    has_bytes = any(BINARY_SIZE in each.get("parameters", {}) for each in outputs)
    return (b"".join((text, *tails)), len(text)) if has_bytes else (text, None)


def message_to_json(message: Message) -> dict[str, Json]:
    """Returns all fields of a message by the names that they have in the protocol, those at rest, too."""
    told: dict[str, Json] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            told[field.name] = {str(key): _json(each, None) for key, each in value.items()}
        elif field.is_repeated:
            told[field.name] = [_json(each, field) for each in value]
        elif not field.has_presence or message.HasField(field.name):
            told[field.name] = _json(value, field)
    return told


def load_from_json(model: str, told: Mapping[str, Json]) -> grpc_service_pb2.RepositoryModelLoadRequest:
    """Returns a request to load a model; files are in base64.

    Raises:
        InvalidArgumentError: It is no request of this protocol.
    """
    request = grpc_service_pb2.RepositoryModelLoadRequest(model_name=model)
    for name, value in _object(told.get("parameters", {}), "parameters").items():
        text = _text(value, f"parameters.{name[:100]}")
        if not name.startswith(FILE_PREFIX):
            request.parameters[name].string_param = text
            continue
        try:
            request.parameters[name].bytes_param = base64.b64decode(text, validate=True)
        except binascii.Error:
            raise InvalidArgumentError(
                f"Expected the file {name[:100]!r} in base64. Received: {len(text)} other letters.", "parameters"
            ) from None
    return request


def unload_from_json(model: str, told: Mapping[str, Json]) -> grpc_service_pb2.RepositoryModelUnloadRequest:
    """Returns a request to unload a model.

    Raises:
        InvalidArgumentError: It is no request of this protocol.
    """
    request = grpc_service_pb2.RepositoryModelUnloadRequest(model_name=model)
    for name, value in _object(told.get("parameters", {}), "parameters").items():
        request.parameters[name].bool_param = _flag(value, f"parameters.{name[:100]}")
    return request


def index_from_json(told: Mapping[str, Json]) -> grpc_service_pb2.RepositoryIndexRequest:
    """Returns a request for the index of the repository."""
    return grpc_service_pb2.RepositoryIndexRequest(ready=_flag(told.get("ready", False), "ready"))


def region_from_json(name: str, told: Mapping[str, Json]) -> grpc_service_pb2.SystemSharedMemoryRegisterRequest:
    """Returns a request to register a region of shared memory.

    Raises:
        InvalidArgumentError: It is no request of this protocol.
    """
    return grpc_service_pb2.SystemSharedMemoryRegisterRequest(
        name=name,
        key=_text(told.get("key", ""), "key"),
        offset=_whole(told.get("offset", 0), "offset", 0, _MAX_UINT64),
        byte_size=_whole(told.get("byte_size", 0), "byte_size", 0, _MAX_UINT64),
    )


def trace_from_json(model: str, told: Mapping[str, Json]) -> grpc_service_pb2.TraceSettingRequest:
    """Returns a request to change what is traced; null puts a setting back.

    Raises:
        InvalidArgumentError: It is no request of this protocol.
    """
    request = grpc_service_pb2.TraceSettingRequest(model_name=model)
    for name, value in told.items():
        values = [] if value is None else value if isinstance(value, list) else [value]
        texts = [_text(str(each) if type(each) is int else each, f"{name[:100]}") for each in values]
        request.settings[name].value.extend(texts)
    return request


def trace_to_json(response: grpc_service_pb2.TraceSettingResponse) -> dict[str, Json]:
    """Returns what is traced; the levels are a list, everything else is text."""
    return {
        name: list(each.value) if name == "trace_level" else "".join(each.value)
        for name, each in response.settings.items()
    }


def log_from_json(told: Mapping[str, Json]) -> grpc_service_pb2.LogSettingsRequest:
    """Returns a request to change what is logged.

    Raises:
        InvalidArgumentError: It is no request of this protocol.
    """
    request = grpc_service_pb2.LogSettingsRequest()
    for name, value in told.items():
        if isinstance(value, bool):
            request.settings[name].bool_param = value
        elif isinstance(value, int):
            request.settings[name].uint32_param = _whole(value, name[:100], 0, _MAX_UINT32)
        else:
            request.settings[name].string_param = _text(value, name[:100])
    return request


def parameters_to_json(parameters: Any) -> dict[str, Json]:
    """Returns parameters, or settings, whose values are one of several types."""
    return {name: getattr(each, each.WhichOneof("parameter_choice")) for name, each in parameters.items()}


def to_body(value: Json) -> bytes:
    """Returns JSON."""
    return orjson.dumps(value)


def _json(value: Any, field: Any) -> Json:
    if isinstance(value, Message):
        return message_to_json(value)
    if field is not None and field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _split(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    if header_length is None:
        return body, memoryview(b"")
    if not header_length.isascii() or not header_length.isdigit() or not 0 < int(header_length) <= len(body):
        raise InvalidArgumentError(
            f"Expected the length of the JSON, 1 to {len(body)}, in the header Inference-Header-Content-Length. "
            f"Received: {header_length[:50]!r}.",
            "Inference-Header-Content-Length",
        )
    length = int(header_length)
    return body[:length], memoryview(body)[length:]


def _add_input(
    request: grpc_service_pb2.ModelInferRequest, told: Mapping[str, Json], tail: memoryview, field: str
) -> memoryview:
    """Adds an input to a request; returns what is left of the bytes behind the JSON."""
    shape = [
        _whole(each, f"{field}.shape", -_MAX_INT64, _MAX_INT64) for each in _list(told.get("shape"), f"{field}.shape")
    ]
    datatype = _text(told.get("datatype", ""), f"{field}.datatype")
    parameters = dict(_object(told.get("parameters", {}), f"{field}.parameters"))
    size = parameters.pop(BINARY_SIZE, None)
    tensor = request.inputs.add(name=_text(told.get("name", ""), f"{field}.name"), datatype=datatype, shape=shape)
    _fill_parameters(tensor.parameters, parameters, f"{field}.parameters")
    given = [name for name, there in (("data", "data" in told), (BINARY_SIZE, size is not None)) if there]
    if REGION in parameters:
        given.append(REGION)
    if len(given) != 1:
        raise InvalidArgumentError(
            f"Expected exactly one of data, {BINARY_SIZE} and {REGION} for an input. Received: {given or 'none'}.",
            field,
        )
    if size is not None:
        length = _whole(size, f"{field}.parameters.{BINARY_SIZE}", 0, len(tail))
        request.raw_input_contents.append(bytes(tail[:length]))
        return tail[length:]
    if "data" in told:
        request.raw_input_contents.append(_raw_data(told["data"], datatype, shape, f"{field}.data"))
    return tail


def _raw_data(data: Json, datatype: str, shape: Sequence[int], field: str) -> bytes:
    """Returns the bytes of a tensor that was written in JSON, nested or not."""
    flat = _list(data, field)
    while flat and isinstance(flat[0], list):
        if set(map(type, flat)) != {list}:
            raise InvalidArgumentError("Expected lists of one depth. Received: lists beside elements.", field)
        flat = list(itertools.chain.from_iterable(flat))
    if datatype in ("FP16", BF16) or datatype not in DTYPES:
        raise InvalidArgumentError(
            f"Expected a data type with a form in JSON. Received: {datatype[:50]!r}. Send its bytes behind the JSON.",
            field,
        )
    # Counted before anything is made of it; each side is compared with the model later.
    if len(flat) != math.prod(shape):
        raise InvalidArgumentError(
            f"Expected the elements of the shape {list(shape)[:8]}. Received: {len(flat)}.", field
        )
    types = set(map(type, flat))
    dtype = DTYPES[datatype]
    expected = frozenset({str}) if datatype == BYTES else _JSON_TYPES.get(dtype.kind, _WHOLE_NUMBERS)
    if not types <= expected:
        raise InvalidArgumentError(
            f"Expected elements of {datatype}. Received: {sorted(each.__name__ for each in types)[:5]}.", field
        )
    try:
        return tensor_to_bytes(np.array(flat, dtype), datatype)
    except OverflowError:
        raise InvalidArgumentError(f"Expected values that fit into {datatype}. Received: larger ones.", field) from None


def _json_data(raw: bytes, datatype: str, shape: list[int], name: str) -> Tensor | list[str]:
    if datatype == BF16:
        raise InvalidArgumentError(
            f"Expected outputs with a form in JSON. Received: {name} of BF16. Ask for binary_data.", "outputs"
        )
    values = tensor_from_bytes(raw, datatype, shape, "outputs").ravel()
    if datatype == BYTES:
        return [each.decode(errors="replace") for each in values]
    return values.astype(np.float32) if datatype == "FP16" else np.ascontiguousarray(values)


def _fill_parameters(parameters: Any, told: Mapping[str, Json], field: str) -> None:
    for name, value in told.items():
        where = f"{field}.{name[:100]}"
        if isinstance(value, bool):
            parameters[name].bool_param = value
        elif isinstance(value, int):
            parameters[name].int64_param = _whole(value, where, -_MAX_INT64, _MAX_INT64)
        elif isinstance(value, float):
            parameters[name].double_param = value
        else:
            parameters[name].string_param = _text(value, where)


def _object(value: Json, field: str) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"Expected a JSON object. Received: {type(value).__name__}.", field)
    return value


def _list(value: Json, field: str) -> list[Json]:
    if not isinstance(value, list):
        raise InvalidArgumentError(f"Expected a list. Received: {type(value).__name__}.", field)
    return value


def _text(value: Json, field: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgumentError(f"Expected a text. Received: {type(value).__name__}.", field)
    return value


def _flag(value: Json, field: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"Expected true or false. Received: {type(value).__name__}.", field)
    return value


def _whole(value: Json, field: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise InvalidArgumentError(f"Expected a whole number of {least} to {most}. Received: {str(value)[:50]}.", field)
    return value
