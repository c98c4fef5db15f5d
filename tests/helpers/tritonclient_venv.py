"""The environment in which PyPI tritonclient runs: it wants an older protobuf, and its descriptors clash with ours."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".venvs" / "tritonclient"
REQUIREMENT = "tritonclient[grpc,http]>=2.60,<3"


def tritonclient_python() -> Path:
    """Returns the interpreter of the environment; makes the environment at the first call.

    Raises:
        subprocess.CalledProcessError: tritonclient could not be installed.
    """
    python, complete = FOLDER / "bin" / "python", FOLDER / ".complete"
    FOLDER.parent.mkdir(exist_ok=True)
    with (FOLDER.parent / ".tritonclient.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes that run side by side make it once
        if not complete.is_file() or complete.read_text() != REQUIREMENT:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(FOLDER)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", REQUIREMENT], check=True)
            complete.write_text(REQUIREMENT)
    return python
