"""One version of a model in onnxruntime."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from services.common.errors import DataLossError
from services.common.model_manifest import ModelManifest
from services.common.model_repository import ModelRepository

MODEL_FILE = "model.onnx"
PROBABILITIES, NOVELTY, EMBEDDING, HEAT = "probabilities", "novelty", "embedding", "heat"
OUTPUTS = (PROBABILITIES, NOVELTY, EMBEDDING, HEAT)
"""Outputs that every model has."""

GOLDEN_TOLERANCE = 2e-3
"""Largest difference between a probability of the golden batch here and where the model was exported. Processors round
differently; a wrong graph or a wrong runtime is off by far more."""

_CPU = "CPUExecutionProvider"
_PREFERRED = ("CUDAExecutionProvider", _CPU)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Input or output of a model.

    Attributes:
        name: Name.
        datatype: Type of its elements, as "UINT8" or "FP32".
        shape: Its dimensions; -1 where any length goes.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelSession:
    """A model that has repeated its golden batch and can be run from any thread.

    Attributes:
        manifest: What is known of it.
        provider: What runs it, as "CPUExecutionProvider".
        inputs: Its one input.
        outputs: Its outputs.
    """

    def __init__(self, folder: Path, manifest: ModelManifest) -> None:
        self.manifest = manifest
        self._session = _open(folder / MODEL_FILE, manifest)
        self.provider: str = self._session.get_providers()[0]
        self.inputs = [_info(each) for each in self._session.get_inputs()]
        self.outputs = [_info(each) for each in self._session.get_outputs()]
        self._check_graph()
        self._check_golden(folder / manifest.golden)

    @classmethod
    def load(cls, repository: ModelRepository, model_id: str, version: int) -> ModelSession:
        """Loads a version.

        Raises:
            NotFoundError: There is no such version.
            DataLossError: Its files are damaged, its graph is not one of ours or it does not repeat its golden batch.
        """
        return cls(repository.folder(model_id, version), repository.manifest(model_id, version))

    def run(self, dies: NDArray[np.uint8], outputs: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Runs the model; computes no output that is not asked for.

        Args:
            dies: uint8 (N, rows, columns), padded with zeros at will; N >= 1.
            outputs: Names of the outputs wanted.

        Returns:
            float32 outputs by name; the first dimension is N.
        """
        values = self._session.run(list(outputs), {self.manifest.input: dies})
        return dict(zip(outputs, values, strict=True))

    def _check_graph(self) -> None:
        """Raises DataLossError unless inputs and outputs are those that the manifest speaks of."""
        classes = len(self.manifest.classes)
        expected_input = [TensorInfo(self.manifest.input, "UINT8", (-1, -1, -1))]
        names = [each.name for each in self.outputs]
        answered = next((each.shape[-1] for each in self.outputs if each.name == PROBABILITIES), 0)
        if self.inputs != expected_input or not set(OUTPUTS) <= set(names) or answered not in (classes, -1):
            raise DataLossError(
                f"Expected a graph with the input {expected_input[0]} and the outputs {', '.join(OUTPUTS)} for "
                f"{classes} classes. Received: inputs {self.inputs}, outputs {self.outputs}. Export the model again.",
                reason="WRONG_GRAPH",
            )

    def _check_golden(self, path: Path) -> None:
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
                f"{self.provider}. Publish the model again, or serve it with the onnxruntime that it was made for.",
                reason="GOLDEN_BATCH_DIFFERS",
            )


def _open(path: Path, manifest: ModelManifest) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # Wafers are spread over the cores by calls; threads inside a call, and threads that spin, only get in their way.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.log_severity_level = 3
    wanted = [each for each in _PREFERRED if each in onnxruntime.get_available_providers()]
    session = _session(path, options, wanted)
    used = session.get_providers()[0]
    if used != wanted[0]:
        logger.warning(
            "this model runs on the CPU because the GPU could not be used",
            extra={"model": manifest.model_id, "version": manifest.version, "wanted": wanted[0], "used": used},
        )
    return session


def _session(path: Path, options: onnxruntime.SessionOptions, providers: list[str]) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime raises classes of its own that share no other base
        if providers != [_CPU]:
            logger.warning("could not open a model with its first provider", extra={"error": str(error)[:500]})
            return _session(path, options, [_CPU])
        raise DataLossError(
            f"Expected a model that onnxruntime {onnxruntime.__version__} can open. Received: {str(error)[:500]}. "
            "Export the model again.",
            reason="WRONG_GRAPH",
        ) from error


def _info(argument: onnxruntime.NodeArg) -> TensorInfo:
    datatype = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32"}.get(argument.type, argument.type)
    return TensorInfo(
        argument.name, datatype, tuple(each if isinstance(each, int) else -1 for each in argument.shape or ())
    )
