"""What `config.pbtxt` says is what the server does: versions, batches, warm-up, cache, labels, metrics, polling."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from inference import grpc_service_pb2 as kserve

from services.common.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError
from services.predictor.metrics import MetricsServer
from services.predictor.model_config import ModelControl
from tests.contract.predictor.conftest import Serve, Server
from tests.helpers.onnx_models import add_identity, add_plus

ROW = np.array([[1, 2, 3]], np.float32)


def request(version: str = "", rows: int = 1) -> kserve.ModelInferRequest:
    data = np.repeat(ROW, rows, axis=0)
    return kserve.ModelInferRequest(
        model_name="plus",
        model_version=version,
        inputs=[kserve.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=data.shape)],
        raw_input_contents=[data.tobytes()],
    )


async def first(server: Server, version: str = "") -> float:
    response = await server.kserve.ModelInfer(request(version))
    return float(np.frombuffer(response.raw_output_contents[0], "<f4")[0])


async def states(server: Server) -> dict[str, str]:
    index = await server.kserve.RepositoryIndex(kserve.RepositoryIndexRequest())
    return {each.version: each.state for each in index.models}


def add_versions(root: Path, config: str = "") -> None:
    for version in (1, 2, 3):
        add_plus(root, "plus", version * 10.0, config, version)


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", [3]),
        ("version_policy { latest { num_versions: 2 } }", [2, 3]),
        ("version_policy { all { } }", [1, 2, 3]),
        ("version_policy { specific { versions: [ 1, 3, 7 ] } }", [1, 3]),
    ],
)
async def test_the_versions_of_the_policy_are_served_at_once(
    serve: Serve, tmp_path: Path, policy: str, served: list[int]
) -> None:
    add_versions(tmp_path / "models", policy)
    async with serve() as server:
        metadata = await server.kserve.ModelMetadata(kserve.ModelMetadataRequest(name="plus"))
        assert list(metadata.versions) == [str(each) for each in served]
        for version in served:
            assert await first(server, str(version)) == version * 10 + 1
        assert await first(server) == served[-1] * 10 + 1
        for version in {1, 2, 3} - set(served):
            with pytest.raises(NotFoundError):
                await server.kserve.ModelInfer(request(str(version)))
        found = await states(server)
        assert {version for version, state in found.items() if state == "READY"} == {str(each) for each in served}
        done = (await server.kserve.ModelStatistics(kserve.ModelStatisticsRequest(name="plus"))).model_stats
        assert sorted(each.version for each in done) == [str(each) for each in served]
        await server.kserve.RepositoryModelLoad(kserve.RepositoryModelLoadRequest(model_name="plus"))
        # What has not changed is not loaded again: its counts go on.
        again = (await server.kserve.ModelStatistics(kserve.ModelStatisticsRequest(name="plus"))).model_stats
        assert [each.inference_count for each in again] == [each.inference_count for each in done]


async def test_a_policy_of_versions_that_there_are_not_is_refused(serve: Serve, tmp_path: Path) -> None:
    add_versions(tmp_path / "models", "version_policy { specific { versions: [ 7 ] } }")
    async with serve() as server:
        with pytest.raises(NotFoundError, match="version_policy"):
            await server.kserve.RepositoryModelLoad(kserve.RepositoryModelLoadRequest(model_name="plus"))


async def test_a_wrong_configuration_is_told_and_what_serves_stays(serve: Serve, tmp_path: Path) -> None:
    folder = add_plus(tmp_path / "models", "plus")
    add_plus(tmp_path / "models", "other", config="model_operations { op_library_filename: 'x.so' }")
    async with serve() as server:
        index = await server.kserve.RepositoryIndex(kserve.RepositoryIndexRequest())
        reasons = {each.name: each.reason for each in index.models}
        assert "custom operators" in reasons["other"]
        (folder / "config.pbtxt").write_text("sequence_batching { }")
        with pytest.raises(InvalidArgumentError, match="state"):
            await server.kserve.RepositoryModelLoad(kserve.RepositoryModelLoadRequest(model_name="plus"))
        assert await first(server) == 2


async def test_the_batch_is_as_large_as_the_configuration_allows(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus", config="max_batch_size: 2")
    async with serve() as server:
        await server.kserve.ModelInfer(request(rows=2))
        with pytest.raises(InvalidArgumentError, match="1 to 2 elements"):
            await server.kserve.ModelInfer(request(rows=3))
        await asyncio.gather(*(server.kserve.ModelInfer(request()) for _ in range(6)))
        (done,) = (await server.kserve.ModelStatistics(kserve.ModelStatisticsRequest(name="plus"))).model_stats
    # Without dynamic_batching each request is a run of its own.
    assert (done.execution_count, done.inference_count) == (7, 8)


async def test_a_model_is_warmed_up_before_it_serves(serve: Serve, tmp_path: Path) -> None:
    warmup = """
        max_batch_size: 4
        model_warmup [
          { name: "zeros" batch_size: 2 count: 2
            inputs { key: "x" value { data_type: TYPE_STRING dims: [ 2 ] zero_data: true } } },
          { name: "random" batch_size: 1
            inputs { key: "x" value { data_type: TYPE_STRING dims: [ 2 ] random_data: true } } },
          { name: "file" batch_size: 1
            inputs { key: "x" value { data_type: TYPE_STRING dims: [ 2 ] input_data_file: "one" } } }
        ]
    """
    folder = add_identity(tmp_path / "models", "text", "BYTES", warmup)
    load = kserve.RepositoryModelLoadRequest(model_name="text")
    async with serve() as server:
        with pytest.raises(InvalidArgumentError, match="file one"):
            await server.kserve.RepositoryModelLoad(load)
        (folder / "warmup").mkdir()
        (folder / "warmup" / "one").write_bytes(b"\1\0\0\0a")
        with pytest.raises(InvalidArgumentError, match="strings"):
            await server.kserve.RepositoryModelLoad(load)
        (folder / "warmup" / "one").write_bytes(b"\1\0\0\0a\0\0\0\0")
        await server.kserve.RepositoryModelLoad(load)
        (done,) = (await server.kserve.ModelStatistics(kserve.ModelStatisticsRequest(name="text"))).model_stats
    assert done.inference_count == 0


async def test_equal_requests_are_answered_out_of_the_cache(serve: Serve, tmp_path: Path) -> None:
    folder = add_plus(tmp_path / "models", "plus", config="response_cache { enable: true }")
    async with serve() as server:
        assert [await first(server) for _ in range(3)] == [2, 2, 2]
        other = request()
        other.raw_input_contents[0] = (ROW * 2).tobytes()
        response = await server.kserve.ModelInfer(other)
        assert np.frombuffer(response.raw_output_contents[0], "<f4").tolist() == [3, 5, 7]
        (done,) = (await server.kserve.ModelStatistics(kserve.ModelStatisticsRequest(name="plus"))).model_stats
        stats = done.inference_stats
        assert (stats.success.count, stats.cache_hit.count, stats.cache_miss.count) == (4, 2, 2)
        assert (done.inference_count, done.execution_count) == (2, 2)
        # The same version with other files answers anew.
        shutil.copy(add_plus(tmp_path, "ten", 10.0) / "1" / "model.onnx", folder / "1" / "model.onnx")
        await server.kserve.RepositoryModelLoad(kserve.RepositoryModelLoadRequest(model_name="plus"))
        assert await first(server) == 11


async def test_metrics_have_the_names_of_triton_and_the_tags_of_the_model(serve: Serve, tmp_path: Path) -> None:
    tags = 'metric_tags { key: "line" value: "3" } response_cache { enable: true }'
    add_plus(tmp_path / "models", "plus", config=tags)
    async with serve() as server:
        for _ in range(2):
            await server.kserve.ModelInfer(request(rows=2))
        with contextlib.closing(MetricsServer(server.models, "127.0.0.1", 0)) as metrics:
            url = f"http://127.0.0.1:{metrics.port}/metrics"
            with await asyncio.to_thread(urllib.request.urlopen, url) as response:
                lines = response.read().decode().splitlines()
    labels = '{line="3",model="plus",version="1"}'
    values = {
        line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if labels in line and line.startswith("nv_")
    }
    assert values["nv_inference_request_success"] == 2
    assert values["nv_inference_count"] == 2
    assert values["nv_inference_exec_count"] == 1
    assert values["nv_cache_num_hits_per_model"] == 1
    assert values["nv_cache_num_misses_per_model"] == 1
    assert values["nv_inference_pending_request_count"] == 0
    assert values["nv_inference_compute_infer_duration_us"] > 0
    assert {
        "nv_inference_queue_duration_us",
        "nv_inference_compute_input_duration_us",
        "nv_inference_compute_output_duration_us",
        "nv_cache_hit_duration_per_model",
        "nv_cache_miss_duration_per_model",
        "nv_inference_request_failure",
        "nv_inference_request_duration_us",
    } <= set(values)
    assert 'teachwafer_predictor_batch_size_bucket{le="2",model="plus",version="1"} 1.0' in lines
    assert any(line.startswith("nv_cpu_memory_total_bytes ") for line in lines)


async def test_a_polled_repository_is_followed(serve: Serve, tmp_path: Path) -> None:
    root = tmp_path / "models"
    add_plus(root, "plus", 1.0)
    async with serve(control=ModelControl.POLL) as server:
        assert await first(server) == 2
        add_plus(root, "plus", 2.0, version=2)
        add_plus(root, "added")
        await asyncio.to_thread(server.models.poll)
        assert await first(server) == 3
        assert (await server.kserve.ModelReady(kserve.ModelReadyRequest(name="added"))).ready
        # A version that cannot be read leaves what serves in service, until it is mended.
        (root / "plus" / "3").mkdir()
        (root / "plus" / "3" / "model.onnx").write_bytes(b"no graph")
        await asyncio.to_thread(server.models.poll)
        assert await first(server) == 3
        (root / "plus" / "config.pbtxt").write_text("version_policy { specific { versions: [ 1 ] } }")
        await asyncio.to_thread(server.models.poll)
        assert await first(server) == 2
        shutil.rmtree(root / "added")
        await asyncio.to_thread(server.models.poll)
        assert not (await server.kserve.ModelReady(kserve.ModelReadyRequest(name="added"))).ready


@pytest.mark.parametrize("control", [ModelControl.POLL, ModelControl.NONE])
async def test_calls_load_nothing_where_they_do_not_decide(serve: Serve, tmp_path: Path, control: ModelControl) -> None:
    add_plus(tmp_path / "models", "plus")
    async with serve(control=control) as server:
        with pytest.raises(FailedPreconditionError, match="MODEL_CONTROL"):
            await server.kserve.RepositoryModelLoad(kserve.RepositoryModelLoadRequest(model_name="plus"))
        with pytest.raises(FailedPreconditionError, match="MODEL_CONTROL"):
            await server.kserve.RepositoryModelUnload(kserve.RepositoryModelUnloadRequest(model_name="plus"))
        assert await first(server) == 2
