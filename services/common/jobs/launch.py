"""First program of a worker process: notes who runs the attempt, then becomes the worker.

Run as a file and on the standard library alone, so that it needs no time: between the start of the process and the
note, a service that dies would not know of it. The note is made by an exclusive link, so that whoever submits the same
attempt again, even a second service at the same moment, starts nothing and finds the process of the first.

    python launch.py NOTE TOKEN COMMAND...

Process id and start time stay the same when the process becomes the worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path


def start_time(pid: int) -> float | None:
    """Returns when a process started, in kernel ticks since the boot; None where the kernel does not say.

    Ticks, not a date: dates of past starts move when somebody sets the clock.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The second field is the program's name and may itself hold spaces and brackets.
    return float(stat.rpartition(")")[2].split()[19])


def main(arguments: list[str]) -> None:
    """Notes this process as the attempt's, unless there is one already, and becomes the worker."""
    note, token, *command = arguments
    # A session of its own: a terminal's Ctrl-C and the end of the service do not reach it, and its group can be killed.
    os.setsid()
    draft = f"{note}.{token}"
    Path(draft).write_text(json.dumps({"pid": os.getpid(), "started": start_time(os.getpid()), "token": token}))
    try:
        os.link(draft, note)
    except FileExistsError:
        return
    finally:
        Path(draft).unlink()
    with contextlib.suppress(OSError):
        # When memory runs out, the kernel shall take the worker and not the service.
        Path("/proc/self/oom_score_adj").write_text("500")
    os.execv(command[0], command)  # noqa: S606 - the command is ours


if __name__ == "__main__":
    main(sys.argv[1:])
