"""Malformed requests by the thousand: each gets a right status, nothing leaks, good requests beside them are unharmed.

TEACHWAFER_MALFORMED_REQUESTS sets how many; `make test-malformed` sends 10,000.
"""

from __future__ import annotations

import asyncio
import collections
import os
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import psutil
import pytest
from inference import grpc_service_pb2 as kserve
from teachwafer.predictor.v1 import predictor_pb2 as pb

from services.common.model_repository import ModelRepository
from tests.helpers.malformed import (
    CLASSIFY,
    INFER,
    MAX_MESSAGE_BYTES,
    STREAMS,
    Malformed,
    good_classify,
    good_infer,
    is_right,
    malformed,
    right_answer,
)
from tests.helpers.onnx_models import add_identity, add_plus
from tests.helpers.processes import service_process
from tests.helpers.tiny_model import publish_tiny_model

REQUESTS = int(os.environ.get("TEACHWAFER_MALFORMED_REQUESTS", "2000"))
AT_A_TIME = 16
MOST_GROWTH_BYTES = 24 * 1024 * 1024
"""Memory that the server may gain between a third of the requests and the last: allocators keep some for later."""


@pytest.mark.timeout(1200)
async def test_each_gets_a_right_status_and_no_good_request_suffers(tmp_path: Path) -> None:
    home = tmp_path / "home"
    publish_tiny_model(ModelRepository(home / "models"), "tiny", tmp_path)
    add_plus(home / "models", "plus")
    add_identity(home / "models", "same", "BYTES")
    environment = {"TEACHWAFER_MAX_MESSAGE_BYTES": str(MAX_MESSAGE_BYTES)}
    with service_process("services.predictor", home, environment) as service:
        service.wait_serving()
        process = psutil.Process(service.popen.pid)
        async with grpc.aio.insecure_channel(service.address) as channel:
            done = asyncio.Event()
            beside = asyncio.create_task(good_ones(channel, done))
            wrong = await send(channel, 0, REQUESTS // 3)
            before = process.memory_info().rss
            wrong += await send(channel, REQUESTS // 3, REQUESTS)
            after = process.memory_info().rss
            done.set()
            answered = await beside
        assert service.popen.poll() is None
        log = service.log
    assert not wrong, f"{len(wrong)} wrong answers, the first: {wrong[:5]}"
    assert answered > 20
    assert "unexpected error" not in log
    assert after - before < MOST_GROWTH_BYTES


async def send(channel: grpc.aio.Channel, first: int, end: int) -> list[str]:
    """Sends malformed requests, every fourth on a stream, and returns the answers that are not right."""
    numbers, wrong = iter(range(first, end)), []

    async def work() -> None:
        for number in numbers:
            request = malformed(number)
            code, response = await answer(channel, request, stream=number % 4 == 3)
            if not is_right(request, code, response):
                wrong.append(
                    f"{number} ({request.kind}): {code.name}, expected {[each.name for each in request.right]}"
                )

    await asyncio.gather(*(work() for _ in range(AT_A_TIME)))
    return wrong


async def answer(channel: grpc.aio.Channel, request: Malformed, *, stream: bool) -> tuple[grpc.StatusCode, bytes]:
    """Sends one request and returns its status and its response."""
    try:
        if stream:
            response = await channel.stream_stream(STREAMS[request.method])(iter([request.data]), timeout=60).read()
        else:
            response = await channel.unary_unary(request.method)(request.data, timeout=60)
    except grpc.aio.AioRpcError as error:
        return error.code(), b""
    return _told(response) if stream and request.method == INFER else grpc.StatusCode.OK, response


def _told(response: bytes) -> grpc.StatusCode:
    """Returns the status of an answer of ModelStreamInfer, which tells an error in words alone."""
    message = kserve.ModelStreamInferResponse.FromString(response)
    if not message.error_message:
        return grpc.StatusCode.OK
    missing = any(text in message.error_message for text in ("Expected a loaded model", "region"))
    return grpc.StatusCode.NOT_FOUND if missing else grpc.StatusCode.INVALID_ARGUMENT


async def good_ones(channel: grpc.aio.Channel, done: asyncio.Event) -> int:
    """Sends good requests until told to stop, and returns how many; each has to be answered rightly."""
    count: collections.Counter[str] = collections.Counter()
    while not done.is_set():
        data = await channel.unary_unary(INFER)(good_infer().SerializeToString(), timeout=60)
        response = kserve.ModelInferResponse.FromString(data)
        np.testing.assert_array_equal(np.frombuffer(response.raw_output_contents[0], "<f4"), right_answer())
        data = await channel.unary_unary(CLASSIFY)(good_classify().SerializeToString(), timeout=60)
        assert pb.ClassifyResponse.FromString(data).answers[0].class_id == "low"
        count["answered"] += 2
        await asyncio.sleep(0.01)
    return count["answered"]
