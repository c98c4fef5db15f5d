"""Waiting for something that comes about in its own time, instead of sleeping and hoping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

Check = Callable[[], object] | Callable[[], Awaitable[object]]


async def assert_eventually(check: Check, timeout_s: float = 10.0, interval_s: float = 0.02) -> None:
    """Calls a check until it holds.

    Args:
        check: Function or coroutine function; holds when it returns None or something true and raises no
            AssertionError, so that both `lambda: path.exists()` and a function with asserts will do.
        timeout_s: Time to wait at most, seconds.
        interval_s: Time between two calls, seconds.

    Raises:
        AssertionError: The check did not hold in time; the last failure of its own, where there was one.
    """
    end = time.monotonic() + timeout_s
    while True:
        failure: AssertionError | None = None
        try:
            result = check()
            if inspect.isawaitable(result):
                result = await result
            if result is None or result:
                return
        except AssertionError as error:
            failure = error
        if time.monotonic() > end:
            raise failure or AssertionError(f"did not hold within {timeout_s:g} s: {inspect.getsource(check).strip()}")
        await asyncio.sleep(interval_s)


def assert_eventually_sync(check: Callable[[], object], timeout_s: float = 10.0, interval_s: float = 0.02) -> None:
    """The same for tests without an event loop."""
    asyncio.run(assert_eventually(check, timeout_s, interval_s))
