"""Environments for programs whose libraries clash with ours; each is made when it is first asked for."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".venvs"


def venv_python(name: str, *requirements: str) -> Path:
    """Returns the interpreter of an environment; makes the environment at the first call.

    Args:
        name: Name of its folder.
        *requirements: What pip installs.

    Raises:
        subprocess.CalledProcessError: Something could not be installed.
    """
    folder, wanted = FOLDER / name, " ".join(requirements)
    python, complete = folder / "bin" / "python", folder / ".complete"
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes that run side by side make it once
        if not complete.is_file() or complete.read_text() != wanted:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
            complete.write_text(wanted)
    return python
