"""Transactions: committed, rolled back, retried, metered; a database that goes away."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import asyncpg
import pytest

from boltz_mesh.app.embedded_postgres import EmbeddedPostgres
from boltz_mesh.storage.postgres import (
    Connection,
    Database,
    TransactionSample,
    connect,
    is_unreachable,
)
from boltz_protocol import limits
from boltz_protocol.errors import ConfigurationError, NotFound, Unavailable
from tests.support.postgres import QUICK


async def end_sessions(connection: Connection) -> None:
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND datname = current_database()"
    )


async def test_a_body_that_raises_leaves_nothing(database: Database) -> None:
    async def body(connection: Connection) -> None:
        await connection.execute("UPDATE coordinator_lease SET fencing_token = 99")
        raise NotFound("no")

    with pytest.raises(NotFound):
        await database.run_tx("t", body)

    async def token(connection: Connection) -> int:
        return int(await connection.fetchval("SELECT fencing_token FROM coordinator_lease"))

    assert await database.read("t", token) == 0


async def test_a_read_cannot_write(database: Database) -> None:
    async def body(connection: Connection) -> None:
        await connection.execute("UPDATE coordinator_lease SET fencing_token = 99")

    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await database.read("t", body)


async def test_rivals_are_retried_until_all_are_through(database_url: str) -> None:
    samples: list[TransactionSample] = []
    async with await Database.open(database_url, observe=samples.append) as database:

        async def add_one(connection: Connection) -> None:
            value = await connection.fetchval("SELECT fencing_token FROM coordinator_lease")
            await asyncio.sleep(0)
            await connection.execute("UPDATE coordinator_lease SET fencing_token = $1", value + 1)

        async def once() -> None:
            await database.run_tx("add_one", add_one, isolation="serializable")

        await asyncio.gather(*(once() for _ in range(5)))
        samples.clear()
        await once()

        async def value(connection: Connection) -> int:
            return int(await connection.fetchval("SELECT fencing_token FROM coordinator_lease"))

        assert await database.read("value", value) == 6
    sample = samples[0]
    assert (sample.name, sample.outcome, sample.attempts) == ("add_one", "committed", 1)
    assert sample.seconds > 0


async def test_endless_contention_ends(database_url: str) -> None:
    samples: list[TransactionSample] = []
    async with await Database.open(database_url, observe=samples.append) as database:

        async def lose(connection: Connection) -> None:
            raise asyncpg.DeadlockDetectedError("always")

        with pytest.raises(Unavailable, match="lose met contention") as refused:
            await database.run_tx("lose", lose)
        assert refused.value.retry_after_ms == limits.DATABASE_RETRY_MS
        assert samples[0].attempts == limits.MAX_TX_ATTEMPTS
        assert samples[0].outcome == "unavailable"


async def test_our_own_mistakes_are_not_called_unavailable(database_url: str) -> None:
    samples: list[TransactionSample] = []
    async with await Database.open(database_url, observe=samples.append) as database:

        async def wrong_argument(connection: Connection) -> None:
            await connection.fetchval("SELECT $1::bigint", "not a number")

        with pytest.raises(asyncpg.DataError):
            await database.run_tx("wrong", wrong_argument)

        async def wrong_sql(connection: Connection) -> None:
            await connection.fetchval("SELECT no_such_column")

        with pytest.raises(asyncpg.UndefinedColumnError):
            await database.run_tx("wrong", wrong_sql)

        async def refused(connection: Connection) -> None:
            raise NotFound("no")

        with pytest.raises(NotFound):
            await database.run_tx("refused", refused)
    assert [sample.outcome for sample in samples] == ["failed", "failed", "refused"]


async def test_a_table_that_a_migration_changed_under_us(database: Database) -> None:
    async def read(connection: Connection) -> list[asyncpg.Record]:
        return await connection.fetch("SELECT * FROM coordinator_lease")

    async def change(connection: Connection) -> None:
        await connection.execute("ALTER TABLE coordinator_lease ADD COLUMN more text")

    for _ in range(3):
        await database.read("read", read)
    await database.run_tx("change", change)
    (row,) = await database.read("read", read)
    assert row["more"] is None


async def test_a_session_that_is_ended_in_a_transaction(database: Database) -> None:
    async def body(connection: Connection) -> None:
        other = await asyncpg.connect(database.url)
        await end_sessions(other)
        await other.close()
        await connection.fetchval("SELECT 1")

    with pytest.raises(Unavailable, match="cannot be reached"):
        await database.run_tx("t", body)

    async def one(connection: Connection) -> int:
        return int(await connection.fetchval("SELECT 1"))

    # The pool heals by itself; sessions that were idle may still have to be found dead.
    for _ in range(limits.MAX_DATABASE_CONNECTIONS):
        with contextlib.suppress(Unavailable):
            assert await database.read("t", one) == 1
            break
    else:
        pytest.fail("the pool did not heal")


async def test_a_server_that_is_gone_and_comes_back(tmp_path: Path) -> None:
    async def one(connection: Connection) -> int:
        return int(await connection.fetchval("SELECT 1"))

    async with EmbeddedPostgres(tmp_path / "pg", settings=QUICK, initdb_sync=False) as server:
        url = server.url
        database = await Database.open(url)
        assert await database.read("t", one) == 1
    with pytest.raises(Unavailable):
        await database.read("t", one)
    with pytest.raises(Unavailable):
        await Database.open(url)
    async with EmbeddedPostgres(tmp_path / "pg", settings=QUICK):
        assert await database.read("t", one) == 1
        await database.close()
    with pytest.raises(Unavailable):
        await database.read("t", one)  # closed


async def test_urls_that_cannot_work(database_url: str) -> None:
    for url in ("mysql://x/y", database_url.replace("/test_", "/no_such_test_")):
        with pytest.raises(ConfigurationError, match="DATABASE_URL"):
            await Database.open(url)
        with pytest.raises(ConfigurationError, match="DATABASE_URL"):
            await connect(url)


async def test_a_password_with_a_slash_is_not_shown() -> None:
    with pytest.raises(ConfigurationError, match="percent-encoded") as refused:
        await Database.open("postgresql://boltz:sec/ret@127.0.0.1:1/x")
    assert "sec" not in str(refused.value)
    assert refused.value.__cause__ is None


async def test_closing_does_not_wait_for_ever(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DATABASE_CLOSE_MS", 50)
    database = await Database.open(database_url)
    assert "test_" not in repr(database)
    inside = asyncio.Event()

    async def hang(connection: Connection) -> None:
        inside.set()
        await connection.execute("SELECT pg_sleep(60)")

    hanging = asyncio.create_task(database.run_tx("hang", hang))
    await inside.wait()
    await database.close()
    with pytest.raises(Unavailable):
        await hanging


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (asyncpg.InterfaceError("connection is closed"), True),
        (asyncpg.InterfaceError("pool is closing"), True),
        (asyncpg.InterfaceError("another operation is in progress"), False),
        (asyncpg.CannotConnectNowError("starting up"), True),
        (ConnectionResetError(), True),
        (ssl.SSLCertVerificationError("unknown authority"), False),
        (TimeoutError(), True),
        (asyncpg.UniqueViolationError("no"), False),
        (ValueError(), False),
    ],
)
def test_what_counts_as_unreachable(error: Exception, expected: bool) -> None:
    assert is_unreachable(error) is expected


async def test_sql_names_its_function(database: Database) -> None:
    """The database's own view shows who runs what."""

    async def body(connection: Connection) -> str:
        return str(
            await connection.fetchval(
                "-- who_am_i\nSELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            )
        )

    assert (await database.read("t", body)).startswith("-- who_am_i")
