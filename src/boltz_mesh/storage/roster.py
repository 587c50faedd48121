"""Rosters: who takes part in an attempt, with which committed weight, in which place."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import asyncpg

from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.rows import build
from boltz_protocol.errors import StateConflict
from boltz_protocol.ids import ClientId, RoundId, SessionId


@dataclass(frozen=True, slots=True)
class RosterEntry:
    """One row of `round_roster`. `entry` is the serialized RosterEntry whose bytes were hashed.

    `trust_256` is 0 in rows from before trust was written down.
    """

    round_id: RoundId
    attempt: int
    position: int
    client_id: ClientId
    session_id: SessionId
    weight: int
    sample_bucket: int
    quality_bucket: int
    trust_256: int
    group_id: int
    entry: bytes = field(repr=False)


_ROSTER_COLUMNS = (
    "round_id",
    "attempt",
    "position",
    "client_id",
    "session_id",
    "weight",
    "sample_bucket",
    "quality_bucket",
    "trust_256",
    "group_id",
    "entry",
)


async def insert_roster(connection: Connection, entries: Sequence[RosterEntry]) -> None:
    """Freeze the roster of an attempt. Raises: StateConflict when it is frozen already."""
    try:
        await connection.copy_records_to_table(
            "round_roster",
            records=[tuple(getattr(entry, name) for name in _ROSTER_COLUMNS) for entry in entries],
            columns=_ROSTER_COLUMNS,
        )
    except asyncpg.UniqueViolationError as error:
        raise StateConflict(
            "this attempt has a roster already, or a client is in it twice"
        ) from error


async def get_roster(connection: Connection, round_id: RoundId, attempt: int) -> list[RosterEntry]:
    """The roster of an attempt, by position."""
    rows = await connection.fetch(
        "-- get_roster\n"
        "SELECT * FROM round_roster WHERE round_id = $1 AND attempt = $2 ORDER BY position",
        round_id,
        attempt,
    )
    return [build(RosterEntry, row) for row in rows]


async def find_seats(
    connection: Connection, round_id: RoundId, clients: Collection[ClientId]
) -> dict[tuple[int, ClientId], RosterEntry]:
    """The places of these clients in a round's rosters, by attempt and client."""
    rows = await connection.fetch(
        "-- find_seats\n"
        "SELECT * FROM round_roster WHERE round_id = $1 AND client_id = ANY($2::text[])",
        round_id,
        list(clients),
    )
    entries = (build(RosterEntry, row) for row in rows)
    return {(entry.attempt, entry.client_id): entry for entry in entries}


async def find_roster_entry(
    connection: Connection, round_id: RoundId, attempt: int, client_id: ClientId
) -> RosterEntry | None:
    """A client's place in an attempt's roster, if it has one."""
    row = await connection.fetchrow(
        "-- find_roster_entry\n"
        "SELECT * FROM round_roster WHERE round_id = $1 AND attempt = $2 AND client_id = $3",
        round_id,
        attempt,
        client_id,
    )
    return None if row is None else build(RosterEntry, row)
