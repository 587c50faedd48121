"""The privacy ledger: holds of running rounds, and events that were spent.

Events state the mathematics of what happened; epsilon is computed from them elsewhere. An event
is written once for each (round, attempt, client) and never changed (the database refuses it). The
events of a model are a chain of hashes (`boltz_mesh.privacy.chain`), whose head has a row of its
own: who adds to the chain locks that row, so that writers of one model take turns and writers of
different models do not meet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import asyncpg

from boltz_mesh.privacy.chain import EMPTY, ChainedEvent, ChainHead, LedgerEvent, link
from boltz_mesh.storage.postgres import LOCK_CLASS, Connection, LockName
from boltz_mesh.storage.rows import affected, build, from_json, to_json
from boltz_protocol.errors import StateConflict
from boltz_protocol.ids import ClientId, ModelId, RoundId

#: Rows of a chain read at once: about 5 MB.
CHAIN_PAGE: Final = 10_000
#: Before any place that a row could have, right or wrong.
BEFORE_ALL: Final = -(1 << 63)


@dataclass(frozen=True, slots=True)
class Hold:
    """What a running round may still spend for one client; `event` as an object."""

    round_id: RoundId
    attempt: int
    client_id: ClientId
    model_id: ModelId
    event: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SpentEvents:
    """`count` events of one client that are alike: what an accountant composes."""

    model_id: ModelId
    client_id: ClientId
    mechanism: str
    noise_multiplier: float
    sensitivity: float
    relation: str
    unit: str
    period: str
    sampling_rate: float
    count: int


# --- taking turns ------------------------------------------------------------------------------


async def lock_chain(connection: Connection, model_id: ModelId) -> ChainHead:
    """Let this transaction alone hold and spend for a model; ends with it. Returns the head."""
    await connection.execute(
        "-- lock_chain\n"
        "INSERT INTO privacy_chains (model_id, length, head) VALUES ($1, $2, $3)"
        " ON CONFLICT DO NOTHING",
        model_id,
        EMPTY.length,
        EMPTY.hash,
    )
    row = await connection.fetchrow(
        "-- lock_chain\nSELECT length, head FROM privacy_chains WHERE model_id = $1 FOR UPDATE",
        model_id,
    )
    assert row is not None
    return ChainHead(row["length"], row["head"])


async def lock_all_models(connection: Connection) -> None:
    """Let this transaction alone place holds, for whatever model; ends with it.

    Take it last, after `lock_chain`.
    """
    await connection.execute(
        "-- lock_all_models\nSELECT pg_advisory_xact_lock($1, $2)",
        LOCK_CLASS,
        LockName.LEDGER.value,
    )


# --- holds -------------------------------------------------------------------------------------


async def place_holds(connection: Connection, holds: Sequence[Hold]) -> None:
    """Place the holds of an attempt. Whether they fit is for the caller to see to, who has locked
    the chain.

    Raises: StateConflict when a client has one for it already.
    """
    try:
        await connection.execute(
            "-- place_holds\n"
            "INSERT INTO privacy_holds (round_id, attempt, client_id, model_id, event)"
            " SELECT * FROM unnest($1::text[], $2::integer[], $3::text[], $4::text[], $5::jsonb[])",
            [hold.round_id for hold in holds],
            [hold.attempt for hold in holds],
            [hold.client_id for hold in holds],
            [hold.model_id for hold in holds],
            [to_json(hold.event) for hold in holds],
        )
    except asyncpg.UniqueViolationError as error:
        raise StateConflict("a hold for this round and attempt is placed already") from error


async def list_holds(
    connection: Connection,
    model_id: ModelId | None,
    client_ids: Sequence[ClientId] | None = None,
) -> list[Hold]:
    """The holds on a model's budget or on all models', of some clients or of all."""
    rows = await connection.fetch(
        "-- list_holds\n"
        "SELECT * FROM privacy_holds WHERE ($1::text IS NULL OR model_id = $1)"
        " AND ($2::text[] IS NULL OR client_id = ANY($2)) ORDER BY client_id, round_id, attempt",
        model_id,
        None if client_ids is None else list(client_ids),
    )
    return [build(Hold, row, event=from_json(row["event"])) for row in rows]


async def release_holds(
    connection: Connection, round_id: RoundId, attempt: int | None = None
) -> int:
    """End the holds of a round that will spend no more, of one attempt or of all. Returns how many.

    Nothing that was spent comes back by this: an event ends its hold when it is written.
    """
    status = await connection.execute(
        "-- release_holds\n"
        "DELETE FROM privacy_holds WHERE round_id = $1 AND ($2::integer IS NULL OR attempt = $2)",
        round_id,
        attempt,
    )
    return affected(status)


# --- spending ----------------------------------------------------------------------------------


async def debit(connection: Connection, events: Sequence[LedgerEvent]) -> int:
    """Write what is being spent; the holds for it end. Returns how many events were new.

    Idempotent: for a (round, attempt, client) that is charged already with the same figures nothing
    happens. A client is charged out of its hold: without one nobody has seen to its budget, and a
    charge would be a defect.

    Args:
        connection: inside a transaction.
        events: of one model, each (round, attempt, client) once.

    Raises: StateConflict when one is charged already with other figures.
    """
    if not events:
        return 0
    (model_id,) = {event.model_id for event in events}
    head = await lock_chain(connection, model_id)
    keys = (
        [event.round_id for event in events],
        [event.attempt for event in events],
        [event.client_id for event in events],
    )
    rows = await connection.fetch(
        "-- debit\n"
        "SELECT * FROM privacy_events JOIN unnest($1::text[], $2::integer[], $3::text[])"
        " AS e (round_id, attempt, client_id) USING (round_id, attempt, client_id)",
        *keys,
    )
    charged = {_key(event): event for event in (build(LedgerEvent, row) for row in rows)}
    new: list[LedgerEvent] = []
    for event in events:
        known = charged.get(_key(event))
        if known is None:
            new.append(event)
        elif replace(known, at_ms=event.at_ms) != event:
            raise StateConflict(
                f"client {event.client_id} is charged for round {event.round_id} attempt "
                f"{event.attempt} already, with other figures",
                round_id=event.round_id,
            )
    ended = await connection.fetch(
        "-- debit\n"
        "DELETE FROM privacy_holds h USING unnest($1::text[], $2::integer[], $3::text[])"
        " AS e (round_id, attempt, client_id) WHERE h.round_id = e.round_id"
        " AND h.attempt = e.attempt AND h.client_id = e.client_id"
        " RETURNING h.round_id, h.attempt, h.client_id",
        *keys,
    )
    held = {(row["round_id"], row["attempt"], row["client_id"]) for row in ended}
    assert all(_key(event) in held for event in new), "a charge without a hold"
    await _append(connection, model_id, link(new, head))
    return len(new)


def _key(event: LedgerEvent) -> tuple[str, int, str]:
    return event.round_id, event.attempt, event.client_id


async def _append(
    connection: Connection, model_id: ModelId, linked: Sequence[ChainedEvent]
) -> None:
    """Write the next events of a chain that is locked."""
    if not linked:
        return
    events = [row.event for row in linked]
    await connection.execute(
        "-- debit\n"
        "INSERT INTO privacy_events (model_id, client_id, round_id, attempt, mechanism,"
        " noise_multiplier, sensitivity, relation, unit, sampling_rate, at_ms, period, seq,"
        " previous_hash, hash)"
        " SELECT $1, * FROM unnest($2::text[], $3::text[], $4::integer[], $5::text[],"
        " $6::double precision[], $7::double precision[], $8::text[], $9::text[],"
        " $10::double precision[], $11::bigint[], $12::text[], $13::bigint[], $14::bytea[],"
        " $15::bytea[])",
        model_id,
        [event.client_id for event in events],
        [event.round_id for event in events],
        [event.attempt for event in events],
        [event.mechanism for event in events],
        [event.noise_multiplier for event in events],
        [event.sensitivity for event in events],
        [event.relation for event in events],
        [event.unit for event in events],
        [event.sampling_rate for event in events],
        [event.at_ms for event in events],
        [event.period for event in events],
        [row.seq for row in linked],
        [row.previous_hash for row in linked],
        [row.hash for row in linked],
    )
    await connection.execute(
        "-- debit\nUPDATE privacy_chains SET length = $2, head = $3 WHERE model_id = $1",
        model_id,
        linked[-1].seq,
        linked[-1].hash,
    )


# --- reading -----------------------------------------------------------------------------------


async def read_head(connection: Connection, model_id: ModelId) -> ChainHead:
    """Where a model's chain ends; empty where nothing was ever charged."""
    row = await connection.fetchrow(
        "-- read_head\nSELECT length, head FROM privacy_chains WHERE model_id = $1", model_id
    )
    return EMPTY if row is None else ChainHead(row["length"], row["head"])


