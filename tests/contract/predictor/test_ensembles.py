"""Ensembles: models whose tensors go from one to the next inside the server, as Triton's documentation has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from inference import grpc_service_pb2 as kserve

from services.common.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    TeachwaferError,
)
from services.common.model_repository import ModelRepository
from services.predictor.access import Access
from services.predictor.model_config import ModelControl
from tests.contract.predictor.conftest import Serve, Server
from tests.contract.predictor.test_access import KEY, keys_file
from tests.contract.predictor.test_kserve import answer, request, strings
from tests.helpers.eventually import assert_eventually
from tests.helpers.onnx_models import add_ensemble, add_failing, add_identity, add_pair, add_plus
from tests.helpers.tiny_model import publish_tiny_model

TENSORS = """
    platform: "ensemble"
    max_batch_size: 4
    input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
    output [ { name: "y" data_type: TYPE_FP32 dims: [ 3 ] } ]
"""
ROW = np.array([[1, 2, 3]], np.float32)


def step(model: str, inputs: str = "x=x", outputs: str = "y=y", version: int = -1) -> str:
    """Returns a step; maps are written as `model's=ensemble's`, with commas between them."""

    def written(field: str, pairs: str) -> str:
        parts = (each.split("=") for each in pairs.split(","))
        return "".join(f'{field} {{ key: "{key}" value: "{value}" }} ' for key, value in parts)

    maps = written("input_map", inputs) + written("output_map", outputs)
    return f'step {{ model_name: "{model}" model_version: {version} {maps} }}'


def scheduling(*steps: str) -> str:
    return f"ensemble_scheduling {{ {' '.join(steps)} }}"


CHAIN = TENSORS + scheduling(step("one", "x=x", "y=middle"), step("ten", "x=middle", "y=y"))


def add_chain(root: Path, config: str = "") -> Path:
    add_plus(root, "one", 1.0, config)
    add_plus(root, "ten", 10.0)
    return add_ensemble(root, "chain", CHAIN)


async def statistics(server: Server, name: str) -> kserve.ModelStatistics:
    (done,) = (await server.kserve.ModelStatistics(kserve.ModelStatisticsRequest(name=name))).model_stats
    return done


async def ready(server: Server, *names: str) -> list[bool]:
    return [(await server.kserve.ModelReady(kserve.ModelReadyRequest(name=each))).ready for each in names]


async def load(server: Server, name: str, **parameters: str) -> None:
    message = kserve.RepositoryModelLoadRequest(model_name=name)
    for key, value in parameters.items():
        message.parameters[key].string_param = value
    await server.kserve.RepositoryModelLoad(message)


async def unload(server: Server, name: str, *, dependents: bool = False) -> None:
    message = kserve.RepositoryModelUnloadRequest(model_name=name)
    message.parameters["unload_dependents"].bool_param = dependents
    await server.kserve.RepositoryModelUnload(message)


async def test_tensors_go_from_step_to_step(serve: Serve, tmp_path: Path) -> None:
    add_chain(tmp_path / "models")

    async def requests() -> AsyncIterator[kserve.ModelInferRequest]:
        for rows in (1, 9, 2):
            yield request(np.repeat(ROW, rows, axis=0), model="chain")

    async with serve() as server:
        response = await server.kserve.ModelInfer(request(ROW, model="chain"))
        assert (response.model_name, response.id, answer(response).tolist()) == ("chain", "7", [[12, 13, 14]])
        streamed = [each async for each in server.kserve.ModelStreamInfer(requests())]
        assert ["1 to 4 elements" in each.error_message for each in streamed] == [False, True, False]
        assert answer(streamed[2].infer_response).tolist() == [[12, 13, 14]] * 2
        asked = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
        rest = await server.rest.post("/v2/models/chain/infer", json=asked)
        assert rest.json()["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [12, 13, 14]}]
        metadata = await server.kserve.ModelMetadata(kserve.ModelMetadataRequest(name="chain"))
        assert (metadata.platform, list(metadata.versions)) == ("ensemble", ["1"])
        assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [("x", "FP32", [-1, 3])]
        config = (await server.kserve.ModelConfig(kserve.ModelConfigRequest(name="chain"))).config
        assert (config.name, config.platform, config.backend) == ("chain", "ensemble", "")
        assert [each.model_name for each in config.ensemble_scheduling.step] == ["one", "ten"]
        assert await ready(server, "chain", "one", "ten") == [True] * 3


async def test_steps_run_side_by_side_whatever_their_order(serve: Serve, tmp_path: Path) -> None:
    root = tmp_path / "models"
    add_plus(root, "one", 1.0)
    add_plus(root, "ten", 10.0)
    add_pair(root, "less")
    steps = step("less", "a=a,b=b"), step("ten", "x=x", "y=a"), step("one", "x=x", "y=b")
    add_ensemble(root, "difference", TENSORS + scheduling(*steps))
    add_ensemble(root, "nested", TENSORS + scheduling(step("difference", "x=x", "y=z"), step("one", "x=z")))
    async with serve() as server:
        assert answer(await server.kserve.ModelInfer(request(ROW, model="difference"))).tolist() == [[9, 9, 9]]
        assert answer(await server.kserve.ModelInfer(request(ROW, model="nested"))).tolist() == [[10, 10, 10]]
        await unload(server, "one")
        assert await ready(server, "difference", "nested") == [False, False]


async def test_a_step_that_fails_fails_the_request(serve: Serve, tmp_path: Path) -> None:
    root = tmp_path / "models"
    add_failing(root, "fails")
    add_plus(root, "one")
    add_pair(root, "less")
    for name, failing in (("serial", [step("fails", "x=x")]), ("parallel", [])):
        steps = failing or [step("fails", "x=x", "y=a"), step("one", "x=x", "y=b"), step("less", "a=a,b=b")]
        add_ensemble(root, name, TENSORS + scheduling(*steps))
    async with serve() as server:
        for name in ("serial", "parallel"):
            with pytest.raises(InvalidArgumentError, match="Received from onnxruntime"):
                await server.kserve.ModelInfer(request(ROW, model=name))
            assert (await statistics(server, name)).inference_stats.fail.count == 1
        assert answer(await server.kserve.ModelInfer(request(ROW, model="one"))).tolist() == [[2, 3, 4]]


async def test_what_is_counted_is_what_triton_counts(serve: Serve, tmp_path: Path) -> None:
    add_chain(tmp_path / "models")
    async with serve() as server:
        for _ in range(3):
            await server.kserve.ModelInfer(request(np.repeat(ROW, 2, axis=0), model="chain"))
        chain, *members = [await statistics(server, name) for name in ("chain", "one", "ten")]
    for done in (chain, *members):
        assert (done.inference_count, done.execution_count, done.inference_stats.success.count) == (6, 3, 3)
        assert [(each.batch_size, each.compute_infer.count) for each in done.batch_stats] == [(2, 3)]
    # The parts of an ensemble are those of its steps together.
    for part in ("queue", "compute_input", "compute_infer", "compute_output"):
        whole = getattr(chain.inference_stats, part)
        assert whole.count == 3
        assert whole.ns == pytest.approx(sum(getattr(each.inference_stats, part).ns for each in members), abs=100)


async def test_members_are_loaded_with_their_ensemble_and_unloaded_where_it_is_asked_for(
    serve: Serve, tmp_path: Path
) -> None:
    root = tmp_path / "models"
    add_chain(root)
    add_ensemble(root, "other", TENSORS + scheduling(step("one")))
    async with serve() as server:
        await unload(server, "chain")
        assert await ready(server, "chain", "one", "ten") == [False, True, True]
        await load(server, "chain")
        await unload(server, "chain", dependents=True)
        # Another ensemble still runs one of them.
        assert await ready(server, "chain", "one", "ten", "other") == [False, True, False, True]
        path = "/v2/repository/models/other/unload"
        response = await server.rest.post(path, json={"parameters": {"unload_dependents": True}})
        assert response.status_code == 200
        assert await ready(server, "one", "other") == [False, False]
        await load(server, "chain")
        assert await ready(server, "chain", "one", "ten") == [True] * 3
        assert answer(await server.kserve.ModelInfer(request(ROW, model="chain"))).tolist() == [[12, 13, 14]]


async def test_an_ensemble_waits_for_a_member_that_is_gone(serve: Serve, tmp_path: Path) -> None:
    add_chain(tmp_path / "models")
    async with serve() as server:
        await unload(server, "ten")
        assert await ready(server, "chain") == [False]
        with pytest.raises(FailedPreconditionError, match="the model ten, which a step of the ensemble chain runs"):
            await server.kserve.ModelInfer(request(ROW, model="chain"))
        index = (await server.kserve.RepositoryIndex(kserve.RepositoryIndexRequest())).models
        assert [(each.state, "ten" in each.reason) for each in index if each.name == "chain"] == [("UNAVAILABLE", True)]
        await load(server, "ten")
        assert await ready(server, "chain") == [True]
        # In its place comes one that takes smaller batches than the ensemble.
        await load(server, "ten", config='{"max_batch_size": 2}')
        assert await ready(server, "chain") == [False]
        with pytest.raises(InvalidArgumentError, match="at most 2, that of ten"):
            await server.kserve.ModelInfer(request(ROW, model="chain"))
        await load(server, "ten")
        assert answer(await server.kserve.ModelInfer(request(ROW, model="chain"))).tolist() == [[12, 13, 14]]


async def test_the_newest_version_of_a_member_answers_unless_a_step_names_one(serve: Serve, tmp_path: Path) -> None:
    root = tmp_path / "models"
    add_plus(root, "one", 1.0, "version_policy { all { } }")
    add_ensemble(root, "newest", TENSORS + scheduling(step("one")))
    add_ensemble(root, "first", TENSORS + scheduling(step("one", version=1)))
    async with serve() as server:
        add_plus(root, "one", 2.0, version=2)
        await load(server, "one")
        assert answer(await server.kserve.ModelInfer(request(ROW, model="newest"))).tolist() == [[3, 4, 5]]
        assert answer(await server.kserve.ModelInfer(request(ROW, model="first"))).tolist() == [[2, 3, 4]]


WRONG = {
    "a missing member": (scheduling(step("none")), FailedPreconditionError, "the model none"),
    "a missing version": (scheduling(step("one", version=7)), FailedPreconditionError, "one version 7"),
    "an unknown input": (scheduling(step("one", "z=x")), InvalidArgumentError, "input_map"),
    "an input too few": (scheduling(step("less", "a=x")), InvalidArgumentError, "input_map"),
    "an unknown output": (scheduling(step("one", "x=x", "z=y")), InvalidArgumentError, "output_map"),
    "another type": (scheduling(step("text")), InvalidArgumentError, "BYTES"),
    "another shape": (scheduling(step("pair")), InvalidArgumentError, r"the tensor x as FP32 \[-1, 2\]"),
    "a larger batch": (scheduling(step("small")), InvalidArgumentError, "max_batch_size of at most 2"),
    "a circle": (scheduling(step("circle")), FailedPreconditionError, "wrong -> circle -> wrong"),
}


@pytest.mark.parametrize("what", WRONG)
async def test_what_does_not_fit_is_refused_when_it_is_loaded(serve: Serve, tmp_path: Path, what: str) -> None:
    steps, error, message = WRONG[what]
    root = tmp_path / "models"
    add_plus(root, "one")
    add_plus(root, "small", config="max_batch_size: 2")
    add_pair(root, "less")
    add_identity(root, "text", "BYTES")
    add_identity(root, "pair")
    add_ensemble(root, "circle", TENSORS + scheduling(step("wrong")))
    add_ensemble(root, "wrong", TENSORS + steps)
    async with serve() as server:
        assert await ready(server, "wrong", "one") == [False, True]
        with pytest.raises(error, match=message):
            await load(server, "wrong")
        index = (await server.kserve.RepositoryIndex(kserve.RepositoryIndexRequest())).models
        assert [each.state for each in index if each.name == "wrong"] == ["UNAVAILABLE"]


async def test_deadlines_and_cancellations_reach_the_steps(serve: Serve, tmp_path: Path) -> None:
    # A request for a few elements waits a minute for company.
    add_chain(tmp_path / "models", "max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 60000000 }")
    async with serve() as server:
        call = asyncio.ensure_future(server.kserve.ModelInfer(request(ROW, model="chain")))
        waiting = server.models.get("one").statistics
        await assert_eventually(lambda: waiting.waiting == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(DeadlineExceededError):
            await server.kserve.ModelInfer(request(ROW, model="chain"), timeout=0.2)

        async def counted() -> None:
            for name in ("chain", "one"):
                assert (await statistics(server, name)).inference_stats.fail.count == 2

        await assert_eventually(counted)
        assert (await statistics(server, "ten")).execution_count == 0


async def test_the_queue_policy_of_a_member_holds_for_its_step(serve: Serve, tmp_path: Path) -> None:
    policy = "default_queue_policy { default_timeout_microseconds: 1000000000 allow_timeout_override: true }"
    batching = f"dynamic_batching {{ max_queue_delay_microseconds: 60000000 {policy} }}"
    add_chain(tmp_path / "models", f"max_batch_size: 8 {batching}")
    message = request(ROW, model="chain")
    message.parameters["timeout"].int64_param = 1000
    async with serve() as server:
        with pytest.raises(DeadlineExceededError, match="within 1000 microseconds"):
            await server.kserve.ModelInfer(message)


async def test_wafers_and_the_names_of_their_classes_come_through(serve: Serve, tmp_path: Path) -> None:
    root = tmp_path / "models"
    publish_tiny_model(ModelRepository(root), "tiny", tmp_path)
    add_ensemble(
        root,
        "wafers",
        """
        max_batch_size: 8
        input [ { name: "map" data_type: TYPE_UINT8 dims: [ -1, -1 ] } ]
        output [ { name: "share" data_type: TYPE_FP32 dims: [ 3 ] }, { name: "new" data_type: TYPE_FP32 dims: [ 1 ] } ]
        """
        + scheduling(step("tiny", "dies=map", "probabilities=share,novelty=new")),
    )
    dies = np.random.default_rng(0).integers(1, 3, (4, 6, 8)).astype(np.uint8)

    def asked(model: str, name: str, output: str) -> kserve.ModelInferRequest:
        message = request(dies, model=model, datatype="UINT8")
        message.inputs[0].name = name
        for each in (output, "novelty" if model == "tiny" else "new"):
            message.outputs.add(name=each)
        message.outputs[0].parameters["classification"].int64_param = 2
        return message

    async with serve() as server:
        direct = await server.kserve.ModelInfer(asked("tiny", "dies", "probabilities"))
        through = await server.kserve.ModelInfer(asked("wafers", "map", "share"))
        assert list(through.raw_output_contents) == list(direct.raw_output_contents)
        large = request(np.ones((1, 1, 60000), np.uint8), model="wafers", datatype="UINT8")
        large.inputs[0].name = "map"
        with pytest.raises(InvalidArgumentError, match="Received"):
            await server.kserve.ModelInfer(large)


async def test_strings_go_from_step_to_step(serve: Serve, tmp_path: Path) -> None:
    root = tmp_path / "models"
    add_identity(root, "text", "BYTES")
    tensors = TENSORS.replace("TYPE_FP32 dims: [ 3 ]", "TYPE_STRING dims: [ 2 ]")
    add_ensemble(root, "twice", tensors + scheduling(step("text", "x=x", "y=z"), step("text", "x=z", "y=y")))
    message = request(np.zeros((1, 2)), model="twice", datatype="BYTES", raw=False)
    message.raw_input_contents.append(strings(["", "웨이퍼"]))
    async with serve() as server:
        response = await server.kserve.ModelInfer(message)
    assert list(response.raw_output_contents) == [strings(["", "웨이퍼"])]


async def test_a_key_for_an_ensemble_needs_none_for_its_members(serve: Serve, tmp_path: Path) -> None:
    add_chain(tmp_path / "models")
    access = Access(keys_file(tmp_path, models=["chain"], requests_per_minute=2))
    async with serve(access=access, key=KEY) as server:
        assert answer(await server.kserve.ModelInfer(request(ROW, model="chain"))).tolist() == [[12, 13, 14]]
        with pytest.raises(TeachwaferError, match="good for"):
            await server.kserve.ModelInfer(request(ROW, model="one"))
        # The steps spend nothing of the quota.
        await server.kserve.ModelInfer(request(ROW, model="chain"))


async def test_an_ensemble_in_a_polled_repository_is_loaded_when_its_member_comes(serve: Serve, tmp_path: Path) -> None:
    root = tmp_path / "models"
    folder = add_ensemble(root, "chain", CHAIN)
    add_plus(root, "ten", 10.0)
    async with serve(control=ModelControl.POLL) as server:
        await asyncio.to_thread(server.models.poll)
        assert await ready(server, "chain") == [False]
        add_plus(root, "one", 1.0)
        await asyncio.to_thread(server.models.poll)
        assert answer(await server.kserve.ModelInfer(request(ROW, model="chain"))).tolist() == [[12, 13, 14]]
        (folder / "config.pbtxt").write_text(TENSORS + scheduling(step("one")))
        await asyncio.to_thread(server.models.poll)
        assert answer(await server.kserve.ModelInfer(request(ROW, model="chain"))).tolist() == [[2, 3, 4]]
