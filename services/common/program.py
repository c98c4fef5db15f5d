"""How every service starts: `--help`, settings, logs, and an end without a trace for what the operator can mend."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from services.common import logs
from services.common.errors import InvalidArgumentError
from services.common.server import run_service
from services.common.settings import ENVIRONMENT_PREFIX, ServiceSettings, load_settings

SettingsT = TypeVar("SettingsT", bound=ServiceSettings)


def run_program(
    service: str,
    module: str,
    description: str,
    settings_class: type[SettingsT],
    serve: Callable[[SettingsT], Coroutine[Any, Any, None]],
    *,
    batched_logs: bool = False,
) -> None:
    """Reads command line and environment, and serves until the process is asked to stop.

    Args:
        service: Name of the service in its logs.
        module: Module that `python -m` runs.
        description: What the service does, a sentence.
        settings_class: Its settings.
        serve: Serves with them.
        batched_logs: Whether lines below WARNING may be written a moment later.
    """
    variables = ", ".join(f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in settings_class.model_fields)
    argparse.ArgumentParser(
        prog=f"python -m {module}", description=description, epilog=f"Settings come from the environment: {variables}."
    ).parse_args()
    try:
        settings = load_settings(settings_class)
    except InvalidArgumentError as error:
        sys.exit(error.message)
    logs.configure(settings, service, batched=batched_logs)
    run_service(serve(settings))
