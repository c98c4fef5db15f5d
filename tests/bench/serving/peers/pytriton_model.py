"""PyTriton: Triton in front of Python workers, one a core, with its dynamic batcher."""

import os
import sys

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


def made(path: str) -> object:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options)

    @batch
    def infer(dies: np.ndarray) -> list[np.ndarray]:
        probabilities, novelty = session.run(["probabilities", "novelty"], {"dies": dies})
        return [probabilities, novelty[:, None]]

    return infer


if __name__ == "__main__":
    port = int(sys.argv[2])
    config = TritonConfig(
        http_port=port + 1,
        grpc_port=port,
        metrics_port=port + 2,
        http_address="127.0.0.1",
        grpc_address="127.0.0.1",
        metrics_address="127.0.0.1",
    )
    classes = onnxruntime.InferenceSession(sys.argv[1]).get_outputs()[0].shape[-1]
    with Triton(config=config) as triton:
        triton.bind(
            model_name="demo",
            infer_func=[made(sys.argv[1]) for _ in os.sched_getaffinity(0)],
            inputs=[Tensor(name="dies", dtype=np.uint8, shape=(-1, -1))],
            outputs=[
                Tensor(name="probabilities", dtype=np.float32, shape=(classes,)),
                Tensor(name="novelty", dtype=np.float32, shape=(1,)),
            ],
            config=ModelConfig(max_batch_size=64),
        )
        triton.serve()
