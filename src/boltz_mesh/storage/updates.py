"""Updates: one row for each (round, attempt, client), made when the manifest arrives.

Its digest is fixed from then on. The row's life: receiving, stored (there is a receipt), counted
or dropped. When the round ends the content key is forgotten and the blob may go.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

import asyncpg

from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.rows import affected, build
from boltz_protocol.errors import NotFound, SecondDigest, StateConflict
from boltz_protocol.ids import ClientId, KeyId, RoundId, SessionId


class UpdateState(enum.StrEnum):
    """Where an update stands."""

    RECEIVING = "receiving"
    STORED = "stored"
    COUNTED = "counted"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class NewUpdate:
    """What a checked manifest says. `manifest` is the serialized SignedStatement."""

    round_id: RoundId
    attempt: int
    client_id: ClientId
    session_id: SessionId
    position: int
    update_digest: bytes
    manifest: bytes = field(repr=False)
    key_commitment: bytes = field(repr=False)
    key_id: KeyId
    wrapped_content_key: bytes = field(repr=False)
    size_bytes: int
    chunk_count: int


@dataclass(frozen=True, slots=True)
class Update:
    """One row of `federated_updates`."""

    round_id: RoundId
    attempt: int
    client_id: ClientId
    session_id: SessionId
    position: int
    update_digest: bytes
    manifest: bytes = field(repr=False)
    key_commitment: bytes = field(repr=False)
    key_id: KeyId
    wrapped_content_key: bytes | None = field(repr=False)
    size_bytes: int
    chunk_count: int
    state: UpdateState
    blob_digest: bytes | None
    receipt: bytes | None = field(repr=False)
    received_at_ms: int | None


def _update(row: asyncpg.Record) -> Update:
    return build(Update, row, state=UpdateState(row["state"]))


async def begin_update(connection: Connection, new: NewUpdate) -> Update:
    """Make the row, or find the one that is there, of the same digest: an upload that goes on, or
    one that is complete and has its receipt.

    Raises: SecondDigest when another update was announced before.
    """
    row = await connection.fetchrow(
        "-- begin_update\n"
        "INSERT INTO federated_updates (round_id, attempt, client_id, session_id, position,"
        " update_digest, manifest, key_commitment, key_id, wrapped_content_key, size_bytes,"
        " chunk_count, state) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,"
        " 'receiving') ON CONFLICT DO NOTHING RETURNING *",
        new.round_id,
        new.attempt,
        new.client_id,
        new.session_id,
        new.position,
        new.update_digest,
        new.manifest,
        new.key_commitment,
        new.key_id,
        new.wrapped_content_key,
        new.size_bytes,
        new.chunk_count,
    )
    if row is not None:
        return _update(row)
    found = await get_update(connection, new.round_id, new.attempt, new.client_id)
    if found.update_digest != new.update_digest:
        raise SecondDigest(
            "another update was announced for this round and attempt",
            round_id=new.round_id,
            attempt=new.attempt,
            first_digest=found.update_digest.hex(),
        )
    return found


async def find_update(
    connection: Connection, round_id: RoundId, attempt: int, client_id: ClientId
) -> Update | None:
    """A client's update in an attempt, if one was announced."""
    row = await connection.fetchrow(
        "-- find_update\n"
        "SELECT * FROM federated_updates WHERE round_id = $1 AND attempt = $2 AND client_id = $3",
        round_id,
        attempt,
        client_id,
    )
    return None if row is None else _update(row)


async def get_update(
    connection: Connection, round_id: RoundId, attempt: int, client_id: ClientId
) -> Update:
    """A client's update in an attempt. Raises: NotFound."""
    found = await find_update(connection, round_id, attempt, client_id)
    if found is None:
        raise NotFound("no update was announced", round_id=round_id, client_id=client_id)
    return found


