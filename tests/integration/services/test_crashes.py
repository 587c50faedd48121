"""kill -9 of the server in each phase of a round: a receipt counts once, and is charged once.

AGGREGATING and RELEASING are held open by a gate in the database, a trigger that a test puts there:
the transaction that would leave the phase tells the test by cancelling a query of its, and waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import asyncpg
import numpy as np
import pytest
import pytest_asyncio

from boltz_mesh.storage.listen import Listener
from boltz_mesh.storage.postgres import Database
from boltz_protocol import limits
from boltz_protocol.model_file import read_vector
from boltz_protocol.v1 import aggregator_pb2 as agg
from tests.integration.services.playing import all_in
from tests.support.clients import (
    Offer,
    RawClient,
    Sealed,
    Upload,
    client_key,
    published,
    reached,
    seal,
    start_round,
    submit,
)
from tests.support.mesh import Mesh, MeshProcess, observed, opened
from tests.support.models import declare, pull, tensors

#: Two chunks, so that an upload can be cut in the middle.
SIZE = limits.CHUNK_PARAMETERS + 5
DELTAS = (0.0001, 0.0003, -0.0005)
LOCK = (815, 4711)
GATE = """
CREATE FUNCTION test_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.phase = TG_ARGV[0] AND OLD.phase <> NEW.phase THEN
        PERFORM pg_cancel_backend(TG_ARGV[1]::integer);
        PERFORM pg_advisory_xact_lock(815, 4711);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER test_gate BEFORE UPDATE ON federated_aggregations
    FOR EACH ROW EXECUTE FUNCTION test_gate('{phase}', '{pid}');
