"""What a ciphertext is bound to: its context goes into the derivation of its keys.

An encoding is a label and then the fields in the order of the class, each as `u32be(len) || bytes`
(`framing.length_prefixed`): texts in UTF-8, numbers as 4 bytes big-endian, digests raw. Two
contexts that differ anywhere give unrelated keys, so a chunk cannot be moved between them.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final, Protocol

from boltz_protocol import limits
from boltz_protocol.errors import MalformedMessage
from boltz_protocol.framing import length_prefixed
from boltz_protocol.ids import (
    ClientId,
    KeyId,
    RoundId,
    SessionId,
    parse_client_id,
    parse_key_id,
    parse_name,
    parse_round_id,
    parse_session_id,
)

_UPDATE_LABEL: Final = b"boltz-mesh update context v1\0"
_BLOB_LABEL: Final = b"boltz-mesh blob context v1\0"
_DIGEST_BYTES: Final = 32
_MAX_BLOB_IDS: Final = 8


class EnvelopeContext(Protocol):
    """Anything a ciphertext can be bound to."""

    def encode(self) -> bytes:
        """The unambiguous encoding; starts with a label that no other context type uses."""
        ...


def context_hash(context: EnvelopeContext) -> bytes:
    """SHA-256 (32 bytes) of the context's encoding."""
    return hashlib.sha256(context.encode()).digest()


@dataclass(frozen=True, slots=True)
class UpdateContext:
    """Binds an update to one attempt of one round, one client's session and one recipient key.

    Attributes:
        mesh: the mesh's name.
        attempt: 1 to MAX_ATTEMPTS.
        recipient_key_id: the server's encryption key (`keys.public_key_id`).
        model_digest: SHA-256 of the base version's file.
        config_digest: SHA-256 of the round's signed configuration statement.

    Raises:
        MalformedMessage: a field does not have its form.
    """

    mesh: str
    round_id: RoundId
    attempt: int
    client_id: ClientId
    session_id: SessionId
    recipient_key_id: KeyId
    model_digest: bytes
    config_digest: bytes

    def __post_init__(self) -> None:
        parse_name("mesh", self.mesh)
        parse_round_id(self.round_id)
        parse_client_id(self.client_id)
        parse_session_id(self.session_id)
        parse_key_id(self.recipient_key_id)
        if not 1 <= self.attempt <= limits.MAX_ATTEMPTS:
            raise MalformedMessage(f"attempt {self.attempt} is not in 1 to {limits.MAX_ATTEMPTS}")
        for name, value in (("model", self.model_digest), ("config", self.config_digest)):
            if len(value) != _DIGEST_BYTES:
                raise MalformedMessage(f"{name}_digest has {len(value)} bytes, not 32")

    def encode(self) -> bytes:
        """Label and fields, see the head of this module."""
        return _UPDATE_LABEL + length_prefixed(
            self.mesh.encode(),
            self.round_id.encode(),
            struct.pack(">I", self.attempt),
            self.client_id.encode(),
            self.session_id.encode(),
            self.recipient_key_id.encode(),
            self.model_digest,
            self.config_digest,
        )


@dataclass(frozen=True, slots=True)
class BlobContext:
    """Binds a blob or a secret at rest to what it is.

    Attributes:
        mesh: the mesh's name.
        kind: for example `model`, `optimizer-state`, `server-key`.
        ids: what names this one of its kind, for example model id and version.

    Raises:
        MalformedMessage: a field does not have its form.
    """

    mesh: str
    kind: str
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        parse_name("mesh", self.mesh)
        parse_name("blob_kind", self.kind)
        if not 1 <= len(self.ids) <= _MAX_BLOB_IDS:
            raise MalformedMessage(f"{len(self.ids)} blob ids; 1 to {_MAX_BLOB_IDS} are allowed")
        for part in self.ids:
            if not 1 <= len(part) <= limits.MAX_NAME_CHARS:
                raise MalformedMessage(
                    f"a blob id has {len(part)} characters; "
                    f"1 to {limits.MAX_NAME_CHARS} are allowed"
                )

    def encode(self) -> bytes:
        """Label and fields, see the head of this module; the number of ids precedes them."""
        return _BLOB_LABEL + length_prefixed(
            self.mesh.encode(),
            self.kind.encode(),
            struct.pack(">I", len(self.ids)),
            *(part.encode() for part in self.ids),
        )
