"""Which mesh a client belongs to and who it is there: the content of a key store's `mesh.json`."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import Final

from boltz_protocol.errors import MalformedMessage
from boltz_protocol.ids import ClientId, parse_client_id, parse_name
from boltz_protocol.join import JoinString, check_address, check_fingerprint

_FORMAT: Final = 1
_REQUEST_KEY: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class MeshIdentity:
    """Which mesh a key store belongs to, and who this client is there.

    Attributes:
        mesh: the mesh's name.
        enroll_address: `host:port` of the port that asks for no client certificate.
        mesh_address: `host:port` of everything else.
        authority_fingerprint: SHA-256 of the root certificate's DER, 64 hex digits.
        request_key: 64 hex digits; sent with the enrolment, so that a retry is recognised.
        client_id: None until enrolled.
    """

    mesh: str
    enroll_address: str
    mesh_address: str
    authority_fingerprint: str
    request_key: str
    client_id: ClientId | None = None

    def encode(self) -> bytes:
        """The content of `mesh.json`."""
        fields = {"format": _FORMAT} | {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields, indent=2).encode() + b"\n"


def new_mesh_identity(join: JoinString) -> MeshIdentity:
    """From a join string, with a fresh request key; the token is left behind."""
    return MeshIdentity(
        mesh=join.mesh,
        enroll_address=join.enroll_address,
        mesh_address=join.mesh_address,
        authority_fingerprint=join.authority_fingerprint,
        request_key=secrets.token_hex(32),
    )


def parse_mesh_identity(content: bytes) -> MeshIdentity:
    """Parse and check `mesh.json`.

    Raises:
        MalformedMessage: not JSON, of another format, a field too many or too few, or one that
            does not have its form.
    """
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise MalformedMessage("it is not JSON") from error
    if not isinstance(fields, dict) or fields.pop("format", None) != _FORMAT:
        raise MalformedMessage("its format is not one that this version can read")
    if fields.keys() != set(MeshIdentity.__slots__):
        raise MalformedMessage("it has a field too many or too few")
    for name, value in fields.items():
        if not isinstance(value, str) and not (name == "client_id" and value is None):
            raise MalformedMessage(f"{name} is not a text")
    identity = MeshIdentity(**fields)
    parse_name("mesh", identity.mesh)
    check_address(identity.enroll_address)
    check_address(identity.mesh_address)
    check_fingerprint(identity.authority_fingerprint)
    if identity.client_id is not None:
        parse_client_id(identity.client_id)
    if _REQUEST_KEY.fullmatch(identity.request_key) is None:
        raise MalformedMessage("request_key has another form")
    return identity
