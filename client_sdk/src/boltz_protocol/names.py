"""URI names in certificates: who a peer is comes from this name alone.

`spiffe://<mesh>/<role>/<name>` with exactly these parts (SPIFFE-ID, section 2): no port, user,
query, fragment, escape or further segment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from boltz_protocol.errors import MalformedMessage
from boltz_protocol.ids import parse_client_id, parse_key_id, parse_name

_URI: Final = re.compile(r"spiffe://([^/]+)/([^/]+)/([^/]+)", re.ASCII)
# Scheme, three names of 63 and the slashes between them.
_MAX_URI_CHARS: Final = 9 + 3 * 63 + 2


class Role(StrEnum):
    """What a certificate was issued for."""

    CLIENT = "client"
    OPERATOR = "operator"
    AUDITOR = "auditor"
    SERVER = "server"
    STATEMENT = "statement"


@dataclass(frozen=True, slots=True)
class Peer:
    """A name of this mesh.

    Attributes:
        mesh: the mesh's name.
        name: a client id, an operator's or auditor's or replica's name, or a statement key's id.

    Raises:
        MalformedMessage: a part does not have its form.
    """

    mesh: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        parse_name("mesh", self.mesh)
        if self.role is Role.CLIENT:
            parse_client_id(self.name)
        elif self.role is Role.STATEMENT:
            parse_key_id(self.name)
        else:
            parse_name(self.role.value, self.name)

    @property
    def uri(self) -> str:
        """`spiffe://<mesh>/<role>/<name>`."""
        return f"spiffe://{self.mesh}/{self.role}/{self.name}"


def parse_peer_uri(uri: str) -> Peer:
    """Parse a certificate's URI name.

    Raises:
        MalformedMessage: anything but exactly the form above.
    """
    found = _URI.fullmatch(uri) if len(uri) <= _MAX_URI_CHARS else None
    if found is None:
        raise MalformedMessage(f"{uri[:80]!r} is not of the form spiffe://<mesh>/<role>/<name>")
    mesh, role_text, name = found.groups()
    try:
        role = Role(role_text)
    except ValueError as error:
        raise MalformedMessage(f"{role_text[:40]!r} is not a role of a mesh") from error
    return Peer(mesh, role, name)
