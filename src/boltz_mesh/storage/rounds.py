"""Rounds: the row that says where one stands.

The coordinator's transaction is: `lock_round` (checks the fencing token), `inbox.take`, the pure
step, `round_events.append_events`. A handler that puts down a fact which must count calls
`share_round` first: it cannot overlap with the coordinator's transaction on the same round, so the
fact is either seen by the step that leaves the phase, or refused because the phase is over.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import asyncpg

from boltz_mesh.storage.lease import assert_fencing
from boltz_mesh.storage.postgres import Channel, Connection, notify
from boltz_mesh.storage.rows import build
from boltz_protocol.errors import NotFound, StateConflict
from boltz_protocol.ids import ClientId, ModelId, RoundId, SessionId


class RoundOutcome(enum.StrEnum):
    """How a round ended."""

    PUBLISHED = "published"
    REJECTED = "rejected"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class NewRound:
    """A round to be started. `trace_context` is a W3C traceparent."""

    round_id: RoundId
    model_id: ModelId
    phase: str
    base_version: int
    plan_revision: int
    started_by: str
    started_at_ms: int
    deadline_at_ms: int | None
    trace_context: str = ""


@dataclass(frozen=True, slots=True)
class Round:
    """One row of `federated_aggregations`.

    `next_seq` is the number that the next event gets. `outcome`, `reason` and `ended_at_ms` are
    None while the round is open.
    """

    round_id: RoundId
    model_id: ModelId
    attempt: int
    phase: str
    base_version: int
    plan_revision: int
    config_statement: bytes | None = field(repr=False)
    config_digest: bytes | None
    next_seq: int
    aggregate_blob_digest: bytes | None
    aggregate_wrapped_key: bytes | None = field(repr=False)
    outcome: RoundOutcome | None
    reason: str | None
    trace_context: str
    started_by: str
    started_at_ms: int
    deadline_at_ms: int | None
    ended_at_ms: int | None
    new_version: int | None


def _round(row: asyncpg.Record) -> Round:
    outcome = None if row["outcome"] is None else RoundOutcome(row["outcome"])
    return build(Round, row, outcome=outcome)


def _found(row: asyncpg.Record | None, round_id: str) -> Round:
    if row is None:
        raise NotFound(f"no round {round_id}", round_id=round_id)
    return _round(row)


async def create_round(connection: Connection, new: NewRound) -> Round:
    """Start a round. Raises: StateConflict when the model has an unfinished one; NotFound when its
    base version or plan revision does not exist.
    """
    try:
        row = await connection.fetchrow(
            "-- create_round\n"
            "INSERT INTO federated_aggregations (round_id, model_id, attempt, phase, base_version,"
            " plan_revision, trace_context, started_by, started_at_ms, deadline_at_ms)"
            " VALUES ($1, $2, 1, $3, $4, $5, $6, $7, $8, $9) RETURNING *",
            new.round_id,
            new.model_id,
            new.phase,
            new.base_version,
            new.plan_revision,
            new.trace_context,
            new.started_by,
            new.started_at_ms,
            new.deadline_at_ms,
        )
    except asyncpg.UniqueViolationError as error:
        raise StateConflict(
            f"model {new.model_id} has an unfinished round already", model_id=new.model_id
        ) from error
    except asyncpg.ForeignKeyViolationError as error:
        raise NotFound(
            f"model {new.model_id} has no version {new.base_version} or no plan revision "
            f"{new.plan_revision}",
            model_id=new.model_id,
        ) from error
    await notify(connection, Channel.ROUND_CHANGED, new.round_id)
    return _found(row, new.round_id)


async def get_round(connection: Connection, round_id: RoundId) -> Round:
    """One round. Raises: NotFound."""
    row = await connection.fetchrow(
        "-- get_round\nSELECT * FROM federated_aggregations WHERE round_id = $1", round_id
    )
    return _found(row, round_id)


async def find_open_round(connection: Connection, model_id: ModelId) -> Round | None:
    """The model's unfinished round, if it has one."""
    row = await connection.fetchrow(
        "-- find_open_round\n"
        "SELECT * FROM federated_aggregations WHERE model_id = $1 AND outcome IS NULL",
        model_id,
    )
    return None if row is None else _round(row)


async def find_last_ended(
    connection: Connection, model_id: ModelId, client_id: ClientId, session_id: SessionId
) -> Round | None:
    """The round that a session was selected for and that ended last, if there is one."""
    row = await connection.fetchrow(
        "-- find_last_ended\n"
        "SELECT a.* FROM round_roster r JOIN federated_aggregations a"
        " ON a.round_id = r.round_id AND a.attempt = r.attempt"
        " WHERE r.client_id = $2 AND r.session_id = $3 AND a.model_id = $1"
        " AND a.outcome IS NOT NULL ORDER BY a.ended_at_ms DESC LIMIT 1",
        model_id,
        client_id,
        session_id,
    )
    return None if row is None else _round(row)


async def find_last_published(
    connection: Connection, model_id: ModelId, plan_revision: int
) -> Round | None:
    """The round that made a model's newest version under a revision of its plan, if there is one.

    By version, which only grows; clocks may go back.
    """
    row = await connection.fetchrow(
        "-- find_last_published\n"
        "SELECT a.* FROM federated_models v"
        " JOIN federated_aggregations a ON a.round_id = v.round_id"
        " WHERE v.model_id = $1 AND a.plan_revision = $2 AND a.outcome = $3"
        " ORDER BY v.version DESC LIMIT 1",
        model_id,
        plan_revision,
        RoundOutcome.PUBLISHED,
    )
    return None if row is None else _round(row)


async def list_open_rounds(connection: Connection) -> list[Round]:
    """Every unfinished round: what a new lease holder recovers."""
    rows = await connection.fetch(
        "-- list_open_rounds\n"
        "SELECT * FROM federated_aggregations WHERE outcome IS NULL ORDER BY started_at_ms"
    )
    return [_round(row) for row in rows]


async def list_rounds(
    connection: Connection, model_id: ModelId | None, *, limit: int, before: Round | None = None
) -> list[Round]:
    """A page of a model's rounds, newest first, behind the round `before`."""
    rows = await connection.fetch(
        "-- list_rounds\n"
        "SELECT * FROM federated_aggregations WHERE ($1::text IS NULL OR model_id = $1)"
        " AND ($2::bigint IS NULL OR (started_at_ms, round_id) < ($2, $3))"
        " ORDER BY started_at_ms DESC, round_id DESC LIMIT $4",
        model_id,
        None if before is None else before.started_at_ms,
        None if before is None else before.round_id,
        limit,
    )
    return [_round(row) for row in rows]


async def lock_round(connection: Connection, round_id: RoundId, *, fencing_token: int) -> Round:
    """Take a round for the coordinator's transaction. Waits for handlers that share it; what they
    put into the inbox is visible to the statements that follow (isolation read committed).

    Raises: StateConflict when the lease is another's; NotFound.
    """
    await assert_fencing(connection, fencing_token)
    row = await connection.fetchrow(
        "-- lock_round\nSELECT * FROM federated_aggregations WHERE round_id = $1 FOR NO KEY UPDATE",
        round_id,
    )
    return _found(row, round_id)


async def share_round(connection: Connection, round_id: RoundId) -> Round:
    """Read a round and keep it as it is until this transaction ends; many may share it.

    Raises: NotFound.
    """
    row = await connection.fetchrow(
        "-- share_round\nSELECT * FROM federated_aggregations WHERE round_id = $1 FOR SHARE",
        round_id,
    )
    return _found(row, round_id)
