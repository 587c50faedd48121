"""The mesh's own keys: encryption keys for updates, statement keys, key-encryption keys.

Private parts are stored wrapped, and are gone for good once destroyed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import asyncpg

from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.rows import build
from boltz_protocol.errors import AlreadyExists, UnknownKey
from boltz_protocol.ids import KeyId


class ServerKeyKind(enum.StrEnum):
    """What a key is for."""

    ENCRYPTION = "encryption"
    STATEMENT = "statement"
    KEK = "kek"


@dataclass(frozen=True, slots=True)
class ServerKey:
    """One row of `server_keys`.

    `public` is None for symmetric keys; `wrapped_private` is None once destroyed; `kek_id` names
    what wraps it (None: the mesh's root secret); `statement` announces it (serialized
    SignedStatement); `certificate` is the root's, for statement keys.
    """

    key_id: KeyId
    kind: ServerKeyKind
    algorithm: str
    public: bytes | None = field(repr=False)
    wrapped_private: bytes | None = field(repr=False)
    kek_id: KeyId | None
    statement: bytes | None = field(repr=False)
    certificate: bytes | None = field(repr=False)
    not_before_ms: int
    not_after_ms: int
    destroyed_at_ms: int | None = None


def _key(row: asyncpg.Record) -> ServerKey:
    return build(ServerKey, row, kind=ServerKeyKind(row["kind"]))


async def insert_server_key(connection: Connection, key: ServerKey) -> None:
    """Add a key. Raises: AlreadyExists."""
    try:
        await connection.execute(
            "-- insert_server_key\n"
            "INSERT INTO server_keys (key_id, kind, algorithm, public, wrapped_private, kek_id,"
            " statement, certificate, not_before_ms, not_after_ms)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            key.key_id,
            key.kind.value,
            key.algorithm,
            key.public,
            key.wrapped_private,
            key.kek_id,
            key.statement,
            key.certificate,
            key.not_before_ms,
            key.not_after_ms,
        )
    except asyncpg.UniqueViolationError as error:
        raise AlreadyExists(f"key {key.key_id} exists already", key_id=key.key_id) from error


async def get_server_key(connection: Connection, key_id: KeyId) -> ServerKey:
    """One key, whatever its validity. Raises: UnknownKey."""
    row = await connection.fetchrow(
        "-- get_server_key\nSELECT * FROM server_keys WHERE key_id = $1", key_id
    )
    if row is None:
        raise UnknownKey(f"no server key {key_id}", key_id=key_id)
    return _key(row)


async def valid_server_keys(
    connection: Connection, kind: ServerKeyKind, now_ms: int
) -> list[ServerKey]:
    """The keys of a kind that are valid now and not destroyed; the one that lasts longest first."""
    rows = await connection.fetch(
        "-- valid_server_keys\n"
        "SELECT * FROM server_keys WHERE kind = $1 AND not_before_ms <= $2 AND $2 < not_after_ms"
        " AND destroyed_at_ms IS NULL ORDER BY not_after_ms DESC, key_id",
        kind.value,
        now_ms,
    )
    return [_key(row) for row in rows]


async def destroy_server_key(connection: Connection, key_id: KeyId, at_ms: int) -> bool:
    """Forget a key's private part. Returns whether it was still there."""
    found = await connection.fetchval(
        "-- destroy_server_key\n"
        "UPDATE server_keys SET wrapped_private = NULL, destroyed_at_ms = $2"
        " WHERE key_id = $1 AND destroyed_at_ms IS NULL RETURNING key_id",
        key_id,
        at_ms,
    )
    return found is not None


async def destroy_expired_server_keys(
    connection: Connection, kind: ServerKeyKind, now_ms: int
) -> list[KeyId]:
    """Forget the private parts of a kind's keys whose end has passed. Returns their ids."""
    rows = await connection.fetch(
        "-- destroy_expired_server_keys\n"
        "UPDATE server_keys SET wrapped_private = NULL, destroyed_at_ms = $2"
        " WHERE kind = $1 AND not_after_ms <= $2 AND destroyed_at_ms IS NULL RETURNING key_id",
        kind.value,
        now_ms,
    )
    return [KeyId(row["key_id"]) for row in rows]
