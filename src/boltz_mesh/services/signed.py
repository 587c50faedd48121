"""Statements of clients, verified under the key they enrolled with."""

from __future__ import annotations

from boltz_mesh.storage import clients
from boltz_mesh.storage.postgres import Connection
from boltz_protocol.ids import ClientId
from boltz_protocol.keys import load_rsa_public_key
from boltz_protocol.statement import CLIENT_ALGORITHMS, Statement, verify


async def verified_payload(
    connection: Connection, client_id: ClientId, statement: Statement, expected_type: str
) -> bytes:
    """The payload of what a client signed.

    Raises: NotFound (no such client), SignatureInvalid, MalformedMessage.
    """
    client = await clients.get_client(connection, client_id)
    return verify(
        statement,
        expected_type=expected_type,
        public_key=load_rsa_public_key(client.public_key_spki),
        allowed_algorithms=CLIENT_ALGORITHMS,
    )
