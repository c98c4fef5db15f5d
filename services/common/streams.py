"""Streams that last for hours end when the server drains, instead of holding it up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from services.common.errors import UnavailableError

Item = TypeVar("Item")


async def until_draining(items: AsyncIterator[Item], draining: asyncio.Event, next_step: str) -> AsyncIterator[Item]:
    """Yields items until they end. One that has been yielded is dealt with before the stream ends.

    Args:
        items: Requests of a stream, or events to send; closed at the end where that can be done.
        draining: Set when the server starts to stop.
        next_step: What the caller does then, a sentence.

    Raises:
        UnavailableError: The server drains first.
    """
    iterator = aiter(items)
    drained = asyncio.ensure_future(draining.wait())
    coming: asyncio.Future[Item] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(anext(iterator))
            await asyncio.wait({coming, drained}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                raise UnavailableError(f"The service is stopping. {next_step}", 1.0)
            try:
                item = coming.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        for task in (drained, coming):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait({task})
            if task is not None and not task.cancelled():
                task.exception()  # nobody else asks for it, and asyncio would log that
        if (close := getattr(iterator, "aclose", None)) is not None:
            await close()
