"""The environment in which PyPI tritonclient runs: it wants an older protobuf, and its descriptors clash with ours."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.venvs import venv_python

REQUIREMENT = "tritonclient[grpc,http]>=2.60,<3"


def tritonclient_python() -> Path:
    """Returns the interpreter of the environment; makes the environment at the first call.

    Raises:
        subprocess.CalledProcessError: tritonclient could not be installed.
    """
    return venv_python("tritonclient", REQUIREMENT)
