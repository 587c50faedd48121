"""Enrolled clients. What names a person or a firm is in `client_personal` alone."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from boltz_mesh.storage.postgres import Channel, Connection, notify
from boltz_mesh.storage.rows import affected, build
from boltz_protocol.errors import AlreadyExists, NotFound, StateConflict
from boltz_protocol.ids import ClientId, KeyId


class ClientStatus(enum.StrEnum):
    """Where a client stands. Only an active one may take part; a revoked one never comes back."""

    PENDING = "pending"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    REVOKED = "revoked"


_ALLOWED: Final = {
    ClientStatus.PENDING: {ClientStatus.ACTIVE, ClientStatus.REVOKED},
    ClientStatus.ACTIVE: {ClientStatus.SUSPENDED, ClientStatus.REVOKED},
    ClientStatus.SUSPENDED: {ClientStatus.ACTIVE, ClientStatus.REVOKED},
    ClientStatus.REVOKED: set[ClientStatus](),
}


@dataclass(frozen=True, slots=True)
class Certificate:
    """A client's certificate: PEM chain (leaf first), SHA-256 of the leaf's DER, its end."""

    chain: bytes = field(repr=False)
    fingerprint: bytes
    not_after_ms: int


@dataclass(frozen=True, slots=True)
class Personal:
    """The erasable part. Never logged."""

    display_name: str = field(repr=False)
    organisation: str = field(repr=False)
    contact: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class NewClient:
    """What enrolment knows. `request_key_hash` makes a repeated enrolment find the same row."""

    client_id: ClientId
    status: ClientStatus
    region: str
    public_key_spki: bytes = field(repr=False)
    key_id: KeyId
    request_key_hash: bytes = field(repr=False)
    enrolled_at_ms: int
    enrolled_by: str
    personal: Personal
    certificate: Certificate | None = None


@dataclass(frozen=True, slots=True)
class Client:
    """One row of `federated_clients`."""

    client_id: ClientId
    status: ClientStatus
    region: str
    public_key_spki: bytes = field(repr=False)
    key_id: KeyId
    certificate_chain: bytes | None = field(repr=False)
    certificate_fingerprint: bytes | None
    certificate_not_after_ms: int | None
    request_key_hash: bytes = field(repr=False)
    enrolled_at_ms: int
    status_at_ms: int
    status_by: str
    status_reason: str
    processing_restricted: bool


def _client(row: asyncpg.Record) -> Client:
    return build(Client, row, status=ClientStatus(row["status"]))


def _found(row: asyncpg.Record | None, client_id: str) -> Client:
    if row is None:
        raise NotFound(f"no client {client_id}", client_id=client_id)
    return _client(row)


async def insert_client(connection: Connection, new: NewClient) -> Client:
    """Add a client. Raises: AlreadyExists for a known id, key or enrolment request."""
    certificate = new.certificate
    try:
        row = await connection.fetchrow(
            "-- insert_client\n"
            "INSERT INTO federated_clients (client_id, status, region, public_key_spki, key_id,"
            " certificate_chain, certificate_fingerprint, certificate_not_after_ms,"
            " request_key_hash, enrolled_at_ms, status_at_ms, status_by)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10, $11) RETURNING *",
            new.client_id,
            new.status.value,
            new.region,
            new.public_key_spki,
            new.key_id,
            None if certificate is None else certificate.chain,
            None if certificate is None else certificate.fingerprint,
            None if certificate is None else certificate.not_after_ms,
            new.request_key_hash,
            new.enrolled_at_ms,
            new.enrolled_by,
        )
    except asyncpg.UniqueViolationError as error:
        raise AlreadyExists(
            "this client id, key or enrolment request is registered already",
            client_id=new.client_id,
        ) from error
    await connection.execute(
        "-- insert_client\n"
        "INSERT INTO client_personal (client_id, display_name, organisation, contact)"
        " VALUES ($1, $2, $3, $4)",
        new.client_id,
        new.personal.display_name,
        new.personal.organisation,
        new.personal.contact,
    )
    return _found(row, new.client_id)


async def get_client(connection: Connection, client_id: ClientId) -> Client:
    """One client. Raises: NotFound."""
    row = await connection.fetchrow(
        "-- get_client\nSELECT * FROM federated_clients WHERE client_id = $1", client_id
    )
    return _found(row, client_id)


async def get_client_status(connection: Connection, client_id: ClientId) -> ClientStatus:
    """A client's status alone: asked at every call. Raises: NotFound."""
    status = await connection.fetchval(
        "-- get_client_status\nSELECT status FROM federated_clients WHERE client_id = $1", client_id
    )
    if status is None:
        raise NotFound(f"no client {client_id}", client_id=client_id)
    return ClientStatus(status)


