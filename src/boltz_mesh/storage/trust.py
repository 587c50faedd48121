"""Trust: the evidence about clients, one row for each change, and where they stand.

A row is written once and never changed (the database refuses it). It holds what the change was
computed from and the state after it, so that `boltz_mesh.trust.replay` can recompute each of them.

Rounds are counted by their ordinal: the place among the rounds of the model that fixed a roster and
ended, from 1. A round that found too few clients to begin with lets nobody be forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import asyncpg

from boltz_mesh.storage.plans import lock_model
from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.rows import build, from_json, to_json
from boltz_mesh.trust.replay import Step
from boltz_mesh.trust.reputation import NEWCOMER, Evidence, TrustState, apply, forget
from boltz_protocol.errors import StateConflict
from boltz_protocol.ids import ClientId, ModelId, RoundId


@dataclass(frozen=True, slots=True)
class Standing:
    """What a client's rows come to now, with what was forgotten since the last one.

    Attributes:
        state: now.
        ordinal: of the last ended round of the model.
        last_ordinal: of its last row, 0 without any; more than `ordinal` where a round that has
            not ended yet has given evidence.
        rows: how much evidence there is; 0 for a client that nothing is known about.
        trust_256: what it weighs in the next round, in 1/256ths.
        quarantined_until: the last ordinal of a round that it is not selected for; None where it
            is not in quarantine.
    """

    state: TrustState
    ordinal: int
    last_ordinal: int = 0
    rows: int = 0

    @property
    def trust_256(self) -> int:
        """See above."""
        return self.state.trust_256

    @property
    def quarantined_until(self) -> int | None:
        """See above."""
        left = self.state.quarantine_rounds
        return max(self.ordinal, self.last_ordinal) + left if left else None


async def ended_rounds(connection: Connection, model_id: ModelId) -> int:
    """The ordinal of the model's last ended round; that of a round which is open is one more."""
    count = await connection.fetchval(
        "-- ended_rounds\n"
        "SELECT count(*) FROM federated_aggregations"
        " WHERE model_id = $1 AND outcome IS NOT NULL AND config_digest IS NOT NULL",
        model_id,
    )
    return int(count)


async def lock(connection: Connection, model_id: ModelId) -> None:
    """Let this transaction alone write evidence for a model; ends with it."""
    await lock_model(connection, model_id)


async def append_evidence(
    connection: Connection,
    model_id: ModelId,
    client_id: ClientId,
    evidence: Evidence,
    *,
    round_id: RoundId | None,
    attempt: int | None,
    ordinal: int,
    at_ms: int,
) -> Step:
    """`append_all` for one client."""
    rows = await append_all(
        connection,
        model_id,
        {client_id: evidence},
        round_id=round_id,
        attempt=attempt,
        ordinal=ordinal,
        at_ms=at_ms,
    )
    return rows[client_id]


async def append_all(
    connection: Connection,
    model_id: ModelId,
    evidence: Mapping[ClientId, Evidence],
    *,
    round_id: RoundId | None,
    attempt: int | None,
    ordinal: int,
    at_ms: int,
) -> dict[ClientId, Step]:
    """Write evidence about several clients, each with the state that comes of it.

    Args:
        connection: inside a transaction; writers about one model take turns until it ends.
        round_id, attempt: that brought it about, or None for both.
        ordinal: of that round (`ended_rounds`, plus one while it is open), or of the last ended
            one; never below that of a row that is there.

    Raises: StateConflict where the round has given evidence of this kind about a client already.
    """
    await lock(connection, model_id)
    last = await _last_rows(connection, model_id, list(evidence))
    rows: dict[ClientId, Step] = {}
    for client_id, new in evidence.items():
        seq, before, state = last.get(client_id, (0, ordinal, NEWCOMER))
        assert before <= ordinal, "evidence of a round that ended before the last one"
        after = apply(state, ordinal - before, new)
        rows[client_id] = Step(
            seq=seq + 1,
            ordinal=ordinal,
            round_id=round_id or "",
            attempt=attempt or 0,
            kind=new.kind.value,
            reason=new.reason,
            gain_256=new.gain_256,
            loss_256=new.loss_256,
            inputs=new.inputs,
            positive_256=after.positive_256,
            negative_256=after.negative_256,
            quarantine_rounds=after.quarantine_rounds,
            trust_256=after.trust_256,
            at_ms=at_ms,
        )
    await _insert(connection, model_id, rows)
    return rows


