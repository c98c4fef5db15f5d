"""A real ONNX model of a few hundred bytes with the graph that the trainer exports, so that tests need no TensorFlow.

It tells wafers apart by their share of failed dies, which padding does not change.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from services.common.model_repository import ModelClass, ModelManifest, ModelRepository, config_pbtxt

CLASSES = ("low", "middle", "high")
"""Ids of the classes: about 0 %, 50 % and 100 % of the dies failed."""


def write_tiny_model(path: Path) -> None:
    """Writes the model: input `dies` uint8 (batch, rows, columns); outputs probabilities, novelty, embedding, heat."""
    constants = {
        "zero": np.array(0, np.uint8),
        "fail": np.array(2, np.uint8),
        "box": np.array([1, 2], np.int64),
        "one": np.array(1, np.float32),
        "centres": np.array([[0, 0.5, 1]], np.float32),
        "sharpness": np.array(-20, np.float32),
        "keep": np.array([0, len(CLASSES), 1, 1], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Greater", ["dies", "zero"], ["is_die"]),
        node("Equal", ["dies", "fail"], ["is_fail"]),
        node("Cast", ["is_die"], ["die"], to=TensorProto.FLOAT),
        node("Cast", ["is_fail"], ["failed"], to=TensorProto.FLOAT),
        node("ReduceSum", ["die", "box"], ["die_cube"], keepdims=1),
        node("ReduceSum", ["failed", "box"], ["fail_cube"], keepdims=1),
        node("Max", ["die_cube", "one"], ["some_dies"]),  # no division by 0 for a wafer without dies
        node("Div", ["fail_cube", "some_dies"], ["share_cube"]),
        node("Flatten", ["share_cube"], ["share"], axis=1),
        node("Sub", ["share", "centres"], ["away"]),
        node("Mul", ["away", "away"], ["distance"]),
        node("Mul", ["distance", "sharpness"], ["logits"]),
        node("Softmax", ["logits"], ["probabilities"], axis=1),
        node("ReduceMin", ["distance"], ["nearest"], axes=[1], keepdims=0),
        node("Mul", ["nearest", "one"], ["novelty"]),
        node("LpNormalization", ["probabilities"], ["embedding"], axis=1, p=2),
        node("Reshape", ["probabilities", "keep"], ["heat"]),
    ]
    classes = len(CLASSES)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("dies", TensorProto.UINT8, ["batch", "rows", "columns"])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", classes]),
            helper.make_tensor_value_info("novelty", TensorProto.FLOAT, ["batch"]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", classes]),
            helper.make_tensor_value_info("heat", TensorProto.FLOAT, ["batch", classes, 1, 1]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def tiny_wafers() -> NDArray[np.uint8]:
    """Returns one wafer of each class, (3, 6, 8)."""
    wafers = np.ones((len(CLASSES), 6, 8), np.uint8)
    wafers[1, :, :4] = 2
    wafers[2] = 2
    return wafers


def publish_tiny_model(repository: ModelRepository, model_id: str, folder: Path) -> int:
    """Publishes the model with its golden batch and returns its version.

    Args:
        repository: Where to.
        model_id: Name of the model.
        folder: Where the files are made before.
    """
    write_tiny_model(folder / "model.onnx")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"dies": tiny_wafers()})
    np.savez(folder / "golden.npz", dies=tiny_wafers(), probabilities=probabilities)
    manifest = ModelManifest(
        classes=tuple(ModelClass(class_id, class_id.capitalize()) for class_id in CLASSES),
        size=8,
        temperature=1.0,
        accept_threshold=0.6,
        novelty_threshold=1.0,
        dataset_version="datasetVersions/tiny",
        backbone="none",
    )
    files = {name: folder / name for name in ("model.onnx", "golden.npz")}
    config = config_pbtxt(model_id, len(CLASSES), len(CLASSES), 1, 1)
    return repository.publish(model_id, files, manifest, config)
