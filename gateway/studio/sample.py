"""The sample project."""

from __future__ import annotations

from gateway.values import SampleProgress


class SampleRoom:
    """A project of simulated wafers to look around in."""

    async def ensure(self) -> SampleProgress:
        """Begins to make the sample project in the background unless it is there or being made; returns at once.

        Made once: a sample project that a person deleted stays away.
        """
        raise NotImplementedError

    def progress(self) -> SampleProgress:
        """Returns how far it is. Not a coroutine."""
        raise NotImplementedError
