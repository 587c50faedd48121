"""A small mesh and enrolled clients for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest_asyncio

from boltz_client import MeshClient, enroll
from tests.support.mini_mesh import MiniMesh
from tests.support.mini_mesh_server import running


class Clients:
    """Enrols and opens clients; closes them at the end."""

    def __init__(self, mesh: MiniMesh, folder: Path) -> None:
        self.mesh = mesh
        self.folder = folder
        self.stack = AsyncExitStack()
        self._count = 0

    async def enrol(self) -> Path:
        self._count += 1
        path = self.folder / f"client{self._count}"
        await enroll(self.mesh.join_string(), path)
        return path

    async def open(self, path: Path | None = None, **arguments: Any) -> MeshClient:
        path = path or await self.enrol()
        return await self.stack.enter_async_context(MeshClient.open(path, **arguments))


@pytest_asyncio.fixture
async def mesh() -> AsyncIterator[MiniMesh]:
    async with running() as made:
        yield made


@pytest_asyncio.fixture
async def clients(mesh: MiniMesh, tmp_path: Path) -> AsyncIterator[Clients]:
    made = Clients(mesh, tmp_path)
    try:
        yield made
    finally:
        await made.stack.aclose()
