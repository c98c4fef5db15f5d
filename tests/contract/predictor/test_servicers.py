"""What callers see of both protocols of the predictor: a real server, a real model in onnxruntime, real connections."""

import asyncio
import contextlib
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import pytest
from google.rpc import code_pb2
from inference import grpc_service_pb2 as kserve
from inference import grpc_service_pb2_grpc
from teachwafer.predictor.v1 import predictor_pb2 as pb
from teachwafer.predictor.v1 import predictor_pb2_grpc
from teachwafer.type import wafer_map_pb2

from services.common.errors import (
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.common.model_repository import ModelRepository
from services.common.preprocessing import pad_grids
from services.predictor import kserve_servicer, servicer
from services.predictor.inference import InferenceRunner
from services.predictor.kserve_servicer import KServeServicer
from services.predictor.metrics import MetricsServer
from services.predictor.model_server import ModelServer
from services.predictor.servicer import PredictorServicer
from tests.helpers.grpc_testing import serving
from tests.helpers.tiny_model import CLASSES, publish_tiny_model, tiny_wafers

NAMES = ["probabilities", "novelty", "embedding", "heat"]


@dataclass(frozen=True)
class Predictor:
    repository: ModelRepository
    models: ModelServer
    runner: InferenceRunner
    own: predictor_pb2_grpc.PredictorServiceStub
    open: grpc_service_pb2_grpc.GRPCInferenceServiceStub
    folder: Path
    draining: asyncio.Event

    def publish(self, name: str = "tiny") -> int:
        return publish_tiny_model(self.repository, name, self.folder)

    def direct(self, dies: np.ndarray) -> dict[str, np.ndarray]:
        session = onnxruntime.InferenceSession(str(self.folder / "model.onnx"), providers=["CPUExecutionProvider"])
        return dict(zip(NAMES, session.run(NAMES, {"dies": dies}), strict=True))


@contextlib.asynccontextmanager
async def running(folder: Path, *, publish: bool = True, max_waiting: int = 4096) -> AsyncIterator[Predictor]:
    repository = ModelRepository(folder / "models")
    if publish:
        publish_tiny_model(repository, "tiny", folder)
    models, runner = ModelServer(repository), InferenceRunner(max_waiting)
    await asyncio.to_thread(models.load_all)
    draining = asyncio.Event()

    def add(server: grpc.aio.Server) -> None:
        predictor_pb2_grpc.add_PredictorServiceServicer_to_server(PredictorServicer(models, runner, draining), server)
        grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            KServeServicer(models, runner, draining), server
        )

    names = (servicer.SERVICE_NAME, kserve_servicer.SERVICE_NAME)
    with contextlib.closing(runner):
        async with serving(add, service_names=names) as served:
            yield Predictor(
                repository,
                models,
                runner,
                predictor_pb2_grpc.PredictorServiceStub(served.channel),
                grpc_service_pb2_grpc.GRPCInferenceServiceStub(served.channel),
                folder,
                draining,
            )


def wafer(dies: np.ndarray) -> wafer_map_pb2.WaferMap:
    return wafer_map_pb2.WaferMap(rows=dies.shape[0], columns=dies.shape[1], dies=dies.tobytes())


def mixed_wafers(count: int) -> list[np.ndarray]:
    random = np.random.default_rng(3)
    return [random.integers(1, 3, random.integers(2, 40, 2)).astype(np.uint8) for _ in range(count)]


def infer_request(dies: np.ndarray, *outputs: str, name: str = "tiny", version: str = "") -> kserve.ModelInferRequest:
    return kserve.ModelInferRequest(
        model_name=name,
        model_version=version,
        id="7",
        inputs=[kserve.ModelInferRequest.InferInputTensor(name="dies", datatype="UINT8", shape=dies.shape)],
        outputs=[kserve.ModelInferRequest.InferRequestedOutputTensor(name=output) for output in outputs],
        raw_input_contents=[dies.tobytes()],
    )


