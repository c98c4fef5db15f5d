"""The REST form of the open inference protocol: what tritonclient does not send, and what it does not look at."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import shutil
import socket
import ssl
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest

from services.common.errors import FailedPreconditionError
from services.common.server import TlsFiles
from services.predictor.rest_server import RestServer, serving_rest
from tests.contract.predictor.conftest import Serve
from tests.helpers.certificates import make_certificate, needs_openssl
from tests.helpers.onnx_models import ONNX_TYPES, add_identity, add_plus, add_sum

INFER = "/v2/models/plus/infer"
JSON_VALUES = {
    "BOOL": [True, False],
    "UINT8": [0, 255],
    "UINT16": [0, 65535],
    "UINT32": [0, 2**32 - 1],
    "UINT64": [0, 2**64 - 1],
    "INT8": [-128, 127],
    "INT16": [-(2**15), 2**15 - 1],
    "INT32": [-(2**31), 2**31 - 1],
    "INT64": [-(2**63), 2**63 - 1],
    "FP32": [0.5, -3],
    "FP64": [0.1, -1e300],
    "BYTES": ["", "웨이퍼"],
}


def plus(**changes: object) -> dict[str, object]:
    """Returns a good request, with fields of its input set anew."""
    return {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3], **changes}]}


@pytest.mark.parametrize("datatype", sorted(JSON_VALUES))
async def test_every_data_type_has_a_form_in_json(serve: Serve, tmp_path: Path, datatype: str) -> None:
    add_identity(tmp_path / "models", "same", datatype)
    values = JSON_VALUES[datatype]
    for data in (values, [values], [[each] for each in values]):
        request = {"id": "7", "inputs": [{"name": "x", "shape": [1, 2], "datatype": datatype, "data": data}]}
        async with serve() as server:
            response = await server.rest.post("/v2/models/same/versions/1/infer", json=request)
        assert response.json() == {
            "model_name": "same",
            "model_version": "1",
            "id": "7",
            "outputs": [{"name": "y", "datatype": datatype, "shape": [1, 2], "data": values}],
        }


@pytest.mark.parametrize("datatype", sorted(set(ONNX_TYPES) - set(JSON_VALUES)))
async def test_other_data_types_go_as_bytes(serve: Serve, tmp_path: Path, datatype: str) -> None:
    add_identity(tmp_path / "models", "same", datatype)
    raw = np.array([0x3F80, 0x4000], "<u2").tobytes()
    told = {"name": "x", "shape": [1, 2], "datatype": datatype, "parameters": {"binary_data_size": 4}}
    text = json.dumps({"inputs": [told], "parameters": {"binary_data_output": True}}).encode()
    async with serve() as server:
        response = await server.rest.post(
            "/v2/models/same/infer", content=text + raw, headers={"Inference-Header-Content-Length": str(len(text))}
        )
        length = int(response.headers["Inference-Header-Content-Length"])
        assert response.content[length:] == raw
        assert json.loads(response.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 4}
        del told["parameters"]
        told["data"] = [1, 2]
        assert (await server.rest.post("/v2/models/same/infer", json={"inputs": [told]})).status_code == 400


async def test_an_output_can_be_bytes_beside_one_in_json(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus")
    request = plus() | {
        "parameters": {"binary_data_output": True},
        "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
    }
    async with serve() as server:
        response = await server.rest.post(INFER, json=request)
        assert response.json()["outputs"][0]["data"] == [2, 3, 4]
        del request["outputs"]
        response = await server.rest.post(INFER, json=request)
    assert (
        response.content[int(response.headers["inference-header-content-length"]) :]
        == np.array([2, 3, 4], "<f4").tobytes()
    )
    assert response.headers["content-type"] == "application/octet-stream"


async def test_a_body_can_be_the_bytes_of_the_only_input(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus")
    add_sum(tmp_path / "models", "sum")
    add_identity(tmp_path / "models", "text", "BYTES")
    headers = {"Inference-Header-Content-Length": "0"}
    async with serve() as server:
        for model, values in (("plus", [1, 2, 3]), ("sum", [1, 2, 3, 4])):
            body = np.array(values, "<f4").tobytes()
            response = await server.rest.post(f"/v2/models/{model}/infer", content=body, headers=headers)
            length = int(response.headers["Inference-Header-Content-Length"])
            expected = np.array(values) + 1 if model == "plus" else np.array(values) * 2
            np.testing.assert_array_equal(np.frombuffer(response.content[length:], "<f4"), expected)
        short = await server.rest.post("/v2/models/sum/infer", content=b"\0" * 11, headers=headers)
        assert (short.status_code, "Received" in short.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (INFER, b"{", 400),
        (INFER, b"[]", 400),
        (INFER, b"\xff\xfe", 400),
        (INFER, b"", 400),
        (INFER, plus(data=[1, 2]), 400),
        (INFER, plus(data=[1, 2, "3"]), 400),
        (INFER, plus(data=[1, 2, None]), 400),
        (INFER, plus(data=[[1, 2], 3]), 400),
        (INFER, plus(data="123"), 400),
        (INFER, plus(datatype="INT32", data=[1.5, 2, 3]), 400),
        (INFER, plus(datatype="fp32"), 400),
        (INFER, plus(datatype=7), 400),
        (INFER, plus(shape=[1, 4], data=[1, 2, 3, 4]), 400),
        (INFER, plus(shape=[5, 3], data=[0] * 15), 400),
        (INFER, plus(shape=[0, 3], data=[]), 400),
        (INFER, plus(shape=[-1, -3]), 400),
        (INFER, plus(shape=[2**62, 2**62]), 400),
        (INFER, plus(shape=[2**70]), 400),
        (INFER, plus(shape="3"), 400),
        (INFER, plus(shape=[True, 3]), 400),
        (INFER, plus(name="z"), 400),
        (INFER, plus(name=None), 400),
        (INFER, plus(parameters={"binary_data_size": 12}), 400),
        (INFER, plus(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 12}), 400),
        (INFER, plus() | {"outputs": [{"name": "z"}]}, 400),
        (INFER, plus() | {"outputs": [{"name": "y", "parameters": {"classification": "two"}}]}, 400),
        (INFER, plus() | {"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, 400),
        (INFER, plus() | {"parameters": {"triton_x": 1}}, 400),
        (INFER, plus() | {"parameters": {"priority": 2**70}}, 400),
        (INFER, plus() | {"id": 7}, 400),
        ("/v2/models/plus/versions/9/infer", plus(), 404),
        ("/v2/models/plus/versions/newest/infer", plus(), 400),
        ("/v2/models/none/infer", plus(), 404),
        ("/v2/models/..%2Fplus/infer", plus(), 404),
        ("/v2/models/plus/guess", plus(), 404),
        ("/v2/health/ready", b"", 405),
        ("/v2/repository/index", {"ready": "yes"}, 400),
        ("/v2/repository/models/plus/load", {"parameters": {"config": 1}}, 400),
        ("/v2/repository/models/plus/load", {"parameters": {"config": "{}", "file:1/model.onnx": "*"}}, 400),
        ("/v2/repository/models/plus/unload", {"parameters": {"colour": True}}, 400),
        ("/v2/systemsharedmemory/region/r/register", {"key": "/x", "byte_size": "1"}, 400),
        ("/v2/systemsharedmemory/region/r/register", {"key": "/nothing-is-called-so", "byte_size": 1}, 404),
        ("/v2/cudasharedmemory/region/r/register", {"raw_handle": {"b64": ""}}, 503),
        ("/v2/trace/setting", {"trace_file": "/tmp/x"}, 501),
        ("/v2/trace/setting", {"trace_rate": {"a": 1}}, 400),
        ("/v2/logging", {"log_verbose_level": 2**40}, 400),
        ("/v2/logging", {"log_info": None}, 400),
    ],
)
async def test_bad_requests_get_an_error_in_json(
    serve: Serve, tmp_path: Path, path: str, body: object, status: int
) -> None:
    add_plus(tmp_path / "models", "plus")
    async with serve() as server:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        response = await server.rest.post(path, content=content)
        assert response.status_code == status
        assert list(response.json()) == ["error"]
        assert "Received" in response.json()["error"]
        assert (await server.rest.post(INFER, json=plus())).json()["outputs"][0]["data"] == [2, 3, 4]


@pytest.mark.parametrize("length", ["-1", "1.5", "many", "100000", "99999999999999999999"])
async def test_a_wrong_length_of_the_json_is_refused(serve: Serve, tmp_path: Path, length: str) -> None:
    add_plus(tmp_path / "models", "plus")
    async with serve() as server:
        response = await server.rest.post(INFER, json=plus(), headers={"Inference-Header-Content-Length": length})
    assert response.status_code == 400


async def test_more_bytes_than_the_inputs_say_are_refused(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus")
    text = json.dumps(plus()).encode()
    async with serve() as server:
        response = await server.rest.post(
            INFER, content=text + b"\0", headers={"Inference-Header-Content-Length": str(len(text))}
        )
    assert (response.status_code, "1 bytes more" in response.json()["error"]) == (400, True)


async def test_bodies_are_unpacked_and_packed(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus", config="max_batch_size: 1024")
    large = plus(shape=[1000, 3], data=[1] * 3000)
    text = json.dumps(large).encode()
    async with serve() as server:
        for encoding, packed in (("gzip", gzip.compress(text)), ("deflate", zlib.compress(text))):
            response = await server.rest.post(
                INFER, content=packed, headers={"Content-Encoding": encoding, "Accept-Encoding": encoding}
            )
            assert response.headers["content-encoding"] == encoding
            assert response.json()["outputs"][0]["data"] == [2] * 3000
        for encoding, body in (("gzip", text), ("gzip", gzip.compress(text)[:-9]), ("br", text)):
            response = await server.rest.post(INFER, content=body, headers={"Content-Encoding": encoding})
            assert response.status_code == 400
        plain = await server.rest.post(INFER, content=text, headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers


async def test_bodies_over_the_limit_are_refused_before_they_are_kept(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus")
    bomb = gzip.compress(b" " * (64 << 20))
    async with serve(max_body_bytes=100_000) as server:
        for content, headers in ((b" " * 100_001, {}), (bomb, {"Content-Encoding": "gzip"})):
            response = await server.rest.post(INFER, content=content, headers=headers)
            assert (response.status_code, list(response.json())) == (413, ["error"])
        assert (await server.rest.post(INFER, json=plus())).status_code == 200


async def test_health_metadata_and_settings_in_json(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus")
    async with serve() as server:
        get = server.rest.get
        assert [(await get(path)).status_code for path in ("/v2/health/live", "/v2/health/ready")] == [200, 200]
        assert (await get("/v2/models/plus/ready")).status_code == 200
        assert (await get("/v2/models/plus/versions/2/ready")).status_code == 400
        assert (await get("/v2")).json()["name"] == "teachwafer"
        assert (await get("/v2/models/plus")).json() == {
            "name": "plus",
            "versions": ["1"],
            "platform": "onnxruntime_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}],
        }
        config = (await get("/v2/models/plus/config")).json()
        assert config["input"][0]["dims"] == [3]
        assert config["version_policy"] == {"latest": {"num_versions": 1}}
        await server.rest.post(INFER, json=plus())
        for path in ("/v2/models/stats", "/v2/models/plus/stats", "/v2/models/plus/versions/1/stats"):
            (done,) = (await get(path)).json()["model_stats"]
            assert (done["inference_count"], done["inference_stats"]["queue"]["count"]) == (1, 1)
        assert (await get("/v2/trace/setting")).json()["trace_level"] == ["OFF"]
        assert (await get("/v2/logging")).json()["log_format"] == "default"
        index = (await server.rest.post("/v2/repository/index")).json()
        assert index == [{"name": "plus", "version": "1", "state": "READY", "reason": ""}]
        response = await get("/v2/models/none", headers={"x-request-id": "abc-1"})
        assert (response.status_code, response.headers["x-request-id"]) == (404, "abc-1")
        server.draining.set()
        assert (await get("/v2/health/ready")).status_code == 400
        assert (await get("/v2/health/live")).status_code == 200


async def test_a_port_in_use_is_told() -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FailedPreconditionError, match="REST_PORT"):
            RestServer(None, "127.0.0.1", port, max_body_bytes=1)


@needs_openssl
async def test_calls_are_encrypted_and_certificates_can_change(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus")
    old, new, client, stranger = (make_certificate(tmp_path, name) for name in ("old", "new", "client", "stranger"))
    used = TlsFiles(tmp_path / "used.crt", tmp_path / "used.key", client.certificate)

    def use(files: TlsFiles) -> None:
        shutil.copy(files.certificate, used.certificate)
        shutil.copy(files.key, used.key)

    use(old)
    async with serve() as server:
        rest = RestServer(server.handlers, "127.0.0.1", 0, max_body_bytes=1 << 20, tls=used)

        async def call(trusted: TlsFiles, shown: TlsFiles) -> int:
            context = ssl.create_default_context(cafile=trusted.certificate)
            context.load_cert_chain(shown.certificate, shown.key)
            async with httpx.AsyncClient(verify=context) as encrypted:
                return (await encrypted.post(f"https://127.0.0.1:{rest.port}{INFER}", json=plus())).status_code

        async with serving_rest(rest):
            assert await call(old, client) == 200
            with pytest.raises(httpx.TransportError):
                await call(old, stranger)
            use(new)
            with pytest.raises(httpx.TransportError):
                await call(old, client)
            assert await call(new, client) == 200
            used.certificate.write_text("no certificate")
            assert await call(new, client) == 200


async def test_large_bodies_of_json_hold_up_no_grpc_call(serve: Serve, tmp_path: Path) -> None:
    from inference import grpc_service_pb2 as kserve

    add_plus(tmp_path / "models", "plus", config="max_batch_size: 1000000")
    rows = 20_000
    text = json.dumps(plus(shape=[rows, 3], data=[1] * 3 * rows)).encode()
    # Both may wait or run at the same time: with a lower bound the second is refused while the first runs.
    async with serve(max_body_bytes=1 << 24, max_waiting=2 * rows) as server:
        large = [asyncio.create_task(server.rest.post(INFER, content=text)) for _ in range(2)]
        while not all(each.done() for each in large):
            assert (await server.kserve.ServerLive(kserve.ServerLiveRequest())).live
        assert [each.result().status_code for each in large] == [200, 200]
