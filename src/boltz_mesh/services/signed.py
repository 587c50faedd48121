"""Statements of clients, verified under the key they enrolled with."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from boltz_mesh.storage import clients
from boltz_mesh.storage.postgres import Connection
from boltz_protocol.ids import ClientId
from boltz_protocol.keys import load_rsa_public_key
from boltz_protocol.statement import CLIENT_ALGORITHMS, Statement, verify


async def client_key(connection: Connection, client_id: ClientId) -> RSAPublicKey:
    """The key that a client signs with. Raises: NotFound (no such client)."""
    client = await clients.get_client(connection, client_id)
    return load_rsa_public_key(client.public_key_spki)


def signed_payload(public_key: RSAPublicKey, statement: Statement, expected_type: str) -> bytes:
    """The payload of what a client signed. Raises: SignatureInvalid, MalformedMessage."""
    return verify(
        statement,
        expected_type=expected_type,
        public_key=public_key,
        allowed_algorithms=CLIENT_ALGORITHMS,
    )
