"""LISTEN that survives, the replica's lock, and the coordinator's lease with its fencing."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from boltz_mesh.app.embedded_postgres import EmbeddedPostgres
from boltz_mesh.storage.lease import CoordinatorLease, assert_fencing
from boltz_mesh.storage.listen import Listener, Subscription, Wakeup, replica_lock
from boltz_mesh.storage.migrate import migrate
from boltz_mesh.storage.postgres import Channel, Connection, Database, notify
from boltz_protocol import limits
from boltz_protocol.errors import ConfigurationError, StateConflict, Unavailable
from tests.support.postgres import execute

RESYNC = Wakeup(frozenset(), True)


async def say(database: Database, channel: Channel, *payloads: str) -> None:
    async def body(connection: Connection) -> None:
        for payload in payloads:
            await notify(connection, channel, payload)

    await database.run_tx("say", body)


async def end_sessions(url: str, application: str) -> None:
    await execute(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        f" WHERE application_name = '{application}' AND datname = current_database()",
    )


async def test_wakeups_come_at_commit_and_are_merged(database: Database) -> None:
    async with await Listener.open(database.url) as listener:
        with listener.subscribe(Channel.ROUND_INBOX) as wakeups:
            assert await anext(wakeups) == RESYNC
            await say(database, Channel.ROUND_CHANGED, "other channel")
            await say(database, Channel.ROUND_INBOX, "a", "a", "b")
            assert await anext(wakeups) == Wakeup(frozenset("ab"), False)

            async def rolled_back(connection: Connection) -> None:
                await notify(connection, Channel.ROUND_INBOX, "never")
                raise StateConflict("no")

            with pytest.raises(StateConflict):
                await database.run_tx("t", rolled_back)
            await say(database, Channel.ROUND_INBOX, "c")
            assert await anext(wakeups) == Wakeup(frozenset("c"), False)


async def test_a_busy_subscriber_is_told_to_read_everything(database: Database) -> None:
    async with await Listener.open(database.url) as listener:
        with (
            listener.subscribe(Channel.ROUND_INBOX) as busy,
            listener.subscribe(Channel.ROUND_CHANGED) as done,
        ):
            assert await anext(busy) == await anext(done) == RESYNC
            many = [str(n) for n in range(limits.MAX_PENDING_WAKEUPS + 1)]
            await say(database, Channel.ROUND_INBOX, *many)
            await say(database, Channel.ROUND_INBOX, "more")
            await say(database, Channel.ROUND_CHANGED, "end")
            await anext(done)  # notifications come in order: the others are here
            assert await anext(busy) == RESYNC


async def test_a_lost_connection_comes_back_with_a_resync(database: Database) -> None:
    async with await Listener.open(database.url) as listener:
        with listener.subscribe(Channel.MODEL_CHANGED) as wakeups:
            assert await anext(wakeups) == RESYNC
            for name in ("a", "b"):
                await end_sessions(database.url, "boltz-mesh listener")
                assert await anext(wakeups) == RESYNC
                await say(database, Channel.MODEL_CHANGED, name)
                assert await anext(wakeups) == Wakeup(frozenset(name), False)


async def test_a_server_that_restarts(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg", settings={"fsync": "off"}, initdb_sync=False)
    await server.start()
    await migrate(server.url)
    async with await Listener.open(server.url) as listener:
        with listener.subscribe(Channel.MODEL_CHANGED) as wakeups:
            assert await anext(wakeups) == RESYNC
            lease = await CoordinatorLease.acquire(server.url, "a")
            os.kill(server.pid, signal.SIGKILL)
            await server.wait()
            await server.stop()
            await lease.lost.wait()
            await server.start()
            assert await anext(wakeups) == RESYNC
            async with await CoordinatorLease.acquire(server.url, "b") as again:
                assert again.token == lease.token + 1
            await lease.release()
    await server.stop()


class LosesItsConnection(Listener):
    """The connection breaks while it is being set up, the first times."""

    times = 1

    async def _set_up(self, connection: asyncpg.Connection[Any]) -> None:
        if self.times > 0:
            self.times -= 1
            connection.terminate()
        await super()._set_up(connection)


async def test_a_connection_that_breaks_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unavailable):
        await LosesItsConnection.open(database.url)
    monkeypatch.setattr(LosesItsConnection, "times", 0)
    async with await LosesItsConnection.open(database.url) as listener:
        with listener.subscribe(Channel.MODEL_CHANGED) as wakeups:
            assert await anext(wakeups) == RESYNC
            listener.times = 2
            await end_sessions(database.url, "boltz-mesh listener")
            assert await anext(wakeups) == RESYNC
            assert listener.times == 0


async def test_closing_ends_every_iteration(database: Database) -> None:
    listener = await Listener.open(database.url, replica_id="r")
    assert "r" in repr(listener)
    with listener.subscribe(Channel.ROUND_INBOX) as wakeups:

        async def follow() -> int:
            return len([wakeup async for wakeup in wakeups])

        following = asyncio.create_task(follow())
        await listener.close()
        await following
    with (
        listener.subscribe(Channel.ROUND_INBOX) as wakeups,
        pytest.raises(Unavailable, match="closed"),
    ):
        await anext(wakeups)


async def test_a_listener_that_cannot_come_back_tells_its_subscribers(
    postgres: EmbeddedPostgres, database_url: str
) -> None:
    listener = await Listener.open(database_url)
    name = urlsplit(database_url).path.removeprefix("/")
    with listener.subscribe(Channel.ROUND_INBOX) as wakeups:
        assert await anext(wakeups) == RESYNC
        await _rename_under(postgres.url, name)
        with pytest.raises(ConfigurationError):
            await _follow(wakeups)
    await listener.close()
    await execute(postgres.url, f"ALTER DATABASE {name}_gone RENAME TO {name}")


async def _follow(wakeups: Subscription) -> None:
    async for _ in wakeups:
        pass


async def _rename_under(url: str, name: str) -> None:
    await execute(url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    connection = await asyncpg.connect(url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1", name
    )
    await connection.execute(f"ALTER DATABASE {name} RENAME TO {name}_gone")
    await connection.execute(f"ALTER DATABASE {name}_gone ALLOW_CONNECTIONS true")
    await connection.close()


async def test_a_silent_connection_is_asked(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen server process answers nothing and closes nothing."""
    monkeypatch.setattr(limits, "DATABASE_HEARTBEAT_MS", 20)
    monkeypatch.setattr(limits, "DATABASE_PROBE_MS", 100)
    lease = await CoordinatorLease.acquire(database.url, "a")

    async def pid_of(connection: Connection) -> int:
        return int(
            await connection.fetchval(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name = 'boltz-mesh coordinator lease'"
            )
        )

    pid = await database.read("pid_of", pid_of)
    assert not lease.lost.is_set()
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.wait_for(lease.lost.wait(), 10)
    finally:
        os.kill(pid, signal.SIGCONT)
    await lease.release()


