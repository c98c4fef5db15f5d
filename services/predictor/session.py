"""One version of a model in onnxruntime."""

from __future__ import annotations

import ctypes
import logging
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from services.common.errors import (
    DataLossError,
    InvalidArgumentError,
    ResourceExhaustedError,
)
from services.common.model_manifest import ModelManifest
from services.common.model_repository import ModelRepository
from services.predictor.config_converters import WrittenConfig, completed, read_config
from services.predictor.model_config import CPU, CUDA, TENSORRT, Execution, Options, Warmup
from services.predictor.served_model import ServedModel
from services.predictor.tensors import BF16, BYTES, DTYPES, Tensor, TensorInfo, tensor_from_bytes

PROBABILITIES, NOVELTY, EMBEDDING, HEAT = "probabilities", "novelty", "embedding", "heat"
OUTPUTS = (PROBABILITIES, NOVELTY, EMBEDDING, HEAT)
"""Outputs that every model of wafers has."""

GOLDEN_TOLERANCE = 2e-3
"""Largest difference between a probability of the golden batch here and where the model was exported. Processors round
differently; a wrong graph or a wrong runtime is off by far more."""

WARMUP_FOLDER = "warmup"
"""Folder of a model with the files of its warm-up requests."""

_BFLOAT16 = 16  # its number in ONNX
_DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    "string": BYTES,
    "bfloat16": BF16,
}
_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

logger = logging.getLogger(__name__)


