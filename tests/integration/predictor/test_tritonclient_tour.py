"""NVIDIA's published client, unchanged, goes through everything that it offers against the predictor as it runs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from services.common.model_repository import ModelRepository
from tests.helpers.onnx_models import add_ensemble, add_identity, add_plus
from tests.helpers.processes import service_process
from tests.helpers.tiny_model import publish_tiny_model
from tests.helpers.tritonclient_venv import tritonclient_python

SCRIPT = Path(__file__).parents[2] / "helpers" / "tritonclient_tour.py"
TWICE = """
    platform: "ensemble" max_batch_size: 4
    input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
    output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
    ensemble_scheduling { step [
      { model_name: "plus" model_version: -1 input_map { key: "x" value: "x" } output_map { key: "y" value: "z" } },
      { model_name: "plus" model_version: -1 input_map { key: "x" value: "z" } output_map { key: "y" value: "y" } }
    ] }
"""
PLUS = [[2.0, 3.0, 4.0]]
CODES = {
    "grpc": {
        "INVALID_ARGUMENT": "StatusCode.INVALID_ARGUMENT",
        "NOT_FOUND": "StatusCode.NOT_FOUND",
        "UNAVAILABLE": "StatusCode.UNAVAILABLE",
    },
    "http": {"INVALID_ARGUMENT": "400", "NOT_FOUND": "404", "UNAVAILABLE": "503"},
}
PORTS = {"grpc": "predictor", "http": "predictor-rest"}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_published_client_gets_what_it_asks_for(tmp_path: Path, protocol: str) -> None:
    home = tmp_path / "home"
    publish_tiny_model(ModelRepository(home / "models"), "tiny", tmp_path)
    add_plus(home / "models", "plus")
    add_identity(home / "models", "text", "BYTES")
    add_ensemble(home / "models", "twice", TWICE)
    with service_process("services.predictor", home) as service:
        service.wait_serving()
        finished = subprocess.run(
            [str(tritonclient_python()), str(SCRIPT), protocol, f"127.0.0.1:{service.port(PORTS[protocol])}"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr + service.log
        service.terminate()
        assert service.wait() == 0
    seen = json.loads(finished.stdout)
    codes = CODES[protocol]
    refused = {name: each and each[0] for name, each in seen.pop("refused").items()}
    assert refused == {
        "model": codes["NOT_FOUND"],
        "shape": codes["INVALID_ARGUMENT"],
        "type": codes["INVALID_ARGUMENT"],
        "sequence": codes["INVALID_ARGUMENT"],
        "cuda": codes["UNAVAILABLE"],
        "trace": codes["INVALID_ARGUMENT"],
        "log": codes["INVALID_ARGUMENT"],
        "load": codes["NOT_FOUND"],
        "region": codes["NOT_FOUND"],
    }
    assert {"classification", "statistics", "system_shared_memory"} <= set(seen.pop("extensions"))
    expected = {
        "live": [True, True],
        "ready": [True, True, False],
        "metadata": ["onnxruntime_onnx", ["probabilities", "novelty", "embedding", "heat"]],
        "config": ["plus", 4, "TYPE_FP32"],
        "plus": [PLUS, "7"],
        "compressed": PLUS,
        "texts": ["", "웨이퍼"],
        "classes": ["4.000000:2", "3.000000:1"],
        "wafer": [[1, 1], 0],
        "wishes": PLUS,
        "regions": ["tour"],
        "shared": PLUS,
        "trace": ["1"],
        "log": 1,
        "statistics": ["plus", True],
        "index": [["plus", "1", "READY"], ["text", "1", "READY"], ["tiny", "1", "READY"], ["twice", "1", "READY"]],
        "ensemble": [[[3.0, 4.0, 5.0]], "ensemble"],
        "unloaded_with_ensemble": [False, False],
        "loaded_with_ensemble": [True, True],
        "unloaded": False,
        "override": 2,
    }
    only_http = {"json": PLUS, "json_texts": ["a", "b"], "async": [PLUS] * 3}
    assert seen == {**expected, **(only_http if protocol == "http" else {})}
    traces = json.loads((home / "predictor-trace.json").read_text())
    assert "plus" in {each.get("model_name") for each in traces}
