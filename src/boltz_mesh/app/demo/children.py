"""Processes that the demo starts, and that never outlive it.

Each child watches its standard input, whose other end only the demo holds: it ends when that is
closed, also when the demo was killed. Children have a session of their own, so that Ctrl-C reaches
the demo alone, which ends them in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from boltz_protocol.errors import MeshError

#: A child that ends in order needs a second or two; a busy machine gets more.
END_TIMEOUT_S: Final = 15.0
#: After SIGTERM.
TERM_TIMEOUT_S: Final = 5.0
#: Lines of a child's log that an error quotes.
TAIL_LINES: Final = 12
TAIL_BYTES: Final = 16 * 1024
#: Settings of a mesh that somebody else runs: the demo has a mesh of its own.
_FOREIGN: Final = ("MESH_", "BOLTZ_", "DATABASE_URL")


class ChildEnded(MeshError):
    """A process of the demo ended before its time; the message has its last log lines."""

    reason = "CHILD_ENDED"
    status = "ABORTED"
    next_step = "Run it again with --keep, and look into the logs in the folder it names."


@dataclass(frozen=True, slots=True)
class Child:
    """A running process.

    Attributes:
        name: what people call it: `broker AAPL`.
        log: where its standard error goes.
    """

    name: str
    process: Process
    log: Path

    async def write(self, data: bytes) -> None:
        """Write to its standard input. Raises: ChildEnded."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(data)
            await self.process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise await self.ended() from error

    async def line(self) -> bytes:
        """The next line of its standard output. Raises: ChildEnded."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise await self.ended()
        return line

    async def ended(self, why: str = "") -> ChildEnded:
        """The error that tells of its end."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.process.wait(), TERM_TIMEOUT_S)
        code = self.process.returncode
        how = f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"code {code}"
        said = f": {why}" if why else ""
        return ChildEnded(f"{self.name} ended before its time ({how}){said}{self.tail()}")

    def tail(self) -> str:
        """The last lines of the log, indented, on lines of their own; empty without any."""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return "".join(f"\n    {line}" for line in lines[-TAIL_LINES:])

    async def end(self) -> None:
        """Close its input and wait; then SIGTERM, then SIGKILL."""
        process = self.process
        if process.stdin is not None:
            process.stdin.close()
        for timeout_s, send in (
            (END_TIMEOUT_S, process.terminate),
            (TERM_TIMEOUT_S, process.kill),
        ):
            try:
                # Reads on, lest the child waits for us to take its output.
                await asyncio.wait_for(process.communicate(), timeout_s)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    send()
            else:
                return
        await process.wait()


async def start(
    name: str,
    module: str,
    arguments: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    limit: int,
) -> Child:
    """Start `python -m module arguments`.

    Args:
        log: a new file for its standard error.
        environment: from `child_environment`.
        limit: longest line of its standard output, in bytes.
    """
    with log.open("xb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *arguments,
            stdin=PIPE,
            stdout=PIPE,
            stderr=stderr,
            env=dict(environment),
            start_new_session=True,
            limit=limit,
        )
    return Child(name, process, log)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The demo's environment for its children, without another mesh's settings.

    One thread for linear algebra in each: twenty processes share the cores, and the matrices have
    twelve rows.
    """
    kept = {name: value for name, value in environment.items() if not name.startswith(_FOREIGN)}
    threads = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    return kept | dict.fromkeys(threads, "1") | {"PYTHONUNBUFFERED": "1"}


async def end_all(children: Sequence[Child]) -> None:
    """End several at once."""
    await asyncio.gather(*(child.end() for child in children))
