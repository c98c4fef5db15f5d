"""Streams of requests that last for days end when the server drains, instead of holding it up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from services.common.errors import UnavailableError

Request = TypeVar("Request")


async def until_draining(requests: AsyncIterator[Request], draining: asyncio.Event) -> AsyncIterator[Request]:
    """Yields requests until they end. One that has been yielded is answered before the stream ends.

    Args:
        requests: Requests of a stream.
        draining: Set when the server starts to stop.

    Raises:
        UnavailableError: The server drains first.
    """
    iterator = aiter(requests)
    drained = asyncio.ensure_future(draining.wait())
    try:
        while True:
            coming = asyncio.ensure_future(_next(iterator))
            try:
                await asyncio.wait({coming, drained}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not coming.done():
                    coming.cancel()
            if not coming.done():
                raise UnavailableError(
                    "The predictor is stopping. Open the stream again and send what has no answer yet.", 1.0
                )
            request = coming.result()
            if request is None:
                return
            yield request
    finally:
        drained.cancel()


async def _next(requests: AsyncIterator[Request]) -> Request | None:
    return await anext(requests, None)
