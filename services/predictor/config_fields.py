"""Which fields of `config.pbtxt` are followed, told to be without effect or refused: none is passed over in silence."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from inference import model_config_pb2

from services.common.errors import InvalidArgumentError
from services.common.model_repository import CONFIG_FILE
from services.predictor.tensors import TensorInfo

PLAIN_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,126}")
"""Name of a file in the folder of a model."""

_DATATYPES = {"STRING": "BYTES"}

logger = logging.getLogger(__name__)

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
        "ensemble_scheduling.step.model_name",
        "ensemble_scheduling.step.model_version",
        "ensemble_scheduling.step.input_map",
        "ensemble_scheduling.step.output_map",
    ]
)
"""Fields that are done as they say. Fields inside them are, too."""

FOLLOWED_BY_ENSEMBLES = frozenset(
    path
    for path in FOLLOWED
    if path.startswith(("ensemble_scheduling.", "version_policy.", "input.", "output."))
    or path in ("name", "platform", "max_batch_size", "metric_tags", "parameters")
) - {"input.reshape", "output.reshape"}
"""Those of them that an ensemble can have; all others are about a graph."""

WITHOUT_EFFECT: Mapping[str, str] = {
    "input.format": "the graph itself knows the order of its dimensions",
    "optimization.priority": "models take turns, whatever their priority; requests can have one",
    "optimization.cuda": "CUDA graphs are an option of the accelerator named cuda here",
    "optimization.input_pinned_memory": "onnxruntime moves the tensors",
    "optimization.output_pinned_memory": "onnxruntime moves the tensors",
    "optimization.gather_kernel_buffer_threshold": "onnxruntime moves the tensors",
    "optimization.eager_batching": "batches are made when a thread is free",
    "ensemble_scheduling.max_inflight_requests": "each step has exactly one answer to a request",
    "model_metrics": "the latency histogram has the same bounds for all models",
}
"""Fields that a model is served without, and why; each use is logged."""

REFUSED: Mapping[str, str] = {
    "runtime": "there is one runtime, onnxruntime",
    "batch_input": "graphs get the inputs that callers send",
    "batch_output": "graphs give the outputs that callers get",
    "sequence_batching": "there are no models with a state here",
    "ensemble_scheduling.step.model_namespace": "there is one repository, in which each name comes once",
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


def check_fields(name: str, message: model_config_pb2.ModelConfig) -> None:
    """Refuses what is not done and tells what is without effect.

    Args:
        name: Name of the model.
        message: Its configuration.

    Raises:
        InvalidArgumentError: A field is set that is not followed.
    """
    ensemble = message.HasField("ensemble_scheduling")
    for path in sorted(set(_used_fields(message))):
        reason = REFUSED.get(path) or _REFUSED_INSIDE.get(path.split(".")[0], "it is not followed here")
        if path in WITHOUT_EFFECT:
            tell_without_effect(name, path, WITHOUT_EFFECT[path])
        elif path not in FOLLOWED or (ensemble and path not in FOLLOWED_BY_ENSEMBLES):
            if path in FOLLOWED:
                reason = "an ensemble has no graph of its own; say it in the configurations of the models of its steps"
            raise InvalidArgumentError(
                f"Expected a configuration of {name} that this server can follow. Received: {path}, but {reason}. "
                "Remove the field.",
                field=path,
                reason="UNSUPPORTED_CONFIG",
            )


def tell_without_effect(name: str, path: str, reason: str) -> None:
    """Logs that a field of a model's configuration has no effect, and why."""
    logger.warning(
        "a field of a model's configuration has no effect", extra={"model": name, "field": path, "reason": reason}
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


def datatype_of(number: int) -> str:
    """Returns the open inference protocol's name of a data type of the schema, as "FP32"."""
    text = model_config_pb2.DataType.Name(number).removeprefix("TYPE_")  # type: ignore[arg-type]
    return _DATATYPES.get(text, text)


def type_number(datatype: str) -> int:
    """Returns the number that the schema has for a data type, as "FP32"."""
    names = {theirs: ours for ours, theirs in _DATATYPES.items()}
    return model_config_pb2.DataType.Value(f"TYPE_{names.get(datatype, datatype)}")


def tensor_infos(tensors: Iterable[Any], max_batch_size: int) -> tuple[TensorInfo, ...]:
    """Returns the inputs or outputs of a completed configuration, with the dimension of the batch.

    Args:
        tensors: Messages of them.
        max_batch_size: Most elements of a batch; 0 where there is none.
    """
    batch = (-1,) if max_batch_size else ()
    return tuple(TensorInfo(each.name, datatype_of(each.data_type), (*batch, *each.dims)) for each in tensors)


def wrong(name: str, expected: str, received: str) -> InvalidArgumentError:
    """Returns the error of a wrong configuration.

    Args:
        name: Name of the model.
        expected: What was expected for it.
        received: What came.
    """
    return InvalidArgumentError(
        f"Expected for the model {name} {expected}. Received: {received}. Correct its {CONFIG_FILE}.",
        field=CONFIG_FILE,
        reason="BAD_CONFIG",
    )
