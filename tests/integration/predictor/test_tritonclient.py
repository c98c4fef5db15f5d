"""The published client of Triton talks to the predictor as it runs in production: same answers as Classify."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from teachwafer.predictor.v1 import predictor_pb2, predictor_pb2_grpc
from teachwafer.type import wafer_map_pb2

from services.common.client import connect_sync
from services.common.model_repository import ModelRepository
from tests.helpers.processes import service_process
from tests.helpers.tiny_model import CLASSES, publish_tiny_model, tiny_wafers
from tests.helpers.tritonclient_venv import tritonclient_python

SCRIPT = """
import json, sys
import numpy as np
import tritonclient.grpc as triton

client = triton.InferenceServerClient(sys.argv[1])
dies = np.load(sys.argv[2])
tensor = triton.InferInput("dies", list(dies.shape), "UINT8")
tensor.set_data_from_numpy(dies)
names = ["probabilities", "novelty", "embedding", "heat"]
result = client.infer("tiny", [tensor], outputs=[triton.InferRequestedOutput(name) for name in names])
try:
    client.infer("nothing", [tensor])
    refused = ""
except triton.InferenceServerException as error:
    refused = error.status()
client.unload_model("tiny")
unloaded = client.is_model_ready("tiny")
client.load_model("tiny")
print(json.dumps({
    "live": client.is_server_live(),
    "ready": client.is_server_ready(),
    "unloaded": unloaded,
    "loaded": client.is_model_ready("tiny", "1"),
    "platform": client.get_model_metadata("tiny").platform,
    "batch": client.get_model_config("tiny", as_json=True)["config"]["max_batch_size"],
    "index": [[each.name, each.version, each.state] for each in client.get_model_repository_index().models],
    "statistics": client.get_inference_statistics("tiny").model_stats[0].name,
    "refused": refused,
    "outputs": {name: result.as_numpy(name).tolist() for name in names},
}))
"""


def test_tritonclient_gets_the_answers_of_classify(tmp_path: Path) -> None:
    publish_tiny_model(ModelRepository(tmp_path / "home" / "models"), "tiny", tmp_path)
    np.save(tmp_path / "dies.npy", tiny_wafers())
    wafers = [wafer_map_pb2.WaferMap(rows=6, columns=8, dies=dies.tobytes()) for dies in tiny_wafers()]
    with service_process("services.predictor", tmp_path / "home") as service:
        service.wait_serving()
        with connect_sync(service.address) as channel:
            stub = predictor_pb2_grpc.PredictorServiceStub(channel)
            own = stub.Classify(predictor_pb2.ClassifyRequest(model="tiny", wafers=wafers, embed=True))
        with urllib.request.urlopen(f"http://127.0.0.1:{service.port('predictor-metrics')}/metrics") as response:
            assert 'nv_inference_count{model="tiny",version="1"} 3.0' in response.read().decode()
        finished = subprocess.run(
            [str(tritonclient_python()), "-c", SCRIPT, service.address, str(tmp_path / "dies.npy")],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        service.terminate()
        assert service.wait() == 0
    received = json.loads(finished.stdout)
    outputs = received.pop("outputs")
    assert received == {
        "live": True,
        "ready": True,
        "unloaded": False,
        "loaded": True,
        "platform": "onnxruntime_onnx",
        "batch": 1024,
        "index": [["tiny", "1", "READY"]],
        "statistics": "tiny",
        "refused": "StatusCode.NOT_FOUND",
    }
    for index, answer in enumerate(own.answers):
        probabilities = {each.class_id: each.probability for each in answer.classes}
        assert [probabilities[name] for name in CLASSES] == pytest.approx(outputs["probabilities"][index], rel=1e-6)
        assert answer.novelty == pytest.approx(outputs["novelty"][index][0], abs=1e-7)
        assert list(answer.embedding) == pytest.approx(outputs["embedding"][index], rel=1e-6)


def test_an_empty_repository_is_ready(tmp_path: Path) -> None:
    with service_process("services.predictor", tmp_path / "home") as service:
        service.wait_serving()
        service.terminate()
        assert service.wait() == 0
