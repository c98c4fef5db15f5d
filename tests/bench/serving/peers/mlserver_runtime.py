"""MLServer with a runtime of its own for ONNX, in its process, with its adaptive batcher."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Runtime(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(self.settings.parameters.uri, options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        dies = NumpyCodec.decode_input(payload.inputs[0])
        names = ["probabilities", "novelty"]
        values = self._session.run(names, {"dies": dies})
        outputs = [NumpyCodec.encode_output(name, value) for name, value in zip(names, values, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=outputs)


def main(model: str, port: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "host": "127.0.0.1",
            "http_port": port + 1,
            "grpc_port": port,
            "metrics_port": port + 2,
            "parallel_workers": 0,
            "debug": False,
            "use_structured_logging": False,
        }
        model_settings = {
            "name": "demo",
            "implementation": "mlserver_runtime.Runtime",
            "parameters": {"uri": model},
            "max_batch_size": 32,
            "max_batch_time": 0.001,
        }
        Path(folder, "settings.json").write_text(json.dumps(settings))
        Path(folder, "model-settings.json").write_text(json.dumps(model_settings))
        command = [str(Path(sys.executable).parent / "mlserver"), "start", folder]
        subprocess.run(command, check=False, env={"PYTHONPATH": str(Path(__file__).parent), "PATH": "/usr/bin:/bin"})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
