"""One-time enrolment tokens. The database holds SHA-256 hashes: it cannot enrol anybody."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

import asyncpg

from boltz_mesh.storage.postgres import Connection
from boltz_mesh.storage.rows import affected, build
from boltz_protocol.errors import AlreadyExists, TokenRefused
from boltz_protocol.ids import ClientId


class Role(enum.StrEnum):
    """What a token's bearer becomes."""

    CLIENT = "client"
    OPERATOR = "operator"
    AUDITOR = "auditor"


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token to be handed out. `subject` is the operator's or auditor's name; None for clients."""

    token_hash: bytes = field(repr=False)
    role: Role
    requires_approval: bool
    created_by: str
    created_at_ms: int
    expires_at_ms: int
    subject: str | None = None
    client_id: ClientId | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """One row of `enrollment_tokens`."""

    token_hash: bytes = field(repr=False)
    role: Role
    subject: str | None
    client_id: ClientId | None
    requires_approval: bool
    created_by: str
    created_at_ms: int
    expires_at_ms: int
    used_at_ms: int | None
    request_key_hash: bytes | None = field(repr=False)


def _token(row: asyncpg.Record) -> Token:
    return build(Token, row, role=Role(row["role"]))


async def insert_token(connection: Connection, new: NewToken) -> None:
    """Add a token. Raises: AlreadyExists."""
    try:
        await connection.execute(
            "-- insert_token\n"
            "INSERT INTO enrollment_tokens (token_hash, role, subject, client_id,"
            " requires_approval, created_by, created_at_ms, expires_at_ms)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            new.token_hash,
            new.role.value,
            new.subject,
            new.client_id,
            new.requires_approval,
            new.created_by,
            new.created_at_ms,
            new.expires_at_ms,
        )
    except asyncpg.UniqueViolationError as error:
        raise AlreadyExists("this token exists already") from error


async def redeem_token(
    connection: Connection,
    token_hash: bytes,
    *,
    request_key_hash: bytes,
    new_client_id: ClientId | None,
    now_ms: int,
) -> Token:
    """Use a token once; the same request may use it again, whose first reply was lost.

    A client's token is bound to `new_client_id` unless it was bound before; the token that comes
    back holds the id that counts. The expiry is for the first use. To refuse afterwards for a
    reason of one's own (approval pending), commit first, or the token is unused again.

    Raises: TokenRefused when it is unknown, past its end, or was used by another request; which
    of these is not told to the caller of the service.
    """
    row = await connection.fetchrow(
        "-- redeem_token\nSELECT * FROM enrollment_tokens WHERE token_hash = $1 FOR UPDATE",
        token_hash,
    )
    if row is None:
        raise TokenRefused("the enrolment token is unknown, used or past its end")
    token = _token(row)
    if token.used_at_ms is not None:
        if token.request_key_hash != request_key_hash:
            raise TokenRefused("the enrolment token is unknown, used or past its end")
        return token
    if now_ms >= token.expires_at_ms:
        raise TokenRefused("the enrolment token is unknown, used or past its end")
    row = await connection.fetchrow(
        "-- redeem_token\n"
        "UPDATE enrollment_tokens SET used_at_ms = $2, request_key_hash = $3,"
        " client_id = COALESCE(client_id, $4) WHERE token_hash = $1 RETURNING *",
        token_hash,
        now_ms,
        request_key_hash,
        new_client_id,
    )
    assert row is not None  # we hold its lock
    return _token(row)


async def prune_tokens(connection: Connection, *, expired_before_ms: int) -> int:
    """Delete tokens whose end is long past. Returns how many."""
    status = await connection.execute(
        "-- prune_tokens\nDELETE FROM enrollment_tokens WHERE expires_at_ms < $1",
        expired_before_ms,
    )
    return affected(status)
