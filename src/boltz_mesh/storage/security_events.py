"""What went wrong at the doors: events worth a look, and counts of refused messages."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.rows import affected, build, from_json, to_json
from boltz_protocol.ids import ClientId, RoundId


@dataclass(frozen=True, slots=True)
class SecurityEvent:
    """One row of `security_events`. `detail` never holds a secret."""

    id: int
    kind: str
    client_id: ClientId | None
    round_id: RoundId | None
    detail: Mapping[str, Any]
    at_ms: int


@dataclass(frozen=True, slots=True)
class RefusalCount:
    """How often a method refused a message for a reason (`ErrorInfo.reason`)."""

    method: str
    reason: str
    count: int
    last_at_ms: int


async def record_security_event(
    connection: Connection,
    *,
    kind: str,
    detail: Mapping[str, Any],
    at_ms: int,
    client_id: ClientId | None = None,
    round_id: RoundId | None = None,
) -> int:
    """Write an event. Returns its id."""
    number = await connection.fetchval(
        "-- record_security_event\n"
        "INSERT INTO security_events (kind, client_id, round_id, detail, at_ms)"
        " VALUES ($1, $2, $3, $4, $5) RETURNING id",
        kind,
        client_id,
        round_id,
        to_json(detail),
        at_ms,
    )
    return int(number)


async def list_security_events(
    connection: Connection, *, limit: int, before_id: int | None = None
) -> list[SecurityEvent]:
    """A page of events, newest first, below the id `before_id`."""
    rows = await connection.fetch(
        "-- list_security_events\n"
        "SELECT * FROM security_events WHERE $1::bigint IS NULL OR id < $1"
        " ORDER BY id DESC LIMIT $2",
        before_id,
        limit,
    )
    return [build(SecurityEvent, row, detail=from_json(row["detail"])) for row in rows]


async def list_incidents(
    connection: Connection, round_id: RoundId, kinds: Collection[str]
) -> dict[ClientId, list[str]]:
    """The events of these kinds that name the round and a client: kinds by client, in order."""
    rows = await connection.fetch(
        "-- list_incidents\n"
        "SELECT client_id, kind FROM security_events WHERE round_id = $1"
        " AND client_id IS NOT NULL AND kind = ANY($2::text[]) ORDER BY id",
        round_id,
        list(kinds),
    )
    found: dict[ClientId, list[str]] = {}
    for row in rows:
        found.setdefault(ClientId(row["client_id"]), []).append(row["kind"])
    return found


async def prune_security_events(connection: Connection, *, before_ms: int) -> int:
    """Delete events older than that. Returns how many."""
    status = await connection.execute(
        "-- prune_security_events\nDELETE FROM security_events WHERE at_ms < $1", before_ms
    )
    return affected(status)


async def count_refusal(
    connection: Connection, *, method: str, reason: str, at_ms: int, count: int = 1
) -> None:
    """Add to the count of a method and reason; a busy caller may add several at once."""
    await connection.execute(
        "-- count_refusal\n"
        "INSERT INTO refusal_counts AS r (method, reason, count, last_at_ms)"
        " VALUES ($1, $2, $3, $4) ON CONFLICT (method, reason) DO UPDATE"
        " SET count = r.count + $3, last_at_ms = GREATEST(r.last_at_ms, $4)",
        method,
        reason,
        count,
        at_ms,
    )


async def list_refusals(connection: Connection) -> list[RefusalCount]:
    """All counts, by method and reason."""
    rows = await connection.fetch(
        "-- list_refusals\nSELECT * FROM refusal_counts ORDER BY method, reason"
    )
    return [build(RefusalCount, row) for row in rows]
