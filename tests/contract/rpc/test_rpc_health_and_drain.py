"""Health is honest, and SIGTERM loses no call."""

import asyncio
import os
import signal

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.errors import NotFoundError, TeachwaferError, UnavailableError
from services.common.server import GrpcServer
from tests.helpers.eventually import assert_eventually
from tests.helpers.grpc_testing import SERVICE, path, serving, unary

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
NAMES = ("", "startup", "readiness", "liveness", SERVICE)


async def check(channel, name=""):
    return (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name))).status


async def check_all(channel):
    return [await check(channel, name) for name in NAMES]


async def test_nothing_but_liveness_serves_before_it_is_said():
    async with serving() as served:
        fresh = GrpcServer(host="127.0.0.1", port=0, service_names=(SERVICE,), drain_seconds=0)
        await fresh.start()
        from services.common.client import connect

        async with connect(f"127.0.0.1:{fresh.port}") as channel:
            assert await check_all(channel) == [NOT_SERVING, NOT_SERVING, NOT_SERVING, SERVING, NOT_SERVING]
        await fresh.drain()
        assert await check_all(served.channel) == [SERVING] * 5


async def test_startup_stays_when_readiness_goes():
    async with serving() as served:
        served.server.set_serving(False)
        assert await check_all(served.channel) == [NOT_SERVING, SERVING, NOT_SERVING, SERVING, NOT_SERVING]
        served.server.set_serving(True, service="readiness")
        assert await check_all(served.channel) == [NOT_SERVING, SERVING, SERVING, SERVING, NOT_SERVING]


async def test_an_unknown_name_is_not_found():
    async with serving() as served:
        with pytest.raises(NotFoundError, match="nobody"):
            await check(served.channel, "nobody")


async def test_a_watch_follows_and_ends_with_the_server():
    async with serving(drain_seconds=30) as served:
        stub = health_pb2_grpc.HealthStub(served.channel)
        seen = []

        async def watch():
            async for response in stub.Watch(health_pb2.HealthCheckRequest(service="readiness")):
                seen.append(response.status)

        watching = asyncio.ensure_future(watch())
        await assert_eventually(lambda: seen == [SERVING])
        served.server.set_serving(False)
        await assert_eventually(lambda: seen == [SERVING, NOT_SERVING])
        served.server.set_serving(True)
        await assert_eventually(lambda: len(seen) == 3)
        await asyncio.wait_for(served.server.drain(), 10)  # the watch does not hold the server for its 30 s
        await watching
        assert seen == [SERVING, NOT_SERVING, SERVING, NOT_SERVING]


async def test_sigterm_lets_the_running_call_end_and_takes_no_new_one():
    release, entered = asyncio.Event(), asyncio.Event()

    async def behaviour(request, context):
        entered.set()
        await release.wait()
        return b"done"

    async with serving(unary("Do", behaviour), drain_seconds=30) as served:
        running = asyncio.ensure_future(served.server.run())
        call = served.channel.unary_unary(path("Do"), None, None)
        in_flight = asyncio.ensure_future(call(b""))
        await entered.wait()
        health = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest(service="readiness"))
        statuses = health.__aiter__()
        assert (await anext(statuses)).status == SERVING

        os.kill(os.getpid(), signal.SIGTERM)

        assert (await anext(statuses)).status == NOT_SERVING
        assert served.server.draining.is_set()
        with pytest.raises(UnavailableError):
            await call(b"", timeout=5)
        assert not running.done()
        release.set()
        assert await in_flight == b"done"
        await asyncio.wait_for(running, 10)


async def test_a_call_that_outlives_the_drain_is_cut_off():
    entered = asyncio.Event()

    async def behaviour(request, context):
        entered.set()
        await asyncio.Event().wait()

    async with serving(unary("Do", behaviour), drain_seconds=0.05) as served:
        stop = asyncio.Event()
        running = asyncio.ensure_future(served.server.run(stop))
        in_flight = asyncio.ensure_future(served.channel.unary_unary(path("Do"), None, None)(b""))
        await entered.wait()
        stop.set()
        await asyncio.wait_for(running, 10)
        with pytest.raises(TeachwaferError):
            await in_flight


async def test_health_cannot_come_back_while_draining():
    async with serving() as served:
        await served.server.drain()
        served.server.set_serving(True)
        assert served.server._health._statuses[""] == NOT_SERVING


async def test_the_port_is_written_for_whoever_asked(tmp_path):
    server = GrpcServer(
        host="127.0.0.1", port=0, service_names=(), service="example", port_file_dir=tmp_path / "ports", drain_seconds=0
    )
    await server.start()
    assert int((tmp_path / "ports" / "example.port").read_text()) == server.port
    await server.drain()
