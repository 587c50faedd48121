"""A round's events and the snapshots of their fold: what a restarted coordinator goes on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from boltz_mesh.storage.lease import assert_fencing
from boltz_mesh.storage.postgres import Channel, Connection, notify
from boltz_mesh.storage.rounds import RoundOutcome, get_round
from boltz_mesh.storage.rows import affected, build, from_json, to_json
from boltz_protocol.errors import StateConflict
from boltz_protocol.ids import RoundId


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event of the round machine, as an object of JSON values."""

    at_ms: int
    kind: str
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One row of `round_events`."""

    seq: int
    at_ms: int
    kind: str
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SignedConfig:
    """The configuration of one attempt: serialized SignedStatement and its digest."""

    statement: bytes = field(repr=False)
    digest: bytes


@dataclass(frozen=True, slots=True)
class AggregateBlob:
    """The noised aggregate, encrypted at rest."""

    blob_digest: bytes
    wrapped_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RoundEnd:
    """How a round ended. `reason` is for people; `new_version` where one was published."""

    outcome: RoundOutcome
    reason: str
    ended_at_ms: int
    new_version: int | None = None


@dataclass(frozen=True, slots=True)
class RoundUpdate:
    """What becomes of the row when events are appended.

    `phase`, `attempt` and `deadline_at_ms` are set as given. None elsewhere keeps what is there,
    except that a new attempt starts without configuration and aggregate. `snapshot` is the state
    after the appended events.
    """

    phase: str
    attempt: int
    deadline_at_ms: int | None
    snapshot: Mapping[str, Any] | None = None
    config: SignedConfig | None = None
    aggregate: AggregateBlob | None = None
    end: RoundEnd | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The folded state before event `seq`."""

    seq: int
    state: Mapping[str, Any] = field(repr=False)


async def append_events(
    connection: Connection,
    round_id: RoundId,
    events: Sequence[NewEvent],
    update: RoundUpdate,
    *,
    fencing_token: int,
    expected_seq: int,
    inbox_ids: Sequence[int] = (),
) -> int:
    """Append events, mark the inbox rows that they came from, move the row, wake the replicas.

    Args:
        connection: inside a transaction.
        round_id: the round.
        events: in order; they get the numbers `expected_seq` and up.
        update: what becomes of the row.
        fencing_token: of the coordinator's lease.
        expected_seq: the `next_seq` of the state that the step started from.
        inbox_ids: rows that are now taken in.

    Returns the new `next_seq`. Raises: StateConflict when the lease is another's, when events were
    appended in the meantime, or when the round has ended; NotFound.
    """
    await assert_fencing(connection, fencing_token)
    next_seq = expected_seq + len(events)
    config, aggregate, end = update.config, update.aggregate, update.end
    moved = await connection.fetchval(
        "-- append_events\n"
        "UPDATE federated_aggregations SET next_seq = $3, phase = $4, attempt = $5,"
        " deadline_at_ms = $6,"
        " config_statement = COALESCE($7, CASE WHEN attempt = $5 THEN config_statement END),"
        " config_digest = COALESCE($8, CASE WHEN attempt = $5 THEN config_digest END),"
        " aggregate_blob_digest ="
        " COALESCE($9, CASE WHEN attempt = $5 THEN aggregate_blob_digest END),"
        " aggregate_wrapped_key ="
        " COALESCE($10, CASE WHEN attempt = $5 THEN aggregate_wrapped_key END),"
        " outcome = $11, reason = $12, ended_at_ms = $13, new_version = $14"
        " WHERE round_id = $1 AND next_seq = $2 AND outcome IS NULL RETURNING true",
        round_id,
        expected_seq,
        next_seq,
        update.phase,
        update.attempt,
        update.deadline_at_ms,
        None if config is None else config.statement,
        None if config is None else config.digest,
        None if aggregate is None else aggregate.blob_digest,
        None if aggregate is None else aggregate.wrapped_key,
        None if end is None else end.outcome.value,
        None if end is None else end.reason,
        None if end is None else end.ended_at_ms,
        None if end is None else end.new_version,
    )
    if moved is None:
        found = await get_round(connection, round_id)
        raise StateConflict(
            f"round {round_id} is at event {found.next_seq} and not {expected_seq}, or has ended",
            round_id=round_id,
            next_seq=found.next_seq,
        )
    await connection.execute(
        "-- append_events\n"
        "INSERT INTO round_events (round_id, seq, at_ms, kind, payload, fencing)"
        " SELECT $1, $2 + e.n - 1, e.at_ms, e.kind, e.payload, $3"
        " FROM unnest($4::bigint[], $5::text[], $6::jsonb[])"
        " WITH ORDINALITY AS e (at_ms, kind, payload, n)",
        round_id,
        expected_seq,
        fencing_token,
        [event.at_ms for event in events],
        [event.kind for event in events],
        [to_json(event.payload) for event in events],
    )
    if update.snapshot is not None:
        await connection.execute(
            "-- append_events\n"
            "INSERT INTO round_snapshots (round_id, seq, state) VALUES ($1, $2, $3)"
            " ON CONFLICT (round_id) DO UPDATE SET seq = $2, state = $3",
            round_id,
            next_seq,
            to_json(update.snapshot),
        )
    if inbox_ids:
        status = await connection.execute(
            "-- append_events\n"
            "UPDATE round_inbox SET handled_seq = $3"
            " WHERE id = ANY($2::bigint[]) AND round_id = $1 AND handled_seq IS NULL",
            round_id,
            list(inbox_ids),
            next_seq,
        )
        # The coordinator took these under the round's lock; another count is a bug of ours.
        assert affected(status) == len(set(inbox_ids)), "inbox rows were handled twice"
    await notify(connection, Channel.ROUND_CHANGED, round_id)
    return next_seq


async def load_events(
    connection: Connection, round_id: RoundId, *, from_seq: int = 0
) -> list[StoredEvent]:
    """The events from number `from_seq` on, in order."""
    rows = await connection.fetch(
        "-- load_events\n"
        "SELECT seq, at_ms, kind, payload FROM round_events"
        " WHERE round_id = $1 AND seq >= $2 ORDER BY seq",
        round_id,
        from_seq,
    )
    return [build(StoredEvent, row, payload=from_json(row["payload"])) for row in rows]


async def load_snapshot(connection: Connection, round_id: RoundId) -> Snapshot | None:
    """The newest snapshot, if one was written; go on with `load_events(from_seq=snapshot.seq)`."""
    row = await connection.fetchrow(
        "-- load_snapshot\nSELECT seq, state FROM round_snapshots WHERE round_id = $1", round_id
    )
    return None if row is None else build(Snapshot, row, state=from_json(row["state"]))
