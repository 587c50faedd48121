"""One real mesh a session, for tests that leave no state that another would mind."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from boltz_mesh.app.embedded_postgres import EmbeddedPostgres
from tests.support.clients import RawClient, client_key
from tests.support.mesh import Mesh, serving
from tests.support.postgres import execute, with_database


@pytest_asyncio.fixture(scope="session")
async def mesh(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Mesh]:
    """The session's mesh. Tests use models of their own."""
    name = f"mesh_{secrets.token_hex(6)}"
    await execute(postgres.url, f"CREATE DATABASE {name} TEMPLATE boltz_template")
    folder = tmp_path_factory.mktemp("mesh") / "data"
    async with serving(folder, with_database(postgres.url, name)) as running:
        yield running


@pytest_asyncio.fixture(scope="session")
async def clients(mesh: Mesh) -> list[RawClient]:
    """Four enrolled, active clients of the session's mesh."""
    return [await RawClient.enrol(mesh, client_key(number)) for number in range(4)]


@pytest.fixture
def model() -> str:
    """A model id that no other test uses."""
    return f"model-{secrets.token_hex(4)}"
