"""Callers need a key where the server says so: which models it is good for, how often, and what it may change."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inference import grpc_service_pb2 as kserve
from teachwafer.predictor.v1 import predictor_pb2 as pb

from services.common.errors import (
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
)
from services.predictor import keys
from services.predictor.access import Access, hash_of
from services.predictor.metrics import MetricsServer
from tests.contract.predictor.conftest import Serve
from tests.contract.predictor.test_kserve import request
from tests.helpers.onnx_models import add_plus

KEY, MANAGER = "the-key-of-line-3", "the-key-of-the-manager"
GOOD = request(np.zeros((1, 3), np.float32))
OTHER = request(np.zeros((1, 3), np.float32), model="other")


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def keys_file(folder: Path, **changes: object) -> Path:
    """Writes a key that is good for one model, and one that manages."""
    line = {"name": "line-3", "sha256": hash_of(KEY), "models": ["plus"]} | changes
    manager = {"name": "manager", "sha256": hash_of(MANAGER), "manages": True}
    file = folder / "keys.json"
    file.write_text(json.dumps({"keys": [line, manager]}))
    return file


def models(folder: Path) -> None:
    add_plus(folder / "models", "plus")
    add_plus(folder / "models", "other")


async def requests() -> AsyncIterator[kserve.ModelInferRequest]:
    yield GOOD


@pytest.mark.parametrize("key", ["", "another"])
async def test_who_shows_no_known_key_is_refused(serve: Serve, tmp_path: Path, key: str) -> None:
    models(tmp_path)
    async with serve(access=Access(keys_file(tmp_path)), key=key) as server:
        with pytest.raises(UnauthenticatedError, match="Received"):
            await server.kserve.ModelInfer(GOOD)
        with pytest.raises(UnauthenticatedError, match="Received"):
            await anext(aiter(server.kserve.ModelStreamInfer(requests())))
        with pytest.raises(UnauthenticatedError, match="Received"):
            await server.own.ListModels(pb.ListModelsRequest())
        header = {"authorization": f"Bearer {key}"} if key else {}
        assert (await server.rest.get("/v2/models/plus", headers=header)).status_code == 401
        # Whoever looks after the server needs none.
        assert (await server.kserve.ServerReady(kserve.ServerReadyRequest())).ready
        assert (await server.rest.get("/v2/health/ready")).status_code == 200
        health = health_pb2_grpc.HealthStub(server.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="readiness"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_key_is_good_for_its_models_alone(serve: Serve, tmp_path: Path) -> None:
    models(tmp_path)
    async with serve(access=Access(keys_file(tmp_path)), key=KEY) as server:
        assert (await server.kserve.ModelInfer(GOOD)).model_name == "plus"
        assert (await anext(aiter(server.kserve.ModelStreamInfer(requests())))).infer_response.model_name == "plus"
        for refused in (
            server.kserve.ModelInfer(OTHER),
            server.kserve.ModelMetadata(kserve.ModelMetadataRequest(name="other")),
            server.kserve.ModelConfig(kserve.ModelConfigRequest(name="none")),
            server.kserve.ModelStatistics(kserve.ModelStatisticsRequest(name="other")),
            server.own.Classify(pb.ClassifyRequest(model="other", wafers=[{"rows": 1, "columns": 1, "dies": b"\1"}])),
            server.kserve.RepositoryModelUnload(kserve.RepositoryModelUnloadRequest(model_name="plus")),
            server.kserve.RepositoryModelLoad(kserve.RepositoryModelLoadRequest(model_name="plus")),
        ):
            with pytest.raises(PermissionDeniedError, match="Received"):
                await refused
        index = await server.kserve.RepositoryIndex(kserve.RepositoryIndexRequest())
        assert [each.name for each in index.models] == ["plus"]
        rest = {"authorization": f"bearer {KEY}"}
        assert (await server.rest.get("/v2/models/plus", headers=rest)).status_code == 200
        assert (await server.rest.get("/v2/models/other", headers=rest)).status_code == 403
    async with serve(access=Access(keys_file(tmp_path)), key=MANAGER) as server:
        assert (await server.kserve.ModelInfer(OTHER)).model_name == "other"
        await server.kserve.RepositoryModelUnload(kserve.RepositoryModelUnloadRequest(model_name="plus"))


async def test_a_quota_fills_again(serve: Serve, tmp_path: Path) -> None:
    models(tmp_path)
    clock = Clock()
    access = Access(keys_file(tmp_path, requests_per_minute=2, models=["plus", "other"]), clock)
    async with serve(access=access, key=KEY) as server:
        for _ in range(2):
            await server.kserve.ModelInfer(GOOD)
        with pytest.raises(ResourceExhaustedError, match="line-3") as refused:
            await server.kserve.ModelInfer(GOOD)
        assert refused.value.retry_after_s == pytest.approx(30)
        answer = await server.rest.post(
            "/v2/models/plus/infer",
            json={"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [0, 0, 0]}]},
            headers={"authorization": f"Bearer {KEY}"},
        )
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")
        # Each model has a quota of its own.
        await server.kserve.ModelInfer(OTHER)
        clock.now = 30.0
        await server.kserve.ModelInfer(GOOD)
        with pytest.raises(ResourceExhaustedError):
            await server.kserve.ModelInfer(GOOD)
        with contextlib.closing(MetricsServer(server.models, "127.0.0.1", 0, access)) as metrics:
            text = urllib.request.urlopen(f"http://127.0.0.1:{metrics.port}/metrics").read().decode()  # noqa: ASYNC210
    name = "teachwafer_predictor_key_requests"
    assert f'{name}{{key="line-3",model="plus",outcome="admitted"}} 3.0' in text
    assert f'{name}{{key="line-3",model="plus",outcome="refused"}} 3.0' in text
    assert KEY not in text


async def test_a_quota_of_wafers_counts_the_batch(serve: Serve, tmp_path: Path) -> None:
    models(tmp_path)
    clock = Clock()
    async with serve(access=Access(keys_file(tmp_path, wafers_per_minute=6), clock), key=KEY) as server:
        await server.kserve.ModelInfer(request(np.zeros((4, 3), np.float32)))
        with pytest.raises(ResourceExhaustedError) as refused:
            await server.kserve.ModelInfer(request(np.zeros((3, 3), np.float32)))
        assert refused.value.retry_after_s == pytest.approx(10)
        await server.kserve.ModelInfer(request(np.zeros((2, 3), np.float32)))


async def test_a_changed_file_is_followed_and_a_wrong_one_is_not(tmp_path: Path) -> None:
    clock = Clock()
    file = keys_file(tmp_path)
    access = Access(file, clock)
    assert access.caller(f"Bearer {KEY}").name == "line-3"
    file.write_text("{}")
    clock.now = 2.0
    assert access.caller(f"Bearer {KEY}").name == "line-3"
    file.write_text(json.dumps({"keys": [{"name": "new", "sha256": hash_of("new")}]}))
    clock.now = 4.0
    assert access.caller("Bearer new").name == "new"
    with pytest.raises(UnauthenticatedError):
        access.caller(f"Bearer {KEY}")


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": "12"},
        {"name": ""},
        {"models": "plus"},
        {"requests_per_minute": -1},
        {"colour": 1},
        {"name": "manager"},
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError, match="Received"):
        Access(keys_file(tmp_path, **changes))


def test_a_key_is_made_and_only_its_hash_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.json"
    arguments = ["--file", str(file), "--name", "line-3", "--models", "edge,plus", "--requests-per-minute", "600"]
    keys.main(arguments)
    key = capsys.readouterr().out.strip()
    assert key not in file.read_text()
    assert oct(file.stat().st_mode)[-3:] == "600"
    caller = Access(file).caller(f"Bearer {key}")
    assert (caller.name, caller.models, caller.manages, caller.requests_per_minute) == (
        "line-3",
        ("edge", "plus"),
        False,
        600,
    )
    with pytest.raises(SystemExit, match="line-3"):
        keys.main(arguments)
