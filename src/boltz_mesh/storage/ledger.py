"""The privacy ledger: holds of running rounds, and events that were spent.

Events state the mathematics of what happened; epsilon is computed from them elsewhere. An event
is written once for each (round, attempt, client) and never changed (the database refuses it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg

from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.rows import affected, build, from_json, to_json
from boltz_protocol.errors import StateConflict
from boltz_protocol.ids import ClientId, ModelId, RoundId


@dataclass(frozen=True, slots=True)
class Hold:
    """What a running round may still spend for one client; `event` as an object."""

    round_id: RoundId
    attempt: int
    client_id: ClientId
    model_id: ModelId
    event: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PrivacyEvent:
    """One release that one client took part in.

    `noise_multiplier` is the noise's standard deviation over `sensitivity` (L2, in the unit of the
    model's parameters); `relation` is the neighbouring relation; `unit` is what is protected;
    `sampling_rate` is the chance to be selected, 1 where there is no amplification.
    """

    model_id: ModelId
    client_id: ClientId
    round_id: RoundId
    attempt: int
    mechanism: str
    noise_multiplier: float
    sensitivity: float
    relation: str
    unit: str
    sampling_rate: float
    at_ms: int


@dataclass(frozen=True, slots=True)
class SpentEvents:
    """`count` events of one client that are alike: what an accountant composes."""

    client_id: ClientId
    mechanism: str
    noise_multiplier: float
    sensitivity: float
    relation: str
    unit: str
    sampling_rate: float
    count: int


async def place_holds(connection: Connection, holds: Sequence[Hold]) -> None:
    """Place the holds of an attempt. Raises: StateConflict when a client has one for it already."""
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
    connection: Connection, model_id: ModelId, client_ids: Sequence[ClientId] | None = None
) -> list[Hold]:
    """The holds on a model's budget, of some clients or of all."""
    rows = await connection.fetch(
        "-- list_holds\n"
        "SELECT * FROM privacy_holds WHERE model_id = $1"
        " AND ($2::text[] IS NULL OR client_id = ANY($2)) ORDER BY client_id, round_id, attempt",
        model_id,
        None if client_ids is None else list(client_ids),
    )
    return [build(Hold, row, event=from_json(row["event"])) for row in rows]


async def release_holds(
    connection: Connection, round_id: RoundId, attempt: int | None = None
) -> int:
    """Take back the holds of a round, of one attempt or of all. Returns how many."""
    status = await connection.execute(
        "-- release_holds\n"
        "DELETE FROM privacy_holds WHERE round_id = $1 AND ($2::integer IS NULL OR attempt = $2)",
        round_id,
        attempt,
    )
    return affected(status)


async def debit(connection: Connection, events: Sequence[PrivacyEvent]) -> int:
    """Write what is being spent; the holds for it end. Returns how many events were new.

    Idempotent: for a (round, attempt, client) that is charged already nothing happens.
    """
    status = await connection.execute(
        "-- debit\n"
        "INSERT INTO privacy_events (model_id, client_id, round_id, attempt, mechanism,"
        " noise_multiplier, sensitivity, relation, unit, sampling_rate, at_ms)"
        " SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::text[],"
        " $6::double precision[], $7::double precision[], $8::text[], $9::text[],"
        " $10::double precision[], $11::bigint[])"
        " ON CONFLICT (round_id, attempt, client_id) DO NOTHING",
        [event.model_id for event in events],
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
    )
    await connection.execute(
        "-- debit\n"
        "DELETE FROM privacy_holds h USING unnest($1::text[], $2::integer[], $3::text[])"
        " AS e (round_id, attempt, client_id) WHERE h.round_id = e.round_id"
        " AND h.attempt = e.attempt AND h.client_id = e.client_id",
        [event.round_id for event in events],
        [event.attempt for event in events],
        [event.client_id for event in events],
    )
    return affected(status)


async def list_privacy_events(
    connection: Connection, model_id: ModelId, client_id: ClientId | None = None
) -> list[PrivacyEvent]:
    """The events of a model in the order they were written, of one client or of all."""
    rows = await connection.fetch(
        "-- list_privacy_events\n"
        "SELECT * FROM privacy_events WHERE model_id = $1"
        " AND ($2::text IS NULL OR client_id = $2) ORDER BY id",
        model_id,
        client_id,
    )
    return [build(PrivacyEvent, row) for row in rows]


async def list_spent(
    connection: Connection, model_id: ModelId, client_ids: Sequence[ClientId] | None = None
) -> list[SpentEvents]:
    """Past events, equal ones counted together, of some clients or of all."""
    rows = await connection.fetch(
        "-- list_spent\n"
        "SELECT client_id, mechanism, noise_multiplier, sensitivity, relation, unit,"
        " sampling_rate, count(*) AS count FROM privacy_events WHERE model_id = $1"
        " AND ($2::text[] IS NULL OR client_id = ANY($2))"
        " GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY client_id, min(id)",
        model_id,
        None if client_ids is None else list(client_ids),
    )
    return [build(SpentEvents, row) for row in rows]
