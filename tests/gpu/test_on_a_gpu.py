"""What only an NVIDIA GPU shows: that the models really run there, and answer as they do on the processor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from services.common.model_repository import ModelRepository
from services.predictor.session import ModelSession
from tests.helpers.tiny_model import publish_tiny_model, tiny_wafers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="needs an NVIDIA GPU"),
]


@pytest.fixture(autouse=True)
def visible_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows the GPU that the other tests hide."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")


def test_the_predictor_runs_on_the_gpu_and_answers_as_the_processor(tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path / "models")
    version = publish_tiny_model(repository, "tiny", tmp_path)
    session = ModelSession.load(repository, "tiny", version)
    assert session.provider == "CUDAExecutionProvider"
    path = repository.folder("tiny", version) / "model.onnx"
    cpu = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = ["probabilities", "novelty", "embedding", "heat"]
    dies = tiny_wafers()
    expected = cpu.run(names, {"dies": dies})
    for name, value in zip(names, expected, strict=True):
        np.testing.assert_allclose(session.run(dies, names)[name], value, atol=2e-3)


def test_the_trainer_says_the_name_of_the_gpu() -> None:
    from services.trainer.teaching import device_name

    assert not device_name().startswith("CPU")