def tensors(response: kserve.ModelInferResponse) -> dict[str, np.ndarray]:
    return {
        output.name: np.frombuffer(raw, "<f4").reshape(tuple(output.shape))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


async def test_classify_answers_what_onnxruntime_answers_in_the_order_of_the_wafers(tmp_path: Path) -> None:
    grids = mixed_wafers(200)
    async with running(tmp_path) as predictor:
        expected = predictor.direct(pad_grids(grids))
        request = pb.ClassifyRequest(model="tiny", wafers=map(wafer, grids), embed=True)
        response = await predictor.own.Classify(request)
    assert (response.model, response.version) == ("tiny", 1)
    assert [answer.class_id for answer in response.answers] == [
        CLASSES[best] for best in expected["probabilities"].argmax(axis=1)
    ]
    received = [{each.class_id: each.probability for each in answer.classes} for answer in response.answers]
    np.testing.assert_allclose([[each[name] for name in CLASSES] for each in received], expected["probabilities"], 1e-5)
    np.testing.assert_allclose([answer.novelty for answer in response.answers], expected["novelty"], atol=1e-6)
    np.testing.assert_allclose([answer.embedding for answer in response.answers], expected["embedding"], rtol=1e-5)
    for answer in response.answers:
        ranked = [each.probability for each in answer.classes]
        assert ranked == sorted(ranked, reverse=True)
        assert list(answer.patterns) == list(answer.classes[:1])
        sure = answer.probability >= 0.6
        assert answer.decision == (answer.DECISION_ACCEPTED if sure else answer.DECISION_NOT_SURE)
    assert {answer.decision for answer in response.answers} == {1, 2}


async def test_a_bad_wafer_does_not_sink_the_lot(tmp_path: Path) -> None:
    good = wafer(tiny_wafers()[2])
    bad = [
        wafer_map_pb2.WaferMap(rows=3, columns=3, dies=b"\1"),
        wafer_map_pb2.WaferMap(rows=0, columns=0),
        wafer(np.full((2, 2), 9, np.uint8)),
        wafer(np.zeros((2, 2), np.uint8)),
    ]
    async with running(tmp_path) as predictor:
        response = await predictor.own.Classify(pb.ClassifyRequest(model="tiny", wafers=[*bad, good]))
        only_bad = await predictor.own.Classify(pb.ClassifyRequest(model="tiny", wafers=bad))
    codes = [answer.status.code for answer in response.answers]
    assert codes == [code_pb2.INVALID_ARGUMENT] * 4 + [code_pb2.OK]
    assert all(not answer.class_id and "Expected" in answer.status.message for answer in response.answers[:4])
    assert response.answers[4].class_id == "high"
    assert [answer.status.code for answer in only_bad.answers] == codes[:4]


async def test_heat_map_and_top_k(tmp_path: Path) -> None:
    dies = tiny_wafers()[1].copy()
    dies[0, 0] = 0
    request = pb.ClassifyRequest(model="tiny", wafers=[wafer(dies)], top_k=2, explain=True)
    async with running(tmp_path) as predictor:
        (answer,) = (await predictor.own.Classify(request)).answers
    assert len(answer.classes) == 2
    heat = np.frombuffer(answer.heat_map.heat, np.uint8).reshape(answer.heat_map.rows, answer.heat_map.columns)
    # The model's map has one cell, so that all dies matter alike; where no die is, there is no heat.
    np.testing.assert_array_equal(heat, np.where(dies > 0, 255, 0))
    assert not answer.embedding


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (pb.ClassifyRequest(model="nothing", wafers=[wafer(tiny_wafers()[0])]), NotFoundError),
        (pb.ClassifyRequest(model="tiny", version=9, wafers=[wafer(tiny_wafers()[0])]), NotFoundError),
        (pb.ClassifyRequest(model="../tiny", wafers=[wafer(tiny_wafers()[0])]), NotFoundError),
        (pb.ClassifyRequest(model="tiny"), InvalidArgumentError),
        (pb.ClassifyRequest(wafers=[wafer(tiny_wafers()[0])]), InvalidArgumentError),
        (pb.ClassifyRequest(model="tiny", version=-1, wafers=[wafer(tiny_wafers()[0])]), InvalidArgumentError),
        (pb.ClassifyRequest(model="tiny", top_k=-1, wafers=[wafer(tiny_wafers()[0])]), InvalidArgumentError),
        (pb.ClassifyRequest(model="tiny", wafers=[wafer(tiny_wafers()[0])] * 1025), InvalidArgumentError),
    ],
)
async def test_classify_refuses(tmp_path: Path, request_: pb.ClassifyRequest, error: type[Exception]) -> None:
    async with running(tmp_path) as predictor:
        with pytest.raises(error):
            await predictor.own.Classify(request_)


