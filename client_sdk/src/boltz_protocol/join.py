"""Join strings: all that a client needs to enrol, in one line that an operator hands out.

`boltz1.` and base64url (no padding) of::

    u16be(length of the fields)
    fields: u16be(len) mesh  u16be(len) enrol address  u16be(len) mesh address
            32 bytes authority fingerprint   32 bytes token
    4 bytes: the first of SHA-256("boltz-mesh join v1" 0x00 || fields)

The checksum finds slips of the hand, nothing else: who can alter the line can join a client to
another mesh. It is a secret, since it holds the token.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import struct
from dataclasses import dataclass
from typing import Final

from boltz_protocol import limits
from boltz_protocol.errors import MalformedMessage
from boltz_protocol.ids import parse_name

_PREFIX: Final = "boltz1."
_LABEL: Final = b"boltz-mesh join v1\0"
_TOKEN_LABEL: Final = b"boltz-mesh token v1"
_CHECKSUM_BYTES: Final = 4
TOKEN_BYTES: Final = 32
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_ALPHABET: Final = re.compile(r"[A-Za-z0-9_-]*")
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9.-]{1,253}):([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class JoinString:
    """Where a mesh is, how to know it, and one token. `repr` hides the token.

    Attributes:
        mesh: the mesh's name.
        enroll_address: `host:port` of the port that asks for no client certificate.
        mesh_address: `host:port` of everything else.
        authority_fingerprint: SHA-256 of the root certificate's DER, 64 lower-case hex digits.
        token: 32 secret bytes.

    Raises:
        MalformedMessage: a field does not have its form.
    """

    mesh: str
    enroll_address: str
    mesh_address: str
    authority_fingerprint: str
    token: bytes

    def __post_init__(self) -> None:
        parse_name("mesh", self.mesh)
        check_address(self.enroll_address)
        check_address(self.mesh_address)
        check_fingerprint(self.authority_fingerprint)
        if len(self.token) != TOKEN_BYTES:
            raise MalformedMessage(f"an enrolment token has {len(self.token)} bytes, not 32")

    def __repr__(self) -> str:
        return (
            f"JoinString(mesh={self.mesh!r}, enroll_address={self.enroll_address!r}, "
            f"mesh_address={self.mesh_address!r}, "
            f"authority_fingerprint={self.authority_fingerprint!r}, token=hidden)"
        )

    def encode(self) -> str:
        """The line to hand out. It holds the token."""
        texts = (self.mesh, self.enroll_address, self.mesh_address)
        fields = b"".join(struct.pack(">H", len(text)) + text.encode() for text in texts)
        fields += bytes.fromhex(self.authority_fingerprint) + self.token
        body = struct.pack(">H", len(fields)) + fields + _checksum(fields)
        return _PREFIX + _base64url(body)


def new_token() -> bytes:
    """A fresh enrolment token: 32 bytes from the operating system."""
    return secrets.token_bytes(TOKEN_BYTES)


def token_hash(token: bytes) -> bytes:
    """What the server keeps of a token: SHA-256("boltz-mesh token v1" || token), 32 bytes.

    A plain hash is enough: the token has 256 random bits, so nobody can try them all.
    """
    return hashlib.sha256(_TOKEN_LABEL + token).digest()


def check_address(address: str) -> None:
    """Check `host:port`, `ip:port` or `[ipv6]:port`. Raises: MalformedMessage."""
    short = len(address) <= limits.MAX_ADDRESS_CHARS
    found = _ADDRESS.fullmatch(address) if short else None
    if found is None or not 1 <= int(found.group(2)) <= 65535:
        raise MalformedMessage(f"{address[:80]!r} is not an address of the form host:port")


def check_fingerprint(fingerprint: str) -> None:
    """Check the form of an authority fingerprint. Raises: MalformedMessage."""
    if _FINGERPRINT.fullmatch(fingerprint) is None:
        raise MalformedMessage("an authority fingerprint has 64 lower-case hex digits")


def parse_join_string(text: str) -> JoinString:
    """Parse what a person pasted; white space, as from a wrapped line, is ignored.

    Raises:
        MalformedMessage: not a join string, cut off, or damaged. No message repeats the text,
            since it may hold a token.
    """
    line = "".join(text.split())
    if not line.startswith(_PREFIX):
        raise MalformedMessage(f"this is not a join string: it must begin with {_PREFIX!r}")
    encoded = line.removeprefix(_PREFIX)
    if len(line) > limits.MAX_JOIN_STRING_CHARS or _ALPHABET.fullmatch(encoded) is None:
        raise MalformedMessage("the join string is damaged: it is too long or has odd characters")
    fields = _checked_fields(encoded)
    texts = []
    for _ in range(3):
        if len(fields) < 2 or len(fields) < 2 + int.from_bytes(fields[:2], "big"):
            raise MalformedMessage("the join string's fields are shorter than they say")
        end = 2 + int.from_bytes(fields[:2], "big")
        texts.append(fields[2:end])
        fields = fields[end:]
    if len(fields) != 32 + TOKEN_BYTES:
        raise MalformedMessage("the join string's fields do not have their lengths")
    try:
        mesh, enroll_address, mesh_address = (text.decode("ascii") for text in texts)
    except UnicodeDecodeError as error:
        raise MalformedMessage("the join string's texts are not ASCII") from error
    return JoinString(mesh, enroll_address, mesh_address, fields[:32].hex(), fields[32:])


def _checked_fields(encoded: str) -> bytes:
    # Characters of an incomplete last group cannot be decoded; a cut-off paste often ends in one.
    whole = encoded[:-1] if len(encoded) % 4 == 1 else encoded
    body = base64.urlsafe_b64decode(whole + "=" * (-len(whole) % 4))
    size = int.from_bytes(body[:2], "big")
    if len(body) < 2 or len(body) < 2 + size + _CHECKSUM_BYTES:
        raise MalformedMessage(
            f"the join string is cut off: {len(encoded)} characters after {_PREFIX!r}, and more "
            "were promised; copy the whole line"
        )
    fields, checksum = body[2 : 2 + size], body[2 + size :]
    # One line has one spelling: spare bits and characters at the end must be what `encode` writes.
    if checksum != _checksum(fields) or encoded != _base64url(body):
        raise MalformedMessage(
            "the join string is damaged: its checksum does not match; copy the line again"
        )
    return fields


def _base64url(body: bytes) -> str:
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def _checksum(fields: bytes) -> bytes:
    return hashlib.sha256(_LABEL + fields).digest()[:_CHECKSUM_BYTES]
