"""Trainings."""

from __future__ import annotations

from collections.abc import AsyncIterator

from gateway.values import Backbone, TrainingEvent, TrainingOptions, TrainingRun


class TrainingRoom:
    """Teach the model of a project."""

    async def start(
        self, project_id: str, options: TrainingOptions | None = None, *, request_id: str = ""
    ) -> TrainingRun:
        """Freezes the project and starts teaching. The model is published and loaded when it succeeds.

        Args:
            project_id: The project.
            options: How; None takes the defaults.
            request_id: The same id again returns the training that it started the first time.

        Raises:
            NotFoundError: There is no such project.
            FailedPreconditionError: It cannot be trained now; the reason is that of `Board.training`, in capitals.
            InvalidArgumentError: An option is out of range.
            UnavailableError: The trainer cannot be reached.
        """
        raise NotImplementedError

    async def get(self, run_id: str) -> TrainingRun:
        """Returns a training as it stands.

        When the trainer cannot be reached, a training that ended is still returned as it was last seen.

        Raises:
            NotFoundError: There is none.
            UnavailableError: The trainer cannot be reached.
        """
        raise NotImplementedError

    async def list(self, project_id: str) -> tuple[TrainingRun, ...]:
        """Returns the trainings of a project, newest first, as they were last seen."""
        raise NotImplementedError

    def watch(self, run_id: str, *, after_sequence: int = 0) -> AsyncIterator[TrainingEvent]:
        """Yields the events of a training, past ones first, and ends when it is at rest.

        After the job has SUCCEEDED comes ModelPublished or PublishFailed. Leaving the loop never stops the training.

        Args:
            run_id: The training.
            after_sequence: Sequence of the last event already seen.

        Raises:
            NotFoundError: There is none.
            UnavailableError: The trainer went away for longer than a minute; watch again later.
        """
        raise NotImplementedError

    async def cancel(self, run_id: str) -> TrainingRun:
        """Asks a training to stop; one that has ended is returned as it is."""
        raise NotImplementedError

    async def backbones(self) -> tuple[Backbone, ...]:
        """Returns the pretrained models; the default of each size comes first.

        Raises:
            UnavailableError: The trainer cannot be reached.
        """
        raise NotImplementedError
