"""PostgreSQL for tests: one embedded server a session, a fresh migrated database a test.

Fixtures: `postgres` (the server), `database_url` (a database of the test's own), `database` (open).
Durability is switched off here; what depends on it makes an `EmbeddedPostgres` of its own.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest_asyncio

from boltz_mesh.app.embedded_postgres import EmbeddedPostgres
from boltz_mesh.storage.migrate import migrate
from boltz_mesh.storage.postgres import Database

QUICK = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_TEMPLATE = "boltz_template"


def with_database(url: str, name: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


async def execute(url: str, sql: str) -> None:
    """Run one statement on a connection of its own."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


@pytest_asyncio.fixture(scope="session")
async def postgres() -> AsyncIterator[EmbeddedPostgres]:
    """The session's server. Its `url` is an empty database that nobody should use."""
    # Not below pytest's own folder, which the next session of the same user closes to others: the
    # server is another user where the tests are root's.
    with tempfile.TemporaryDirectory(prefix="boltz-tests-") as folder:
        server = EmbeddedPostgres(Path(folder), settings=QUICK, initdb_sync=False)
        async with server:
            await execute(server.url, f"CREATE DATABASE {_TEMPLATE}")
            await migrate(with_database(server.url, _TEMPLATE))
            yield server


@pytest_asyncio.fixture
async def database_url(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """A fresh migrated database, dropped afterwards."""
    name = f"test_{secrets.token_hex(6)}"
    await execute(postgres.url, f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE}")
    try:
        yield with_database(postgres.url, name)
    finally:
        await execute(postgres.url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A pool on a fresh migrated database."""
    async with await Database.open(database_url) as opened:
        yield opened
