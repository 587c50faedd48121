"""`DATABASE_URL` to a PostgreSQL that insists on TLS: the right authority, the wrong one, none."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import asyncpg
import pytest

from boltz_mesh.storage.migrate import load_migrations, migrate
from boltz_mesh.storage.postgres import Connection, Database
from boltz_protocol.errors import ConfigurationError, MeshError
from tests.support.debian_postgres import DebianPostgres, debian_postgres

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def server() -> Iterator[DebianPostgres]:
    with debian_postgres() as running:
        yield running


async def test_a_verified_connection_migrates_and_is_encrypted(server: DebianPostgres) -> None:
    url = server.url(sslmode="verify-full", sslrootcert=str(server.authority))
    assert await migrate(url) == tuple(migration.name for migration in load_migrations())

    async def protocol(connection: Connection) -> str:
        version: str = await connection.fetchval(
            "-- protocol\nSELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl"
        )
        return version

    async with await Database.open(url) as database:
        assert await database.read("protocol", protocol) == "TLSv1.3"


async def test_a_foreign_authority_is_refused(server: DebianPostgres) -> None:
    url = server.url(sslmode="verify-full", sslrootcert=str(server.foreign_authority))
    with pytest.raises(MeshError) as caught:
        await Database.open(url)
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


async def test_another_name_than_the_certificates_is_refused(server: DebianPostgres) -> None:
    url = server.url("127.0.0.1", sslmode="verify-full", sslrootcert=str(server.authority))
    with pytest.raises(MeshError) as caught:
        await Database.open(url)
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


async def test_plaintext_is_refused_by_the_server(server: DebianPostgres) -> None:
    with pytest.raises(ConfigurationError) as caught:
        await Database.open(server.url(sslmode="disable"))
    assert isinstance(caught.value.__cause__, asyncpg.InvalidAuthorizationSpecificationError)


async def test_no_error_shows_the_password(server: DebianPostgres) -> None:
    with pytest.raises(MeshError) as caught:
        await Database.open(server.url(sslmode="disable"))
    assert server.password not in str(caught.value)
    assert server.password not in repr(server)
