"""Every program explains itself, and says in one line what is wrong with its settings."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAMS = {
    "services.generator": "TEACHWAFER_GENERATOR_PORT",
    "services.trainer": "TEACHWAFER_TRAINER_PORT",
    "services.predictor": "TEACHWAFER_PREDICTOR_GRPC_PORT",
    "gateway": "TEACHWAFER_GATEWAY_PORT",
}


def run(module: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("module", PROGRAMS)
def test_help_names_the_settings_and_starts_nothing(module: str) -> None:
    done = run(module, "--help")
    assert done.returncode == 0, done.stderr
    assert PROGRAMS[module] in done.stdout.replace("\n", "")
    assert f"python -m {module}" in done.stdout


@pytest.mark.parametrize("module", PROGRAMS)
def test_a_wrong_setting_is_named_without_a_trace(module: str) -> None:
    done = run(module, **{PROGRAMS[module]: "many"})
    assert done.returncode == 1
    assert PROGRAMS[module] in done.stderr
    assert "Received: 'many'" in done.stderr
    assert "Traceback" not in done.stderr