async def test_stream_answers_each_request_in_order(tmp_path: Path) -> None:
    async def requests() -> AsyncIterator[pb.ClassifyRequest]:
        for dies in tiny_wafers():
            yield pb.ClassifyRequest(model="tiny", wafers=[wafer(dies)])

    async with running(tmp_path) as predictor:
        answers = [response.answers[0].class_id async for response in predictor.own.StreamClassify(requests())]
        (listed,) = (await predictor.own.ListModels(pb.ListModelsRequest())).models
    assert answers == list(CLASSES)
    assert [each.class_id for each in listed.classes] == list(CLASSES)
    assert (listed.model, listed.version, listed.wafers) == ("tiny", 1, 3)
    assert listed.execution_provider == "CPUExecutionProvider"
    assert listed.task == pb.LoadedModel.TASK_SINGLE_PATTERN
    assert listed.latency_ms_p50 > 0


async def test_open_streams_end_when_the_server_drains(tmp_path: Path) -> None:
    async with running(tmp_path) as predictor:
        own, open_ = predictor.own.StreamClassify(), predictor.open.ModelStreamInfer()
        await own.write(pb.ClassifyRequest(model="tiny", wafers=[wafer(tiny_wafers()[1])]))
        await open_.write(infer_request(tiny_wafers()))
        assert (await own.read()).answers[0].class_id == "middle"
        assert not (await open_.read()).error_message
        predictor.draining.set()
        for stream in (own, open_):
            with pytest.raises(UnavailableError, match="stopping"):
                await stream.read()
        assert not (await predictor.open.ServerReady(kserve.ServerReadyRequest())).ready


async def test_a_full_queue_refuses(tmp_path: Path) -> None:
    async with running(tmp_path, max_waiting=1) as predictor:
        with predictor.runner._admitted(1), pytest.raises(ResourceExhaustedError) as refused:
            await predictor.own.Classify(pb.ClassifyRequest(model="tiny", wafers=[wafer(tiny_wafers()[0])]))
        assert refused.value.retry_after_s > 0
        await predictor.own.Classify(pb.ClassifyRequest(model="tiny", wafers=[wafer(tiny_wafers()[0])] * 3))


async def test_model_infer_answers_what_onnxruntime_answers(tmp_path: Path) -> None:
    dies = np.concatenate([tiny_wafers()] * 50)
    async with running(tmp_path) as predictor:
        expected = predictor.direct(dies)
        # As config.pbtxt says: a single value a wafer is a dimension of its own, outside of the graph.
        expected["novelty"] = expected["novelty"][:, None]
        everything = await predictor.open.ModelInfer(infer_request(dies))
        some = await predictor.open.ModelInfer(infer_request(dies, "novelty", "probabilities", version="1"))
        typed = infer_request(dies)
        del typed.raw_input_contents[:]
        typed.inputs[0].contents.uint_contents.extend(dies.ravel().tolist())
        from_typed = await predictor.open.ModelInfer(typed)
    assert (everything.model_name, everything.model_version, everything.id) == ("tiny", "1", "7")
    assert list(tensors(everything)) == NAMES
    assert list(tensors(some)) == ["novelty", "probabilities"]
    for response in (everything, some, from_typed):
        for name, values in tensors(response).items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-6)