async def mark_stored(
    connection: Connection,
    round_id: RoundId,
    attempt: int,
    client_id: ClientId,
    *,
    blob_digest: bytes,
    receipt: bytes,
    received_at_ms: int,
) -> Update:
    """The update is checked and durable: keep its receipt. Repeated, the first receipt stays.

    Call it in one transaction with `rounds.share_round` and `inbox.put`. Raises: NotFound;
    StateConflict when it was dropped.
    """
    row = await connection.fetchrow(
        "-- mark_stored\n"
        "UPDATE federated_updates SET state = 'stored', blob_digest = $4, receipt = $5,"
        " received_at_ms = $6 WHERE round_id = $1 AND attempt = $2 AND client_id = $3"
        " AND state = 'receiving' RETURNING *",
        round_id,
        attempt,
        client_id,
        blob_digest,
        receipt,
        received_at_ms,
    )
    if row is not None:
        return _update(row)
    found = await get_update(connection, round_id, attempt, client_id)
    if found.state is UpdateState.DROPPED:
        raise StateConflict("this update was dropped", round_id=round_id, client_id=client_id)
    return found


async def mark_dropped(
    connection: Connection, round_id: RoundId, attempt: int, client_id: ClientId
) -> bool:
    """Refuse an arriving update for good. Returns whether it was still arriving."""
    status = await connection.execute(
        "-- mark_dropped\n"
        "UPDATE federated_updates SET state = 'dropped' WHERE round_id = $1 AND attempt = $2"
        " AND client_id = $3 AND state = 'receiving'",
        round_id,
        attempt,
        client_id,
    )
    return affected(status) == 1


async def list_updates(
    connection: Connection, round_id: RoundId, attempt: int, state: UpdateState | None = None
) -> list[Update]:
    """The updates of an attempt by roster position, of one state or of all."""
    rows = await connection.fetch(
        "-- list_updates\n"
        "SELECT * FROM federated_updates WHERE round_id = $1 AND attempt = $2"
        " AND ($3::text IS NULL OR state = $3) ORDER BY position",
        round_id,
        attempt,
        None if state is None else state.value,
    )
    return [_update(row) for row in rows]


async def settle_updates(
    connection: Connection, round_id: RoundId, attempt: int, *, counted: Sequence[ClientId]
) -> tuple[int, int]:
    """Mark the stored updates of `counted` as counted and all others of the attempt as dropped.

    Returns how many rows became the one and the other. Idempotent.
    """
    to_counted = await connection.execute(
        "-- settle_updates\n"
        "UPDATE federated_updates SET state = 'counted' WHERE round_id = $1 AND attempt = $2"
        " AND state = 'stored' AND client_id = ANY($3::text[])",
        round_id,
        attempt,
        list(counted),
    )
    to_dropped = await connection.execute(
        "-- settle_updates\n"
        "UPDATE federated_updates SET state = 'dropped' WHERE round_id = $1 AND attempt = $2"
        " AND state IN ('receiving', 'stored')",
        round_id,
        attempt,
    )
    return affected(to_counted), affected(to_dropped)


async def forget_contents(connection: Connection, round_id: RoundId) -> list[bytes]:
    """Forget the content keys of a round's updates, of every attempt. Returns the digests of the
    blobs to delete after the commit; what a crash leaves is found by the orphan sweep.
    """
    rows = await connection.fetch(
        "-- forget_contents\n"
        "WITH held AS (SELECT attempt, client_id, blob_digest FROM federated_updates"
        " WHERE round_id = $1 AND wrapped_content_key IS NOT NULL FOR UPDATE)"
        " UPDATE federated_updates u SET wrapped_content_key = NULL, blob_digest = NULL FROM held"
        " WHERE u.round_id = $1 AND u.attempt = held.attempt AND u.client_id = held.client_id"
        " RETURNING held.blob_digest AS old_digest",
        round_id,
    )
    return [bytes(row["old_digest"]) for row in rows if row["old_digest"] is not None]
