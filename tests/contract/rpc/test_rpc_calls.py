"""What a caller sees of a server of ours, over real connections."""

import asyncio
import json
import logging

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from services.common import errors
from services.common.client import connect, connect_sync
from services.common.errors import (
    CancelledByCallerError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    TeachwaferError,
    UnavailableError,
    UnimplementedError,
)
from services.common.interceptors import REQUEST_ID_KEY
from services.common.logs import JsonFormatter, request_id_var
from services.common.server import GrpcServer
from tests.helpers.eventually import assert_eventually
from tests.helpers.grpc_testing import SERVICE, both_ways, path, serving, stream, unary, upload

SECRET = "the password is 1234"


def make(error_class: type[TeachwaferError]) -> TeachwaferError:
    if issubclass(error_class, errors._ResourceError):
        return error_class("model", "wafers", metadata={"key": "value"})
    return error_class("Expected this. Received: that.", metadata={"key": "value"})


def raising(error: BaseException):
    async def behaviour(request, context):
        raise error

    return behaviour


def raising_after_one(error: BaseException):
    async def behaviour(request, context):
        yield b"first"
        raise error

    return behaviour


async def echo(request, context):
    return request


async def drained(responses, into):
    async for response in responses:
        into.append(response)


def call_unary(channel, name="Do"):
    return channel.unary_unary(path(name), None, None)


def call_stream(channel, name="Stream"):
    return channel.unary_stream(path(name), None, None)


@pytest.mark.parametrize("error_class", errors._CLASSES, ids=lambda each: each.__name__)
async def test_every_error_class_reaches_the_caller(error_class):
    error = make(error_class)
    async with serving(unary("Do", raising(error)), stream("Stream", raising_after_one(error))) as served:
        with pytest.raises(TeachwaferError) as caught:
            await call_unary(served.channel)(b"")
        assert type(caught.value) is error_class
        assert caught.value.message == error.message
        assert caught.value.metadata.items() >= {"key": "value"}.items()

        received = []
        with pytest.raises(TeachwaferError) as caught:
            await drained(call_stream(served.channel)(b""), received)
        assert received == [b"first"]
        assert type(caught.value) is error_class
        assert caught.value.message == error.message


@pytest.mark.parametrize("error_class", errors._CLASSES, ids=lambda each: each.__name__)
async def test_the_wire_form_is_a_google_rpc_status(error_class):
    error = make(error_class)
    async with serving(unary("Do", raising(error))) as served, grpc.aio.insecure_channel(served.address) as plain:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_unary(plain)(b"", timeout=5)
    assert caught.value.code() is error_class.code
    status = rpc_status.from_call(caught.value)
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert (info.domain, info.reason) == ("teachwafer", error.reason)


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_an_unknown_exception_tells_nothing_but_the_request_id(kind, caplog):
    error = ValueError(SECRET)
    async with serving(unary("Do", raising(error)), stream("Stream", raising_after_one(error))) as served:
        metadata = ((REQUEST_ID_KEY, "find-me"),)
        calls = {
            "unary": lambda: call_unary(served.channel)(b"", metadata=metadata),
            "stream": lambda: drained(call_stream(served.channel)(b"", metadata=metadata), []),
        }
        with pytest.raises(InternalError) as caught:
            await calls[kind]()
    assert "find-me" in caught.value.message
    assert SECRET not in repr(vars(caught.value))
    assert "ValueError" not in repr(vars(caught.value))
    assert any(record.exc_info and SECRET in str(record.exc_info[1]) for record in caplog.records)


async def test_a_handler_may_abort_itself(caplog):
    async def behaviour(request, context):
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "beyond the end")

    caplog.set_level(logging.INFO)
    async with serving(unary("Do", behaviour)) as served, grpc.aio.insecure_channel(served.address) as plain:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_unary(plain)(b"", timeout=5)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.OUT_OF_RANGE, "beyond the end")
    assert [record.code for record in caplog.records if record.getMessage() == "call"] == ["OUT_OF_RANGE"]


async def test_all_four_kinds_of_calls_answer():
    async def many(request, context):
        for part in (b"1", b"2"):
            yield request + part

    async def mirror(requests, context):
        async for request in requests:
            yield request

    async def collect(requests, context):
        return b"".join([request async for request in requests])

    async def write(request, context):
        await context.write(request)

    adders = (unary("Do", echo), stream("Stream", many), both_ways("Both", mirror), upload("Up", collect))
    async with serving(*adders, stream("Write", write)) as served:
        assert await call_unary(served.channel)(b"x") == b"x"
        assert [each async for each in call_stream(served.channel)(b"x")] == [b"x1", b"x2"]
        assert [each async for each in call_stream(served.channel, "Write")(b"x")] == [b"x"]
        both = served.channel.stream_stream(path("Both"), None, None)
        assert [each async for each in both(iter((b"a", b"b")))] == [b"a", b"b"]
        assert await served.channel.stream_unary(path("Up"), None, None)(iter((b"a", b"b"))) == b"ab"


