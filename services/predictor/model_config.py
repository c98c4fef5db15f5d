"""How a model is served: what `config.pbtxt` says, completed from the graph, free of its wire form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from services.predictor.tensors import TensorInfo

CPU, CUDA, TENSORRT, OPENVINO = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "TensorrtExecutionProvider",
    "OpenVINOExecutionProvider",
)

Options = Mapping[str, str]
NO_OPTIONS: Options = MappingProxyType({})


class ModelControl(StrEnum):
    """Who decides what is loaded after the start, when everything is."""

    EXPLICIT = "explicit"
    POLL = "poll"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which versions are served.

    Attributes:
        latest: So many of the newest; 0 where the policy is another one.
        specific: These; empty where the policy is another one. Neither: all.
    """

    latest: int = 1
    specific: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CanaryRules:
    """How a new version proves itself before it takes the place of the one that serves.

    Attributes:
        percent: Share of the requests without a version that it gets; 0 gives it all of them at once.
        min_requests: Requests that it answers before it is judged.
        requests: Requests after which it has proved itself.
        max_errors_percent: Share of errors that it may have more than the other, percent of its requests.
        max_slowdown_percent: How much slower than the other it may be in the mean, percent.
    """

    percent: int = 0
    min_requests: int = 100
    requests: int = 1000
    max_errors_percent: int = 1
    max_slowdown_percent: int = 100


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """What the queue of one priority does.

    Attributes:
        timeout_us: Longest wait, microseconds; 0 is for ever.
        delays: Whether a request that waited longer goes behind the others instead of being refused.
        allow_override: Whether a request may set a shorter wait of its own.
        max_size: Most requests that wait; 0 is no limit of the queue's own.
    """

    timeout_us: int = 0
    delays: bool = False
    allow_override: bool = False
    max_size: int = 0


@dataclass(frozen=True, slots=True)
class Scheduling:
    """How requests become batches.

    Attributes:
        dynamic: Whether requests are joined.
        preferred: Batch sizes to aim at, ascending.
        max_delay_us: Longest wait for company, microseconds.
        levels: Number of priorities, of which 1 is the highest; 0 where requests have none.
        default_level: Priority of a request that names none.
        default_policy: Policy of the priorities without one of their own.
        policies: Policies by priority.
        instances: Most runs of the model at a time; 0 is as many as there are threads.
    """

    dynamic: bool = True
    preferred: tuple[int, ...] = ()
    max_delay_us: int = 0
    levels: int = 0
    default_level: int = 0
    default_policy: QueuePolicy = QueuePolicy()
    policies: Mapping[int, QueuePolicy] = field(default_factory=dict)
    instances: int = 0

    def policy(self, level: int) -> QueuePolicy:
        """Returns the policy of a priority."""
        return self.policies.get(level, self.default_policy)


@dataclass(frozen=True, slots=True)
class Execution:
    """How onnxruntime runs a graph.

    Attributes:
        gpu: Whether a GPU is wanted; None takes one where there is one.
        device: Number of the GPU; None takes onnxruntime's default.
        accelerators: Execution providers wanted beside CUDA and the processor, and options of these, best first.
        graph_level: Level of the configuration: 0 all optimisations, -1 basic, 1 extended, 2 none.
        intra_op_threads: Threads inside an operator; 0 leaves it to onnxruntime.
        inter_op_threads: Threads across operators, where they run in parallel; 0 leaves it to onnxruntime.
        parallel: Whether independent operators run at the same time.
        memory_arena: Whether memory is kept for the next run.
        memory_pattern: Whether memory is planned ahead for shapes seen before.
    """

    gpu: bool | None = None
    device: int | None = None
    accelerators: tuple[tuple[str, Options], ...] = ()
    graph_level: int = 0
    intra_op_threads: int = 1
    inter_op_threads: int = 1
    parallel: bool = False
    memory_arena: bool = True
    memory_pattern: bool = True


@dataclass(frozen=True, slots=True)
class WarmupInput:
    """Input of a warm-up request.

    Attributes:
        datatype: Type of its elements.
        shape: Its dimensions, without that of the batch; all known.
        data: "zero", "random" or the name of a file in the model's folder `warmup`.
    """

    datatype: str
    shape: tuple[int, ...]
    data: str


@dataclass(frozen=True, slots=True)
class Warmup:
    """Requests that are run before a model serves.

    Attributes:
        name: Name, for messages.
        batch: Elements of the batch; 0 where the model has none.
        count: How often it is run; at least 1.
        inputs: Inputs by name.
    """

    name: str
    batch: int
    count: int
    inputs: Mapping[str, WarmupInput]


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One step of an ensemble.

    Attributes:
        model: Name of the model that it runs.
        version: Its version; 0 is the newest that serves.
        inputs: Names of the ensemble's tensors by those of the model's inputs.
        outputs: Names of the ensemble's tensors by those of the model's outputs.
    """

    model: str
    version: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


Stages = tuple[tuple[EnsembleStep, ...], ...]
"""Steps of an ensemble in the order of their work; those of one stage do not need each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingConfig:
    """How one version is served.

    Attributes:
        message: The completed configuration as a serialised `inference.ModelConfig`.
        max_batch_size: Most elements of a batch; 0 where the first dimension is none of a batch.
        inputs: What callers send, with the dimension of the batch.
        outputs: What callers get, with the dimension of the batch.
        reshaped: Shapes inside the graph, without the batch, of inputs and outputs that have another one outside.
        labels: Names of the classes of outputs that have some.
        scheduling: How requests become batches.
        warmups: What is run before it serves.
        response_cache: Whether answers are kept and given again for the same inputs.
        metric_tags: Further labels of its metrics.
    """

    message: bytes
    max_batch_size: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    reshaped: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    scheduling: Scheduling = Scheduling()
    warmups: tuple[Warmup, ...] = ()
    response_cache: bool = False
    metric_tags: Mapping[str, str] = field(default_factory=dict)

    def inside(self, name: str, tensor: Any, shape: Sequence[int]) -> Any:
        """Returns an input in the shape that the graph takes.

        Args:
            name: Name of the input.
            tensor: Tensor as received.
            shape: Shape of the input in `inputs`.
        """
        if name not in self.reshaped:
            return tensor
        return tensor.reshape(_matched(self._whole(self.reshaped[name]), shape, tensor.shape))

    def outside(self, name: str, tensor: Any, shape: Sequence[int]) -> Any:
        """Returns an output in the shape that callers get; see `inside`."""
        if name not in self.reshaped:
            return tensor
        return tensor.reshape(_matched(shape, self._whole(self.reshaped[name]), tensor.shape))

    def _whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (-1, *shape) if self.max_batch_size else shape


def _matched(to: Sequence[int], template: Sequence[int], shape: Sequence[int]) -> list[int]:
    """Returns the shape `to` with each -1 replaced by what stands in `shape` at the -1 of `template`, in order."""
    lengths = iter([length for length, side in zip(shape, template, strict=True) if side == -1])
    return [next(lengths) if side == -1 else side for side in to]
