"""ONNX: one graph from the die grid to the answer, and the proof that it answers as the taught model does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import tensorflow as tf
import tf2onnx
from numpy.typing import NDArray

from services.common.errors import InternalError
from services.common.pattern_sets import SHOWN
from services.common.preprocessing import pad_grids
from services.common.task import Task
from services.trainer.domain import PARITY_TOLERANCE

OPSET = 17
"""The newest operator set that tf2onnx writes without gaps; every onnxruntime since 1.12 reads it."""
OUTPUTS = ("probabilities", "novelty", "embedding", "heat")
"""Outputs of the graph, by name."""
PARITY_BATCHES = (1, 5, 97)
"""Batch sizes at which the answers are compared."""

_BATCH_PLACES = 400_000
_MAX_BATCH = 128
_TIE = 1e-6


@dataclass(frozen=True, slots=True)
class Parity:
    """How well two models agree.

    Attributes:
        wafers: wafers compared.
        max_difference: largest difference of a probability.
    """

    wafers: int
    max_difference: float


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers of a model on wafers, in their order.

    Attributes:
        probabilities: float32 (N, classes).
        novelty: float32 (N,).
    """

    probabilities: NDArray[np.float32]
    novelty: NDArray[np.float32]


def export_onnx(model: keras.Model, path: Path) -> None:
    """Writes the model as ONNX and checks the file.

    Args:
        model: from dies uint8 (N, rows, columns) to a dictionary of OUTPUTS; see `network.taught_model`.
        path: file to write.
    """

    def answer(dies: Any) -> dict[str, Any]:
        outputs = model(dies, training=False)
        return {name: tf.identity(outputs[name], name=name) for name in OUTPUTS}

    signature = [tf.TensorSpec((None, None, None), tf.uint8, name="dies")]
    graph, _ = tf2onnx.convert.from_function(tf.function(answer), input_signature=signature, opset=OPSET)
    _name_deterministically(graph, model.output["heat"].shape[2:])
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, str(path))