"""


class Gate:
    """Keeps every round from entering a phase while it is shut."""

    def __init__(self, told: asyncpg.Connection, holder: asyncpg.Connection) -> None:
        self._holder = holder
        self._waiting = asyncio.ensure_future(told.execute("SELECT pg_sleep(60)"))

    async def reached(self) -> None:
        """Until a transaction stands before the gate."""
        with contextlib.suppress(asyncpg.QueryCanceledError):
            await self._waiting
            raise AssertionError("nobody came to the gate")

    async def remove(self) -> None:
        """After the kill. The session that waits has not noticed that its server is dead."""
        await self._holder.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks"
            " WHERE locktype = 'advisory' AND classid = 815 AND NOT granted"
        )
        await self._holder.execute("DROP TRIGGER test_gate ON federated_aggregations")
        await self._holder.execute("SELECT pg_advisory_unlock_all()")


@contextlib.asynccontextmanager
async def gate_before(database_url: str, phase: str) -> AsyncIterator[Gate]:
    told, holder = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    try:
        pid = await told.fetchval("SELECT pg_backend_pid()")
        await holder.execute("SELECT pg_advisory_lock($1, $2)", *LOCK)
        await holder.execute(GATE.format(phase=phase, pid=pid))
        yield Gate(told, holder)
    finally:
        await told.close(timeout=5)
        await holder.close(timeout=5)


class Crashing:
    """A server in a process of its own and the three clients of one round."""

    def __init__(self, process: MeshProcess, database: Database, listener: Listener) -> None:
        self.process = process
        self._database = database
        self._listener = listener
        self.clients: list[RawClient] = []
        self.offers: list[Offer] = []
        self.round_id = ""

    def up(self) -> contextlib.AbstractAsyncContextManager[Mesh]:
        return opened(self.process, self._database, self._listener)

    async def enrol(self, mesh: Mesh) -> None:
        await declare(mesh, "model", np.zeros(SIZE, np.float32))
        self.clients = [await RawClient.enrol(mesh, client_key(number)) for number in range(3)]

    async def offered(self, mesh: Mesh) -> list[Sealed]:
        """Everybody checked in, the round started and offered; their updates, sealed."""
        await self.enrol(mesh)
        streams = await all_in(self.clients, "model")
        self.round_id = (await start_round(mesh, "model")).round_id
        return [
            seal(await stream.offer(), np.full(SIZE, delta, np.float32))
            for stream, delta in zip(streams, DELTAS, strict=True)
        ]

    async def check(self, mesh: Mesh) -> None:
        """Published, with every update once; charged, once each; nothing of them is left."""
        ended = await published(mesh, self.round_id)
        assert (ended.received, ended.new_version) == (3, 2)
        pulled = await pull(mesh.operator, "model")
        vector = read_vector(bytes(pulled.data), tensors(SIZE))
        np.testing.assert_allclose(vector, np.mean(DELTAS), atol=1e-5)
        await check_rows(mesh, self.round_id)
        # The mesh goes on: a next round starts and ends.
        again = await start_round(mesh, "model")
        assert again.base_version == 2
        abort = agg.AbortRoundRequest(round_id=again.round_id, reason="enough")
        await mesh.operator.aggregator.AbortRound(abort)


async def check_rows(mesh: Mesh, round_id: str) -> None:
    charges = await mesh.fetch(
        "SELECT client_id, count(*) AS n FROM privacy_events WHERE round_id = $1"
        " GROUP BY client_id",
        round_id,
    )
    assert [row["n"] for row in charges] == [1, 1, 1]
    assert not await mesh.fetch("SELECT 1 FROM privacy_holds WHERE round_id = $1", round_id)
    states = await mesh.fetch(
        "SELECT state, receipt IS NULL AS bare FROM federated_updates WHERE round_id = $1",
        round_id,
    )
    assert [(row["state"], row["bare"]) for row in states] == [("counted", False)] * 3


@pytest_asyncio.fixture
async def crashing(database_url: str, tmp_path: Path) -> AsyncIterator[Crashing]:
    process = MeshProcess(tmp_path / "data", database_url)
    async with observed(database_url) as (database, listener):
        try:
            yield Crashing(process, database, listener)
        finally:
            await process.close()


async def test_killed_while_selecting(crashing: Crashing) -> None:
    async with crashing.up() as mesh:
        await crashing.enrol(mesh)
        await crashing.clients[0].participate("model")
        crashing.round_id = (await start_round(mesh, "model")).round_id
        await reached(mesh, crashing.round_id, agg.PHASE_SELECTING)
        await crashing.process.kill()
    async with crashing.up() as mesh:
        # Who was checked in with the dead server is not: all three come anew.
        clients = [client.on(mesh) for client in crashing.clients]
        streams = await all_in(clients, "model")
        for client, stream, delta in zip(clients, streams, DELTAS, strict=True):
            offer = await stream.offer()
            assert offer.configuration.round_id == crashing.round_id
            await submit(client, seal(offer, np.full(SIZE, delta, np.float32)))
        await crashing.check(mesh)


async def test_killed_while_collecting(crashing: Crashing) -> None:
    async with crashing.up() as mesh:
        updates = await crashing.offered(mesh)
        receipts = [await submit(crashing.clients[n], updates[n]) for n in (0, 1)]
        cut = Upload(crashing.clients[2].stubs)
        await cut.announce(updates[2].statement(crashing.clients[2]))
        await cut.send(updates[2].messages()[:1])
        await crashing.process.kill()
    async with crashing.up() as mesh:
        clients = [client.on(mesh) for client in crashing.clients]
        # The same session is still in the roster; who has a receipt is given the same one.
        again = await clients[2].participate("model")
        assert (await again.offer()).configuration.round_id == crashing.round_id
        assert [await submit(clients[n], updates[n]) for n in (0, 1)] == receipts
        await submit(clients[2], updates[2])
        await crashing.check(mesh)


@pytest.mark.parametrize(
    ("phase", "following"), [("AGGREGATING", "RELEASING"), ("RELEASING", "PUBLISHED")]
)
async def test_killed_before_a_commit(
    crashing: Crashing, database_url: str, phase: str, following: str
) -> None:
    async with gate_before(database_url, following) as gate:
        async with crashing.up() as mesh:
            updates = await crashing.offered(mesh)
            for client, update in zip(crashing.clients, updates, strict=True):
                await submit(client, update)
            await gate.reached()
            state = await reached(mesh, crashing.round_id, agg.Phase.Value(f"PHASE_{phase}"))
            assert state.received == 3
            await crashing.process.kill()
        await gate.remove()
    async with crashing.up() as mesh:
        await crashing.check(mesh)


async def test_killed_with_a_database_of_its_own(tmp_path: Path) -> None:
    """The embedded PostgreSQL outlives its server, and is found and stopped by the next one."""
    process = MeshProcess(tmp_path / "data", None)
    crashing = Crashing(process, cast(Database, None), cast(Listener, None))
    try:
        async with crashing.up() as mesh:
            updates = await crashing.offered(mesh)
            receipt = await submit(crashing.clients[0], updates[0])
            await process.kill()
        async with crashing.up() as mesh:
            clients = [client.on(mesh) for client in crashing.clients]
            assert await submit(clients[0], updates[0]) == receipt
            for number in (1, 2):
                await submit(clients[number], updates[number])
            ended = await published(mesh, crashing.round_id)
            assert (ended.received, ended.new_version) == (3, 2)
    finally:
        await process.close()
