"""Plans: what an operator declared for a model, each change a revision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import asyncpg

from boltz_mesh.storage.postgres import MODEL_LOCK_CLASS, Channel, Connection, notify
from boltz_mesh.storage.rows import build, from_json, to_json
from boltz_protocol.errors import NotFound
from boltz_protocol.ids import ModelId


@dataclass(frozen=True, slots=True)
class Plan:
    """One revision. `plan_json` is the checked plan as an object."""

    model_id: ModelId
    revision: int
    plan_json: Mapping[str, Any]
    applied_by: str
    applied_at_ms: int


def _plan(row: asyncpg.Record) -> Plan:
    return build(Plan, row, plan_json=from_json(row["plan_json"]))


async def lock_model(connection: Connection, model_id: ModelId) -> None:
    """Let one transaction at a time number what belongs to a model; ends with it."""
    await connection.execute(
        "-- lock_model\nSELECT pg_advisory_xact_lock($1, hashtext($2))", MODEL_LOCK_CLASS, model_id
    )


async def apply_plan(
    connection: Connection,
    model_id: ModelId,
    plan_json: Mapping[str, Any],
    *,
    applied_by: str,
    applied_at_ms: int,
) -> tuple[Plan, bool]:
    """Make `plan_json` the newest revision. Returns it, and whether it differs from the last one:
    to apply the same plan again changes nothing.
    """
    await lock_model(connection, model_id)
    last = await connection.fetchrow(
        "-- apply_plan\n"
        "SELECT *, plan_json = $2::jsonb AS same FROM plans WHERE model_id = $1"
        " ORDER BY revision DESC LIMIT 1",
        model_id,
        to_json(plan_json),
    )
    if last is not None and last["same"]:
        return _plan(last), False
    row = await connection.fetchrow(
        "-- apply_plan\n"
        "INSERT INTO plans (model_id, revision, plan_json, applied_by, applied_at_ms)"
        " VALUES ($1, $2, $3, $4, $5) RETURNING *",
        model_id,
        1 if last is None else last["revision"] + 1,
        to_json(plan_json),
        applied_by,
        applied_at_ms,
    )
    assert row is not None
    await notify(connection, Channel.PLAN_CHANGED, model_id)
    return _plan(row), True


async def get_plan(connection: Connection, model_id: ModelId, revision: int | None = None) -> Plan:
    """A revision, the newest by default. Raises: NotFound."""
    row = await connection.fetchrow(
        "-- get_plan\n"
        "SELECT * FROM plans WHERE model_id = $1 AND ($2::integer IS NULL OR revision = $2)"
        " ORDER BY revision DESC LIMIT 1",
        model_id,
        revision,
    )
    if row is None:
        which = "" if revision is None else f" with revision {revision}"
        raise NotFound(f"no plan for model {model_id}{which}", model_id=model_id)
    return _plan(row)