def open_session(path: Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """Opens an ONNX file on the CPU.

    Args:
        path: the file.
        threads: threads of one call; 0 takes all cores.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def answers_of(session: onnxruntime.InferenceSession, grids: Sequence[NDArray[np.uint8]], check: Any = None) -> Answers:
    """Returns the answers on wafers of any sizes.

    Args:
        session: the model.
        grids: uint8 (rows, columns) each.
        check: called before each batch; may raise to stop.
    """
    classes = session.get_outputs()[0].shape[1]
    probabilities = np.zeros((len(grids), classes), np.float32)
    novelty = np.zeros(len(grids), np.float32)
    for rows in batches_by_size(grids):
        check()
        dies = pad_grids([grids[row] for row in rows])
        probabilities[rows], novelty[rows] = session.run(["probabilities", "novelty"], {"dies": dies})
    return Answers(probabilities, novelty)


def batches_by_size(grids: Sequence[NDArray[np.uint8]]) -> Iterator[list[int]]:
    """Yields the positions of wafers in batches of similar size, so that little is padded."""
    batch: list[int] = []
    for row in sorted(range(len(grids)), key=lambda row: grids[row].size):
        if batch and (len(batch) >= _MAX_BATCH or (len(batch) + 1) * grids[row].size > _BATCH_PLACES):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def prove_parity(
    model: keras.Model,
    session: onnxruntime.InferenceSession,
    grids: Sequence[NDArray[np.uint8]],
    known: Answers,
    check: Callable[[], None],
    task: Task = Task.SINGLE,
) -> Parity:
    """Compares ONNX and Keras on all wafers and, in mixed sizes, at each of PARITY_BATCHES.

    Args:
        model: the taught model.
        session: its ONNX file.
        grids: wafers to compare on, at least one.
        known: answers of the ONNX file on these wafers.
        check: called before each batch; may raise to stop.
        task: what the model tells.

    Raises:
        InternalError: a probability differs by more than PARITY_TOLERANCE, or another class or set of patterns is told.
    """
    worst = 0.0
    probabilities_of = _probabilities_of(model)
    for rows in batches_by_size(grids):
        check()
        expected = probabilities_of(pad_grids([grids[row] for row in rows]))
        worst = max(worst, _compare(expected, known.probabilities[rows], task))
    mixed = list(np.random.default_rng(0).permutation(len(grids)))
    for size in PARITY_BATCHES:
        some = [grids[row] for row in (mixed * (1 + size // len(mixed)))[:size]]
        expected = probabilities_of(pad_grids(some))
        (found,) = session.run(["probabilities"], {"dies": pad_grids(some)})
        worst = max(worst, _compare(expected, found, task))
    return Parity(len(grids), worst)


def _probabilities_of(model: keras.Model) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    signature = [tf.TensorSpec((None, None, None), tf.uint8)]
    function = tf.function(lambda dies: model(dies, training=False)["probabilities"], input_signature=signature)
    return lambda dies: np.asarray(function(tf.constant(dies)))


def _compare(expected: NDArray[np.float32], found: NDArray[np.float32], task: Task) -> float:
    difference = float(np.abs(expected - found).max())
    # A tie that rounding decides is no other answer. Of only normal the probability is all there is to compare.
    other = np.zeros(0, np.bool_)
    if task is Task.SINGLE:
        other = found.max(axis=1) - found[np.arange(len(found)), expected.argmax(axis=1)] > _TIE
    elif task is Task.SEVERAL:
        # The normal class follows from the patterns: comparing it as if it were one does no harm.
        other = ((expected >= SHOWN) != (found >= SHOWN)) & (np.abs(found - SHOWN) > _TIE)
    # Written so that NaN fails, too.
    if not difference <= PARITY_TOLERANCE or other.any():
        raise InternalError(
            f"Expected the ONNX file to answer as the taught model. Received: probabilities up to {difference:.2g} "
            "apart, or another class. The model was not published; report this with the job's log."
        )
    return difference


def _name_deterministically(model: onnx.ModelProto, heat_shape: Sequence[int]) -> None:
    """Renames nodes, tensors and unknown dimensions, so that the same weights give the same bytes."""
    graph = model.graph
    outputs = sorted(graph.output, key=lambda each: OUTPUTS.index(each.name))
    del graph.output[:]
    graph.output.extend(outputs)
    names = {each.name: each.name for each in (*graph.input, *graph.output)}

    def renamed(name: str) -> str:
        return names.setdefault(name, f"t{len(names)}") if name else ""

    ordered = _in_order_of_need(graph)
    for index, node in enumerate(ordered):
        node.name = f"n{index}"
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
    del graph.node[:]
    graph.node.extend(ordered)
    initializers = sorted(graph.initializer, key=lambda tensor: int(tensor.name[1:]))
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(initializers)
    graph.name, graph.doc_string, model.doc_string = "teachwafer", "", ""
    for value in (*graph.input, *graph.output):
        dimensions = value.type.tensor_type.shape.dim
        free = ("batch", "rows", "columns") if value.name == "dies" else ("batch",)
        for name, dimension in zip(free, dimensions, strict=False):
            dimension.dim_param = name
        if value.name == "heat":
            dimensions[2].dim_value, dimensions[3].dim_value = heat_shape


def _in_order_of_need(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Returns copies of the nodes, each right before the first that needs it: an order that only the graph decides."""
    maker = {name: node for node in graph.node for name in node.output}
    done: set[int] = set()
    ordered = []
    stack = [maker[each.name] for each in reversed(graph.output)]
    while stack:
        node = stack[-1]
        missing = [maker[name] for name in node.input if name in maker and id(maker[name]) not in done]
        if missing:
            stack.append(missing[0])
            continue
        stack.pop()
        if id(node) not in done:
            done.add(id(node))
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            ordered.append(copy)
    return ordered
