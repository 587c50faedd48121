"""Check-ins, security events."""

from __future__ import annotations

from dataclasses import replace

import asyncpg

from boltz_mesh.storage import check_ins, clients, security_events
from boltz_mesh.storage.clients import ClientStatus
from boltz_mesh.storage.listen import Listener, replica_lock
from boltz_mesh.storage.postgres import REPLICA_LOCK_CLASS, Channel, Connection, Database
from boltz_protocol.ids import ModelId, SessionId
from tests.support.rows import MODEL, call, client_id, prepare, round_id, tx

OTHER = ModelId("other")


def check_in(client: int, session: str = "aa", replica: str = "r1") -> check_ins.CheckIn:
    return check_ins.CheckIn(
        client_id=client_id(client),
        model_id=MODEL,
        session_id=SessionId(session * 16),
        replica_id=replica,
        sample_bucket=10,
        quality_bucket=2,
        region="eu-west",
        protocol_min=1,
        protocol_max=2,
        statement=f"statement of {session}".encode(),
        at_ms=5,
    )


async def checked_in(database: Database, what: check_ins.CheckIn) -> SessionId | None:
    return await tx(database, lambda c: check_ins.put_check_in(c, what))


async def test_the_newest_session_counts(database: Database) -> None:
    await tx(database, prepare)
    async with await Listener.open(database.url) as listener:
        with (
            listener.subscribe(Channel.CLIENT_CHANGED) as clients_changed,
            listener.subscribe(Channel.CHECK_IN_CHANGED) as changed,
        ):
            await anext(clients_changed)
            await anext(changed)
            assert await checked_in(database, check_in(0, "aa")) is None
            assert (await anext(changed)).payloads == {MODEL}
            assert await checked_in(database, check_in(0, "aa")) is None
            assert await checked_in(database, check_in(0, "bb")) == "aa" * 16
            assert (await anext(clients_changed)).payloads == {client_id(0)}
    found = await tx(database, lambda c: check_ins.find_check_in(c, client_id(0), MODEL))
    assert found == check_in(0, "bb")
    # The older stream ends and checks out; the newer one stays.
    old = [check_in(0, "aa").statement, b"recorded, or not"]
    new = [check_in(0, "bb").statement]
    assert not await tx(database, lambda c: check_ins.remove_check_in(c, client_id(0), MODEL, old))
    assert await tx(database, lambda c: check_ins.remove_check_in(c, client_id(0), MODEL, new))
    assert await tx(database, lambda c: check_ins.find_check_in(c, client_id(0), MODEL)) is None


async def test_only_active_clients_can_be_selected(database: Database) -> None:
    await tx(database, lambda c: prepare(c, clients_count=4))
    for n in range(4):
        await checked_in(database, check_in(n))
    await checked_in(database, replace(check_in(0), model_id=OTHER))

    async def change(connection: Connection) -> None:
        suspended = ClientStatus.SUSPENDED
        await clients.set_client_status(connection, client_id(1), suspended, at_ms=1, by="ann")
        await clients.set_processing_restricted(connection, client_id(2), True)

    await tx(database, change)
    listed = await tx(database, lambda c: check_ins.list_check_ins(c, MODEL))
    assert listed == [check_in(0), check_in(3)]
    assert await tx(database, check_ins.count_check_ins) == {MODEL: 4, OTHER: 1}
    by_client = await call(database, check_ins.models_by_client, [client_id(0), client_id(9)])
    assert by_client == {client_id(0): [OTHER, MODEL]}


async def test_the_rows_of_dead_replicas_go(database: Database) -> None:
    await tx(database, prepare)
    living = [f"replica-{n}" for n in range(2)]
    listeners = [await Listener.open(database.url, replica_id=name) for name in living]
    await checked_in(database, check_in(0, replica=living[0]))
    await checked_in(database, check_in(1, replica=living[1]))
    await checked_in(database, check_in(2, replica="dead"))
    assert await tx(database, check_ins.prune_check_ins) == 1
    listed = await tx(database, lambda c: check_ins.list_check_ins(c, MODEL))
    assert [row.client_id for row in listed] == [client_id(0), client_id(1)]
    await listeners[0].close()
    # The server notices the closed session a moment after the socket: wait for its lock to go.
    await _until_lock_is_free(database, replica_lock(living[0]))
    assert await tx(database, check_ins.prune_check_ins) == 1
    await listeners[1].close()


async def _until_lock_is_free(database: Database, lock: int) -> None:
    connection = await asyncpg.connect(database.url)
    await connection.execute("SELECT pg_advisory_lock($1, $2)", REPLICA_LOCK_CLASS, lock)
    await connection.execute("SELECT pg_advisory_unlock_all()")
    await connection.close()


async def test_security_events_and_counts(database: Database) -> None:
    async def record(connection: Connection, at_ms: int) -> int:
        return await security_events.record_security_event(
            connection,
            kind="second_digest",
            detail={"n": at_ms},
            at_ms=at_ms,
            client_id=client_id(1),
            round_id=round_id(1),
        )

    numbers = [await call(database, record, n) for n in range(3)]
    newest = await tx(database, lambda c: security_events.list_security_events(c, limit=2))
    assert [row.id for row in newest] == [numbers[2], numbers[1]]
    assert (newest[0].detail, newest[0].client_id) == ({"n": 2}, client_id(1))
    (older,) = await tx(
        database,
        lambda c: security_events.list_security_events(c, limit=9, before_id=numbers[1]),
    )
    assert older.id == numbers[0]
    assert await tx(database, lambda c: security_events.prune_security_events(c, before_ms=2)) == 2

    async def count(connection: Connection, at_ms: int, times: int = 1) -> None:
        await security_events.count_refusal(
            connection, method="SubmitUpdate", reason="NOT_FINITE", at_ms=at_ms, count=times
        )

    await tx(database, lambda c: count(c, 50))
    await tx(database, lambda c: count(c, 40, 5))
    (row,) = await tx(database, security_events.list_refusals)
    assert row == security_events.RefusalCount("SubmitUpdate", "NOT_FINITE", 6, 50)
