"""Streams that end when the server drains, or when their caller goes away."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest

from services.common.errors import UnavailableError
from services.common.streams import until_draining


class Requests:
    """Requests of a caller who sends some and then nothing; the iterator ends when its wait is cancelled, as gRPC's."""

    def __init__(self, sent: int) -> None:
        self._left = sent
        self.waits = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        if self._left:
            self._left -= 1
            return self._left
        self.waits.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise StopAsyncIteration from None
        raise AssertionError


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_caller_who_goes_away_leaves_no_error_behind(*, cancelled: bool) -> None:
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    draining, requests = asyncio.Event(), Requests(1)

    async def handle() -> None:
        async for _ in until_draining(requests, draining, "Call again."):
            pass

    handler = asyncio.create_task(handle())
    await requests.waits.wait()
    if cancelled:
        handler.cancel()
    else:
        draining.set()
    await asyncio.wait({handler})
    assert handler.cancelled() is cancelled
    assert cancelled or isinstance(handler.exception(), UnavailableError)
    # What was never retrieved is told when its task goes.
    del handler
    gc.collect()
    assert told == []
