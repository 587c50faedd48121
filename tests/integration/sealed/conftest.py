"""A mesh under the tap, and eight enrolled clients for it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from boltz_mesh.app.embedded_postgres import EmbeddedPostgres
from tests.integration.sealed.players import Tapped
from tests.integration.sealed.transcript import Tap
from tests.support.clients import RawClient, client_key
from tests.support.mesh import serving
from tests.support.postgres import execute, with_database

CLIENTS = 8


@pytest_asyncio.fixture(scope="package")
async def tapped(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Tapped]:
    name = f"mesh_{secrets.token_hex(6)}"
    await execute(postgres.url, f"CREATE DATABASE {name} TEMPLATE boltz_template")
    url = with_database(postgres.url, name)
    folder = tmp_path_factory.mktemp("tapped") / "data"
    tap = Tap(url, folder / "keys" / "kek.json")
    keys = await asyncio.gather(
        *(asyncio.to_thread(client_key, number) for number in range(CLIENTS))
    )
    with pytest.MonkeyPatch.context() as patch:
        await tap.open(patch)
        async with serving(folder, url) as mesh:
            yield Tapped(mesh, tap, [await RawClient.enrol(mesh, key) for key in keys])
