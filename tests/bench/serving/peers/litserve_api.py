"""LitServe with a worker a core; it speaks HTTP and JSON, the wafers go as base64."""

import base64
import os
import sys

import litserve
import numpy as np
import onnxruntime


class Api(litserve.LitAPI):
    def setup(self, device: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(os.environ["BENCH_MODEL"], options)

    def decode_request(self, request: dict) -> np.ndarray:
        return np.frombuffer(base64.b64decode(request["dies"]), np.uint8).reshape(request["shape"])

    def predict(self, dies: np.ndarray) -> list[np.ndarray]:
        return self._session.run(["probabilities", "novelty"], {"dies": dies})

    def encode_response(self, values: list[np.ndarray]) -> dict:
        return {"probabilities": values[0].tolist(), "novelty": values[1].tolist()}


if __name__ == "__main__":
    os.environ["BENCH_MODEL"] = sys.argv[1]
    server = litserve.LitServer(Api(), accelerator="cpu", workers_per_device=len(os.sched_getaffinity(0)))
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="error")