def changed(**changes: object) -> kserve.ModelInferRequest:
    """Returns a good request with fields of its input set anew, or of its own where the name is `raw`, `outputs`..."""
    request = infer_request(tiny_wafers())
    for name, value in changes.items():
        if name in ("name", "datatype"):
            setattr(request.inputs[0], name, value)
        elif name == "shape":
            request.inputs[0].shape[:] = value
        elif name == "raw":
            request.raw_input_contents[:] = value
        elif name in ("uint_contents", "int_contents"):
            getattr(request.inputs[0].contents, name).extend(value)
        elif name == "outputs":
            request.outputs.extend(kserve.ModelInferRequest.InferRequestedOutputTensor(name=each) for each in value)
        elif name == "inputs":
            more = [request.inputs[0]] * value
            del request.inputs[:]
            request.inputs.extend(more)
        elif name == "parameter":
            request.parameters[str(value)].bool_param = True
        else:
            setattr(request, name, value)
    return request


VALUES = tiny_wafers().ravel().tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {"model_version": "newest"},
        {"model_version": "-1"},
        {"model_version": "0"},
        {"model_version": "9" * 30},
        {"inputs": 0, "raw": []},
        {"inputs": 2},
        {"name": "image"},
        {"datatype": "FP32"},
        {"datatype": "uint8"},
        {"datatype": "BYTES"},
        {"datatype": ""},
        {"shape": [3, 48]},
        {"shape": []},
        {"shape": [0, 6, 8]},
        {"shape": [-3, 6, 8]},
        {"shape": [3, -6, -8]},
        {"shape": [1025, 6, 8]},
        {"shape": [1, 1025, 1]},
        {"shape": [2**62, 2**62, 16]},
        {"shape": [3, 6, 9]},
        {"raw": [tiny_wafers().tobytes() + b"\0"]},
        {"raw": [tiny_wafers().tobytes()[1:]]},
        {"raw": []},
        {"raw": [tiny_wafers().tobytes()] * 2},
        {"uint_contents": VALUES},
        {"raw": [], "uint_contents": VALUES[1:]},
        {"raw": [], "int_contents": VALUES},
        {"raw": [], "uint_contents": [256, *VALUES[1:]]},
        {"outputs": ["nothing"]},
        {"outputs": ["novelty", "novelty"]},
        {"parameter": "triton_enable_empty_final_response"},
    ],
)
async def test_model_infer_refuses(tmp_path: Path, changes: dict[str, object]) -> None:
    async with running(tmp_path) as predictor:
        with pytest.raises(InvalidArgumentError, match="Received"):
            await predictor.open.ModelInfer(changed(**changes))


async def test_a_bad_request_does_not_end_a_stream(tmp_path: Path) -> None:
    async def requests() -> AsyncIterator[kserve.ModelInferRequest]:
        yield infer_request(tiny_wafers())
        yield changed(datatype="FP32")
        yield infer_request(tiny_wafers())

    async with running(tmp_path) as predictor:
        responses = [each async for each in predictor.open.ModelStreamInfer(requests())]
    assert [bool(each.error_message) for each in responses] == [False, True, False]
    assert [each.infer_response.id for each in responses] == ["7", "7", "7"]


