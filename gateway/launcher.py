"""Runs a program that ends with the process that started it: `python -m gateway.launcher services.trainer`.

Without it, a supervisor that is killed outright would leave services behind that hold its ports.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Asks the kernel for a SIGTERM when the parent ends.

    Args:
        parent: Process id of the parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the kernel was asked
        sys.exit(f"The process {parent} that started this program has ended.")


def main() -> None:
    """Takes the parent's process id and the module from the command line and runs the module."""
    parent, module = int(sys.argv[1]), sys.argv[2]
    del sys.argv[1:3]
    end_with_parent(parent)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
