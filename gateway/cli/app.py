"""The commands, and what happens when one fails."""

from __future__ import annotations

import sys

import typer

from gateway.cli import asking, demo, generating, importing, repository, serving, training
from gateway.cli.following import JobFailedError
from services.common.errors import (
    AlreadyExistsError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    TeachwaferError,
    UnavailableError,
)

EXIT_CODES: tuple[tuple[type[TeachwaferError], int, str], ...] = (
    (JobFailedError, 1, "the job failed"),
    (InvalidArgumentError, 2, "wrong option or input"),
    (NotFoundError, 3, "a file, model or address does not exist"),
    (AlreadyExistsError, 4, "something is in the way or not in the needed state"),
    (FailedPreconditionError, 4, "something is in the way or not in the needed state"),
    (UnavailableError, 5, "a service cannot be reached or started, or took too long"),
    (DeadlineExceededError, 5, "a service cannot be reached or started, or took too long"),
    (ResourceExhaustedError, 6, "a queue, a limit or the disk is full"),
    (DataLossError, 7, "stored data are damaged"),
    (InternalError, 70, "a fault of teachwafer"),
)
"""Exit code and meaning of each error; anything else ends with 1, Ctrl-C with 130."""

_MEANINGS = {code: meaning for _, code, meaning in EXIT_CODES}
_EPILOG = (
    "Exit codes: 0 done, " + ", ".join(f"{code} {text}" for code, text in _MEANINGS.items()) + ", 130 interrupted."
)

app = typer.Typer(
    name="teachwafer",
    help="Teach a model to recognise wafer-map defect patterns from a few examples, and serve it.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serving.serve)
app.command("import")(importing.import_files)
app.command()(generating.generate)
app.command()(training.train)
app.command()(asking.evaluate)
app.command()(asking.predict)
app.command()(repository.export)
app.add_typer(repository.app, name="models")
app.command()(demo.demo)


def main() -> None:
    """Runs the command line. What people can mend ends in one line and an exit code, without a trace."""
    try:
        app()
    except TeachwaferError as error:
        print(f"Error: {' '.join(error.message.split())}", file=sys.stderr)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(130)


def exit_code(error: TeachwaferError) -> int:
    """Returns the exit code of an error."""
    return next((code for error_class, code, _ in EXIT_CODES if isinstance(error, error_class)), 1)
