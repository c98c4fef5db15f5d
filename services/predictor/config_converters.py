"""Between `config.pbtxt`, or the JSON form of it, and how a model is served."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from inference import model_config_pb2

from services.common.model_repository import CONFIG_FILE
from services.predictor.config_fields import (
    PLAIN_FILE,
    check_fields,
    datatype_of,
    tell_without_effect,
    tensor_infos,
    type_number,
    wrong,
)
from services.predictor.ensemble_config import ENSEMBLE, stages_of
from services.predictor.model_config import (
    CUDA,
    OPENVINO,
    TENSORRT,
    Execution,
    QueuePolicy,
    Scheduling,
    ServingConfig,
    Stages,
    VersionPolicy,
    Warmup,
    WarmupInput,
)
from services.predictor.tensors import TensorInfo

PLATFORM, BACKEND, MODEL_FILE = "onnxruntime_onnx", "onnxruntime", "model.onnx"
DEFAULT_MAX_BATCH_SIZE = 4
"""Batch size of a model whose graph takes batches and whose configuration says nothing."""
MAX_LABEL_BYTES = 1 << 20

_CUDA_PARAMETERS = {
    "cudnn_conv_algo_search": {"0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT"},
    "gpu_mem_limit": {},
    "arena_extend_strategy": {"0": "kNextPowerOfTwo", "1": "kSameAsRequested"},
    "do_copy_in_default_stream": {},
}
_PROVIDERS = {"tensorrt": TENSORRT, "cuda": CUDA, "openvino": OPENVINO}
_TENSORRT_NAMES = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}


@dataclass(frozen=True, slots=True)
class WrittenConfig:
    """A configuration as it was written, checked as far as that can be done without the graph.

    Attributes:
        message: An `inference.ModelConfig`.
        model_file: Name of the graph's file in a version's folder.
        version_policy: Which versions are served.
        execution: How onnxruntime runs the graph.
        labels: Names of the classes of outputs that have a file of them.
        canary: What it says of how a new version proves itself: fields of `CanaryRules`.
        stages: Steps of an ensemble; none of a model that has a graph.
    """

    message: model_config_pb2.ModelConfig
    model_file: str
    version_policy: VersionPolicy
    execution: Execution
    labels: Mapping[str, tuple[str, ...]]
    canary: Mapping[str, int]
    stages: Stages = ()

    @property
    def members(self) -> list[str]:
        """Names of the models that the steps of an ensemble run, each once."""
        return list(dict.fromkeys(step.model for stage in self.stages for step in stage))


def read_config(name: str, folder: Path, override: str = "") -> WrittenConfig:
    """Reads the configuration of a model; a model without one is described by its graph alone.

    Args:
        name: Name of the model.
        folder: Folder of the model.
        override: JSON form of a configuration that takes the place of the file. Empty: the file is read.

    Raises:
        InvalidArgumentError: It is no configuration, or asks for something that this server does not do.
    """
    message = model_config_pb2.ModelConfig()
    path = folder / CONFIG_FILE
    where = "the parameter config" if override else CONFIG_FILE
    try:
        if override:
            json_format.Parse(override, message)
        elif path.is_file():
            text_format.Parse(path.read_text(), message)
    except (OSError, UnicodeDecodeError, text_format.ParseError, json_format.ParseError) as error:
        raise wrong(name, f"a configuration that the published schema knows in {where}", str(error)[:300]) from None
    check_fields(name, message)
    _check_names(name, message)
    ensemble = message.HasField("ensemble_scheduling")
    model_file = message.default_model_filename or MODEL_FILE
    if not PLAIN_FILE.fullmatch(model_file):
        raise wrong(name, "a plain file name in default_model_filename", repr(model_file[:100]))
    return WrittenConfig(
        message=message,
        model_file=model_file,
        version_policy=_version_policy(name, message),
        execution=_no_execution(name, message) if ensemble else _execution(name, message),
        labels={
            each.name: _labels(name, folder, each.label_filename) for each in message.output if each.label_filename
        },
        canary={
            field: _parameter(name, f"{_CANARY_PREFIX}{field}", message, least, most)
            for field, (least, most) in _CANARY_LIMITS.items()
            if f"{_CANARY_PREFIX}{field}" in message.parameters
        },
        stages=stages_of(name, message) if ensemble else (),
    )


def completed(
    name: str, written: WrittenConfig, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]
) -> ServingConfig:
    """Completes a configuration from the graph.

    Args:
        name: Name of the model.
        written: Configuration as written.
        inputs: Inputs of the graph.
        outputs: Outputs of the graph.

    Raises:
        InvalidArgumentError: Configuration and graph contradict each other.
    """
    message = model_config_pb2.ModelConfig()
    message.CopyFrom(written.message)
    message.name, message.platform, message.backend = name, PLATFORM, BACKEND
    message.default_model_filename = written.model_file
    if message.max_batch_size == 0:
        if _takes_batches(message, inputs, outputs):
            message.max_batch_size = DEFAULT_MAX_BATCH_SIZE
            message.dynamic_batching.SetInParent()
        elif message.HasField("dynamic_batching"):
            raise wrong(name, "max_batch_size of at least 1 beside dynamic_batching", "0, and a graph without a batch")
    if message.version_policy.WhichOneof("policy_choice") is None:
        message.version_policy.latest.num_versions = 1
    _complete_tensors(name, message.input, inputs, message.max_batch_size, whole=True)
    _complete_tensors(name, message.output, outputs, message.max_batch_size, whole=False)
    return ServingConfig(
        message=message.SerializeToString(),
        max_batch_size=message.max_batch_size,
        inputs=tensor_infos(message.input, message.max_batch_size),
        outputs=tensor_infos(message.output, message.max_batch_size),
        reshaped={each.name: tuple(each.reshape.shape) for each in _tensors(message) if each.HasField("reshape")},
        labels=written.labels,
        scheduling=_scheduling(name, message),
        warmups=tuple(_warmup(name, each, message) for each in message.model_warmup),
        response_cache=message.response_cache.enable,
        metric_tags=dict(message.metric_tags),
    )


def config_from_bytes(data: bytes) -> model_config_pb2.ModelConfig:
    """Returns the message of a serving configuration."""
    return model_config_pb2.ModelConfig.FromString(data)


def config_to_json(written: WrittenConfig) -> str:
    """Returns the JSON form of a configuration as it was written."""
    return json_format.MessageToJson(written.message)


def _check_names(name: str, message: model_config_pb2.ModelConfig) -> None:
    if message.name not in ("", name):
        raise wrong(name, f"the name of the model's folder, {name!r}, or none, in name", repr(message.name[:100]))
    ensemble = message.HasField("ensemble_scheduling")
    platform = ENSEMBLE if ensemble else PLATFORM
    if message.platform not in ("", platform):
        beside = "beside" if ensemble else "without"
        raise wrong(
            name, f"the platform {platform!r} or none {beside} ensemble_scheduling", repr(message.platform[:100])
        )
    if message.backend not in ("", BACKEND):
        raise wrong(name, f"the backend {BACKEND!r} or none", repr(message.backend[:100]))
    if message.max_batch_size < 0:
        raise wrong(name, "max_batch_size of at least 0", str(message.max_batch_size))


def _version_policy(name: str, message: model_config_pb2.ModelConfig) -> VersionPolicy:
    policy = message.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(latest=0)
    if choice == "specific":
        versions = tuple(policy.specific.versions)
        if not versions or min(versions) < 1:
            raise wrong(name, "versions above 0 in version_policy.specific", str(list(versions)[:10]))
        return VersionPolicy(latest=0, specific=versions)
    return VersionPolicy(latest=policy.latest.num_versions or 1)


def _execution(name: str, message: model_config_pb2.ModelConfig) -> Execution:
    level = message.optimization.graph.level
    if level not in (-1, 0, 1, 2):
        raise wrong(name, "an optimization.graph.level of -1, 0, 1 or 2", str(level))
    execution = Execution(graph_level=level)
    execution = _with_parameters(name, execution, message)
    groups = message.instance_group
    kinds = {each.kind for each in groups}
    kind = model_config_pb2.ModelInstanceGroup
    if kind.KIND_MODEL in kinds or len(kinds) > 1:
        raise wrong(
            name,
            "instance groups that are all of KIND_CPU, all of KIND_GPU or all of KIND_AUTO",
            str(sorted(kind.Kind.Name(each) for each in kinds)),
        )
    devices = {each for group in groups for each in group.gpus}
    if len(devices) > 1 or any(each.count < 0 for each in groups):
        raise wrong(name, "instances on one GPU, at least 0 of them (run a predictor a GPU)", f"GPUs {sorted(devices)}")
    gpu = {kind.KIND_GPU: True, kind.KIND_CPU: False}.get(next(iter(kinds), kind.KIND_AUTO))
    accelerators = message.optimization.execution_accelerators
    own = [_accelerator(name, each, ("tensorrt", "cuda")) for each in accelerators.gpu_execution_accelerator]
    own += [_accelerator(name, each, ("openvino",)) for each in accelerators.cpu_execution_accelerator]
    return replace(
        execution,
        gpu=gpu,
        device=next(iter(devices), None),
        accelerators=(*own, *execution.accelerators),
    )


def _no_execution(name: str, message: model_config_pb2.ModelConfig) -> Execution:
    """Tells what parameters have no effect on an ensemble, because it has no graph."""
    for key in sorted(set(message.parameters) - {f"{_CANARY_PREFIX}{field}" for field in _CANARY_LIMITS}):
        tell_without_effect(name, f"parameters.{key}", "an ensemble has no graph of its own")
    return Execution()


def _with_parameters(name: str, execution: Execution, message: model_config_pb2.ModelConfig) -> Execution:
    """Adds what `parameters` says; those of other backends are told to be without effect."""
    cuda: dict[str, str] = {}
    for key, parameter in sorted(message.parameters.items()):
        value = parameter.string_value
        if key in _CUDA_PARAMETERS:
            cuda[key] = _CUDA_PARAMETERS[key].get(value, value)
            continue
        if key.removeprefix(_CANARY_PREFIX) in _CANARY_LIMITS and key.startswith(_CANARY_PREFIX):
            continue
        if key not in _EXECUTION_PARAMETERS:
            tell_without_effect(name, f"parameters.{key}", "this server has no such parameter")
            continue
        set_to, most = _EXECUTION_PARAMETERS[key]
        execution = set_to(execution, _parameter(name, key, message, 0, most))
    return replace(execution, accelerators=((CUDA, cuda),)) if cuda else execution


def _parameter(name: str, key: str, message: model_config_pb2.ModelConfig, least: int, most: int) -> int:
    value = message.parameters[key].string_value
    if not re.fullmatch(r"[0-9]{1,7}", value) or not least <= int(value) <= most:
        raise wrong(name, f"a whole number of {least} to {most} in parameters.{key}", repr(value[:50]))
    return int(value)


_CANARY_PREFIX = "canary_"
_CANARY_LIMITS: Mapping[str, tuple[int, int]] = {
    "percent": (0, 99),
    "min_requests": (1, 1_000_000),
    "requests": (1, 1_000_000),
    "max_errors_percent": (0, 100),
    "max_slowdown_percent": (0, 10_000),
}
"""Fields of `CanaryRules` that parameters set, and their limits."""

_EXECUTION_PARAMETERS: Mapping[str, tuple[Callable[[Execution, int], Execution], int]] = {
    "intra_op_thread_count": (lambda execution, number: replace(execution, intra_op_threads=number), 1024),
    "inter_op_thread_count": (lambda execution, number: replace(execution, inter_op_threads=number), 1024),
    "execution_mode": (lambda execution, number: replace(execution, parallel=bool(number)), 1),
    "enable_mem_arena": (lambda execution, number: replace(execution, memory_arena=bool(number)), 1),
    "enable_mem_pattern": (lambda execution, number: replace(execution, memory_pattern=bool(number)), 1),
}
"""What sets a parameter, and its highest value."""


def _accelerator(name: str, accelerator: Any, known: Sequence[str]) -> tuple[str, dict[str, str]]:
    if accelerator.name not in known:
        raise wrong(name, f"an execution accelerator out of {list(known)}", repr(accelerator.name[:50]))
    options = dict(accelerator.parameters)
    if accelerator.name == "tensorrt":
        precision = options.pop("precision_mode", "FP32")
        flags = {"FP32": {}, "FP16": {"trt_fp16_enable": "1"}, "INT8": {"trt_int8_enable": "1"}}
        options = {_TENSORRT_NAMES.get(key, key): value for key, value in options.items()}
        if precision not in flags or not all(key.startswith("trt_") for key in options):
            raise wrong(
                name,
                "a precision_mode of FP32, FP16 or INT8 and options of TensorRT",
                f"{precision[:20]!r} and {sorted(options)[:10]}",
            )
        options |= flags[precision]
    return _PROVIDERS[accelerator.name], options


def _labels(name: str, folder: Path, file: str) -> tuple[str, ...]:
    if not PLAIN_FILE.fullmatch(file):
        raise wrong(name, "a plain file name in label_filename", repr(file[:100]))
    path = folder / file
    try:
        if path.stat().st_size > MAX_LABEL_BYTES:
            raise wrong(name, f"at most {MAX_LABEL_BYTES} bytes of labels in {file}", str(path.stat().st_size))
        return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise wrong(name, f"a file {file} with a label a line", type(error).__name__) from None


def _takes_batches(
    message: model_config_pb2.ModelConfig, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]
) -> bool:
    """Returns whether a batch can be of any size, and the configuration's dimensions leave room for it."""
    graph = {each.name: each.shape for each in (*inputs, *outputs)}
    told = {each.name: _inner(each) for each in _tensors(message)}
    return all(shape and shape[0] == -1 for shape in graph.values()) and all(
        len(dims) < len(graph[each]) for each, dims in told.items() if each in graph
    )