async def test_one_holder_at_a_time_and_tokens_rise(database: Database) -> None:
    first = await CoordinatorLease.acquire(database.url, "first")
    assert first.token == 1
    assert "first" in repr(first)
    waiting = [asyncio.create_task(CoordinatorLease.acquire(database.url, n)) for n in "bc"]
    done, _ = await asyncio.wait(waiting, timeout=0.2)
    assert not done
    await first.release()
    assert first.lost.is_set()
    await first.release()
    tokens = []
    while waiting:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        lease = done.pop().result()
        waiting = [task for task in waiting if not task.done()]
        tokens.append(lease.token)
        await lease.release()
    assert tokens == [2, 3]


async def test_giving_up_and_asking_anew(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LEASE_WAIT_MS", 30)
    first = await CoordinatorLease.acquire(database.url, "first")
    giving_up = asyncio.create_task(CoordinatorLease.acquire(database.url, "second"))
    patient = asyncio.create_task(CoordinatorLease.acquire(database.url, "third"))
    await asyncio.wait({giving_up, patient}, timeout=0.15)  # several waits long
    giving_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await giving_up
    await first.release()
    async with await patient as third:
        assert third.token == 2


async def test_an_ended_session_loses_the_lease(database: Database) -> None:
    old = await CoordinatorLease.acquire(database.url, "old")
    await end_sessions(database.url, "boltz-mesh coordinator lease")
    await old.lost.wait()
    async with await CoordinatorLease.acquire(database.url, "new") as new:

        async def write(connection: Connection, token: int) -> None:
            await assert_fencing(connection, token)

        await database.run_tx("new", lambda connection: write(connection, new.token))
        with pytest.raises(StateConflict, match="another replica"):
            await database.run_tx("old", lambda connection: write(connection, old.token))
    await old.release()


async def test_the_token_waits_for_a_transaction_that_checked_the_old_one(
    database: Database,
) -> None:
    old = await CoordinatorLease.acquire(database.url, "old")
    checked, may_end = asyncio.Event(), asyncio.Event()

    async def body(connection: Connection) -> None:
        await assert_fencing(connection, old.token)
        checked.set()
        await may_end.wait()

    writing = asyncio.create_task(database.run_tx("t", body))
    await checked.wait()
    await end_sessions(database.url, "boltz-mesh coordinator lease")
    acquiring = asyncio.create_task(CoordinatorLease.acquire(database.url, "new"))
    done, _ = await asyncio.wait({acquiring}, timeout=0.2)
    assert not done
    may_end.set()
    await writing
    await (await acquiring).release()
    await old.release()


async def test_a_lease_in_a_database_without_tables(postgres: EmbeddedPostgres) -> None:
    with pytest.raises(asyncpg.UndefinedTableError):
        await CoordinatorLease.acquire(postgres.url, "a")


def test_replica_locks_are_numbers_of_32_bits() -> None:
    locks = {replica_lock(f"replica-{n}") for n in range(100)}
    assert len(locks) == 100
    assert all(-(2**31) <= lock < 2**31 for lock in locks)
    assert min(locks) < 0 < max(locks)