class ModelSession(ServedModel):
    """A model that can be run from any thread; one of wafers has repeated its golden batch.

    Args:
        name: Name of the model.
        folder: Folder of the version, inside that of the model.
        written: How it is to be served.
        manifest: What is known of a model of wafers. None: any other graph.

    Attributes:
        inputs: Inputs of its graph.
        outputs: Outputs of its graph.

    Raises:
        DataLossError: Its files are damaged, its graph is not what its manifest says or it does not repeat its golden
            batch.
        InvalidArgumentError: Its configuration contradicts its graph, or a warm-up request fails.
    """

    def __init__(self, name: str, folder: Path, written: WrittenConfig, manifest: ModelManifest | None = None) -> None:
        self._manifest = manifest
        self._session = _open(name, folder / written.model_file, written.execution)
        provider: str = self._session.get_providers()[0]
        self.inputs = [_info(each) for each in self._session.get_inputs()]
        self.outputs = [_info(each) for each in self._session.get_outputs()]
        self._graph_outputs = {each.name: each for each in self.outputs}
        self._bfloat16 = any(each.datatype == BF16 for each in (*self.inputs, *self.outputs))
        self._dies = ""
        if manifest is not None:
            self._dies = manifest.input
            self._check_graph(manifest)
            self._check_golden(folder / manifest.golden, provider)
        super().__init__(provider, completed(name, written, self.inputs, self.outputs))
        for warmup in self.config.warmups:
            self._warm_up(name, warmup, folder.parent / WARMUP_FOLDER)

    @classmethod
    def load(cls, repository: ModelRepository, model_id: str, version: int) -> ModelSession:
        """Loads a version that was published with a manifest.

        Raises:
            NotFoundError: There is no such version.
            DataLossError: Its files are damaged, its graph is not one of ours or it does not repeat its golden batch.
        """
        folder = repository.folder(model_id, version)
        return cls(model_id, folder, read_config(model_id, folder.parent), repository.manifest(model_id, version))

    @property
    def takes_wafers(self) -> bool:
        """Whether it is a model of wafers, published with a manifest, and not any other graph."""
        return self._manifest is not None

    @property
    def manifest(self) -> ModelManifest:
        """What is known of a model of wafers.

        Raises:
            FailedPreconditionError: It is any other graph.
        """
        return super().manifest if self._manifest is None else self._manifest

    def run(self, dies: NDArray[np.uint8], outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Runs a model of wafers; computes no output that is not asked for.

        Args:
            dies: uint8 (N, rows, columns), padded with zeros at will; N >= 1.
            outputs: Names of the outputs wanted.

        Returns:
            float32 outputs by name; the first dimension is N.
        """
        values = self._session.run(list(outputs), {self._dies: dies})
        return dict(zip(outputs, values, strict=True))

    def run_tensors(self, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> dict[str, Tensor]:
        """Runs any model; computes no output that is not asked for.

        Args:
            inputs: All inputs by name, in the shapes of `config.inputs`; elements of BYTES are `bytes`.
            outputs: Names of the outputs wanted.

        Returns:
            Outputs by name in the shapes of `config.outputs`; elements of BYTES are `str`.

        Raises:
            InvalidArgumentError: A string is not UTF-8, which onnxruntime works with, or the graph cannot work with
                these values and shapes.
            ResourceExhaustedError: There is not enough memory.
        """
        feeds = {}
        for info in self.inputs:
            tensor = self.config.inside(info.name, inputs[info.name], self.taken[info.name].shape)
            feeds[info.name] = _decoded(tensor, info.name) if info.datatype == BYTES else tensor
        try:
            values = self._run(feeds, outputs)
        except Exception as error:  # onnxruntime raises classes of its own that share no other base
            if "allocate memory" in str(error):
                raise ResourceExhaustedError(
                    f"Expected inputs that fit into memory. Received from onnxruntime: {str(error)[:300]}. Send less.",
                    retry_after_s=1.0,
                    reason="OUT_OF_MEMORY",
                ) from error
            raise InvalidArgumentError(
                f"Expected inputs that the graph can work with. Received from onnxruntime: {str(error)[:500]}. "
                "Compare shapes and values with what the model takes.",
                "inputs",
                reason="MODEL_FAILED",
            ) from error
        return {
            name: self.config.outside(name, value, self.answered[name].shape)
            for name, value in zip(outputs, values, strict=True)
        }

    def outside(self, name: str, value: Tensor) -> Tensor:
        """Returns an output of `run` in the shape of `config.outputs`."""
        if name not in self.config.reshaped:
            return value
        return self.config.outside(name, value, self.answered[name].shape)  # type: ignore[no-any-return]

    def _run(self, feeds: dict[str, Tensor], outputs: Sequence[str]) -> list[Tensor]:
        if not self._bfloat16:
            return list(self._session.run(list(outputs), feeds))
        # NumPy has no bfloat16: its bits go in and out as they lie in memory.
        values = {}
        for info in self.inputs:
            tensor = np.ascontiguousarray(feeds[info.name])
            values[info.name] = (
                onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(tensor, _BFLOAT16)
                if info.datatype == BF16
                else onnxruntime.OrtValue.ortvalue_from_numpy(tensor)
            )
        answered = self._session.run_with_ort_values(list(outputs), values)
        return [
            _bits(value) if self._graph_outputs[name].datatype == BF16 else value.numpy()
            for name, value in zip(outputs, answered, strict=True)
        ]

    def _warm_up(self, name: str, warmup: Warmup, folder: Path) -> None:
        """Runs a warm-up request."""
        random = np.random.default_rng(0)
        inputs = {}
        for key, each in warmup.inputs.items():
            shape = (warmup.batch, *each.shape) if warmup.batch else each.shape
            dtype = DTYPES[each.datatype]
            if each.data == "zero":
                inputs[key] = np.full(shape, b"", np.object_) if each.datatype == BYTES else np.zeros(shape, dtype)
            elif each.data == "random":
                raw = random.integers(0, 2, shape)
                inputs[key] = raw.astype("S").astype(np.object_) if each.datatype == BYTES else raw.astype(dtype)
            else:
                try:
                    data = (folder / each.data).read_bytes()
                except OSError as error:
                    raise InvalidArgumentError(
                        f"Expected the file {each.data} of a warm-up request in the folder {WARMUP_FOLDER} of {name}. "
                        f"Received: {error.strerror}. Add it, or remove the request from its configuration.",
                        field="model_warmup",
                    ) from None
                inputs[key] = tensor_from_bytes(data, each.datatype, shape, f"model_warmup.{key}")
        for _ in range(warmup.count):
            self.run_tensors(inputs, [each.name for each in self.config.outputs])
        logger.info("warmed up a model", extra={"model": name, "request": warmup.name, "times": warmup.count})

    def _check_graph(self, manifest: ModelManifest) -> None:
        """Raises DataLossError unless inputs and outputs are those that the manifest speaks of."""
        classes = len(manifest.classes)
        expected_input = [TensorInfo(manifest.input, "UINT8", (-1, -1, -1))]
        names = [each.name for each in self.outputs]
        answered = next((each.shape[-1] for each in self.outputs if each.name == PROBABILITIES), 0)
        if self.inputs != expected_input or not set(OUTPUTS) <= set(names) or answered not in (classes, -1):
            raise DataLossError(
                f"Expected a graph with the input {expected_input[0]} and the outputs {', '.join(OUTPUTS)} for "
                f"{classes} classes. Received: inputs {self.inputs}, outputs {self.outputs}. Export the model again.",
                reason="WRONG_GRAPH",
            )

    def _check_golden(self, path: Path, provider: str) -> None:
        """Raises DataLossError unless the model answers here what it answered where it was exported."""
        try:
            with np.load(path, allow_pickle=False) as golden:
                dies, expected = golden["dies"], golden["probabilities"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise DataLossError(
                f"Expected the golden batch of the model in {path.name}. Received: {error!r}. Publish the model again."
            ) from error
        received = self.run(dies, [PROBABILITIES])[PROBABILITIES]
        # Written so that a NaN on either side is a difference, too.
        if received.shape != expected.shape or not np.all(np.abs(received - expected) <= GOLDEN_TOLERANCE):
            raise DataLossError(
                f"Expected the answers of the golden batch within {GOLDEN_TOLERANCE:g}. Received others from "
                f"{provider}. Publish the model again, or serve it with the onnxruntime that it was made for.",
                reason="GOLDEN_BATCH_DIFFERS",
            )


def _open(name: str, path: Path, execution: Execution) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # Requests are spread over the cores; threads inside one, and threads that spin, only get in their way.
    options.intra_op_num_threads = execution.intra_op_threads
    options.inter_op_num_threads = execution.inter_op_threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.graph_optimization_level = _LEVELS[execution.graph_level]
    if execution.parallel:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.enable_cpu_mem_arena = execution.memory_arena
    options.enable_mem_pattern = execution.memory_pattern
    options.log_severity_level = 3
    providers = _providers(name, execution)
    session = _session(path, options, providers)
    used = session.get_providers()[0]
    if used != providers[0][0]:
        logger.warning(
            "this model runs on the CPU because the GPU could not be used",
            extra={"model": name, "wanted": providers[0][0], "used": used},
        )
    return session


def _providers(name: str, execution: Execution) -> list[tuple[str, Options]]:
    """Returns what runs the graph, best first, out of what this machine has; what is wanted and missing is told."""
    available = onnxruntime.get_available_providers()
    options = dict(execution.accelerators)
    wanted = [each for each in options if each != CUDA] + [CUDA] * (execution.gpu is not False)
    if execution.gpu is False:
        wanted = [each for each in wanted if each != TENSORRT]
    for each in wanted:
        if each not in available and (each in options or execution.gpu):
            logger.warning(
                "this model runs without an execution provider that its configuration asks for",
                extra={"model": name, "wanted": each, "available": ", ".join(available)},
            )
    device = {} if execution.device is None else {"device_id": str(execution.device)}
    chosen = [
        (each, {**options.get(each, {}), **(device if each in (CUDA, TENSORRT) else {})})
        for each in wanted
        if each in available
    ]
    return [*chosen, (CPU, {})]


def _session(
    path: Path, options: onnxruntime.SessionOptions, providers: list[tuple[str, Options]]
) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime raises classes of its own that share no other base
        if len(providers) > 1:
            logger.warning(
                "could not open a model with its first provider",
                extra={"provider": providers[0][0], "error": str(error)[:500]},
            )
            return _session(path, options, providers[1:])
        raise DataLossError(
            f"Expected a model that onnxruntime {onnxruntime.__version__} can open. Received: {str(error)[:500]}. "
            "Export the model again.",
            reason="WRONG_GRAPH",
        ) from error


def _info(argument: onnxruntime.NodeArg) -> TensorInfo:
    inner = argument.type.removeprefix("tensor(").removesuffix(")")
    if inner not in _DATATYPES:
        raise DataLossError(
            f"Expected inputs and outputs that are tensors of {', '.join(_DATATYPES)}. Received: {argument.name} as "
            f"{argument.type}. Export the model with other types.",
            reason="WRONG_GRAPH",
        )
    shape = tuple(each if isinstance(each, int) else -1 for each in argument.shape or ())
    return TensorInfo(argument.name, _DATATYPES[inner], shape)


def _decoded(tensor: Tensor, name: str) -> Tensor:
    """Returns strings as onnxruntime takes them."""
    texts = np.empty(tensor.shape, np.object_)
    try:
        for index, each in np.ndenumerate(tensor):
            texts[index] = each.decode()
    except UnicodeDecodeError:
        raise InvalidArgumentError(
            f"Expected strings in UTF-8 in the input {name}. Received: other bytes.", f"inputs[{name}]"
        ) from None
    return texts


def _bits(value: onnxruntime.OrtValue) -> Tensor:
    """Returns the bits of a bfloat16 tensor as uint16."""
    shape = tuple(value.shape())
    if 0 in shape:
        return np.zeros(shape, DTYPES[BF16])
    pointer = ctypes.cast(value.data_ptr(), ctypes.POINTER(ctypes.c_uint16))
    return np.ctypeslib.as_array(pointer, shape).copy()
