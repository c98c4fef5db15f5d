from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from services.common.model_repository import ModelRepository
from tests.helpers.tiny_model import publish_tiny_model, tiny_wafers, write_tiny_model


def test_answers_by_the_contract_and_padding_changes_nothing(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    names = ["probabilities", "novelty", "embedding", "heat"]
    plain = session.run(names, {"dies": tiny_wafers()})
    padded = session.run(names, {"dies": np.pad(tiny_wafers(), ((0, 0), (0, 3), (0, 5)))})
    assert [output.shape for output in plain] == [(3, 3), (3,), (3, 3), (3, 3, 1, 1)]
    assert plain[0].argmax(axis=1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(np.linalg.norm(plain[2], axis=1), 1, rtol=1e-6)
    for one, other in zip(plain, padded, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert all(np.isfinite(output).all() for output in session.run(names, {"dies": np.zeros((1, 4, 4), np.uint8)}))


def test_published_versions_verify(tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path / "models")
    assert [publish_tiny_model(repository, "tiny", tmp_path) for _ in range(2)] == [1, 2]
    assert (repository.folder("tiny", 2) / "golden.npz").is_file()
