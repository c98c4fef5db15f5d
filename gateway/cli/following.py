"""Following jobs to their end, with a progress bar for people."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.cli.output import Output
from gateway.clients import Clients
from gateway.values import (
    EpochEnded,
    GenerationProgress,
    GenerationRun,
    JobState,
    JobStateChanged,
    Problem,
    StageStarted,
    TrainingRun,
    Warned,
)
from services.common.errors import TeachwaferError, UnavailableError

EventT = TypeVar("EventT")

_PATIENCE_S = 60.0
_RETRY_S = 1.0
_STAGES = {
    "reading": "reading wafers",
    "features": "looking at wafers",
    "training": "teaching",
    "evaluating": "measuring",
    "exporting": "exporting and comparing",
}


class JobFailedError(TeachwaferError):
    """A job ended without a result.

    Args:
        what: Kind of the job, for people.
        run_id: The job.
        problem: Why it failed; None when it was cancelled.
    """

    default_reason = "JOB_FAILED"

    def __init__(self, what: str, run_id: str, problem: Problem | None) -> None:
        why = problem.message if problem else "It was cancelled."
        super().__init__(f"The {what} {run_id} failed. {why}", reason=problem.reason if problem else "CANCELLED")


async def follow_training(clients: Clients, output: Output, run_id: str) -> TrainingRun:
    """Shows a training until it ends and returns it.

    Args:
        clients: The services.
        output: Where to show it.
        run_id: The training.

    Raises:
        JobFailedError: It failed or was cancelled.
        UnavailableError: The trainer stays away.
    """
    with _bar(output) as bar:
        task = bar.add_task("waiting for a place to run", total=1.0)
        async for event in _events(lambda after: clients.trainer.watch(run_id, after)):
            match event:
                case StageStarted():
                    description = _STAGES.get(event.stage, event.stage)
                    bar.update(task, description=description, completed=event.progress)
                    if event.device:
                        output.say(f"Teaching on {event.device}")
                case Warned(message=message):
                    output.say(f"Note: {message}")
                case EpochEnded():
                    output.say(_epoch_line(event))
                case JobStateChanged(state=JobState.QUEUED, reason=reason) if reason:  # it will be tried again
                    output.say(f"waiting again: {reason}")
    run = await clients.trainer.get(run_id)
    if run.state is not JobState.SUCCEEDED:
        raise JobFailedError("training", run_id, run.problem)
    return run


async def follow_generation(clients: Clients, output: Output, run_id: str, names: Mapping[str, str]) -> GenerationRun:
    """Shows a generation until it ends and returns it.

    Args:
        clients: The services.
        output: Where to show it.
        run_id: The generation.
        names: Name of each class, by its id.

    Raises:
        JobFailedError: It failed or was cancelled.
        UnavailableError: The generator stays away.
    """
    with _bar(output) as bar:
        task = bar.add_task("waiting for a place to run", total=1.0)
        async for event in _events(lambda after: clients.generator.watch(run_id, after)):
            match event:
                case GenerationProgress():
                    bar.update(task, description=progress_text(event, names), completed=event.progress)
                case JobStateChanged(state=JobState.QUEUED, reason=reason) if reason:  # it will be tried again
                    output.say(f"waiting again: {reason}")
    run = await clients.generator.get(run_id)
    if run.state is not JobState.SUCCEEDED:
        raise JobFailedError("generation", run_id, run.problem)
    return run


def progress_text(event: GenerationProgress, names: Mapping[str, str]) -> str:
    """Says what a generation is at."""
    if event.stage == "proving":
        return f"teaching with and without the wafers made: {event.done} of {event.total} draws"
    return f"{names.get(event.class_id, event.class_id)}: {event.stage} {event.done}/{event.total}"


@contextlib.asynccontextmanager
async def cancelled_with_command(
    output: Output, cancel: Callable[[], Awaitable[object]], *, embedded: bool, what: str
) -> AsyncIterator[None]:
    """Decides what becomes of a job when its command is interrupted.

    A job on services that were started for the command is cancelled, because nobody would come back for it; one on
    running services goes on.

    Args:
        output: Where to say so.
        cancel: Cancels the job.
        embedded: Whether the services were started for this command.
        what: The job, for people.
    """
    try:
        yield
    except (asyncio.CancelledError, KeyboardInterrupt):
        if embedded:
            output.say(f"Cancelling {what} ...")
            with contextlib.suppress(TeachwaferError):
                await asyncio.shield(asyncio.ensure_future(cancel()))
        else:
            output.say(f"{what} goes on without this command.")
        raise


async def _events(watch: Callable[[int], AsyncIterator[EventT]]) -> AsyncIterator[EventT]:
    """Yields the events of a job once each, also when the service is started again meanwhile."""
    last, waited = 0, 0.0
    while True:
        try:
            async for event in watch(last):
                last, waited = getattr(event, "sequence", last), 0.0
                yield event
        except UnavailableError:
            if waited >= _PATIENCE_S:
                raise
            waited += _RETRY_S
            await asyncio.sleep(_RETRY_S)
        else:
            return


def _bar(output: Output) -> Progress:
    """Returns a progress bar; where there is no terminal, nothing moves and only lines are written."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    live = output.console.is_terminal
    return Progress(*columns, TimeElapsedColumn(), console=output.console, transient=True, disable=not live)


def _epoch_line(event: EpochEnded) -> str:
    """Returns an epoch in one line."""
    return (
        f"epoch {event.epoch:>3}/{event.epochs}  loss {event.loss:.4f}  accuracy {event.accuracy:.3f}  "
        f"tune: loss {event.tune_loss:.4f}  accuracy {event.tune_accuracy:.3f}  macro-F1 {event.tune_macro_f1:.3f}  "
        f"{event.seconds:.1f} s{'  best' if event.best else ''}"
    )
