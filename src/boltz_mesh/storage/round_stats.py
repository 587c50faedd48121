"""How far rounds have come, counted from rosters, updates and the inbox. Sizes and counts only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from boltz_mesh.rounds.fact import FactKind
from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.rows import build
from boltz_protocol.ids import RoundId


@dataclass(frozen=True, slots=True)
class RoundStats:
    """Of the round's present attempt. `dropped`: those that left and hold no receipt."""

    selected: int
    received: int
    dropped: int
    bytes_up: int


NONE: Final = RoundStats(0, 0, 0, 0)


async def count_updates(
    connection: Connection, round_ids: Sequence[RoundId]
) -> dict[RoundId, RoundStats]:
    """Clients selected, updates received in full, clients that dropped out, ciphertext bytes."""
    rows = await connection.fetch(
        "-- count_updates\n"
        "SELECT a.round_id,"
        " (SELECT count(*) FROM round_roster r"
        "   WHERE r.round_id = a.round_id AND r.attempt = a.attempt) AS selected,"
        " (SELECT count(*) FROM federated_updates u WHERE u.round_id = a.round_id"
        "   AND u.attempt = a.attempt AND u.receipt IS NOT NULL) AS received,"
        " (SELECT count(DISTINCT i.client_id) FROM round_inbox i WHERE i.round_id = a.round_id"
        "   AND i.attempt = a.attempt AND i.kind = $2 AND NOT EXISTS (SELECT FROM"
        "   federated_updates u WHERE u.round_id = a.round_id AND u.attempt = a.attempt"
        "   AND u.client_id = i.client_id AND u.receipt IS NOT NULL)) AS dropped,"
        " (SELECT COALESCE(sum(u.size_bytes), 0)::bigint FROM federated_updates u"
        "   WHERE u.round_id = a.round_id AND u.receipt IS NOT NULL) AS bytes_up"
        " FROM federated_aggregations a WHERE a.round_id = ANY($1::text[])",
        list(round_ids),
        FactKind.CLIENT_DROPPED.value,
    )
    return {RoundId(row["round_id"]): build(RoundStats, row) for row in rows}
