"""Waiting for processes that are not our children, by pidfd: no polling, no reused pid.

A pidfd names one process for as long as it is open. Opening it first and looking at the process
afterwards makes sure that the process that was looked at is the one that gets the signal.
Linux only (`pidfd_open(2)`, `/proc`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Watched:
    """A live process and the pidfd that names it. `close_all` closes the descriptors."""

    pid: int
    pidfd: int

    def send(self, signum: signal.Signals) -> None:
        """Send a signal; a process that has ended in the meantime is no error."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signum)


def processes_working_in(directory: Path, command: str) -> list[Watched]:
    """The processes named `command` whose working directory is `directory`.

    A PostgreSQL server and each of its children work in the data directory, so this finds a server
    that outlived its parent, and the children of a server that was killed, whatever a stale pid
    file says.
    """
    wanted = directory.stat()
    found: list[Watched] = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        process = Path("/proc") / entry
        try:
            # The cheap test goes first: most processes are something else.
            if (process / "comm").read_text().strip() != command:
                continue
            pidfd = os.pidfd_open(int(entry))
        except OSError:
            continue  # ended while we looked
        try:
            here = (process / "cwd").stat()
        except OSError:
            os.close(pidfd)  # ended, or another user's, which cannot be ours
            continue
        if (here.st_dev, here.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.append(Watched(int(entry), pidfd))
        else:
            os.close(pidfd)
    return found


def close_all(processes: Sequence[Watched]) -> None:
    """Close the descriptors; the processes go on."""
    for process in processes:
        os.close(process.pidfd)


async def wait_ended(processes: Sequence[Watched], timeout_s: float) -> list[Watched]:
    """Wait until all have ended or the time is over. Returns those that still live."""
    loop = asyncio.get_running_loop()
    deadline = time.monotonic() + timeout_s
    alive: list[Watched] = []
    for process in processes:
        ended = asyncio.Event()
        # A pidfd becomes readable when its process ends.
        loop.add_reader(process.pidfd, ended.set)
        try:
            await asyncio.wait_for(ended.wait(), max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            alive.append(process)
        finally:
            loop.remove_reader(process.pidfd)
    return alive
