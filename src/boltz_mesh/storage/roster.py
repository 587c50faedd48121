"""Rosters: who takes part in an attempt, with which committed weight, in which place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.rows import build, from_json
from boltz_protocol.errors import StateConflict
from boltz_protocol.ids import ClientId, RoundId, SessionId


@dataclass(frozen=True, slots=True)
class RosterEntry:
    """One row of `round_roster`. `entry` is the serialized RosterEntry whose bytes were hashed."""

    round_id: RoundId
    attempt: int
    position: int
    client_id: ClientId
    session_id: SessionId
    weight: int
    sample_bucket: int
    quality_bucket: int
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


async def find_seat(
    connection: Connection, round_id: RoundId, attempt: int, client_id: ClientId
) -> tuple[RosterEntry, dict[str, Any] | None] | None:
    """A client's place in an attempt's roster, if it has one, with the round's newest snapshot."""
    row = await connection.fetchrow(
        "-- find_seat\n"
        "SELECT roster.*, snapshot.state FROM round_roster AS roster"
        " LEFT JOIN round_snapshots AS snapshot ON snapshot.round_id = roster.round_id"
        " WHERE roster.round_id = $1 AND roster.attempt = $2 AND roster.client_id = $3",
        round_id,
        attempt,
        client_id,
    )
    if row is None:
        return None
    return build(RosterEntry, row), None if row["state"] is None else from_json(row["state"])


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
