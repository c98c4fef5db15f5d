"""Small graphs that are no models of wafers, in the folders where a model server looks for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ONNX_TYPES = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
    "BF16": TensorProto.BFLOAT16,
}
"""ONNX' type of each data type of the open inference protocol."""


def add_identity(root: Path, name: str, datatype: str = "FP32", config: str = "", version: int = 1) -> Path:
    """Adds a model that answers in `y` (n, 2) what it got in `x` (n, 2); returns its folder."""
    return _add(root, name, config, version, [helper.make_node("Identity", ["x"], ["y"])], datatype, ["n", 2], ["n", 2])


def add_plus(root: Path, name: str, addend: float = 1.0, config: str = "", version: int = 1) -> Path:
    """Adds a model that answers in `y` (n, 3) FP32 what it got in `x` (n, 3), plus a number; returns its folder."""
    addends = numpy_helper.from_array(np.array(addend, np.float32), "addend")
    node = helper.make_node("Add", ["x", "addend"], ["y"])
    return _add(root, name, config, version, [node], "FP32", ["n", 3], ["n", 3], [addends])


def add_failing(root: Path, name: str, version: int = 1) -> Path:
    """Adds a model with the inputs and outputs of `add_plus` that opens and fails with every request."""
    columns = numpy_helper.from_array(np.array([7, 8, 9], np.int64), "columns")
    node = helper.make_node("Gather", ["x", "columns"], ["y"], axis=1)
    return _add(root, name, "", version, [node], "FP32", ["n", 3], ["n", 3], [columns])


def add_pair(root: Path, name: str, config: str = "") -> Path:
    """Adds a model that answers in `y` (n, 3) FP32 what it got in `a` (n, 3), less `b` (n, 3); returns its folder."""
    node = helper.make_node("Sub", ["a", "b"], ["y"])
    return _add(root, name, config, 1, [node], "FP32", ["n", 3], ["n", 3], inputs=("a", "b"))


def add_ensemble(root: Path, name: str, config: str) -> Path:
    """Adds an ensemble, whose version is an empty folder; returns its folder."""
    folder = root / name
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    return folder


def add_sum(root: Path, name: str, config: str = "") -> Path:
    """Adds a model that takes no batches: `y` (2, 2) FP32 is `x` (2, 2) plus itself; returns its folder."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    return _add(root, name, config, 1, [node], "FP32", [2, 2], [2, 2])


def _add(
    root: Path,
    name: str,
    config: str,
    version: int,
    nodes: Sequence[onnx.NodeProto],
    datatype: str,
    input_shape: Sequence[int | str],
    output_shape: Sequence[int | str],
    constants: Sequence[onnx.TensorProto] = (),
    inputs: Sequence[str] = ("x",),
) -> Path:
    kind = ONNX_TYPES[datatype]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(each, kind, input_shape) for each in inputs],
        [helper.make_tensor_value_info("y", kind, output_shape)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    folder = root / name
    (folder / str(version)).mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / str(version) / "model.onnx"))
    if config:
        (folder / "config.pbtxt").write_text(config)
    return folder