async def test_server_and_model_are_described(tmp_path: Path) -> None:
    async with running(tmp_path) as predictor:
        open_ = predictor.open
        assert (await open_.ServerLive(kserve.ServerLiveRequest())).live
        assert (await open_.ServerReady(kserve.ServerReadyRequest())).ready
        assert (await open_.ServerMetadata(kserve.ServerMetadataRequest())).name == "teachwafer"
        assert (await open_.ModelReady(kserve.ModelReadyRequest(name="tiny", version="1"))).ready
        assert not (await open_.ModelReady(kserve.ModelReadyRequest(name="tiny", version="2"))).ready
        assert not (await open_.ModelReady(kserve.ModelReadyRequest(name="nothing"))).ready
        metadata = await open_.ModelMetadata(kserve.ModelMetadataRequest(name="tiny"))
        assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [
            ("dies", "UINT8", [-1, -1, -1])
        ]
        assert [(each.name, list(each.shape)) for each in metadata.outputs] == [
            ("probabilities", [-1, 3]),
            ("novelty", [-1, 1]),
            ("embedding", [-1, 3]),
            ("heat", [-1, 3, 1, 1]),
        ]
        config = (await open_.ModelConfig(kserve.ModelConfigRequest(name="tiny"))).config
        assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 1024)
        for call in (
            open_.ModelMetadata(kserve.ModelMetadataRequest(name="nothing")),
            open_.ModelConfig(kserve.ModelConfigRequest(name="tiny", version="2")),
            open_.ModelInfer(infer_request(tiny_wafers(), name="nothing")),
            open_.ModelStatistics(kserve.ModelStatisticsRequest(name="nothing")),
            open_.RepositoryModelLoad(kserve.RepositoryModelLoadRequest(model_name="nothing")),
            open_.RepositoryModelUnload(kserve.RepositoryModelUnloadRequest(model_name="nothing")),
        ):
            with pytest.raises(NotFoundError):
                await call


async def index(predictor: Predictor) -> list[tuple[str, str, str]]:
    response = await predictor.open.RepositoryIndex(kserve.RepositoryIndexRequest())
    return [(each.name, each.version, each.state) for each in response.models]


async def test_models_are_loaded_swapped_and_unloaded(tmp_path: Path) -> None:
    load = kserve.RepositoryModelLoadRequest(model_name="tiny")
    ask = pb.ClassifyRequest(model="tiny", wafers=[wafer(tiny_wafers()[0])])
    async with running(tmp_path, publish=False) as predictor:
        assert (await predictor.open.ServerReady(kserve.ServerReadyRequest())).ready
        assert await index(predictor) == []
        predictor.publish()
        assert await index(predictor) == [("tiny", "1", "UNAVAILABLE")]
        with pytest.raises(NotFoundError):
            await predictor.own.Classify(ask)
        await predictor.open.RepositoryModelLoad(load)
        assert (await predictor.own.Classify(ask)).version == 1
        predictor.publish()
        assert (await predictor.own.Classify(ask)).version == 1
        await predictor.open.RepositoryModelLoad(load)
        assert (await predictor.own.Classify(ask)).version == 2
        assert await index(predictor) == [("tiny", "2", "READY"), ("tiny", "1", "UNAVAILABLE")]
        await predictor.open.RepositoryModelUnload(kserve.RepositoryModelUnloadRequest(model_name="tiny"))
        with pytest.raises(NotFoundError):
            await predictor.own.Classify(ask)


async def test_calls_never_fail_while_versions_are_swapped(tmp_path: Path) -> None:
    request = pb.ClassifyRequest(model="tiny", wafers=[wafer(dies) for dies in tiny_wafers()])
    async with running(tmp_path) as predictor:
        swapped = asyncio.Event()

        async def ask() -> set[int]:
            versions = set()
            while not swapped.is_set():
                response = await predictor.own.Classify(request)
                assert [answer.class_id for answer in response.answers] == list(CLASSES)
                versions.add(response.version)
            return versions | {(await predictor.own.Classify(request)).version}

        callers = [asyncio.create_task(ask()) for _ in range(2)]
        for _ in range(3):
            await asyncio.to_thread(predictor.publish)
            await predictor.open.RepositoryModelLoad(kserve.RepositoryModelLoadRequest(model_name="tiny"))
        swapped.set()
        assert all(4 in versions for versions in await asyncio.gather(*callers))


