"""A smaller and faster variant of an exported graph: its convolutions in 8 bits, everything else as it was.

The resampling, the whitening of the embedding, novelty, classifier and heat map stay in float32: they are a few percent
of the work, and thresholds depend on them. Weights have a scale a channel and 7 of the 8 bits: products are added in
pairs, and where a processor has no instructions for 8-bit products that sum must fit into 16 bits, or it saturates and
answers differ between machines. The ranges of the activations are fixed, those of training wafers through the graph's
own input: an answer does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from services.common.pattern_sets import SHOWN
from services.common.preprocessing import pad_grids
from services.common.task import Task
from services.trainer.export.onnx import Answers, batches_by_size

RANGE_WAFERS = 512
"""Most training wafers that set the ranges of the activations."""


def quantise(
    source: Path, target: Path, grids: Sequence[NDArray[np.uint8]], check: Callable[[], None], bits: int = 7
) -> None:
    """Writes the quantised variant of a graph.

    Args:
        source: graph with the input `dies`; see `export_onnx`.
        target: file to write.
        grids: uint8 (rows, columns) each, wafers like those to come; RANGE_WAFERS of them are used, at least one.
        check: called before each batch; may raise to stop.
        bits: of the weights, 7 or 8.
    """
    chosen = np.random.default_rng(0).permutation(len(grids))[:RANGE_WAFERS]
    with TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        # The tool's symbolic shapes do not understand the resampling, and convolutions need none.
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            _Wafers([grids[row] for row in chosen], check),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            reduce_range=bits == 7,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


def same_answers(plain: Answers, found: Answers, task: Task) -> NDArray[np.bool_]:
    """Returns for each wafer (N,) whether two graphs tell the same: class or patterns, and whether it is unknown.

    Args:
        plain: answers of one graph.
        found: answers of the other on the same wafers.
        task: what they tell.
    """
    same: NDArray[np.bool_] = (plain.novelty <= 1.0) == (found.novelty <= 1.0)
    if task is Task.SINGLE:
        same &= plain.probabilities.argmax(axis=1) == found.probabilities.argmax(axis=1)
    elif task is Task.SEVERAL:
        same &= ((plain.probabilities >= SHOWN) == (found.probabilities >= SHOWN)).all(axis=1)
    return same


class _Wafers(CalibrationDataReader):  # type: ignore[misc]
    """Wafers in batches, as the quantiser asks for them."""

    def __init__(self, grids: Sequence[NDArray[np.uint8]], check: Callable[[], None]) -> None:
        self._grids, self._check = grids, check
        self._batches: Iterator[list[int]] = batches_by_size(grids)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Returns the inputs of the next batch, None at the end."""
        self._check()
        rows = next(self._batches, None)
        return None if rows is None else {"dies": pad_grids([self._grids[row] for row in rows])}
