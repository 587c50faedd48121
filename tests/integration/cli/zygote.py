"""Runs `boltz-mesh` in forks of one process that has the imports behind it.

Importing takes ten times as long as most commands; everything else is as in a process of its own:
arguments, environment, folder, standard streams, exit code. One JSON object a line comes in, one
with the exit code goes out when the command has ended; commands run side by side.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

PRELOADED = (
    "boltz_mesh.app.cli.root",
    "boltz_mesh.app.credentials",
    "rich.console",
    "rich.progress",
    "rich.table",
)


def main() -> None:
    for module in PRELOADED:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    for line in sys.stdin.buffer:
        if os.fork() == 0:
            _wait_for(json.loads(line))


def _wait_for(job: dict[str, Any]) -> None:
    """In a fork: run the job in another one, and tell how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        _become(job)
        raise AssertionError("a command has ended without an exit code")
    _, status = os.waitpid(child, 0)
    answer = {"id": job["id"], "code": os.waitstatus_to_exitcode(status)}
    os.write(1, json.dumps(answer).encode() + b"\n")
    os._exit(0)


def _become(job: dict[str, Any]) -> None:
    """Be the command, to its end."""
    from boltz_mesh.app.cli import root

    folder = Path(job["folder"])
    for number, name, flags in (
        (0, "in", os.O_RDONLY),
        (1, "out", os.O_WRONLY | os.O_CREAT),
        (2, "err", os.O_WRONLY | os.O_CREAT),
    ):
        os.dup2(os.open(folder / name, flags, 0o600), number)
    os.environ.clear()
    os.environ.update(job["environment"])
    if job["cwd"] is not None:
        os.chdir(job["cwd"])
    # The way out is the usual one, by SystemExit or with a traceback, so that coverage is saved.
    root.main(job["arguments"])


if __name__ == "__main__":
    main()
