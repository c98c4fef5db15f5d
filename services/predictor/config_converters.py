"""Between `config.pbtxt`, or the JSON form of it, and how a model is served.

Every field of the published schema is followed, told to be without effect, or refused: none is passed over in silence.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format
from inference import model_config_pb2

from services.common.errors import InvalidArgumentError
from services.common.model_repository import CONFIG_FILE
from services.predictor.model_config import (
    CUDA,
    OPENVINO,
    TENSORRT,
    Execution,
    QueuePolicy,
    Scheduling,
    ServingConfig,
    VersionPolicy,
    Warmup,
    WarmupInput,
)
from services.predictor.tensors import TensorInfo

PLATFORM, BACKEND, MODEL_FILE = "onnxruntime_onnx", "onnxruntime", "model.onnx"
DEFAULT_MAX_BATCH_SIZE = 4
"""Batch size of a model whose graph takes batches and whose configuration says nothing."""
MAX_LABEL_BYTES = 1 << 20

_PLAIN_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,126}")
_DATATYPES = {"STRING": "BYTES"}

FOLLOWED = frozenset(
    [
        "name",
        "platform",
        "backend",
        "max_batch_size",
        "default_model_filename",
        "metric_tags",
        "parameters",
        "version_policy.latest.num_versions",
        "version_policy.all",
        "version_policy.specific.versions",
        "input.name",
        "input.data_type",
        "input.dims",
        "input.reshape",
        "output.name",
        "output.data_type",
        "output.dims",
        "output.reshape",
        "output.label_filename",
        "optimization.graph.level",
        "optimization.execution_accelerators.gpu_execution_accelerator",
        "optimization.execution_accelerators.cpu_execution_accelerator",
        "dynamic_batching.preferred_batch_size",
        "dynamic_batching.max_queue_delay_microseconds",
        "dynamic_batching.preserve_ordering",
        "dynamic_batching.priority_levels",
        "dynamic_batching.default_priority_level",
        "dynamic_batching.default_queue_policy",
        "dynamic_batching.priority_queue_policy",
        "instance_group.name",
        "instance_group.kind",
        "instance_group.count",
        "instance_group.gpus",
        "model_warmup",
        "response_cache.enable",
    ]
)
"""Fields that are done as they say. Fields inside them are, too."""

WITHOUT_EFFECT: Mapping[str, str] = {
    "input.format": "the graph itself knows the order of its dimensions",
    "optimization.priority": "models take turns, whatever their priority; requests can have one",
    "optimization.cuda": "CUDA graphs are an option of the accelerator named cuda here",
    "optimization.input_pinned_memory": "onnxruntime moves the tensors",
    "optimization.output_pinned_memory": "onnxruntime moves the tensors",
    "optimization.gather_kernel_buffer_threshold": "onnxruntime moves the tensors",
    "optimization.eager_batching": "batches are made when a thread is free",
    "model_metrics": "the latency histogram has the same bounds for all models",
}
"""Fields that a model is served without, and why; each use is logged."""

REFUSED: Mapping[str, str] = {
    "runtime": "there is one runtime, onnxruntime",
    "batch_input": "graphs get the inputs that callers send",
    "batch_output": "graphs give the outputs that callers get",
    "sequence_batching": "there are no models with a state here",
    "ensemble_scheduling": "there are no ensembles here; put the steps into one graph, or call the models in turn",
    "cc_model_filenames": "one file serves every GPU; name it in default_model_filename",
    "model_operations": "libraries of custom operators are not loaded",
    "model_transaction_policy.decoupled": "each request has exactly one answer",
    "model_repository_agents": "no program acts when a model is loaded",
}
"""Fields that a model is not served with, and why."""

_REFUSED_INSIDE = {
    "instance_group": "instances differ in count and kind alone",
    "input": "an input is a plain tensor that each request brings",
    "output": "an output is a plain tensor",
}

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

logger = logging.getLogger(__name__)


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
    """

    message: model_config_pb2.ModelConfig
    model_file: str
    version_policy: VersionPolicy
    execution: Execution
    labels: Mapping[str, tuple[str, ...]]
    canary: Mapping[str, int]


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
        raise _wrong(name, f"a configuration that the published schema knows in {where}", str(error)[:300]) from None
    _check_fields(name, message)
    _check_names(name, message)
    model_file = message.default_model_filename or MODEL_FILE
    if not _PLAIN_FILE.fullmatch(model_file):
        raise _wrong(name, "a plain file name in default_model_filename", repr(model_file[:100]))
    return WrittenConfig(
        message=message,
        model_file=model_file,
        version_policy=_version_policy(name, message),
        execution=_execution(name, message),
        labels={
            each.name: _labels(name, folder, each.label_filename) for each in message.output if each.label_filename
        },
        canary={
            field: _parameter(name, f"{_CANARY_PREFIX}{field}", message, least, most)
            for field, (least, most) in _CANARY_LIMITS.items()
            if f"{_CANARY_PREFIX}{field}" in message.parameters
        },
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
            raise _wrong(name, "max_batch_size of at least 1 beside dynamic_batching", "0, and a graph without a batch")
    if message.version_policy.WhichOneof("policy_choice") is None:
        message.version_policy.latest.num_versions = 1
    _complete_tensors(name, message.input, inputs, message.max_batch_size, whole=True)
    _complete_tensors(name, message.output, outputs, message.max_batch_size, whole=False)
    batch = (-1,) if message.max_batch_size else ()
    return ServingConfig(
        message=message.SerializeToString(),
        max_batch_size=message.max_batch_size,
        inputs=tuple(TensorInfo(each.name, _datatype(each.data_type), (*batch, *each.dims)) for each in message.input),
        outputs=tuple(
            TensorInfo(each.name, _datatype(each.data_type), (*batch, *each.dims)) for each in message.output
        ),
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


def _check_fields(name: str, message: model_config_pb2.ModelConfig) -> None:
    """Refuses what is not done and tells what is without effect."""
    for path in sorted(set(_used_fields(message))):
        if path in WITHOUT_EFFECT:
            logger.warning(
                "a field of a model's configuration has no effect",
                extra={"model": name, "field": path, "reason": WITHOUT_EFFECT[path]},
            )
        elif path not in FOLLOWED:
            reason = REFUSED.get(path) or _REFUSED_INSIDE.get(path.split(".")[0], "it is not followed here")
            raise InvalidArgumentError(
                f"Expected a configuration of {name} that this server can follow. Received: {path}, but {reason}. "
                "Remove the field.",
                field=path,
                reason="UNSUPPORTED_CONFIG",
            )


def _used_fields(message: Any, prefix: str = "") -> Iterator[str]:
    """Yields the paths of the fields that are set, down to those that the tables name."""
    for descriptor, value in message.ListFields():
        path = f"{prefix}{descriptor.name}"
        if descriptor.message_type is None or path in FOLLOWED or path in WITHOUT_EFFECT or path in REFUSED:
            yield path
        else:
            for each in value if descriptor.is_repeated else [value]:
                yield from _used_fields(each, f"{path}.")


def _check_names(name: str, message: model_config_pb2.ModelConfig) -> None:
    if message.name not in ("", name):
        raise _wrong(name, f"the name of the model's folder, {name!r}, or none, in name", repr(message.name[:100]))
    if message.platform not in ("", PLATFORM):
        raise _wrong(name, f"the platform {PLATFORM!r} or none", repr(message.platform[:100]))
    if message.backend not in ("", BACKEND):
        raise _wrong(name, f"the backend {BACKEND!r} or none", repr(message.backend[:100]))
    if message.max_batch_size < 0:
        raise _wrong(name, "max_batch_size of at least 0", str(message.max_batch_size))


def _version_policy(name: str, message: model_config_pb2.ModelConfig) -> VersionPolicy:
    policy = message.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(latest=0)
    if choice == "specific":
        versions = tuple(policy.specific.versions)
        if not versions or min(versions) < 1:
            raise _wrong(name, "versions above 0 in version_policy.specific", str(list(versions)[:10]))
        return VersionPolicy(latest=0, specific=versions)
    return VersionPolicy(latest=policy.latest.num_versions or 1)


def _execution(name: str, message: model_config_pb2.ModelConfig) -> Execution:
    level = message.optimization.graph.level
    if level not in (-1, 0, 1, 2):
        raise _wrong(name, "an optimization.graph.level of -1, 0, 1 or 2", str(level))
    execution = Execution(graph_level=level)
    execution = _with_parameters(name, execution, message)
    groups = message.instance_group
    kinds = {each.kind for each in groups}
    kind = model_config_pb2.ModelInstanceGroup
    if kind.KIND_MODEL in kinds or len(kinds) > 1:
        raise _wrong(
            name,
            "instance groups that are all of KIND_CPU, all of KIND_GPU or all of KIND_AUTO",
            str(sorted(kind.Kind.Name(each) for each in kinds)),
        )
    devices = {each for group in groups for each in group.gpus}
    if len(devices) > 1 or any(each.count < 0 for each in groups):
        raise _wrong(
            name, "instances on one GPU, at least 0 of them (run a predictor a GPU)", f"GPUs {sorted(devices)}"
        )
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
            logger.warning(
                "a field of a model's configuration has no effect",
                extra={"model": name, "field": f"parameters.{key}", "reason": "this server has no such parameter"},
            )
            continue
        set_to, most = _EXECUTION_PARAMETERS[key]
        execution = set_to(execution, _parameter(name, key, message, 0, most))
    return replace(execution, accelerators=((CUDA, cuda),)) if cuda else execution


def _parameter(name: str, key: str, message: model_config_pb2.ModelConfig, least: int, most: int) -> int:
    value = message.parameters[key].string_value
    if not re.fullmatch(r"[0-9]{1,7}", value) or not least <= int(value) <= most:
        raise _wrong(name, f"a whole number of {least} to {most} in parameters.{key}", repr(value[:50]))
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
        raise _wrong(name, f"an execution accelerator out of {list(known)}", repr(accelerator.name[:50]))
    options = dict(accelerator.parameters)
    if accelerator.name == "tensorrt":
        precision = options.pop("precision_mode", "FP32")
        flags = {"FP32": {}, "FP16": {"trt_fp16_enable": "1"}, "INT8": {"trt_int8_enable": "1"}}
        options = {_TENSORRT_NAMES.get(key, key): value for key, value in options.items()}
        if precision not in flags or not all(key.startswith("trt_") for key in options):
            raise _wrong(
                name,
                "a precision_mode of FP32, FP16 or INT8 and options of TensorRT",
                f"{precision[:20]!r} and {sorted(options)[:10]}",
            )
        options |= flags[precision]
    return _PROVIDERS[accelerator.name], options


def _labels(name: str, folder: Path, file: str) -> tuple[str, ...]:
    if not _PLAIN_FILE.fullmatch(file):
        raise _wrong(name, "a plain file name in label_filename", repr(file[:100]))
    path = folder / file
    try:
        if path.stat().st_size > MAX_LABEL_BYTES:
            raise _wrong(name, f"at most {MAX_LABEL_BYTES} bytes of labels in {file}", str(path.stat().st_size))
        return tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise _wrong(name, f"a file {file} with a label a line", type(error).__name__) from None


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
            told.add(name=info.name, data_type=_type_number(info.datatype), dims=dims)
    names = [each.name for each in told]
    known = {each.name: each for each in graph}
    wrong = set(names) != set(known) if whole else not set(names) <= set(known)
    if wrong or len(set(names)) != len(names):
        raise _wrong(name, f"the {kind}s of the graph, {sorted(known)[:20]}, each once", str(names[:20]))
    for each in told:
        info = known[each.name]
        expected = info.shape[1:] if max_batch_size else info.shape
        if max_batch_size and (not info.shape or info.shape[0] != -1):
            raise _wrong(
                name,
                f"a max_batch_size of 0, because {each.name} of the graph has no free first dimension",
                str(max_batch_size),
            )
        if not each.data_type:
            each.data_type = _type_number(info.datatype)
        if _datatype(each.data_type) != info.datatype:
            raise _wrong(name, f"the data type of {each.name} as TYPE_{info.datatype}", _datatype(each.data_type))
        inner = _inner(each)
        if len(inner) != len(expected) or any(
            # What the graph leaves open, the configuration may fix; never the other way round.
            side not in (own, -1)
            for own, side in zip(inner, expected, strict=True)
        ):
            raise _wrong(name, f"dimensions of {each.name} that fit the graph's {list(expected)}", str(list(inner)))
        if each.HasField("reshape") and not _same_elements(each.dims, inner):
            raise _wrong(name, f"a reshape of {each.name} with the elements of {list(each.dims)}", str(list(inner)))


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
        raise _wrong(name, f"a preferred_batch_size of 1 to {message.max_batch_size}", str(list(preferred)))
    levels, level = batching.priority_levels, batching.default_priority_level
    if levels and not 1 <= level <= levels:
        raise _wrong(name, f"a default_priority_level of 1 to {levels}", str(level))
    if not all(1 <= each <= levels for each in batching.priority_queue_policy):
        raise _wrong(
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
        raise _wrong(name, f"a batch_size of 1 to {message.max_batch_size} in model_warmup", str(batch))
    inputs = {}
    for key, each in warmup.inputs.items():
        data = {"zero_data": "zero", "random_data": "random"}.get(each.WhichOneof("input_data_type") or "zero_data", "")
        if not data:
            data = each.input_data_file
            if not _PLAIN_FILE.fullmatch(data):
                raise _wrong(name, "a plain file name in model_warmup", repr(data[:100]))
        if any(side < 1 for side in each.dims):
            raise _wrong(name, f"dimensions above 0 of {key} in model_warmup", str(list(each.dims)))
        inputs[key] = WarmupInput(_datatype(each.data_type), tuple(each.dims), data)
    if set(inputs) != {each.name for each in message.input}:
        raise _wrong(name, f"all inputs, {[each.name for each in message.input]}, in model_warmup", str(sorted(inputs)))
    return Warmup(warmup.name, batch, warmup.count or 1, inputs)


def _datatype(number: int) -> str:
    text = model_config_pb2.DataType.Name(number).removeprefix("TYPE_")  # type: ignore[arg-type]
    return _DATATYPES.get(text, text)


def _type_number(datatype: str) -> int:
    names = {theirs: ours for ours, theirs in _DATATYPES.items()}
    return model_config_pb2.DataType.Value(f"TYPE_{names.get(datatype, datatype)}")


def _wrong(name: str, expected: str, received: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"Expected for the model {name} {expected}. Received: {received}. Correct its {CONFIG_FILE}.",
        field=CONFIG_FILE,
        reason="BAD_CONFIG",
    )