async def test_the_blocking_client_raises_the_same_errors():
    error = NotFoundError("model", "wafers")
    async with serving(
        unary("Do", raising(error)), unary("Echo", echo), stream("Stream", raising_after_one(error))
    ) as served:

        def calls():
            with connect_sync(served.address) as channel:
                assert call_unary(channel, "Echo")(b"x") == b"x"
                with pytest.raises(NotFoundError):
                    call_unary(channel)(b"")
                responses = call_stream(channel)(b"")
                assert next(responses) == b"first"
                with pytest.raises(NotFoundError, match="'wafers'"):
                    next(responses)

        await asyncio.to_thread(calls)


@pytest.mark.parametrize("letter", ["x", "웨"])
async def test_an_error_that_quotes_much_keeps_its_code(letter):
    error = InvalidArgumentError(f"Expected less. Received: {letter * 50_000}", "field" * 9999)
    async with serving(unary("Do", raising(error))) as served:
        with pytest.raises(InvalidArgumentError, match="Expected less") as caught:
            await call_unary(served.channel)(b"")
    assert caught.value.message.endswith(f"{letter} ...")
    assert caught.value.reason == "INVALID_ARGUMENT"
    assert caught.value.metadata["request_id"]


async def test_an_unknown_method_is_unimplemented():
    async with serving() as served:
        with pytest.raises(UnimplementedError, match="Nothing"):
            await call_unary(served.channel, "Nothing")(b"")


async def test_a_request_id_is_taken_made_and_sent_back_and_stands_in_the_logs(caplog):
    seen = []

    async def behaviour(request, context):
        seen.append(request_id_var.get())
        logging.getLogger("handler").info("working")
        return b""

    caplog.set_level(logging.INFO)
    async with serving(unary("Do", behaviour)) as served, grpc.aio.insecure_channel(served.address) as plain:
        for sent in (((REQUEST_ID_KEY, "mine"),), ((REQUEST_ID_KEY, 'no "good"'),), ()):
            call = call_unary(plain)(b"", metadata=sent, timeout=5)
            await call
            assert dict(await call.trailing_metadata())[REQUEST_ID_KEY] == seen[-1]
    assert seen[0] == "mine"
    assert all(len(each) == 32 for each in seen[1:])
    assert len(set(seen)) == 3


async def test_the_client_passes_the_running_request_id_on():
    async def behaviour(request, context):
        return request_id_var.get().encode()

    async with serving(unary("Do", behaviour)) as served:
        token = request_id_var.set("outer")
        assert await call_unary(served.channel)(b"") == b"outer"
        request_id_var.reset(token)
        assert len(await call_unary(served.channel)(b"")) == 32


async def test_each_call_leaves_one_access_line(caplog):
    caplog.set_level(logging.INFO)
    async with serving(unary("Do", echo), unary("Bad", raising(InvalidArgumentError("No.")))) as served:
        await call_unary(served.channel)(b"")
        with pytest.raises(InvalidArgumentError):
            await call_unary(served.channel, "Bad")(b"")
    lines = [json.loads(JsonFormatter("x").format(record)) for record in caplog.records if record.message == "call"]
    assert [(line["method"], line["code"]) for line in lines] == [
        (path("Do"), "OK"),
        (path("Bad"), "INVALID_ARGUMENT"),
    ]
    assert all(line["ms"] >= 0 and line["peer"].startswith("ipv4:127.0.0.1:") for line in lines)


async def test_a_message_that_is_too_large_is_resource_exhausted():
    async with serving(unary("Do", echo), max_message_bytes=2000) as served:
        assert await call_unary(served.channel)(bytes(1000))
        with pytest.raises(ResourceExhaustedError):
            await call_unary(served.channel)(bytes(3000))


async def test_calls_over_the_limit_are_resource_exhausted():
    release, entered = asyncio.Event(), asyncio.Event()

    async def behaviour(request, context):
        entered.set()
        await release.wait()
        return b""

    async with serving(unary("Do", behaviour), max_concurrent_rpcs=1) as served:
        first = asyncio.ensure_future(call_unary(served.channel)(b""))
        await entered.wait()
        with pytest.raises(ResourceExhaustedError):
            await call_unary(served.channel)(b"")
        release.set()
        assert await first == b""