def _tensors(message: model_config_pb2.ModelConfig) -> list[Any]:
    """Returns inputs and outputs, whose messages have the same fields as far as they are followed."""
    return [*message.input, *message.output]


def _complete_tensors(name: str, told: Any, graph: Sequence[TensorInfo], max_batch_size: int, *, whole: bool) -> None:
    """Fills a list of inputs or outputs from the graph, or compares it with the graph."""
    kind = "input" if whole else "output"
    if not told:
        for info in graph:
            dims = info.shape[1:] if max_batch_size else info.shape
            told.add(name=info.name, data_type=type_number(info.datatype), dims=dims)
    names = [each.name for each in told]
    known = {each.name: each for each in graph}
    unfit = set(names) != set(known) if whole else not set(names) <= set(known)
    if unfit or len(set(names)) != len(names):
        raise wrong(name, f"the {kind}s of the graph, {sorted(known)[:20]}, each once", str(names[:20]))
    for each in told:
        info = known[each.name]
        expected = info.shape[1:] if max_batch_size else info.shape
        if max_batch_size and (not info.shape or info.shape[0] != -1):
            raise wrong(
                name,
                f"a max_batch_size of 0, because {each.name} of the graph has no free first dimension",
                str(max_batch_size),
            )
        if not each.data_type:
            each.data_type = type_number(info.datatype)
        if datatype_of(each.data_type) != info.datatype:
            raise wrong(name, f"the data type of {each.name} as TYPE_{info.datatype}", datatype_of(each.data_type))
        inner = _inner(each)
        if len(inner) != len(expected) or any(
            # What the graph leaves open, the configuration may fix; never the other way round.
            side not in (own, -1)
            for own, side in zip(inner, expected, strict=True)
        ):
            raise wrong(name, f"dimensions of {each.name} that fit the graph's {list(expected)}", str(list(inner)))
        if each.HasField("reshape") and not _same_elements(each.dims, inner):
            raise wrong(name, f"a reshape of {each.name} with the elements of {list(each.dims)}", str(list(inner)))


