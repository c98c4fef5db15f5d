"""Watching the events of a job until they end or the server drains; the same for every service with jobs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from services.common.errors import UnavailableError
from services.common.jobs.model import JobEvent


async def until_draining(draining: asyncio.Event, events: AsyncIterator[JobEvent]) -> AsyncIterator[JobEvent]:
    """Yields events until they end.

    Args:
        draining: Set when the server starts to stop.
        events: The events of one job, as `JobEngine.watch` gives them; closed at the end.

    Raises:
        UnavailableError: The server drains first.
    """
    drained = asyncio.ensure_future(draining.wait())
    coming: asyncio.Future[JobEvent] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(anext(events))
            await asyncio.wait({coming, drained}, return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                raise UnavailableError("The service is stopping. Watch again after the last event received.")
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            yield event
    finally:
        for task in (drained, coming):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait({task})
        await events.aclose()  # type: ignore[attr-defined]
