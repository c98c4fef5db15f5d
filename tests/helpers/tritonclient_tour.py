"""What NVIDIA's published client sees of a model server, as one JSON object. Runs in an environment of its own.

python tritonclient_tour.py grpc|http HOST:PORT

The server has the models `tiny` (wafers), `plus` (x FP32 (n, 3) plus 1) and `text` (BYTES as they are), and the
ensemble `twice` (`plus` and `plus` again).
"""

import json
import sys
from importlib import import_module

import numpy as np
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException


def main(protocol, address):
    triton = import_module(f"tritonclient.{protocol}")
    client = triton.InferenceServerClient(address)
    as_json = {"as_json": True} if protocol == "grpc" else {}
    seen = {}

    def tensor(name, values, datatype):
        made = triton.InferInput(name, list(values.shape), datatype)
        made.set_data_from_numpy(values)
        return made

    def refusal(call, *arguments, **keywords):
        try:
            call(*arguments, **keywords)
        except InferenceServerException as error:
            return [error.status(), bool(error.message())]
        return None

    row = np.array([[1, 2, 3]], np.float32)
    x = tensor("x", row, "FP32")
    seen["live"] = [client.is_server_live(), client.is_server_ready()]
    seen["ready"] = [client.is_model_ready("tiny"), client.is_model_ready("tiny", "1"), client.is_model_ready("none")]
    seen["extensions"] = sorted(client.get_server_metadata(**as_json)["extensions"])
    metadata = client.get_model_metadata("tiny", **as_json)
    seen["metadata"] = [metadata["platform"], [each["name"] for each in metadata["outputs"]]]
    config = client.get_model_config("plus", **as_json)
    config = config.get("config", config)
    seen["config"] = [config["name"], config["max_batch_size"], config["input"][0]["data_type"]]

    result = client.infer("plus", [x], request_id="7")
    seen["plus"] = [
        result.as_numpy("y").tolist(),
        result.get_response()["id"] if protocol == "http" else result.get_response().id,
    ]
    seen["compressed"] = (
        client.infer(
            "plus",
            [x],
            **(
                {"compression_algorithm": "gzip"}
                if protocol == "grpc"
                else {"request_compression_algorithm": "gzip", "response_compression_algorithm": "deflate"}
            ),
        )
        .as_numpy("y")
        .tolist()
    )
    texts = np.array([["", "웨이퍼".encode()]], np.object_)
    seen["texts"] = [
        each.decode() for each in client.infer("text", [tensor("x", texts, "BYTES")]).as_numpy("y").ravel()
    ]
    classes = client.infer("plus", [x], outputs=[triton.InferRequestedOutput("y", class_count=2)])
    seen["classes"] = [each.decode() for each in classes.as_numpy("y").ravel()]
    dies = np.ones((1, 6, 8), np.uint8)
    wanted = [triton.InferRequestedOutput(name) for name in ("novelty", "probabilities")]
    wafer = client.infer("tiny", [tensor("dies", dies, "UINT8")], outputs=wanted)
    seen["wafer"] = [list(wafer.as_numpy("novelty").shape), int(wafer.as_numpy("probabilities").argmax())]
    seen["wishes"] = client.infer("plus", [x], priority=1, timeout=1_000_000).as_numpy("y").tolist()
    if protocol == "http":
        plain = triton.InferInput("x", [1, 3], "FP32")
        plain.set_data_from_numpy(row, binary_data=False)
        output = triton.InferRequestedOutput("y", binary_data=False)
        seen["json"] = client.infer("plus", [plain], outputs=[output]).as_numpy("y").tolist()
        plain = triton.InferInput("x", [1, 2], "BYTES")
        plain.set_data_from_numpy(np.array([["a", "b"]], np.object_), binary_data=False)
        seen["json_texts"] = [
            each.decode() if isinstance(each, bytes) else each
            for each in client.infer("text", [plain], outputs=[triton.InferRequestedOutput("y", binary_data=False)])
            .as_numpy("y")
            .ravel()
        ]
        pending = [client.async_infer("plus", [x]) for _ in range(3)]
        seen["async"] = [each.get_result().as_numpy("y").tolist() for each in pending]

    seen["refused"] = {
        "model": refusal(client.infer, "none", [x]),
        "shape": refusal(client.infer, "plus", [tensor("x", np.zeros((1, 4), np.float32), "FP32")]),
        "type": refusal(client.infer, "plus", [tensor("x", np.zeros((1, 3), np.float64), "FP64")]),
        "sequence": refusal(client.infer, "plus", [x], sequence_id=3),
        "cuda": refusal(client.get_cuda_shared_memory_status),
        "trace": refusal(client.update_trace_settings, settings={"trace_colour": "red"}),
        "log": refusal(client.update_log_settings, {"log_colour": True}),
        "load": refusal(client.load_model, "none"),
        "region": refusal(client.get_system_shared_memory_status, "none"),
    }

    handle = shm.create_shared_memory_region("tour", f"/teachwafer-tour-{protocol}", 64)
    try:
        shm.set_shared_memory_region(handle, [row])
        client.register_system_shared_memory("tour", f"/teachwafer-tour-{protocol}", 64)
        status = client.get_system_shared_memory_status(**as_json)
        seen["regions"] = sorted(status["regions"]) if protocol == "grpc" else [each["name"] for each in status]
        there = triton.InferInput("x", [1, 3], "FP32")
        there.set_shared_memory("tour", 12)
        back = triton.InferRequestedOutput("y")
        back.set_shared_memory("tour", 12, offset=16)
        client.infer("plus", [there], outputs=[back])
        seen["shared"] = shm.get_contents_as_numpy(handle, np.float32, [1, 3], offset=16).tolist()
        client.unregister_system_shared_memory("tour")
    finally:
        shm.destroy_shared_memory_region(handle)

    client.update_trace_settings(model_name="plus", settings={"trace_level": ["TIMESTAMPS"], "trace_rate": "1"})
    trace = client.get_trace_settings(model_name="plus", **as_json)
    seen["trace"] = trace["settings"]["trace_rate"]["value"] if protocol == "grpc" else [trace["trace_rate"]]
    client.infer("plus", [x])
    client.update_trace_settings(model_name="plus", settings={"trace_level": ["OFF"]})
    log = client.update_log_settings({"log_verbose_level": 1}, **as_json)
    log = log.get("settings", log)
    seen["log"] = log["log_verbose_level"]["uint32_param"] if protocol == "grpc" else log["log_verbose_level"]
    client.update_log_settings({"log_verbose_level": 0})

    statistics = client.get_inference_statistics("plus", **as_json)["model_stats"][0]
    seen["statistics"] = [statistics["name"], int(statistics["inference_stats"]["success"]["count"]) > 3]
    index = client.get_model_repository_index(**as_json)
    index = index["models"] if protocol == "grpc" else index
    seen["index"] = [[each["name"], each["version"], each["state"]] for each in index]
    seen["ensemble"] = [
        client.infer("twice", [x]).as_numpy("y").tolist(),
        client.get_model_metadata("twice", **as_json)["platform"],
    ]
    client.unload_model("twice", unload_dependents=True)
    seen["unloaded_with_ensemble"] = [client.is_model_ready("twice"), client.is_model_ready("plus")]
    client.load_model("twice")
    seen["loaded_with_ensemble"] = [client.is_model_ready("twice"), client.is_model_ready("plus")]
    client.unload_model("plus")
    seen["unloaded"] = client.is_model_ready("plus")
    client.load_model("plus", config='{"max_batch_size": 2}')
    config = client.get_model_config("plus", **as_json)
    seen["override"] = config.get("config", config)["max_batch_size"]
    client.load_model("plus")
    client.close()
    return seen


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