async def test_a_cancelled_call_cancels_its_handler_and_is_logged_as_cancelled(caplog):
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def behaviour(request, context):
        entered.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    caplog.set_level(logging.INFO)
    async with serving(unary("Do", behaviour)) as served:
        call = asyncio.ensure_future(call_unary(served.channel)(b""))
        await entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(cancelled.wait(), 10)
        await assert_eventually(lambda: [r.code for r in caplog.records if r.getMessage() == "call"] == ["CANCELLED"])


async def test_leaving_a_stream_ends_its_handler():
    ended = asyncio.Event()

    async def behaviour(request, context):
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0)
        finally:
            ended.set()

    async with serving(stream("Stream", behaviour)) as served:
        call = call_stream(served.channel)(b"")
        async for _ in call:
            break
        call.cancel()
        await asyncio.wait_for(ended.wait(), 10)


async def test_the_callers_deadline_ends_the_call():
    async with serving(unary("Do", lambda request, context: asyncio.Event().wait())) as served:
        with pytest.raises(DeadlineExceededError):
            await call_unary(served.channel)(b"", timeout=0.05)


async def test_the_client_sets_a_deadline_where_the_caller_sets_none():
    async def behaviour(request, context):
        return str(context.time_remaining()).encode()

    async with serving(unary("Do", behaviour), client={"default_timeout_s": 7}) as served:
        assert 5 < float(await call_unary(served.channel)(b"")) <= 7.1
        assert 15 < float(await call_unary(served.channel)(b"", timeout=20)) <= 20.1


async def test_the_server_sets_a_deadline_where_the_caller_sets_none():
    async def behaviour(request, context):
        await asyncio.Event().wait()

    async with (
        serving(unary("Do", behaviour), default_deadline_s=0.05) as served,
        grpc.aio.insecure_channel(served.address) as plain,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call_unary(plain)(b"")
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "0.05 s" in caught.value.details()


@pytest.mark.parametrize(("method", "expected_calls"), [("Get", 3), ("Create", 1)])
async def test_only_idempotent_methods_are_retried_and_only_when_unavailable(method, expected_calls):
    calls = 0

    async def flaky(request, context):
        nonlocal calls
        calls += 1
        if calls < 3:
            raise UnavailableError("Starting.")
        return b"done"

    client = {"idempotent": {SERVICE: ("Get",)}}
    async with serving(unary(method, flaky), client=client) as served:
        if method == "Get":
            assert await call_unary(served.channel, method)(b"") == b"done"
        else:
            with pytest.raises(UnavailableError, match="Starting"):
                await call_unary(served.channel, method)(b"")
    assert calls == expected_calls


async def test_an_internal_error_is_never_retried():
    calls = 0

    async def broken(request, context):
        nonlocal calls
        calls += 1
        raise RuntimeError

    async with serving(unary("Get", broken), client={"idempotent": {SERVICE: ("Get",)}}) as served:
        with pytest.raises(InternalError):
            await call_unary(served.channel, "Get")(b"")
    assert calls == 1


async def test_a_service_that_is_not_there_is_unavailable():
    async with connect("127.0.0.1:1", idempotent={}) as channel:
        with pytest.raises(UnavailableError):
            await call_unary(channel)(b"", timeout=5)


async def test_a_new_channel_does_not_wait_because_another_failed():
    async with serving() as served:
        port = served.server.port
    async with connect(f"127.0.0.1:{port}") as failed:
        for _ in range(3):
            with pytest.raises(UnavailableError):
                await call_unary(failed)(b"")
        server = GrpcServer(host="127.0.0.1", port=port, service_names=())
        unary("Do", echo)(server.aio)
        await server.start()
        try:
            async with connect(f"127.0.0.1:{port}") as channel:
                assert await call_unary(channel)(b"there") == b"there"
        finally:
            await server.drain()


async def test_a_port_in_use_is_a_clear_error():
    async with serving() as served:
        second = GrpcServer(host="127.0.0.1", port=served.server.port, service_names=())
        with pytest.raises(FailedPreconditionError, match="in use") as caught:
            await second.start()
        assert caught.value.reason == "PORT_IN_USE"
        await second.aio.stop(0)


async def test_reflection_lists_the_services():
    async with serving() as served:
        stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="*")
        responses = [each async for each in stub.ServerReflectionInfo(iter([request]))]
    names = {each.name for each in responses[0].list_services_response.service}
    assert names >= {SERVICE, "grpc.health.v1.Health"}


def test_cancelled_by_caller_is_what_a_cancelled_status_becomes():
    assert errors.from_status(errors.to_status(CancelledByCallerError("Gone."))).code is grpc.StatusCode.CANCELLED
