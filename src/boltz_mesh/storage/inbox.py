"""Facts that handlers put down for the coordinator. To insert one is to send it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boltz_mesh.storage.postgres import Channel, Connection
from boltz_mesh.storage.rows import affected, build, from_json, to_json
from boltz_protocol import limits
from boltz_protocol.ids import ClientId, RoundId


@dataclass(frozen=True, slots=True)
class InboxItem:
    """One row of `round_inbox` that waits."""

    id: int
    round_id: RoundId
    attempt: int
    kind: str
    client_id: ClientId | None
    payload: Mapping[str, Any]
    inserted_at_ms: int


async def put(
    connection: Connection,
    *,
    round_id: RoundId,
    attempt: int,
    kind: str,
    client_id: ClientId | None,
    payload: Mapping[str, Any],
    at_ms: int,
) -> int:
    """Put down a fact and wake the coordinator when the transaction commits. Returns its id."""
    number = await connection.fetchval(
        "-- inbox_put\n"
        "WITH fact AS (INSERT INTO round_inbox"
        " (round_id, attempt, kind, client_id, payload, inserted_at_ms)"
        " VALUES ($1, $2, $3, $4, $5, $6) RETURNING id, round_id)"
        " SELECT id, pg_notify($7, round_id) FROM fact",
        round_id,
        attempt,
        kind,
        client_id,
        to_json(payload),
        at_ms,
        Channel.ROUND_INBOX.value,
    )
    return int(number)


async def put_all(
    connection: Connection,
    *,
    round_id: RoundId,
    attempt: int,
    kind: str,
    clients: Sequence[ClientId],
    at_ms: int,
) -> None:
    """Put down the same fact about several clients, as `put` does, in their order."""
    await connection.execute(
        "-- inbox_put_all\n"
        "WITH facts AS (INSERT INTO round_inbox"
        " (round_id, attempt, kind, client_id, payload, inserted_at_ms)"
        " SELECT $1, $2, $3, client_id, $4, $5 FROM unnest($6::text[]) WITH ORDINALITY"
        " AS told (client_id, place) ORDER BY place)"
        " SELECT pg_notify($7, $1)",
        round_id,
        attempt,
        kind,
        to_json({}),
        at_ms,
        list(clients),
        Channel.ROUND_INBOX.value,
    )


async def take(
    connection: Connection, round_id: RoundId, *, limit: int = limits.MAX_INBOX_BATCH
) -> list[InboxItem]:
    """The oldest facts of a round that wait. They wait on until `rounds.append_events` names them.

    What counts is that a row is unhandled, not that its id is high: a transaction that took its
    number early may commit late.
    """
    rows = await connection.fetch(
        "-- inbox_take\n"
        "SELECT * FROM round_inbox WHERE round_id = $1 AND handled_seq IS NULL"
        " ORDER BY id LIMIT $2",
        round_id,
        limit,
    )
    return [build(InboxItem, row, payload=from_json(row["payload"])) for row in rows]


async def prune(connection: Connection, *, ended_before_ms: int) -> int:
    """Delete the facts of rounds that ended before then. Returns how many."""
    status = await connection.execute(
        "-- inbox_prune\n"
        "DELETE FROM round_inbox i USING federated_aggregations a"
        " WHERE a.round_id = i.round_id AND a.ended_at_ms < $1",
        ended_before_ms,
    )
    return affected(status)
