"""The open inference protocol over gRPC, with any graph: data types, shared memory, parameters, settings, errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
from inference import grpc_service_pb2 as kserve
from teachwafer.predictor.v1 import predictor_pb2 as pb
from teachwafer.type import wafer_map_pb2

from services.common.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    TeachwaferError,
    UnavailableError,
    UnimplementedError,
)
from services.common.model_repository import ModelRepository
from services.predictor.log_settings import LogSettings
from tests.contract.predictor.conftest import Serve
from tests.helpers.onnx_models import ONNX_TYPES, add_identity, add_plus, add_sum
from tests.helpers.tiny_model import publish_tiny_model, tiny_wafers

NUMBERS = {
    "BOOL": ("?", [True, False], "bool_contents"),
    "UINT8": ("u1", [0, 255], "uint_contents"),
    "UINT16": ("<u2", [0, 65535], "uint_contents"),
    "UINT32": ("<u4", [0, 2**32 - 1], "uint_contents"),
    "UINT64": ("<u8", [0, 2**64 - 1], "uint64_contents"),
    "INT8": ("i1", [-128, 127], "int_contents"),
    "INT16": ("<i2", [-(2**15), 2**15 - 1], "int_contents"),
    "INT32": ("<i4", [-(2**31), 2**31 - 1], "int_contents"),
    "INT64": ("<i8", [-(2**63), 2**63 - 1], "int64_contents"),
    "FP16": ("<f2", [0.5, -2.0], ""),
    "FP32": ("<f4", [0.5, float("nan")], "fp32_contents"),
    "FP64": ("<f8", [0.1, -1e300], "fp64_contents"),
    "BF16": ("<u2", [0x3F80, 0xC000], ""),
}
STRINGS = ["", "웨이퍼 지도"]
WAFER = wafer_map_pb2.WaferMap(rows=6, columns=8, dies=b"\1" * 48)


def request(
    data: np.ndarray, *, model: str = "plus", datatype: str = "FP32", raw: bool = True
) -> kserve.ModelInferRequest:
    """Returns a request with one input `x`."""
    message = kserve.ModelInferRequest(
        model_name=model,
        id="7",
        inputs=[kserve.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=data.shape)],
    )
    if raw:
        message.raw_input_contents.append(data.tobytes())
    return message


def strings(values: list[str]) -> bytes:
    return b"".join(struct.pack("<I", len(each.encode())) + each.encode() for each in values)


def answer(response: kserve.ModelInferResponse, dtype: str = "<f4") -> np.ndarray:
    return np.frombuffer(response.raw_output_contents[0], dtype).reshape(tuple(response.outputs[0].shape))


@pytest.mark.parametrize("datatype", sorted(ONNX_TYPES))
async def test_every_data_type_goes_in_and_out(serve: Serve, tmp_path: Path, datatype: str) -> None:
    add_identity(tmp_path / "models", "same", datatype)
    async with serve() as server:
        metadata = await server.kserve.ModelMetadata(kserve.ModelMetadataRequest(name="same"))
        assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [("x", datatype, [-1, 2])]
        if datatype == "BYTES":
            message = request(np.zeros((1, 2)), model="same", datatype=datatype, raw=False)
            message.inputs[0].contents.bytes_contents.extend(each.encode() for each in STRINGS)
            typed = await server.kserve.ModelInfer(message)
            message.inputs[0].ClearField("contents")
            message.raw_input_contents.append(strings(STRINGS))
            raw = await server.kserve.ModelInfer(message)
            assert raw.raw_output_contents[0] == typed.raw_output_contents[0] == strings(STRINGS)
            return
        dtype, values, field = NUMBERS[datatype]
        data = np.array([values], dtype)
        raw = await server.kserve.ModelInfer(request(data, model="same", datatype=datatype))
        assert raw.raw_output_contents[0] == data.tobytes()
        assert raw.outputs[0].datatype == datatype
        message = request(data, model="same", datatype=datatype, raw=False)
        if field:
            getattr(message.inputs[0].contents, field).extend(data.ravel().tolist())
            assert (await server.kserve.ModelInfer(message)).raw_output_contents[0] == data.tobytes()
        else:
            message.inputs[0].contents.fp32_contents.extend([1.0, 2.0])
            with pytest.raises(InvalidArgumentError, match="no typed form"):
                await server.kserve.ModelInfer(message)


async def test_a_graph_without_a_batch_is_run_as_it_is(serve: Serve, tmp_path: Path) -> None:
    add_sum(tmp_path / "models", "sum")
    data = np.arange(4, dtype=np.float32).reshape(2, 2)
    async with serve() as server:
        config = (await server.kserve.ModelConfig(kserve.ModelConfigRequest(name="sum"))).config
        assert (config.max_batch_size, list(config.input[0].dims)) == (0, [2, 2])
        np.testing.assert_array_equal(answer(await server.kserve.ModelInfer(request(data, model="sum"))), data * 2)
        with pytest.raises(InvalidArgumentError, match=r"Expected the shape \[2, 2\]"):
            await server.kserve.ModelInfer(request(data[:1], model="sum"))


async def test_calls_of_any_graph_share_runs(serve: Serve, tmp_path: Path) -> None:
    add_plus(
        tmp_path / "models",
        "plus",
        config="max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 500000 }",
    )
    async with serve(threads=1) as server:
        rows = [np.full((1, 3), value, np.float32) for value in range(40)]
        responses = await asyncio.gather(*(server.kserve.ModelInfer(request(each)) for each in rows))
        (done,) = (await server.kserve.ModelStatistics(kserve.ModelStatisticsRequest(name="plus"))).model_stats
    for row, response in zip(rows, responses, strict=True):
        np.testing.assert_array_equal(answer(response), row + 1)
    assert done.inference_count == 40
    assert done.execution_count < 40
    assert sum(each.batch_size * each.compute_infer.count for each in done.batch_stats) == 40
    for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(done.inference_stats, part).count == 40
    assert max(each.batch_size for each in done.batch_stats) <= 8


async def test_one_bad_string_spoils_no_other_call(serve: Serve, tmp_path: Path) -> None:
    add_identity(tmp_path / "models", "same", "BYTES", "max_batch_size: 8 dynamic_batching { }")
    good = request(np.zeros((1, 2)), model="same", datatype="BYTES", raw=False)
    good.raw_input_contents.append(strings(STRINGS))
    bad = request(np.zeros((1, 2)), model="same", datatype="BYTES", raw=False)
    bad.raw_input_contents.append(struct.pack("<I", 1) + b"\xff" + struct.pack("<I", 0))
    async with serve(threads=1) as server:
        outcomes = await asyncio.gather(
            *(server.kserve.ModelInfer(each) for each in [good, good, bad, good]), return_exceptions=True
        )
    assert [isinstance(each, InvalidArgumentError) for each in outcomes] == [False, False, True, False]


# What no server should take, and what is answered. Each changes one thing of a good request for `plus`: x FP32 (n, 3),
# at most 4 in the batch.
def _shape(*sides: int):
    def change(message: kserve.ModelInferRequest) -> None:
        message.inputs[0].shape[:] = sides

    return change


def _set(**fields: object):
    def change(message: kserve.ModelInferRequest) -> None:
        for name, value in fields.items():
            setattr(message, name, value)

    return change


def _input(**fields: object):
    def change(message: kserve.ModelInferRequest) -> None:
        for name, value in fields.items():
            setattr(message.inputs[0], name, value)

    return change


def _raw(*buffers: bytes):
    def change(message: kserve.ModelInferRequest) -> None:
        message.raw_input_contents[:] = buffers

    return change


def _typed(field: str, values: list[object], *, raw: bool = False):
    def change(message: kserve.ModelInferRequest) -> None:
        if not raw:
            message.ClearField("raw_input_contents")
        getattr(message.inputs[0].contents, field).extend(values)

    return change


def _parameter(name: str, **choice: object):
    def change(message: kserve.ModelInferRequest) -> None:
        for field, value in choice.items():
            setattr(message.parameters[name], field, value)

    return change


def _inputs(count: int):
    def change(message: kserve.ModelInferRequest) -> None:
        one = kserve.ModelInferRequest.InferInputTensor()
        one.CopyFrom(message.inputs[0])
        del message.inputs[:]
        message.inputs.extend([one] * count)
        message.raw_input_contents[:] = list(message.raw_input_contents) * count

    return change


def _output(name: str, times: int = 1, **parameters: int):
    def change(message: kserve.ModelInferRequest) -> None:
        for _ in range(times):
            output = message.outputs.add(name=name)
            for key, value in parameters.items():
                output.parameters[key].int64_param = value

    return change


BAD_REQUESTS = {
    "a version that is no number": (_set(model_version="newest"), InvalidArgumentError),
    "a version below 1": (_set(model_version="-1"), InvalidArgumentError),
    "a version that there is not": (_set(model_version="9"), NotFoundError),
    "a model that there is not": (_set(model_name="nothing"), NotFoundError),
    "a name that leads out of the repository": (_set(model_name="../plus"), NotFoundError),
    "a name with a folder": (_set(model_name="plus/1"), NotFoundError),
    "no input": (_inputs(0), InvalidArgumentError),
    "the same input twice": (_inputs(2), InvalidArgumentError),
    "another input": (_input(name="z"), InvalidArgumentError),
    "another data type": (_input(datatype="FP64"), InvalidArgumentError),
    "an unknown data type": (_input(datatype="FP33"), InvalidArgumentError),
    "a data type in lower case": (_input(datatype="fp32"), InvalidArgumentError),
    "BYTES for numbers": (_input(datatype="BYTES"), InvalidArgumentError),
    "one dimension less": (_shape(3), InvalidArgumentError),
    "one dimension more": (_shape(1, 1, 3), InvalidArgumentError),
    "another dimension": (_shape(1, 4), InvalidArgumentError),
    "a batch over the maximum": (_shape(5, 3), InvalidArgumentError),
    "a batch of 0": (_shape(0, 3), InvalidArgumentError),
    "a negative dimension": (_shape(-1, 3), InvalidArgumentError),
    "a dimension of 2**62": (_shape(2**62, 3), InvalidArgumentError),
    "dimensions whose product overflows": (_shape(2**62, 2**62), InvalidArgumentError),
    "a raw buffer that is too short": (_raw(b"\0" * 11), InvalidArgumentError),
    "a raw buffer that is too long": (_raw(b"\0" * 13), InvalidArgumentError),
    "more raw buffers than inputs": (_raw(b"\0" * 12, b"\0" * 12), InvalidArgumentError),
    "no contents": (_raw(), InvalidArgumentError),
    "raw beside typed contents": (_typed("fp32_contents", [1.0] * 3, raw=True), InvalidArgumentError),
    "too few typed contents": (_typed("fp32_contents", [1.0] * 2), InvalidArgumentError),
    "typed contents in the wrong field": (_typed("fp64_contents", [1.0] * 3), InvalidArgumentError),
    "an unknown output": (_output("z"), InvalidArgumentError),
    "an output twice": (_output("y", 2), InvalidArgumentError),
    "a reserved parameter": (_parameter("triton_x", bool_param=True), InvalidArgumentError),
    "a sequence": (_parameter("sequence_id", int64_param=3), InvalidArgumentError),
    "a priority below 0": (_parameter("priority", int64_param=-1), InvalidArgumentError),
    "a time limit that is no number": (_parameter("timeout", string_param="soon"), InvalidArgumentError),
    "classes below 1": (_output("y", classification=0), InvalidArgumentError),
}


@pytest.mark.parametrize("what", BAD_REQUESTS)
async def test_bad_requests_are_refused_and_the_server_serves_on(serve: Serve, tmp_path: Path, what: str) -> None:
    change, expected = BAD_REQUESTS[what]
    add_plus(tmp_path / "models", "plus")
    good = request(np.zeros((1, 3), np.float32))
    bad = kserve.ModelInferRequest()
    bad.CopyFrom(good)
    change(bad)
    async with serve() as server:
        with pytest.raises(TeachwaferError) as refused:
            await server.kserve.ModelInfer(bad)
        assert type(refused.value) is expected
        assert "Received" in refused.value.message
        assert answer(await server.kserve.ModelInfer(good)).tolist() == [[1, 1, 1]]


async def test_bytes_that_are_no_message_are_refused(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus")
    data = request(np.zeros((1, 3), np.float32)).SerializeToString()
    for damaged in (data[:-1], b"\n\x04\xff\xfe\xfd\xfc"):
        async with serve() as server:
            call = server.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            with pytest.raises(InvalidArgumentError, match="Received") as refused:
                await call(damaged)
            assert refused.value.reason == "DAMAGED_MESSAGE"


@pytest.mark.parametrize(
    ("method", "first"),
    [
        ("inference.GRPCInferenceService/ModelStreamInfer", request(np.zeros((1, 3), np.float32))),
        ("teachwafer.predictor.v1.PredictorService/StreamClassify", pb.ClassifyRequest(model="tiny", wafers=[WAFER])),
    ],
    ids=["ModelStreamInfer", "StreamClassify"],
)
async def test_bytes_that_are_no_message_end_their_stream(
    serve: Serve, tmp_path: Path, method: str, first: kserve.ModelInferRequest | pb.ClassifyRequest
) -> None:
    publish_tiny_model(ModelRepository(tmp_path / "models"), "tiny", tmp_path)
    add_plus(tmp_path / "models", "plus")

    async def requests() -> AsyncIterator[bytes]:
        yield first.SerializeToString()
        yield b"\n\x04\xff\xfe\xfd\xfc"

    async with serve() as server:
        answers = aiter(server.channel.stream_stream(f"/{method}")(requests()))
        assert await anext(answers)
        with pytest.raises(InvalidArgumentError, match="Received") as refused:
            await anext(answers)
    assert refused.value.reason == "DAMAGED_MESSAGE"


async def test_more_instances_than_threads_are_told(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_plus(tmp_path / "models", "plus", config="instance_group [ { count: 3 } ]")
    async with serve(threads=3):
        assert not [each for each in caplog.records if "instances" in each.message]
    async with serve(threads=2):
        (told,) = [each for each in caplog.records if "instances" in each.message]
    assert (told.levelname, told.model, told.instances, told.threads) == ("WARNING", "plus", 3, 2)


@pytest.mark.parametrize(
    "raw",
    [strings(STRINGS)[:-1], strings(STRINGS) + b"\0", struct.pack("<II", 0, 2**31), b"\1\0\0", b"", strings(["a"])],
)
async def test_strings_with_wrong_lengths_are_refused(serve: Serve, tmp_path: Path, raw: bytes) -> None:
    add_identity(tmp_path / "models", "same", "BYTES")
    message = request(np.zeros((1, 2)), model="same", datatype="BYTES", raw=False)
    message.raw_input_contents.append(raw)
    async with serve() as server:
        with pytest.raises(InvalidArgumentError, match="Received"):
            await server.kserve.ModelInfer(message)


async def test_unknown_models_and_versions_are_not_found_everywhere(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus")
    async with serve() as server:
        for name, version in (("nothing", ""), ("plus", "2"), ("..", "")):
            for call in (
                server.kserve.ModelMetadata(kserve.ModelMetadataRequest(name=name, version=version)),
                server.kserve.ModelConfig(kserve.ModelConfigRequest(name=name, version=version)),
                server.kserve.ModelStatistics(kserve.ModelStatisticsRequest(name=name, version=version)),
            ):
                with pytest.raises(NotFoundError):
                    await call
            ready = await server.kserve.ModelReady(kserve.ModelReadyRequest(name=name, version=version))
            assert not ready.ready
        with pytest.raises(NotFoundError):
            await server.kserve.RepositoryModelLoad(kserve.RepositoryModelLoadRequest(model_name="nothing"))
        with pytest.raises(NotFoundError):
            await server.kserve.TraceSetting(kserve.TraceSettingRequest(model_name="nothing"))
        with pytest.raises(InvalidArgumentError):
            await server.kserve.RepositoryModelLoad(kserve.RepositoryModelLoadRequest(model_name="../plus"))


async def test_classes_come_in_the_place_of_numbers(serve: Serve, tmp_path: Path) -> None:
    config = 'max_batch_size: 4 output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] label_filename: "labels.txt" } ]'
    folder = add_plus(tmp_path / "models", "plus", config=config)
    (folder / "labels.txt").write_text("Center\nEdge-Ring\n")
    publish_tiny_model(ModelRepository(tmp_path / "models"), "tiny", tmp_path)
    message = request(np.array([[0, 2, 2], [3, 1, 0]], np.float32))
    _output("y", classification=2)(message)
    wafers = kserve.ModelInferRequest(
        model_name="tiny",
        inputs=[kserve.ModelInferRequest.InferInputTensor(name="dies", datatype="UINT8", shape=(3, 6, 8))],
        raw_input_contents=[tiny_wafers().tobytes()],
    )
    _output("probabilities", classification=1)(wafers)
    async with serve() as server:
        response = await server.kserve.ModelInfer(message)
        of_wafers = await server.kserve.ModelInfer(wafers)
    assert (response.outputs[0].datatype, list(response.outputs[0].shape)) == ("BYTES", [2, 2])
    assert response.raw_output_contents[0] == strings(
        ["3.000000:1:Edge-Ring", "3.000000:2", "4.000000:0:Center", "2.000000:1:Edge-Ring"]
    )
    assert [each in of_wafers.raw_output_contents[0] for each in (b":0:Low", b":1:Middle", b":2:High")] == [True] * 3


async def test_a_stream_can_ask_for_the_final_response(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus")
    message = request(np.zeros((1, 3), np.float32))
    message.parameters["triton_enable_empty_final_response"].bool_param = True

    async def requests() -> AsyncIterator[kserve.ModelInferRequest]:
        yield message

    async with serve() as server:
        (response,) = [each async for each in server.kserve.ModelStreamInfer(requests())]
    assert not response.error_message
    assert response.infer_response.parameters["triton_final_response"].bool_param


@contextlib.contextmanager
def shared_memory_object(size: int) -> Iterator[Path]:
    path = Path("/dev/shm") / f"teachwafer-test-{secrets.token_hex(8)}"
    path.write_bytes(bytes(size))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def register(path: Path, name: str = "r", offset: int = 0, size: int = 64) -> kserve.SystemSharedMemoryRegisterRequest:
    return kserve.SystemSharedMemoryRegisterRequest(name=name, key=f"/{path.name}", offset=offset, byte_size=size)


def in_region(tensor: object, offset: int, size: int, region: str = "r") -> None:
    tensor.parameters["shared_memory_region"].string_param = region
    tensor.parameters["shared_memory_byte_size"].int64_param = size
    if offset:
        tensor.parameters["shared_memory_offset"].int64_param = offset


async def test_tensors_go_through_shared_memory(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus")
    data = np.array([[1, 2, 3]], np.float32)
    message = request(data, raw=False)
    in_region(message.inputs[0], 0, 12)
    in_region(message.outputs.add(name="y"), 16, 20)
    async with serve() as server:
        with shared_memory_object(128) as path:
            with pytest.raises(NotFoundError):
                await server.kserve.ModelInfer(message)
            await server.kserve.SystemSharedMemoryRegister(register(path, offset=32))
            with path.open("r+b") as file:
                file.seek(32)
                file.write(data.tobytes())
            response = await server.kserve.ModelInfer(message)
            assert np.frombuffer(path.read_bytes()[48:60], "<f4").tolist() == [2, 3, 4]
            assert response.raw_output_contents[0] == b""
            assert response.outputs[0].parameters["shared_memory_region"].string_param == "r"
            status = await server.kserve.SystemSharedMemoryStatus(kserve.SystemSharedMemoryStatusRequest())
            assert [(each.name, each.offset, each.byte_size) for each in status.regions.values()] == [("r", 32, 64)]

            message.outputs[0].parameters["shared_memory_byte_size"].int64_param = 11
            with pytest.raises(InvalidArgumentError, match="at least 12 bytes"):
                await server.kserve.ModelInfer(message)
            message.outputs[0].parameters["shared_memory_byte_size"].int64_param = 49
            with pytest.raises(InvalidArgumentError, match="64 bytes"):
                await server.kserve.ModelInfer(message)
            message.ClearField("outputs")
            # An object that was cut would end the process that reads behind its end.
            with path.open("r+b") as file:
                file.truncate(8)
            with pytest.raises(InvalidArgumentError, match="shorter"):
                await server.kserve.ModelInfer(message)
        await server.kserve.SystemSharedMemoryUnregister(kserve.SystemSharedMemoryUnregisterRequest(name="r"))
        with pytest.raises(NotFoundError):
            await server.kserve.SystemSharedMemoryStatus(kserve.SystemSharedMemoryStatusRequest(name="r"))


async def test_regions_of_shared_memory_are_checked(serve: Serve) -> None:
    async with serve() as server:
        with shared_memory_object(64) as path:
            call = server.kserve.SystemSharedMemoryRegister
            for bad, error in (
                (register(path, size=65), InvalidArgumentError),
                (register(path, offset=1), InvalidArgumentError),
                (register(path, offset=2**63, size=2**63), InvalidArgumentError),
                (register(path, size=0), InvalidArgumentError),
                (register(path, name=""), InvalidArgumentError),
                (register(Path("..")), InvalidArgumentError),
                (register(Path("nothing-is-called-so")), NotFoundError),
                (
                    kserve.SystemSharedMemoryRegisterRequest(name="r", key="/../../etc/passwd", byte_size=1),
                    InvalidArgumentError,
                ),
            ):
                with pytest.raises(error):
                    await call(bad)
            await call(register(path))
            with pytest.raises(AlreadyExistsError):
                await call(register(path))
            await server.kserve.SystemSharedMemoryUnregister(kserve.SystemSharedMemoryUnregisterRequest())
            await call(register(path))
    async with serve(shared_memory=False) as server:
        with shared_memory_object(64) as path, pytest.raises(PermissionDeniedError, match="TEACHWAFER"):
            await server.kserve.SystemSharedMemoryRegister(register(path))


async def test_memory_of_a_gpu_is_not_to_be_had(serve: Serve) -> None:
    async with serve() as server:
        for call in (
            server.handlers.CudaSharedMemoryStatus(kserve.CudaSharedMemoryStatusRequest()),
            server.handlers.CudaSharedMemoryRegister(kserve.CudaSharedMemoryRegisterRequest(name="r")),
            server.handlers.CudaSharedMemoryUnregister(kserve.CudaSharedMemoryUnregisterRequest()),
        ):
            with pytest.raises(UnavailableError, match="CUDA"):
                await call


def traced(**settings: object) -> kserve.TraceSettingRequest:
    message = kserve.TraceSettingRequest()
    for name, values in settings.items():
        message.settings[name].value.extend(values if isinstance(values, list) else [str(values)])
    return message


async def test_requests_are_traced_as_the_settings_say(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus")
    message = request(np.zeros((1, 3), np.float32))
    async with serve() as server:
        change = server.kserve.TraceSetting
        assert (await change(traced())).settings["trace_level"].value == ["OFF"]
        await server.kserve.ModelInfer(message)
        assert not server.traces.exists()
        after = await change(traced(trace_level=["TIMESTAMPS"], trace_rate=2, trace_count=2))
        assert after.settings["trace_rate"].value == ["2"]
        for _ in range(8):
            await server.kserve.ModelInfer(message)
        entries = json.loads(server.traces.read_text())
        assert [each["model_name"] for each in entries if "model_name" in each] == ["plus", "plus"]
        stamps = [stamp["ns"] for stamp in entries[1]["timestamps"]]
        assert stamps == sorted(stamps)
        assert [stamp["name"] for stamp in entries[1]["timestamps"]] == [
            "REQUEST_START",
            "QUEUE_START",
            "COMPUTE_START",
            "COMPUTE_INPUT_END",
            "COMPUTE_OUTPUT_START",
            "COMPUTE_END",
            "REQUEST_END",
        ]
        assert (await change(traced())).settings["trace_count"].value == ["0"]
        # One model alone, into files of their own; the settings of all stay.
        alone = traced(trace_level=["TIMESTAMPS"], trace_rate=1, trace_count=-1, log_frequency=1)
        alone.model_name = "plus"
        await change(alone)
        await server.kserve.ModelInfer(message)
        assert json.loads(server.traces.with_name("trace.json.2").read_text())
        assert (await change(traced())).settings["trace_rate"].value == ["2"]
        for bad, error in (
            (traced(trace_colour="red"), InvalidArgumentError),
            (traced(trace_rate=0), InvalidArgumentError),
            (traced(trace_rate="often"), InvalidArgumentError),
            (traced(trace_level=["TENSORS"]), InvalidArgumentError),
            (traced(trace_mode="opentelemetry"), InvalidArgumentError),
            (traced(trace_file="/tmp/x"), UnimplementedError),
        ):
            with pytest.raises(error):
                await change(bad)


def logged(**settings: object) -> kserve.LogSettingsRequest:
    message = kserve.LogSettingsRequest()
    for name, value in settings.items():
        kind = {bool: "bool_param", int: "uint32_param", str: "string_param"}[type(value)]
        setattr(message.settings[name], kind, value)
    return message


async def test_log_lines_pass_as_the_settings_say(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    root = logging.getLogger("tests.log_settings")  # not the one of the process, which other tests use
    root.setLevel(logging.INFO)
    root.propagate = False
    root.addHandler(caplog.handler)

    def passing() -> list[str]:
        caplog.clear()
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            root.log(level, "line")
        return [each.levelname for each in caplog.records]

    try:
        async with serve(log_settings=LogSettings(root)) as server:
            change = server.kserve.LogSettings
            settings = (await change(logged())).settings
            assert settings["log_info"].bool_param
            assert settings["log_verbose_level"].uint32_param == 0
            assert passing() == ["INFO", "WARNING", "ERROR"]
            await change(logged(log_info=False))
            assert passing() == ["WARNING", "ERROR"]
            await change(logged(log_verbose_level=1, log_warning=False))
            assert passing() == ["DEBUG", "ERROR"]
            after = await change(logged(log_format="ISO8601", log_error=False, log_verbose_level=0))
            assert after.settings["log_format"].string_param == "ISO8601"
            assert passing() == []
            for bad, error in (
                (logged(log_colour=True), InvalidArgumentError),
                (logged(log_info=1), InvalidArgumentError),
                (logged(log_verbose_level=True), InvalidArgumentError),
                (logged(log_format="XML"), InvalidArgumentError),
                (logged(log_info=True, log_file="/tmp/x"), UnimplementedError),
            ):
                with pytest.raises(error):
                    await change(bad)
            assert passing() == []
    finally:
        root.removeHandler(caplog.handler)
        caplog.handler.filters.clear()


def load(name: str, config: str = "") -> kserve.RepositoryModelLoadRequest:
    message = kserve.RepositoryModelLoadRequest(model_name=name)
    if config:
        message.parameters["config"].string_param = config
    return message


async def test_a_model_is_loaded_with_the_callers_configuration_and_files(serve: Serve, tmp_path: Path) -> None:
    folder = add_plus(tmp_path / "models", "plus")
    other = (add_plus(tmp_path / "elsewhere", "plus", 10.0) / "1" / "model.onnx").read_bytes()
    message = request(np.zeros((1, 3), np.float32))
    call = kserve.RepositoryModelLoadRequest
    async with serve() as server:
        config = kserve.ModelConfigRequest(name="plus")
        assert (await server.kserve.ModelConfig(config)).config.max_batch_size == 4
        await server.kserve.RepositoryModelLoad(load("plus", config='{"maxBatchSize": 2}'))
        assert (await server.kserve.ModelConfig(config)).config.max_batch_size == 2
        await server.kserve.RepositoryModelLoad(load("plus"))
        assert (await server.kserve.ModelConfig(config)).config.max_batch_size == 4

        sent = call(model_name="plus")
        sent.parameters["config"].string_param = '{"max_batch_size": 3}'
        sent.parameters["file:5/model.onnx"].bytes_param = other
        await server.kserve.RepositoryModelLoad(sent)
        assert answer(await server.kserve.ModelInfer(message)).tolist() == [[10, 10, 10]]
        assert (await server.kserve.ModelReady(kserve.ModelReadyRequest(name="plus", version="5"))).ready
        assert not (await server.kserve.ModelReady(kserve.ModelReadyRequest(name="plus", version="1"))).ready
        assert sorted(each.name for each in folder.iterdir()) == ["1"]
        sent.model_name = "fresh"
        await server.kserve.RepositoryModelLoad(sent)
        assert (await server.kserve.ModelReady(kserve.ModelReadyRequest(name="fresh"))).ready

        for name, value in (
            ("file:5/model.onnx", other),
            ("config", "{"),
            ("config", '{"colour": 1}'),
            ("config", ""),
            ("colour", "red"),
            ("config", b"{}"),
        ):
            bad = call(model_name="plus")
            setattr(bad.parameters[name], "bytes_param" if isinstance(value, bytes) else "string_param", value)
            with pytest.raises(InvalidArgumentError):
                await server.kserve.RepositoryModelLoad(bad)
        for path in ("../../evil", "1/../../evil", "/etc/evil", "1/a/b", "1/.hidden", "config.pbtxt"):
            bad = call(model_name="plus")
            bad.parameters["config"].string_param = "{}"
            bad.parameters[f"file:{path}"].bytes_param = other
            with pytest.raises(InvalidArgumentError):
                await server.kserve.RepositoryModelLoad(bad)
        assert answer(await server.kserve.ModelInfer(message)).tolist() == [[10, 10, 10]]
        await server.kserve.RepositoryModelLoad(load("plus"))
        assert answer(await server.kserve.ModelInfer(message)).tolist() == [[1, 1, 1]]


async def test_classify_wants_a_model_of_wafers(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus")
    dies = tiny_wafers()[0]
    wafer = wafer_map_pb2.WaferMap(rows=6, columns=8, dies=dies.tobytes())
    async with serve() as server:
        with pytest.raises(FailedPreconditionError, match="ModelInfer") as refused:
            await server.own.Classify(pb.ClassifyRequest(model="plus", wafers=[wafer]))
        assert refused.value.reason == "NO_WAFER_MODEL"
        assert not (await server.own.ListModels(pb.ListModelsRequest())).models


async def test_all_that_there_is_is_described(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus")
    add_sum(tmp_path / "models", "sum")
    async with serve() as server:
        extensions = (await server.kserve.ServerMetadata(kserve.ServerMetadataRequest())).extensions
        assert {"classification", "statistics", "trace", "logging", "system_shared_memory"} <= set(extensions)
        done = (await server.kserve.ModelStatistics(kserve.ModelStatisticsRequest())).model_stats
        assert [each.name for each in done] == ["plus", "sum"]