async def _last_rows(
    connection: Connection, model_id: ModelId, client_ids: Sequence[ClientId]
) -> dict[ClientId, tuple[int, int, TrustState]]:
    """By client: number, ordinal and state of its last row."""
    rows = await connection.fetch(
        "-- last_trust_rows\n"
        "SELECT e.* FROM unnest($2::text[]) AS c (client_id) CROSS JOIN LATERAL"
        " (SELECT * FROM trust_evidence t WHERE t.model_id = $1 AND t.client_id = c.client_id"
        " ORDER BY t.seq DESC LIMIT 1) e",
        model_id,
        list(client_ids),
    )
    return {
        ClientId(row["client_id"]): (row["seq"], row["ordinal"], build(TrustState, row))
        for row in rows
    }


async def _insert(
    connection: Connection, model_id: ModelId, steps: Mapping[ClientId, Step]
) -> None:
    rows = list(steps.values())
    try:
        await connection.execute(
            "-- append_evidence\n"
            "INSERT INTO trust_evidence (model_id, client_id, seq, ordinal, round_id, attempt,"
            " kind, reason, gain_256, loss_256, inputs, positive_256, negative_256,"
            " quarantine_rounds, trust_256, at_ms)"
            " SELECT $1, * FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::text[],"
            " $6::integer[], $7::text[], $8::text[], $9::integer[], $10::integer[], $11::jsonb[],"
            " $12::integer[], $13::integer[], $14::integer[], $15::integer[], $16::bigint[])",
            model_id,
            list(steps),
            [row.seq for row in rows],
            [row.ordinal for row in rows],
            [row.round_id or None for row in rows],
            [row.attempt or None for row in rows],
            [row.kind for row in rows],
            [row.reason for row in rows],
            [row.gain_256 for row in rows],
            [row.loss_256 for row in rows],
            [to_json(row.inputs) for row in rows],
            [row.positive_256 for row in rows],
            [row.negative_256 for row in rows],
            [row.quarantine_rounds for row in rows],
            [row.trust_256 for row in rows],
            [row.at_ms for row in rows],
        )
    except asyncpg.UniqueViolationError as error:
        raise StateConflict(
            "this round has given evidence of this kind about the client already"
        ) from error


async def read_trust(
    connection: Connection, model_id: ModelId, client_ids: Sequence[ClientId]
) -> dict[ClientId, Standing]:
    """Where each of these clients stands now; a newcomer's standing for one without rows."""
    ended = await ended_rounds(connection, model_id)
    last = await _last_rows(connection, model_id, client_ids)
    standings: dict[ClientId, Standing] = {}
    for client_id in client_ids:
        seq, ordinal, state = last.get(client_id, (0, 0, NEWCOMER))
        now = forget(state, max(0, ended - ordinal))
        standings[client_id] = Standing(now, ended, ordinal, seq)
    return standings


async def models_with_evidence(connection: Connection, client_id: ClientId) -> list[ModelId]:
    """The models for which there is evidence about a client, by name."""
    rows = await connection.fetch(
        "-- models_with_evidence\n"
        "SELECT DISTINCT model_id FROM trust_evidence WHERE client_id = $1 ORDER BY model_id",
        client_id,
    )
    return [ModelId(row["model_id"]) for row in rows]


async def list_evidence(
    connection: Connection, model_id: ModelId, client_id: ClientId, *, after: int, limit: int
) -> list[Step]:
    """A page of a client's rows for a model, behind the number `after`, in order."""
    rows = await connection.fetch(
        "-- list_evidence\n"
        "SELECT * FROM trust_evidence WHERE model_id = $1 AND client_id = $2 AND seq > $3"
        " ORDER BY seq LIMIT $4",
        model_id,
        client_id,
        after,
        limit,
    )
    return [
        build(
            Step,
            row,
            round_id=row["round_id"] or "",
            attempt=row["attempt"] or 0,
            inputs=from_json(row["inputs"]),
        )
        for row in rows
    ]
