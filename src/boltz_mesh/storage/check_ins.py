"""Which clients hold a stream open now, and on which replica.

A replica that lives holds an advisory lock (`Listener.open(replica_id=...)`); the rows of one that
does not are pruned, without any clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from boltz_mesh.storage.listen import replica_lock
from boltz_mesh.storage.postgres import REPLICA_LOCK_CLASS, Channel, Connection, notify
from boltz_mesh.storage.rows import affected, build
from boltz_protocol.ids import ClientId, ModelId, SessionId


@dataclass(frozen=True, slots=True)
class CheckIn:
    """One row of `check_ins`. `statement` is the client's serialized SignedStatement."""

    client_id: ClientId
    model_id: ModelId
    session_id: SessionId
    replica_id: str
    sample_bucket: int
    quality_bucket: int
    region: str
    protocol_min: int
    protocol_max: int
    statement: bytes = field(repr=False)
    at_ms: int


async def put_check_in(connection: Connection, check_in: CheckIn) -> SessionId | None:
    """Check a client in for a model. Returns the session that this one takes the place of."""
    previous = await connection.fetchval(
        "-- put_check_in\n"
        "SELECT session_id FROM check_ins WHERE client_id = $1 AND model_id = $2 FOR UPDATE",
        check_in.client_id,
        check_in.model_id,
    )
    await connection.execute(
        "-- put_check_in\n"
        "INSERT INTO check_ins (client_id, model_id, session_id, replica_id, replica_lock,"
        " sample_bucket, quality_bucket, region, protocol_min, protocol_max, statement, at_ms)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
        " ON CONFLICT (client_id, model_id) DO UPDATE SET session_id = $3, replica_id = $4,"
        " replica_lock = $5, sample_bucket = $6, quality_bucket = $7, region = $8,"
        " protocol_min = $9, protocol_max = $10, statement = $11, at_ms = $12",
        check_in.client_id,
        check_in.model_id,
        check_in.session_id,
        check_in.replica_id,
        replica_lock(check_in.replica_id),
        check_in.sample_bucket,
        check_in.quality_bucket,
        check_in.region,
        check_in.protocol_min,
        check_in.protocol_max,
        check_in.statement,
        check_in.at_ms,
    )
    await notify(connection, Channel.CHECK_IN_CHANGED, check_in.model_id)
    if previous is None or previous == check_in.session_id:
        return None
    # The replica that holds the older stream ends it.
    await notify(connection, Channel.CLIENT_CHANGED, check_in.client_id)
    return SessionId(previous)


async def remove_check_in(
    connection: Connection, client_id: ClientId, model_id: ModelId, statements: Sequence[bytes]
) -> bool:
    """Check a stream out. Returns whether one of these was its check-in: that of another stream
    stays, be it of the same session.

    Args:
        statements: the check-ins that the stream may have recorded last.
    """
    status = await connection.execute(
        "-- remove_check_in\n"
        "DELETE FROM check_ins"
        " WHERE client_id = $1 AND model_id = $2 AND statement = ANY($3::bytea[])",
        client_id,
        model_id,
        list(statements),
    )
    if affected(status) == 0:
        return False
    await notify(connection, Channel.CHECK_IN_CHANGED, model_id)
    return True


async def find_check_in(
    connection: Connection, client_id: ClientId, model_id: ModelId
) -> CheckIn | None:
    """A client's check-in for a model, if it is checked in."""
    row = await connection.fetchrow(
        "-- find_check_in\nSELECT * FROM check_ins WHERE client_id = $1 AND model_id = $2",
        client_id,
        model_id,
    )
    return None if row is None else build(CheckIn, row)


async def list_check_ins(connection: Connection, model_id: ModelId) -> list[CheckIn]:
    """The active clients that are checked in for a model, by client id.

    Suspended, revoked and restricted clients are left out, whatever their streams do.
    """
    rows = await connection.fetch(
        "-- list_check_ins\n"
        "SELECT c.* FROM check_ins c JOIN federated_clients f USING (client_id)"
        " WHERE c.model_id = $1 AND f.status = 'active' AND NOT f.processing_restricted"
        " ORDER BY c.client_id",
        model_id,
    )
    return [build(CheckIn, row) for row in rows]


async def models_by_client(
    connection: Connection, client_ids: list[ClientId]
) -> dict[ClientId, list[ModelId]]:
    """The models that clients of a page are checked in for."""
    rows = await connection.fetch(
        "-- models_by_client\n"
        "SELECT client_id, array_agg(model_id ORDER BY model_id) AS models FROM check_ins"
        " WHERE client_id = ANY($1::text[]) GROUP BY client_id",
        client_ids,
    )
    return {ClientId(row["client_id"]): [ModelId(m) for m in row["models"]] for row in rows}


async def count_check_ins(connection: Connection) -> dict[ModelId, int]:
    """How many clients are checked in, by model."""
    rows = await connection.fetch(
        "-- count_check_ins\nSELECT model_id, count(*) AS n FROM check_ins GROUP BY model_id"
    )
    return {ModelId(row["model_id"]): int(row["n"]) for row in rows}


async def clear_replica(connection: Connection, replica_id: str) -> int:
    """Delete what an earlier run of this replica left: a new run has no streams yet."""
    status = await connection.execute(
        "-- clear_replica\nDELETE FROM check_ins WHERE replica_id = $1", replica_id
    )
    return affected(status)


async def prune_check_ins(connection: Connection) -> int:
    """Delete the check-ins of replicas that no longer live. Returns how many."""
    rows = await connection.fetch(
        "-- prune_check_ins\n"
        "DELETE FROM check_ins c WHERE NOT EXISTS (SELECT FROM pg_locks l"
        " WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2"
        " AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        " AND l.classid = $1::integer::oid AND l.objid = c.replica_lock::oid) RETURNING model_id",
        REPLICA_LOCK_CLASS,
    )
    for model_id in sorted({str(row["model_id"]) for row in rows}):
        await notify(connection, Channel.CHECK_IN_CHANGED, model_id)
    return len(rows)
