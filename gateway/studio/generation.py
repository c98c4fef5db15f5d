"""More wafers of a class."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from gateway.values import Change, GenerationEvent, GenerationRequest, GenerationRun
from services.common.wafer_map import WaferMap


class GenerationRoom:
    """Generate wafers and add those that look right."""

    async def start(
        self, project_id: str, requests: Sequence[GenerationRequest], *, seed: int = 0, request_id: str = ""
    ) -> GenerationRun:
        """Freezes the project and starts generating from its training wafers.

        Args:
            project_id: The project.
            requests: What to make, one entry a class.
            seed: Seed of everything random, 0 to 2^32-1.
            request_id: The same id again returns the generation that it started the first time.

        Raises:
            NotFoundError: There is no such project or class.
            InvalidArgumentError: Nothing is asked for, or a setting is out of range.
            FailedPreconditionError: A class has no wafer in training (reason NO_PARENTS), or fewer than 20 for a
                learned generator (reason TOO_FEW_WAFERS).
            UnavailableError: The generator cannot be reached.
        """
        raise NotImplementedError

    async def get(self, run_id: str) -> GenerationRun:
        """Returns a generation as it stands; one that ended also while the generator is away.

        Raises:
            NotFoundError: There is none.
            UnavailableError: The generator cannot be reached.
        """
        raise NotImplementedError

    async def list(self, project_id: str) -> tuple[GenerationRun, ...]:
        """Returns the generations of a project, newest first, as they were last seen."""
        raise NotImplementedError

    def watch(self, run_id: str, *, after_sequence: int = 0) -> AsyncIterator[GenerationEvent]:
        """Yields the events of a generation, past ones first, and ends when it is at rest.

        Raises:
            NotFoundError: There is none.
            UnavailableError: The generator went away for longer than a minute; watch again later.
        """
        raise NotImplementedError

    async def cancel(self, run_id: str) -> GenerationRun:
        """Asks a generation to stop; one that has ended is returned as it is."""
        raise NotImplementedError

    async def results(
        self, run_id: str, class_id: str = "", *, offset: int = 0, limit: int = 60
    ) -> tuple[tuple[str, WaferMap], ...]:
        """Returns generated wafers, not yet in a class, with the ids under which they will be.

        Args:
            run_id: A succeeded generation.
            class_id: Only of this class; "" of all.
            offset: Wafers to pass over.
            limit: Most wafers to return, at most 1,000.

        Raises:
            NotFoundError: There is no such generation.
            FailedPreconditionError: It has not succeeded (reason NOT_FINISHED).
        """
        raise NotImplementedError

    async def accept(self, run_id: str, *, leave_out: Sequence[str] = ()) -> Change:
        """Adds generated wafers to their classes, marked as generated. Doing so twice adds them once.

        Args:
            run_id: A succeeded generation.
            leave_out: Ids of wafers that look wrong.

        Raises:
            NotFoundError: There is no such generation, or all of its classes are gone.
            FailedPreconditionError: It has not succeeded (reason NOT_FINISHED).
        """
        raise NotImplementedError
