"""Reading the evidence of outcomes: a client's recent rounds, a round's contributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.rows import from_json
from boltz_mesh.storage.trust import ended_rounds
from boltz_mesh.trust.reputation import EvidenceKind
from boltz_protocol.ids import ClientId, ModelId, RoundId


@dataclass(frozen=True, slots=True)
class PastOutcomes:
    """What a client's rows say of earlier rounds.

    Attributes:
        inputs: of its outcomes since its last quarantine or release, oldest first.
        quarantines: how many since its last release.
    """

    inputs: tuple[Mapping[str, Any], ...] = ()
    quarantines: int = 0


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """The outcome of one client in a round."""

    client_id: ClientId
    reason: str
    inputs: Mapping[str, Any]


async def past_outcomes(
    connection: Connection, model_id: ModelId, client_ids: Sequence[ClientId], *, limit: int
) -> dict[ClientId, PastOutcomes]:
    """By client, what came before; at most `limit` outcomes each, the newest."""
    rows = await connection.fetch(
        "-- past_outcomes\n"
        "SELECT c.client_id, q.quarantines, o.inputs FROM unnest($2::text[]) AS c (client_id)"
        " CROSS JOIN LATERAL (SELECT COALESCE(max(seq) FILTER (WHERE kind = $5), 0) AS released,"
        "   COALESCE(max(seq), 0) AS since FROM trust_evidence t WHERE t.model_id = $1"
        "   AND t.client_id = c.client_id AND t.kind = ANY($4::text[])) b"
        " CROSS JOIN LATERAL (SELECT count(*) AS quarantines FROM trust_evidence t"
        "   WHERE t.model_id = $1 AND t.client_id = c.client_id AND t.kind = $6"
        "   AND t.seq > b.released) q"
        " LEFT JOIN LATERAL (SELECT t.seq, t.inputs FROM trust_evidence t WHERE t.model_id = $1"
        "   AND t.client_id = c.client_id AND t.kind = $7 AND t.seq > b.since"
        "   ORDER BY t.seq DESC LIMIT $3) o ON true"
        " ORDER BY c.client_id, o.seq",
        model_id,
        list(client_ids),
        limit,
        [EvidenceKind.QUARANTINE.value, EvidenceKind.RELEASE.value],
        EvidenceKind.RELEASE.value,
        EvidenceKind.QUARANTINE.value,
        EvidenceKind.OUTCOME.value,
    )
    inputs: dict[ClientId, list[Mapping[str, Any]]] = {}
    quarantines: dict[ClientId, int] = {}
    for row in rows:
        client_id = ClientId(row["client_id"])
        quarantines[client_id] = int(row["quarantines"])
        found = inputs.setdefault(client_id, [])
        if row["inputs"] is not None:
            found.append(from_json(row["inputs"]))
    return {
        client_id: PastOutcomes(tuple(found), quarantines[client_id])
        for client_id, found in inputs.items()
    }


async def count_quarantined(
    connection: Connection, model_id: ModelId, present: Sequence[ClientId]
) -> int:
    """How many clients other than those `present` are in quarantine for a model now."""
    ended = await ended_rounds(connection, model_id)
    count = await connection.fetchval(
        "-- count_quarantined\n"
        "SELECT count(*) FROM (SELECT DISTINCT ON (client_id) client_id, ordinal,"
        " quarantine_rounds FROM trust_evidence WHERE model_id = $1"
        " ORDER BY client_id, seq DESC) last"
        " WHERE quarantine_rounds > GREATEST(0, $2 - ordinal) AND client_id <> ALL($3::text[])",
        model_id,
        ended,
        list(present),
    )
    return int(count)


async def round_outcomes(
    connection: Connection, round_ids: Sequence[RoundId]
) -> dict[RoundId, list[RoundOutcome]]:
    """The outcomes of rounds, by client."""
    rows = await connection.fetch(
        "-- round_outcomes\n"
        "SELECT round_id, client_id, reason, inputs FROM trust_evidence"
        " WHERE round_id = ANY($1::text[]) AND kind = $2 ORDER BY round_id, client_id",
        list(round_ids),
        EvidenceKind.OUTCOME.value,
    )
    found: dict[RoundId, list[RoundOutcome]] = {}
    for row in rows:
        outcome = RoundOutcome(ClientId(row["client_id"]), row["reason"], from_json(row["inputs"]))
        found.setdefault(RoundId(row["round_id"]), []).append(outcome)
    return found
