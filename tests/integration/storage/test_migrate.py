"""Migrations: applied once, by whoever comes first; drift and a newer database are refused."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from boltz_mesh.app.embedded_postgres import EmbeddedPostgres
from boltz_mesh.storage.migrate import Migration, load_migrations, migrate, validate_history
from boltz_protocol.errors import ConfigurationError, Unavailable
from tests.support.postgres import execute, with_database


async def empty_database(postgres: EmbeddedPostgres) -> str:
    name = f"test_{secrets.token_hex(6)}"
    await execute(postgres.url, f"CREATE DATABASE {name}")
    return with_database(postgres.url, name)


async def test_five_migrators_apply_each_file_once(postgres: EmbeddedPostgres) -> None:
    url = await empty_database(postgres)
    applied = await asyncio.gather(*(migrate(url) for _ in range(5)))
    names = [migration.name for migration in load_migrations()]
    assert sorted(sum(applied, ())) == names
    assert await migrate(url) == ()


async def test_a_changed_file_is_refused(postgres: EmbeddedPostgres) -> None:
    url = await empty_database(postgres)
    await migrate(url, [Migration(1, "0001_a.sql", "CREATE TABLE a (x int)")])
    with pytest.raises(ConfigurationError, match=r"0001_a\.sql was applied with other contents"):
        await migrate(url, [Migration(1, "0001_a.sql", "CREATE TABLE a (x bigint)")])


async def test_a_newer_database_is_refused(postgres: EmbeddedPostgres) -> None:
    url = await empty_database(postgres)
    first = Migration(1, "0001_a.sql", "CREATE TABLE a (x int)")
    await migrate(url, [first, Migration(2, "0002_b.sql", "CREATE TABLE b (x int)")])
    with pytest.raises(ConfigurationError, match="migration 2, which this release does not know"):
        await migrate(url, [first])


async def test_a_failing_file_leaves_nothing_and_those_before_it_stay(
    postgres: EmbeddedPostgres,
) -> None:
    url = await empty_database(postgres)
    first = Migration(1, "0001_a.sql", "CREATE TABLE a (x int)")
    broken = Migration(2, "0002_b.sql", "CREATE TABLE b (x int); SELECT no_such_thing")
    with pytest.raises(ConfigurationError, match=r"0002_b\.sql failed and was rolled back"):
        await migrate(url, [first, broken])
    mended = Migration(2, "0002_b.sql", "CREATE TABLE b (x int)")
    assert await migrate(url, [first, mended]) == ("0002_b.sql",)


async def test_where_no_server_listens(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(Unavailable):
        await migrate("postgresql://boltz@127.0.0.1:1/boltz_mesh")


async def test_wrong_credentials_and_wrong_urls(postgres: EmbeddedPostgres) -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL"):
        await migrate(with_database(postgres.url, "no_such_database"))
    with pytest.raises(ConfigurationError, match="DATABASE_URL"):
        await migrate("mysql://somewhere/else")


def test_history_must_be_a_prefix() -> None:
    first = Migration(1, "0001_a.sql", "a")
    validate_history({}, [first])
    validate_history({1: first.sha256}, [first])
