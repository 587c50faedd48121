"""A small mesh and enrolled clients for it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from boltz_client import MeshClient, OwnerLimits, enroll
from boltz_client.owner import ALL_MODES
from boltz_client.sealed_round import SealedRound, Taken
from boltz_mesh.app.embedded_postgres import EmbeddedPostgres
from boltz_protocol.v1 import aggregator_pb2 as pb
from tests.integration.client.party import ADVERTISE, Party
from tests.support.mesh import Mesh, serving
from tests.support.mini_mesh import MiniMesh
from tests.support.mini_mesh_server import running
from tests.support.postgres import execute, with_database

#: The rounds of these tests are open ones, unless they say otherwise.
ANY_MODE = OwnerLimits(modes=ALL_MODES)


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
        arguments.setdefault("owner", ANY_MODE)
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


# --- sealed rounds, at a real mesh ----------------------------------------------------------------


@pytest_asyncio.fixture(scope="module")
async def real_mesh(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Mesh]:
    name = f"mesh_{secrets.token_hex(6)}"
    await execute(postgres.url, f"CREATE DATABASE {name} TEMPLATE boltz_template")
    folder = tmp_path_factory.mktemp("sealed") / "data"
    async with serving(folder, with_database(postgres.url, name)) as running:
        yield running


@pytest_asyncio.fixture
async def party(
    real_mesh: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Party]:
    async with AsyncExitStack() as stack:
        made = Party(real_mesh, tmp_path, stack)

        async def act(part: SealedRound, step: str) -> None:
            for member in made.members:
                if member.client.peers is part._peers and step in member.actions:
                    await member.actions.pop(step)()

        real_take, real_advertise = SealedRound.take, SealedRound.advertise

        async def take(part: SealedRound, message: pb.ParticipateResponse) -> Taken:
            taken = await real_take(part, message)
            await act(part, message.WhichOneof("message") or "")
            return taken

        async def advertise(part: SealedRound) -> pb.ParticipateRequest:
            answer = await real_advertise(part)
            await act(part, ADVERTISE)
            return answer

        monkeypatch.setattr(SealedRound, "take", take)
        monkeypatch.setattr(SealedRound, "advertise", advertise)
        yield made
        for member in made.members:
            if member.task is not None:
                member.task.cancel()
                await asyncio.gather(member.task, return_exceptions=True)


@pytest.fixture
def model() -> str:
    return f"model-{secrets.token_hex(4)}"
