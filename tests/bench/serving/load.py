"""A closed-loop load generator in a process of its own: so many calls in flight, each sent when the one before ended.

It reads what to do as JSON from standard input and prints what came of it as JSON. Requests and responses are bytes to
it, so that it costs the same against every server.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

import grpc.aio

Call = Callable[[], Awaitable[bool]]

WARM_UP_S = 0.5
CONNECTIONS = 4


@dataclass(frozen=True)
class Load:
    """What to send where.

    Attributes:
        kind: `unary`, `stream` or `http`.
        address: `host:port`.
        path: Method or path.
        request: The request, base64.
        in_flight: Calls at a time.
        seconds: How long.
        rate: Calls a second, at random moments, instead of one after another; 0 is as many as there can be.
    """

    kind: str
    address: str
    path: str
    request: str
    in_flight: int
    seconds: float
    rate: float = 0.0


@dataclass(frozen=True)
class Result:
    """What came of it.

    Attributes:
        per_s: Calls answered a second.
        p50_ms: Median time of a call, milliseconds.
        p99_ms: Time that one call of a hundred was over, milliseconds.
        errors: Calls that were not answered.
    """

    per_s: float
    p50_ms: float
    p99_ms: float
    errors: int


async def measure(load: Load) -> Result:
    """Sends the load and returns what came of it."""
    request = base64.b64decode(load.request)
    calls, close = await _OPEN[load.kind](load, request)
    times: list[float] = []
    errors = 0
    begin = time.perf_counter() + WARM_UP_S
    end = begin + load.seconds

    async def one(call: Call, since: float) -> None:
        nonlocal errors
        good = await call()
        now = time.perf_counter()
        if begin <= since and now <= end:
            times.append(now - since)
            errors += not good

    async def closed(call: Call) -> None:
        while (now := time.perf_counter()) < end:
            await one(call, now)

    async def opened() -> None:
        """Sends at random moments, whether or not the calls before were answered; waiting counts."""
        chance, due, running = random.Random(0), time.perf_counter(), set()
        while due < end:
            due += chance.expovariate(load.rate)
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(one(calls[len(times) % len(calls)], due))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)

    await (opened() if load.rate else asyncio.gather(*map(closed, calls)))
    await close()
    times.sort()
    at = [times[int(share * (len(times) - 1))] * 1000 if times else float("nan") for share in (0.5, 0.99)]
    return Result(len(times) / load.seconds, at[0], at[1], errors)


async def _unary(load: Load, request: bytes) -> tuple[list[Call], Callable[[], Awaitable[None]]]:
    channels = _channels(load)

    def made(channel: grpc.aio.Channel) -> Call:
        send = channel.unary_unary(load.path)

        async def call() -> bool:
            try:
                return bool(await send(request))
            except grpc.aio.AioRpcError:
                return False

        return call

    return [made(channels[index % len(channels)]) for index in range(load.in_flight)], lambda: _closed(channels)


async def _stream(load: Load, request: bytes) -> tuple[list[Call], Callable[[], Awaitable[None]]]:
    channels = _channels(load)

    def made(channel: grpc.aio.Channel) -> Call:
        stream = channel.stream_stream(load.path)()

        async def call() -> bool:
            await stream.write(request)
            return bool(await stream.read())

        return call

    return [made(channels[index % len(channels)]) for index in range(load.in_flight)], lambda: _closed(channels)


async def _http(load: Load, request: bytes) -> tuple[list[Call], Callable[[], Awaitable[None]]]:
    host, port = load.address.split(":")
    head = (
        f"POST {load.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(request)}"
    )
    sent = f"{head}\r\n\r\n".encode() + request
    writers = []

    async def made() -> Call:
        reader, writer = await asyncio.open_connection(host, int(port))
        writers.append(writer)

        async def call() -> bool:
            writer.write(sent)
            header = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(header.split(b"content-length:")[1].split(b"\r\n")[0]))
            return header.startswith(b"http/1.1 200")

        return call

    async def close() -> None:
        for writer in writers:
            writer.close()

    return [await made() for _ in range(load.in_flight)], close


_OPEN = {"unary": _unary, "stream": _stream, "http": _http}


def _channels(load: Load) -> list[grpc.aio.Channel]:
    options = [("grpc.use_local_subchannel_pool", 1)]
    return [grpc.aio.insecure_channel(load.address, options) for _ in range(min(CONNECTIONS, load.in_flight))]


async def _closed(channels: list[grpc.aio.Channel]) -> None:
    for channel in channels:
        await channel.close()


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(measure(Load(**json.load(sys.stdin)))))))
