"""The demo's own mesh: `boltz-mesh up` as a process, on free ports, in a folder that goes away."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from boltz_mesh.app.cli.connection import CredentialFolder, read_credential
from boltz_mesh.app.demo.children import TERM_TIMEOUT_S, Child, child_environment, start
from boltz_mesh.app.process_watch import close_all, processes_working_in, wait_ended
from boltz_protocol.errors import Unavailable

#: Making a database takes a second; a busy machine gets more.
START_TIMEOUT_S: Final = 120.0
_LINE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class MeshProcess:
    """The server, perhaps still starting. Use `mesh_process` to make one."""

    child: Child
    data: Path

    async def ready(self) -> CredentialFolder:
        """Wait until it answers; its first operator's credential.

        Raises: ChildEnded, Unavailable when it does not start in time.
        """
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while (await self.child.line()).strip() != b"ready":
                    pass
        except TimeoutError as error:
            raise Unavailable(
                f"the mesh server did not start within {START_TIMEOUT_S:.0f} s{self.child.tail()}"
            ) from error
        return await asyncio.to_thread(read_credential, self.data / "operator")

    async def watch(self) -> None:
        """Read what it says, once it is ready, until it ends. Raises: ChildEnded, always."""
        while True:
            await self.child.line()


@asynccontextmanager
async def mesh_process(folder: Path, environment: Mapping[str, str]) -> AsyncIterator[MeshProcess]:
    """Start a mesh with a database of its own.

    Args:
        folder: exists; the log goes there, the data to `mesh` in it.
        environment: of this process.
    """
    data = folder / "mesh"
    child = await start(
        "the mesh server",
        "boltz_mesh.app.demo.guarded",
        ["up", "--data-dir", str(data), "--port", "0", "--enroll-port", "0", "--mesh", "demo"],
        log=folder / "mesh.log",
        environment=child_environment(environment),
        limit=_LINE_BYTES,
    )
    try:
        yield MeshProcess(child, data)
    finally:
        await child.end()
        await _end_database(data / "postgres" / "cluster")


async def _end_database(cluster: Path) -> None:
    """End a PostgreSQL that outlived a server which was killed; usually there is none."""
    try:
        alive = leftovers = processes_working_in(cluster, "postgres")
    except FileNotFoundError:
        return  # the server did not come so far
    try:
        for signum in (signal.SIGINT, signal.SIGKILL):
            for process in alive:
                process.send(signum)
            alive = await wait_ended(alive, TERM_TIMEOUT_S)
    finally:
        close_all(leftovers)
