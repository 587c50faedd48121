"""Model versions: candidates until promoted; at most one version of a model is live."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from boltz_mesh.storage.plans import lock_model
from boltz_mesh.storage.postgres import Channel, Connection, notify
from boltz_mesh.storage.rows import build, from_json, to_json
from boltz_protocol.errors import AlreadyExists, NotFound, StateConflict
from boltz_protocol.ids import KeyId, ModelId, RoundId


class ModelState(enum.StrEnum):
    """Where a version stands. A retired one was live before and may be promoted again."""

    CANDIDATE = "candidate"
    PROMOTED = "promoted"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A ciphertext at rest: SHA-256 of the plain bytes and of the stored ones, wrapped key."""

    digest: bytes
    blob_digest: bytes
    wrapped_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewModelVersion:
    """A version to be added as a candidate. `manifest` is a serialized SignedStatement."""

    model_id: ModelId
    version: int
    parent_version: int | None
    round_id: RoundId | None
    weights: StoredBlob
    size_bytes: int
    kek_id: KeyId
    manifest: bytes = field(repr=False)
    optimizer: StoredBlob | None
    metrics: Mapping[str, Any]
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One row of `federated_models`. The keys of weights and optimizer are wrapped by `kek_id`."""

    model_id: ModelId
    version: int
    state: ModelState
    parent_version: int | None
    round_id: RoundId | None
    weights: StoredBlob
    size_bytes: int
    kek_id: KeyId
    manifest: bytes = field(repr=False)
    optimizer: StoredBlob | None
    metrics: Mapping[str, Any]
    created_at_ms: int
    promoted_at_ms: int | None
    promoted_by: str | None


def _version(row: asyncpg.Record) -> ModelVersion:
    optimizer = None
    if row["optimizer_digest"] is not None:
        optimizer = StoredBlob(
            row["optimizer_digest"], row["optimizer_blob_digest"], row["optimizer_wrapped_key"]
        )
    return build(
        ModelVersion,
        row,
        state=ModelState(row["state"]),
        weights=StoredBlob(row["digest"], row["blob_digest"], row["wrapped_key"]),
        optimizer=optimizer,
        metrics=from_json(row["metrics"]),
    )


async def next_model_version(connection: Connection, model_id: ModelId) -> int:
    """The number for the next version. Keeps others waiting until this transaction ends."""
    await lock_model(connection, model_id)
    number = await connection.fetchval(
        "-- next_model_version\n"
        "SELECT COALESCE(max(version), 0) + 1 FROM federated_models WHERE model_id = $1",
        model_id,
    )
    return int(number)


async def insert_model_version(connection: Connection, new: NewModelVersion) -> ModelVersion:
    """Add a candidate. Raises: AlreadyExists when the number, or a version of this round, is there
    (a publication that is repeated asks `find_model_of_round` first).
    """
    optimizer = new.optimizer
    try:
        row = await connection.fetchrow(
            "-- insert_model_version\n"
            "INSERT INTO federated_models (model_id, version, state, parent_version, round_id,"
            " digest, size_bytes, blob_digest, wrapped_key, kek_id, manifest, optimizer_digest,"
            " optimizer_blob_digest, optimizer_wrapped_key, metrics, created_at_ms)"
            " VALUES ($1, $2, 'candidate', $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,"
            " $15) RETURNING *",
            new.model_id,
            new.version,
            new.parent_version,
            new.round_id,
            new.weights.digest,
            new.size_bytes,
            new.weights.blob_digest,
            new.weights.wrapped_key,
            new.kek_id,
            new.manifest,
            None if optimizer is None else optimizer.digest,
            None if optimizer is None else optimizer.blob_digest,
            None if optimizer is None else optimizer.wrapped_key,
            to_json(new.metrics),
            new.created_at_ms,
        )
    except asyncpg.UniqueViolationError as error:
        raise AlreadyExists(
            f"model {new.model_id} has version {new.version} already, or its round has published",
            model_id=new.model_id,
            version=new.version,
        ) from error
    assert row is not None
    await notify(connection, Channel.MODEL_CHANGED, new.model_id)
    return _version(row)


async def get_model_version(
    connection: Connection, model_id: ModelId, version: int
) -> ModelVersion:
    """One version. Raises: NotFound."""
    row = await connection.fetchrow(
        "-- get_model_version\nSELECT * FROM federated_models WHERE model_id = $1 AND version = $2",
        model_id,
        version,
    )
    return _found(row, model_id, version)


def _found(row: asyncpg.Record | None, model_id: str, version: int) -> ModelVersion:
    if row is None:
        raise NotFound(
            f"model {model_id} has no version {version}", model_id=model_id, version=version
        )
    return _version(row)


async def find_promoted(connection: Connection, model_id: ModelId) -> ModelVersion | None:
    """The live version, if one was ever promoted."""
    row = await connection.fetchrow(
        "-- find_promoted\n"
        "SELECT * FROM federated_models WHERE model_id = $1 AND state = 'promoted'",
        model_id,
    )
    return None if row is None else _version(row)


async def find_latest(connection: Connection, model_id: ModelId) -> ModelVersion | None:
    """The version with the highest number, whatever its state."""
    row = await connection.fetchrow(
        "-- find_latest\n"
        "SELECT * FROM federated_models WHERE model_id = $1 ORDER BY version DESC LIMIT 1",
        model_id,
    )
    return None if row is None else _version(row)


async def find_model_of_round(connection: Connection, round_id: RoundId) -> ModelVersion | None:
    """The version that a round made, if it has."""
    row = await connection.fetchrow(
        "-- find_model_of_round\nSELECT * FROM federated_models WHERE round_id = $1", round_id
    )
    return None if row is None else _version(row)


async def list_model_versions(
    connection: Connection, model_id: ModelId, *, limit: int, before: int | None = None
) -> list[ModelVersion]:
    """A page of versions, newest first, below the number `before`."""
    rows = await connection.fetch(
        "-- list_model_versions\n"
        "SELECT * FROM federated_models WHERE model_id = $1"
        " AND ($2::integer IS NULL OR version < $2) ORDER BY version DESC LIMIT $3",
        model_id,
        before,
        limit,
    )
    return [_version(row) for row in rows]


async def list_newest_versions(
    connection: Connection, *, limit: int, after: str = ""
) -> list[ModelVersion]:
    """A page of models, each with its newest version, by model id, behind the id `after`."""
    rows = await connection.fetch(
        "-- list_newest_versions\n"
        "SELECT DISTINCT ON (model_id) * FROM federated_models WHERE model_id > $1"
        " ORDER BY model_id, version DESC LIMIT $2",
        after,
        limit,
    )
    return [_version(row) for row in rows]


async def promote_model(
    connection: Connection, model_id: ModelId, version: int, *, by: str, at_ms: int
) -> ModelVersion:
    """Make a candidate the live version; the one before it is retired. Again: no change.

    Raises: NotFound; StateConflict for a retired version (`rollback_model` brings that back).
    """
    expected = ModelState.CANDIDATE
    return await _make_live(connection, model_id, version, expected=expected, by=by, at_ms=at_ms)


async def rollback_model(
    connection: Connection, model_id: ModelId, version: int, *, by: str, at_ms: int
) -> ModelVersion:
    """Make a version live that was live before; the present one is retired. Again: no change.

    Raises: NotFound; StateConflict for a version that never was live.
    """
    expected = ModelState.RETIRED
    return await _make_live(connection, model_id, version, expected=expected, by=by, at_ms=at_ms)


async def _make_live(
    connection: Connection,
    model_id: ModelId,
    version: int,
    *,
    expected: ModelState,
    by: str,
    at_ms: int,
) -> ModelVersion:
    await lock_model(connection, model_id)
    found = await get_model_version(connection, model_id, version)
    if found.state is ModelState.PROMOTED:
        return found
    if found.state is not expected:
        raise StateConflict(
            f"version {version} of model {model_id} is {found.state}, not {expected}",
            model_id=model_id,
            version=version,
            model_state=found.state,
        )
    await connection.execute(
        "-- make_live\n"
        "UPDATE federated_models SET state = 'retired' WHERE model_id = $1 AND state = 'promoted'",
        model_id,
    )
    row = await connection.fetchrow(
        "-- make_live\n"
        "UPDATE federated_models SET state = 'promoted', promoted_at_ms = $3, promoted_by = $4"
        " WHERE model_id = $1 AND version = $2 RETURNING *",
        model_id,
        version,
        at_ms,
        by,
    )
    await notify(connection, Channel.MODEL_CHANGED, model_id)
    return _found(row, model_id, version)