def _same_elements(outer: Sequence[int], inner: Sequence[int]) -> bool:
    return list(outer).count(-1) == list(inner).count(-1) and abs(math.prod(outer)) == abs(math.prod(inner))


def _inner(tensor: Any) -> tuple[int, ...]:
    """Returns the shape inside the graph, without the batch."""
    return tuple(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)


def _scheduling(name: str, message: model_config_pb2.ModelConfig) -> Scheduling:
    instances = sum(each.count or 1 for each in message.instance_group)
    if not message.HasField("dynamic_batching"):
        return Scheduling(dynamic=False, instances=instances)
    batching = message.dynamic_batching
    preferred = tuple(sorted(set(batching.preferred_batch_size)))
    if preferred and not 1 <= preferred[0] <= preferred[-1] <= message.max_batch_size:
        raise wrong(name, f"a preferred_batch_size of 1 to {message.max_batch_size}", str(list(preferred)))
    levels, level = batching.priority_levels, batching.default_priority_level
    if levels and not 1 <= level <= levels:
        raise wrong(name, f"a default_priority_level of 1 to {levels}", str(level))
    if not all(1 <= each <= levels for each in batching.priority_queue_policy):
        raise wrong(
            name,
            f"policies of the priorities 1 to {levels} in priority_queue_policy",
            str(sorted(batching.priority_queue_policy)[:10]),
        )
    return Scheduling(
        preferred=preferred,
        max_delay_us=batching.max_queue_delay_microseconds,
        levels=levels,
        default_level=level if levels else 0,
        default_policy=_policy(batching.default_queue_policy),
        policies={each: _policy(policy) for each, policy in batching.priority_queue_policy.items()},
        instances=instances,
    )


