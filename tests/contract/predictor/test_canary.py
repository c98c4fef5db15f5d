"""A new version gets its share of the requests, takes all when it proves itself, and goes back by itself if not."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from inference import grpc_service_pb2 as kserve

from services.common.errors import InvalidArgumentError, NotFoundError, TeachwaferError
from services.predictor.canary import Outcome, Trial
from services.predictor.metrics import MetricsServer
from services.predictor.model_config import CanaryRules
from services.predictor.statistics import ModelStatistics
from tests.contract.predictor.conftest import Serve, Server
from tests.contract.predictor.test_kserve import request
from tests.helpers.onnx_models import add_failing, add_plus

CONFIG = """
max_batch_size: 4
parameters { key: "canary_percent" value: { string_value: "25" } }
parameters { key: "canary_min_requests" value: { string_value: "10" } }
parameters { key: "canary_requests" value: { string_value: "20" } }
parameters { key: "canary_max_slowdown_percent" value: { string_value: "10000" } }
"""


async def versions_of(server: Server, count: int) -> collections.Counter[str]:
    """Sends requests without a version and returns which versions answered; "error" for those that none did."""
    answers: collections.Counter[str] = collections.Counter()
    for _ in range(count):
        with contextlib.suppress(TeachwaferError):
            answer = await server.kserve.ModelInfer(request(np.zeros((1, 3), np.float32)))
            answers[answer.model_version] += 1
    answers["error"] = count - answers.total()
    return answers


async def load(server: Server) -> None:
    await server.kserve.RepositoryModelLoad(kserve.RepositoryModelLoadRequest(model_name="plus"))


async def index(server: Server) -> dict[str, tuple[str, str]]:
    answer = await server.kserve.RepositoryIndex(kserve.RepositoryIndexRequest())
    return {each.version: (each.state, each.reason) for each in answer.models}


async def test_a_version_that_proves_itself_takes_over(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus", config=CONFIG)
    async with serve() as server:
        add_plus(tmp_path / "models", "plus", 2.0, version=2)
        await load(server)
        assert await versions_of(server, 40) == {"1": 30, "2": 10, "error": 0}
        assert {version: state for version, (state, _) in (await index(server)).items()} == {"1": "READY", "2": "READY"}
        with contextlib.closing(MetricsServer(server.models, "127.0.0.1", 0)) as metrics:
            url = f"http://127.0.0.1:{metrics.port}/metrics"
            text = (await asyncio.to_thread(urllib.request.urlopen, url)).read().decode()
            assert 'teachwafer_predictor_canary_percent{model="plus",version="2"} 25' in text
            await versions_of(server, 60)
            text = (await asyncio.to_thread(urllib.request.urlopen, url)).read().decode()
        assert 'teachwafer_predictor_canary_trials{model="plus",outcome="promoted"} 1' in text
        assert "teachwafer_predictor_canary_percent{" not in text
        assert await versions_of(server, 8) == {"2": 8, "error": 0}
        with pytest.raises(NotFoundError):
            await server.kserve.ModelMetadata(kserve.ModelMetadataRequest(name="plus", version="1"))


async def test_a_version_that_fails_goes_back_by_itself(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus", config=CONFIG)
    async with serve() as server:
        # Loads, and fails with every request.
        add_failing(tmp_path / "models", "plus", version=2)
        await load(server)
        assert await versions_of(server, 40) == {"1": 30, "error": 10}
        # From here on no request fails.
        assert await versions_of(server, 40) == {"1": 40, "error": 0}
        state, reason = (await index(server))["2"]
        assert state == "UNAVAILABLE"
        assert "Rolled back to version 1" in reason
        assert "100.0 %" in reason
        assert server.models.outcomes == {("plus", Outcome.ROLLED_BACK): 1}


async def test_at_the_start_the_newest_proves_itself_against_the_one_before(serve: Serve, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        add_plus(tmp_path / "models", "plus", float(version), config=CONFIG, version=version)
    async with serve() as server:
        assert await versions_of(server, 20) == {"2": 15, "3": 5, "error": 0}
        # A load of what is there changes nothing, and a call for a version gets it.
        await load(server)
        answer = await server.kserve.ModelInfer(
            kserve.ModelInferRequest.FromString(
                request(np.zeros((1, 3), np.float32)).SerializeToString()
                + kserve.ModelInferRequest(model_version="3").SerializeToString()
            )
        )
        assert answer.model_version == "3"
        assert server.models.trials["plus"].candidate.version == 3


async def test_without_rules_a_new_version_takes_over_at_once(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus")
    async with serve() as server:
        add_plus(tmp_path / "models", "plus", version=2)
        await load(server)
        assert await versions_of(server, 4) == {"2": 4, "error": 0}


async def test_rules_out_of_range_are_refused(serve: Serve, tmp_path: Path) -> None:
    add_plus(tmp_path / "models", "plus")
    async with serve() as server:
        add_plus(tmp_path / "models", "plus", config=CONFIG.replace('"25"', '"100"'))
        with pytest.raises(InvalidArgumentError, match=r"0 to 99 in parameters\.canary_percent"):
            await load(server)


class Version:
    """A version that has answered as often, and as slowly, as it is told."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.statistics = ModelStatistics()

    def answered(self, count: int, seconds: float = 0.001, failed: int = 0) -> None:
        for _ in range(count):
            self.statistics.succeeded(1, seconds)
        for _ in range(failed):
            self.statistics.failed(seconds)


@pytest.mark.parametrize(
    ("stable", "candidate", "outcome"),
    [
        ((900, 0.001, 0), (99, 0.001, 0), None),
        ((900, 0.001, 0), (100, 0.001, 0), None),
        ((900, 0.001, 0), (99, 0.001, 1), None),
        ((900, 0.001, 0), (98, 0.001, 2), Outcome.ROLLED_BACK),
        # The faults of callers count against both.
        ((800, 0.001, 100), (90, 0.001, 10), None),
        ((900, 0.001, 0), (100, 0.0021, 0), Outcome.ROLLED_BACK),
        ((900, 0.001, 0), (100, 0.0019, 0), None),
        ((0, 0.001, 0), (100, 9.0, 0), None),
        ((9000, 0.001, 0), (1000, 0.001, 0), Outcome.PROMOTED),
    ],
)
def test_verdicts(stable: tuple[int, float, int], candidate: tuple[int, float, int], outcome: Outcome | None) -> None:
    old, new = Version(1), Version(2)
    old.answered(500, 0.5)  # before the trial, it does not count
    trial = Trial(old, new, CanaryRules(percent=10))
    old.answered(*stable)
    new.answered(*candidate)
    verdict = trial.verdict()
    assert (verdict and verdict.outcome) == outcome
