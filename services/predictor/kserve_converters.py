"""Between the wire and what the predictor works with: all of the open inference protocol but inference itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from inference import grpc_service_pb2

from services.common.errors import InvalidArgumentError
from services.predictor.config_converters import config_from_bytes
from services.predictor.log_settings import Value
from services.predictor.model_server import IndexEntry, LoadedModel
from services.predictor.model_sources import FILE_PREFIX
from services.predictor.shared_memory import Region
from services.predictor.statistics import Durations
from services.predictor.tensors import TensorInfo

UNLOAD_DEPENDENTS = "unload_dependents"

_MAX_VERSION = 999_999_999


def version_from_text(text: str) -> int:
    """Returns the version that a text names; 0 for an empty one, which means the newest that serves.

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


def metadata_to_proto(model: LoadedModel, versions: Sequence[int]) -> grpc_service_pb2.ModelMetadataResponse:
    """Returns what a model takes and answers.

    Args:
        model: The version asked for.
        versions: All versions of it that serve.
    """

    def tensors(infos: Sequence[TensorInfo]) -> list[grpc_service_pb2.ModelMetadataResponse.TensorMetadata]:
        tensor = grpc_service_pb2.ModelMetadataResponse.TensorMetadata
        return [tensor(name=each.name, datatype=each.datatype, shape=each.shape) for each in infos]

    config = model.session.config
    return grpc_service_pb2.ModelMetadataResponse(
        name=model.name,
        versions=[str(each) for each in sorted(versions)],
        platform=config_from_bytes(config.message).platform,
        inputs=tensors(config.inputs),
        outputs=tensors(config.outputs),
    )


def config_to_proto(model: LoadedModel) -> grpc_service_pb2.ModelConfigResponse:
    """Returns how a model is served, completed from its graph."""
    return grpc_service_pb2.ModelConfigResponse(config=config_from_bytes(model.session.config.message))


def index_to_proto(entries: Sequence[IndexEntry]) -> grpc_service_pb2.RepositoryIndexResponse:
    """Returns the index of the model repository."""
    entry = grpc_service_pb2.RepositoryIndexResponse.ModelIndex
    return grpc_service_pb2.RepositoryIndexResponse(
        models=[
            entry(name=each.name, version=str(each.version), state=each.state.value, reason=each.reason)
            for each in entries
        ]
    )


def load_parameters_from_proto(
    request: grpc_service_pb2.RepositoryModelLoadRequest,
) -> tuple[str, dict[str, bytes]]:
    """Returns the configuration and the files that a caller sends along: JSON, or empty, and contents by path.

    Raises:
        InvalidArgumentError: There is no such parameter, or it is of another type.
    """
    override, files = "", {}
    for name, parameter in request.parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if name == "config" and choice == "string_param":
            override = parameter.string_param
        elif name.startswith(FILE_PREFIX) and choice == "bytes_param":
            files[name.removeprefix(FILE_PREFIX)] = parameter.bytes_param
        else:
            raise InvalidArgumentError(
                f"Expected the parameter config with a string, or {FILE_PREFIX}<version>/<file> with bytes. "
                f"Received: {name[:100]!r} with {choice or 'nothing'}.",
                "parameters",
            )
    if "config" in request.parameters and not override:
        raise InvalidArgumentError("Expected a configuration in the parameter config. Received: none.", "parameters")
    return override, files


def unload_parameters_from_proto(request: grpc_service_pb2.RepositoryModelUnloadRequest) -> bool:
    """Returns whether the models of an ensemble are to be unloaded with it.

    Raises:
        InvalidArgumentError: There is no such parameter, or it is of another type.
    """
    for name, parameter in request.parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if name != UNLOAD_DEPENDENTS or choice != "bool_param":
            raise InvalidArgumentError(
                f"Expected no parameter but {UNLOAD_DEPENDENTS} with a truth value. Received: {name[:100]!r} with "
                f"{choice or 'nothing'}.",
                "parameters",
            )
    return UNLOAD_DEPENDENTS in request.parameters and request.parameters[UNLOAD_DEPENDENTS].bool_param


def statistics_to_proto(model: LoadedModel) -> grpc_service_pb2.ModelStatistics:
    """Returns what a model has done since it was loaded."""
    done = model.statistics

    def duration(each: Durations) -> grpc_service_pb2.StatisticDuration:
        return grpc_service_pb2.StatisticDuration(count=each.count, ns=int(each.seconds * 1e9))

    return grpc_service_pb2.ModelStatistics(
        name=model.name,
        version=str(model.version),
        last_inference=done.last_inference_ms,
        inference_count=done.wafers,
        execution_count=done.executions,
        inference_stats=grpc_service_pb2.InferStatistics(
            success=duration(Durations(done.successes, done.success_seconds)),
            fail=duration(Durations(done.failures, done.failure_seconds)),
            queue=duration(done.queue),
            compute_input=duration(done.compute_input),
            compute_infer=duration(done.compute_infer),
            compute_output=duration(done.compute_output),
            cache_hit=duration(done.cache_hits),
            cache_miss=duration(done.cache_misses),
        ),
        batch_stats=[
            grpc_service_pb2.InferBatchStatistics(
                batch_size=size,
                compute_input=duration(each.compute_input),
                compute_infer=duration(each.compute_infer),
                compute_output=duration(each.compute_output),
            )
            for size, each in sorted(done.batches.items())
        ],
    )


def regions_to_proto(regions: Sequence[Region]) -> grpc_service_pb2.SystemSharedMemoryStatusResponse:
    """Returns the registered regions."""
    status = grpc_service_pb2.SystemSharedMemoryStatusResponse.RegionStatus
    return grpc_service_pb2.SystemSharedMemoryStatusResponse(
        regions={
            each.name: status(name=each.name, key=each.key, offset=each.offset, byte_size=each.byte_size)
            for each in regions
        }
    )


def trace_changes_from_proto(request: grpc_service_pb2.TraceSettingRequest) -> dict[str, list[str]]:
    """Returns the trace settings that a request changes."""
    return {name: list(each.value) for name, each in request.settings.items()}


def trace_to_proto(settings: Mapping[str, Sequence[str]]) -> grpc_service_pb2.TraceSettingResponse:
    """Returns the trace settings."""
    value = grpc_service_pb2.TraceSettingResponse.SettingValue
    return grpc_service_pb2.TraceSettingResponse(
        settings={name: value(value=values) for name, values in settings.items()}
    )


def log_changes_from_proto(request: grpc_service_pb2.LogSettingsRequest) -> dict[str, Value]:
    """Returns the log settings that a request changes.

    Raises:
        InvalidArgumentError: A setting has no value.
    """
    changes: dict[str, Value] = {}
    for name, each in request.settings.items():
        choice = each.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidArgumentError(f"Expected a value of {name[:50]!r}. Received: none.", f"settings.{name[:50]}")
        changes[name] = getattr(each, choice)
    return changes


def log_to_proto(settings: Mapping[str, Value]) -> grpc_service_pb2.LogSettingsResponse:
    """Returns the log settings."""
    response = grpc_service_pb2.LogSettingsResponse()
    for name, value in settings.items():
        kind = "bool_param" if isinstance(value, bool) else "uint32_param" if isinstance(value, int) else "string_param"
        setattr(response.settings[name], kind, value)
    return response