def _policy(policy: model_config_pb2.ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        timeout_us=policy.default_timeout_microseconds,
        delays=policy.timeout_action == model_config_pb2.ModelQueuePolicy.DELAY,
        allow_override=policy.allow_timeout_override,
        max_size=policy.max_queue_size,
    )


def _warmup(name: str, warmup: model_config_pb2.ModelWarmup, message: model_config_pb2.ModelConfig) -> Warmup:
    batch = warmup.batch_size if message.max_batch_size else 0
    if message.max_batch_size and not 1 <= batch <= message.max_batch_size:
        raise wrong(name, f"a batch_size of 1 to {message.max_batch_size} in model_warmup", str(batch))
    inputs = {}
    for key, each in warmup.inputs.items():
        data = {"zero_data": "zero", "random_data": "random"}.get(each.WhichOneof("input_data_type") or "zero_data", "")
        if not data:
            data = each.input_data_file
            if not PLAIN_FILE.fullmatch(data):
                raise wrong(name, "a plain file name in model_warmup", repr(data[:100]))
        if any(side < 1 for side in each.dims):
            raise wrong(name, f"dimensions above 0 of {key} in model_warmup", str(list(each.dims)))
        inputs[key] = WarmupInput(datatype_of(each.data_type), tuple(each.dims), data)
    if set(inputs) != {each.name for each in message.input}:
        raise wrong(name, f"all inputs, {[each.name for each in message.input]}, in model_warmup", str(sorted(inputs)))
    return Warmup(warmup.name, batch, warmup.count or 1, inputs)