@pytest.mark.parametrize("damaged", ["model.onnx", "golden.npz"])
async def test_a_damaged_version_is_rejected_while_the_old_one_serves(tmp_path: Path, damaged: str) -> None:
    async with running(tmp_path) as predictor:
        version = predictor.publish()
        path = predictor.repository.root / "tiny" / str(version) / damaged
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(DataLossError, match=damaged):
            await predictor.open.RepositoryModelLoad(kserve.RepositoryModelLoadRequest(model_name="tiny"))
        response = await predictor.own.Classify(pb.ClassifyRequest(model="tiny", wafers=[wafer(tiny_wafers()[0])]))
        assert response.version == 1
        (newest, _) = (await predictor.open.RepositoryIndex(kserve.RepositoryIndexRequest())).models
        assert (newest.version, newest.state) == ("2", "UNAVAILABLE")
        assert damaged in newest.reason
        restarted = ModelServer(predictor.repository)
        restarted.load_all()
        assert restarted.get("tiny").version == 1


async def test_a_model_that_answers_otherwise_than_where_it_was_made_is_rejected(tmp_path: Path) -> None:
    async with running(tmp_path) as predictor:
        manifest = predictor.repository.manifest("tiny", 1)
        probabilities = np.full((3, 3), 1 / 3, np.float32)
        np.savez(tmp_path / "golden.npz", dies=tiny_wafers(), probabilities=probabilities)
        files = {name: tmp_path / name for name in ("model.onnx", "golden.npz")}
        config = (predictor.repository.root / "tiny" / "config.pbtxt").read_text()
        predictor.repository.publish("tiny", files, manifest, config)
        with pytest.raises(DataLossError, match="golden") as rejected:
            await predictor.open.RepositoryModelLoad(kserve.RepositoryModelLoadRequest(model_name="tiny"))
        assert rejected.value.reason == "GOLDEN_BATCH_DIFFERS"
        assert predictor.models.get("tiny").version == 1


async def test_one_broken_model_keeps_no_other_from_serving(tmp_path: Path) -> None:
    async with running(tmp_path) as predictor:
        predictor.publish("broken")
        manifest = predictor.repository.manifest("broken", 1)
        np.savez(tmp_path / "golden.npz", dies=tiny_wafers()[0], probabilities=np.zeros((1, 3), np.float32))
        files = {name: tmp_path / name for name in ("model.onnx", "golden.npz")}
        predictor.repository.publish("worse", files, manifest, "")
        (predictor.repository.root / "broken" / "1" / "manifest.json").write_text("{")
        restarted = ModelServer(predictor.repository)
        restarted.load_all()
        assert restarted.ready
        assert [each.name for each in restarted.loaded()] == ["tiny"]
        reasons = {each.name: each.reason for each in restarted.index()}
        assert "manifest" in reasons["broken"]
        assert "dies" in reasons["worse"]


async def test_statistics_and_metrics_count(tmp_path: Path) -> None:
    async with running(tmp_path) as predictor:
        for _ in range(2):
            await predictor.open.ModelInfer(infer_request(tiny_wafers()))
        (done,) = (await predictor.open.ModelStatistics(kserve.ModelStatisticsRequest(name="tiny"))).model_stats
        with contextlib.closing(MetricsServer(predictor.models, "127.0.0.1", 0)) as metrics:
            url = f"http://127.0.0.1:{metrics.port}/metrics"
            with await asyncio.to_thread(urllib.request.urlopen, url) as response:
                text = response.read().decode()
    assert (done.inference_count, done.execution_count, done.inference_stats.success.count) == (6, 2, 2)
    labels = '{model="tiny",version="1"}'
    assert f"nv_inference_request_success{labels} 2.0" in text
    assert f"nv_inference_request_failure{labels} 0.0" in text
    assert f"nv_inference_count{labels} 6.0" in text
    assert f"nv_inference_exec_count{labels} 2.0" in text
    assert f"nv_inference_request_duration_us{labels} " in text
    assert 'teachwafer_predictor_request_seconds_bucket{le="+Inf",model="tiny",version="1"} 2.0' in text