async def read_chain(
    connection: Connection, model_id: ModelId, *, after: int = BEFORE_ALL, limit: int = CHAIN_PAGE
) -> list[ChainedEvent]:
    """A page of a chain: the rows behind the place `after`, in order."""
    rows = await connection.fetch(
        "-- read_chain\n"
        "SELECT * FROM privacy_events WHERE model_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
        model_id,
        after,
        limit,
    )
    return [build(ChainedEvent, row, event=build(LedgerEvent, row)) for row in rows]


async def list_privacy_events(
    connection: Connection, model_id: ModelId, client_id: ClientId | None = None
) -> list[LedgerEvent]:
    """The events of a model in the order they were written, of one client or of all."""
    rows = await connection.fetch(
        "-- list_privacy_events\n"
        "SELECT * FROM privacy_events WHERE model_id = $1"
        " AND ($2::text IS NULL OR client_id = $2) ORDER BY seq",
        model_id,
        client_id,
    )
    return [build(LedgerEvent, row) for row in rows]


async def list_spent(
    connection: Connection,
    model_id: ModelId | None,
    client_ids: Sequence[ClientId] | None = None,
) -> list[SpentEvents]:
    """Past events, equal ones counted together, of a model or of all, of some clients or of all."""
    rows = await connection.fetch(
        "-- list_spent\n"
        "SELECT model_id, client_id, mechanism, noise_multiplier, sensitivity, relation, unit,"
        " period, sampling_rate, count(*) AS count FROM privacy_events"
        " WHERE ($1::text IS NULL OR model_id = $1)"
        " AND ($2::text[] IS NULL OR client_id = ANY($2))"
        " GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9 ORDER BY client_id, model_id, min(seq)",
        model_id,
        None if client_ids is None else list(client_ids),
    )
    return [build(SpentEvents, row) for row in rows]
