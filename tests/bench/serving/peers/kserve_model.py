"""The KServe SDK with a model for ONNX; predictions run in its thread pool."""

import sys

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class OnnxModel(Model):
    def __init__(self, path: str) -> None:
        super().__init__("demo")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(path, options)
        self.ready = True

    def predict(self, payload: InferRequest, headers: object = None, response_headers: object = None) -> InferResponse:
        names = ["probabilities", "novelty"]
        values = self._session.run(names, {"dies": payload.inputs[0].as_numpy()})
        outputs = []
        for name, value in zip(names, values, strict=True):
            output = InferOutput(name, list(value.shape), "FP32")
            output.set_data_from_numpy(value, binary_data=True)
            outputs.append(output)
        return InferResponse(response_id=payload.id, model_name=self.name, infer_outputs=outputs)


if __name__ == "__main__":
    port = int(sys.argv[2])
    ModelServer(http_port=port + 1, grpc_port=port, workers=1, enable_docs_url=False).start([OnnxModel(sys.argv[1])])
