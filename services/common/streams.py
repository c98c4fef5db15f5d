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
    waiting: asyncio.Timeout | None = None

    async def end_wait() -> None:
        await draining.wait()
        if waiting is not None:
            waiting.reschedule(asyncio.get_running_loop().time())

    drained = asyncio.create_task(end_wait())
    try:
        # A wait that can be ended, instead of a task for each item, which would cost more than many an item.
        while not draining.is_set():
            scope = waiting = asyncio.timeout(None)
            try:
                async with scope:
                    item = await anext(iterator)
            except (StopAsyncIteration, TimeoutError) as error:
                if scope.expired():
                    break
                if isinstance(error, TimeoutError):
                    raise
                # Iterators of gRPC end when their wait is cancelled, as if the caller had sent all.
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise asyncio.CancelledError from None
                return
            finally:
                waiting = None
            yield item
        raise UnavailableError(f"The service is stopping. {next_step}", 1.0)
    finally:
        drained.cancel()
        await asyncio.wait({drained})
        if (close := getattr(iterator, "aclose", None)) is not None:
            await close()