async def get_clients(connection: Connection, client_ids: list[ClientId]) -> list[Client]:
    """Those of `client_ids` that exist, by id."""
    rows = await connection.fetch(
        "-- get_clients\n"
        "SELECT * FROM federated_clients WHERE client_id = ANY($1::text[]) ORDER BY client_id",
        client_ids,
    )
    return [_client(row) for row in rows]


async def find_client_by_request(connection: Connection, request_key_hash: bytes) -> Client | None:
    """The client that an enrolment request made earlier, if it did."""
    row = await connection.fetchrow(
        "-- find_client_by_request\nSELECT * FROM federated_clients WHERE request_key_hash = $1",
        request_key_hash,
    )
    return None if row is None else _client(row)


async def list_clients(
    connection: Connection, *, limit: int, status: ClientStatus | None = None, after: str = ""
) -> list[Client]:
    """A page of clients by id, behind the id `after`, of one status or of all."""
    rows = await connection.fetch(
        "-- list_clients\n"
        "SELECT * FROM federated_clients WHERE client_id > $1 AND ($2::text IS NULL OR status = $2)"
        " ORDER BY client_id LIMIT $3",
        after,
        None if status is None else status.value,
        limit,
    )
    return [_client(row) for row in rows]


async def list_client_ids(connection: Connection, *, status: ClientStatus) -> list[ClientId]:
    """The ids of all clients of one status."""
    rows = await connection.fetch(
        "-- list_client_ids\nSELECT client_id FROM federated_clients WHERE status = $1",
        status.value,
    )
    return [ClientId(row["client_id"]) for row in rows]


async def set_client_status(
    connection: Connection,
    client_id: ClientId,
    status: ClientStatus,
    *,
    at_ms: int,
    by: str,
    reason: str = "",
    only_from: ClientStatus | None = None,
) -> Client:
    """Move a client to `status` and tell all replicas; to be there already is no error.

    Raises: NotFound; StateConflict for a move that is not allowed, or from another status than
    `only_from` where one is given.
    """
    row = await connection.fetchrow(
        "-- set_client_status\nSELECT * FROM federated_clients WHERE client_id = $1 FOR UPDATE",
        client_id,
    )
    client = _found(row, client_id)
    if client.status is status:
        return client
    if status not in _ALLOWED[client.status] or only_from not in (None, client.status):
        raise StateConflict(
            f"a {client.status} client cannot become {status}",
            client_id=client_id,
            client_status=client.status,
        )
    row = await connection.fetchrow(
        "-- set_client_status\n"
        "UPDATE federated_clients SET status = $2, status_at_ms = $3, status_by = $4,"
        " status_reason = $5 WHERE client_id = $1 RETURNING *",
        client_id,
        status.value,
        at_ms,
        by,
        reason,
    )
    await notify(connection, Channel.CLIENT_CHANGED, client_id)
    return _found(row, client_id)


async def set_client_certificate(
    connection: Connection, client_id: ClientId, certificate: Certificate
) -> Client:
    """Put a new certificate in place of the old one. Raises: NotFound."""
    row = await connection.fetchrow(
        "-- set_client_certificate\n"
        "UPDATE federated_clients SET certificate_chain = $2, certificate_fingerprint = $3,"
        " certificate_not_after_ms = $4 WHERE client_id = $1 RETURNING *",
        client_id,
        certificate.chain,
        certificate.fingerprint,
        certificate.not_after_ms,
    )
    client = _found(row, client_id)
    await notify(connection, Channel.CLIENT_CHANGED, client_id)
    return client


async def set_processing_restricted(
    connection: Connection, client_id: ClientId, restricted: bool
) -> Client:
    """Restrict processing (GDPR article 18), or lift the restriction. Raises: NotFound."""
    row = await connection.fetchrow(
        "-- set_processing_restricted\n"
        "UPDATE federated_clients SET processing_restricted = $2 WHERE client_id = $1 RETURNING *",
        client_id,
        restricted,
    )
    client = _found(row, client_id)
    await notify(connection, Channel.CLIENT_CHANGED, client_id)
    return client


async def get_personals(
    connection: Connection, client_ids: list[ClientId]
) -> dict[ClientId, Personal]:
    """Personal data for a page of clients; erased ones are missing."""
    rows = await connection.fetch(
        "-- get_personals\nSELECT * FROM client_personal WHERE client_id = ANY($1::text[])",
        client_ids,
    )
    return {ClientId(row["client_id"]): build(Personal, row) for row in rows}


async def erase_personal(connection: Connection, client_id: ClientId) -> bool:
    """Delete a client's personal data. Returns whether there was any."""
    status = await connection.execute(
        "-- erase_personal\nDELETE FROM client_personal WHERE client_id = $1", client_id
    )
    return affected(status) == 1
