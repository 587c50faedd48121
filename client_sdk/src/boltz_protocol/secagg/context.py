"""What the masks of an attempt are bound to: the salt of every key derivation of `secagg.keys`.

Its digest covers all that two clients must have been shown alike before their masks may cancel:

    SHA-256("boltz-mesh mask context v1" || 0x00 || fields)

with the fields in the order of the class, each as `u32be(len) || bytes`; the nonces stand in it as
the SHA-256 of their concatenation in roster order (of nothing, where the graph is complete). A
server that shows one client another configuration, model, roster, key or weight than the others
gets a sum under masks that do not cancel.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from boltz_protocol.errors import MalformedMessage
from boltz_protocol.framing import length_prefixed
from boltz_protocol.limits import MAX_BITMAP_BYTES, SECRET_BYTES

_LABEL: Final = b"boltz-mesh mask context v1\0"
_DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class MaskContext:
    """Binds masks, shares and commitments to one attempt as one client was shown it.

    Attributes:
        configuration_sha256: digest of the signed configuration statement.
        model_sha256: SHA-256 of the base version's file.
        key_roster_sha256: digest of the signed key roster statement.
        graph_members_bitmap: over the whole roster.
        nonces: 32 bytes a graph member in roster order; none where the graph is complete.

    Raises: MalformedMessage naming the field that does not have its form.
    """

    configuration_sha256: bytes
    model_sha256: bytes
    key_roster_sha256: bytes
    graph_members_bitmap: bytes
    nonces: tuple[bytes, ...]

    def __post_init__(self) -> None:
        for name, value in (
            ("configuration_sha256", self.configuration_sha256),
            ("model_sha256", self.model_sha256),
            ("key_roster_sha256", self.key_roster_sha256),
        ):
            if len(value) != _DIGEST_BYTES:
                raise MalformedMessage(f"{name} has {len(value)} bytes, not 32", field=name)
        if not 1 <= len(self.graph_members_bitmap) <= MAX_BITMAP_BYTES:
            raise MalformedMessage(
                f"a bitmap of {len(self.graph_members_bitmap)} bytes", field="graph_members_bitmap"
            )
        graph_members = int.from_bytes(self.graph_members_bitmap, "little").bit_count()
        if self.nonces and len(self.nonces) != graph_members:
            raise MalformedMessage(
                f"{len(self.nonces)} nonces of {graph_members} graph members", field="nonces"
            )
        if any(len(nonce) != SECRET_BYTES for nonce in self.nonces):
            raise MalformedMessage(f"a nonce has {SECRET_BYTES} bytes", field="nonces")

    @property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of the encoding, see the head of this module."""
        fields = length_prefixed(
            self.configuration_sha256,
            self.model_sha256,
            self.key_roster_sha256,
            self.graph_members_bitmap,
            hashlib.sha256(b"".join(self.nonces)).digest(),
        )
        return hashlib.sha256(_LABEL + fields).digest()
