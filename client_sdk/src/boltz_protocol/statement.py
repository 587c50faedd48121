"""Signed statements: what is signed travels as bytes and is never serialised again to be checked.

Signed bytes::

    "boltz-mesh statement v1" 0x00
    u32be(len) algorithm   u32be(len) key_id   u32be(len) type   u64be(len) payload

All texts are UTF-8. The signature covers algorithm, key and type, so that a statement of one kind
can never pass for another, and no algorithm can be exchanged for a weaker one. The first bytes
keep the signatures of a client's RSA key apart from those it makes in TLS handshakes.

Algorithms: `rsa-pss-sha256` (RFC 8017, section 8.1: MGF1 with SHA-256, salt of 32 bytes; clients)
and `ed25519` (RFC 8032; the mesh).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from boltz_protocol import limits
from boltz_protocol.errors import LimitExceeded, SignatureInvalid
from boltz_protocol.framing import length_prefixed
from boltz_protocol.ids import parse_key_id
from boltz_protocol.keys import check_rsa_key, public_key_id

RSA_PSS_SHA256: Final = "rsa-pss-sha256"
ED25519: Final = "ed25519"
#: What clients sign with, and what the mesh signs with.
CLIENT_ALGORITHMS: Final = frozenset({RSA_PSS_SHA256})
MESH_ALGORITHMS: Final = frozenset({ED25519})

_PREFIX: Final = b"boltz-mesh statement v1\0"
_SALT_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Statement:
    """A payload and who vouches for it. Nothing in it is to be believed before `verify`.

    Attributes:
        type: what the payload is, for example `boltz_mesh.v1.UpdateManifest`.
        payload: the exact bytes that were signed.
        key_id: id of the signing key (`keys.public_key_id`).
        algorithm: `rsa-pss-sha256` or `ed25519`.
        signature: 384 to 512 bytes (RSA) or 64 bytes (Ed25519).
    """

    type: str
    payload: bytes
    key_id: str
    algorithm: str
    signature: bytes


def signed_bytes(*, type: str, payload: bytes, key_id: str, algorithm: str) -> bytes:
    """The bytes that a signature covers (see the head of this module)."""
    return b"".join(
        (
            _PREFIX,
            length_prefixed(algorithm.encode(), key_id.encode(), type.encode()),
            struct.pack(">Q", len(payload)),
            payload,
        )
    )


def _signed_bytes_of(statement: Statement) -> bytes:
    return signed_bytes(
        type=statement.type,
        payload=statement.payload,
        key_id=statement.key_id,
        algorithm=statement.algorithm,
    )


def digest(statement: Statement) -> bytes:
    """SHA-256 (32 bytes) over the signed bytes.

    The signature is left out: RSA-PSS is randomised, and a second signature over the same words
    is the same statement.
    """
    return hashlib.sha256(_signed_bytes_of(statement)).digest()


def _check_caps(type: str, payload: bytes) -> None:
    if not 1 <= len(type) <= limits.MAX_NAME_CHARS:
        raise LimitExceeded(
            f"a statement type of {len(type)} characters; 1 to {limits.MAX_NAME_CHARS} are allowed"
        )
    if len(payload) > limits.MAX_STATEMENT_BYTES:
        raise LimitExceeded(
            f"a statement of {len(payload)} bytes; the cap is {limits.MAX_STATEMENT_BYTES}"
        )


def sign_rsa_pss(*, type: str, payload: bytes, private_key: RSAPrivateKey) -> Statement:
    """Sign as a client (about 1.5 ms for RSA-3072).

    Raises:
        LimitExceeded: the type or the payload is over its cap.
        MalformedMessage: the key is not an RSA key this mesh accepts.
    """
    _check_caps(type, payload)
    check_rsa_key(private_key.public_key())
    key_id = public_key_id(private_key.public_key())
    message = signed_bytes(type=type, payload=payload, key_id=key_id, algorithm=RSA_PSS_SHA256)
    signature = private_key.sign(message, _pss(), hashes.SHA256())
    return Statement(type, payload, key_id, RSA_PSS_SHA256, signature)


def sign_ed25519(*, type: str, payload: bytes, private_key: Ed25519PrivateKey) -> Statement:
    """Sign as the mesh. Raises: LimitExceeded."""
    _check_caps(type, payload)
    key_id = public_key_id(private_key.public_key())
    message = signed_bytes(type=type, payload=payload, key_id=key_id, algorithm=ED25519)
    return Statement(type, payload, key_id, ED25519, private_key.sign(message))


def verify(
    statement: Statement,
    *,
    expected_type: str,
    public_key: RSAPublicKey | Ed25519PublicKey,
    allowed_algorithms: Collection[str],
) -> bytes:
    """Check a statement against the key that its sender is known by.

    Returns:
        The payload, now to be parsed.

    Raises:
        LimitExceeded: a field is over its cap.
        MalformedMessage: the key id has not the form of one.
        SignatureInvalid: wrong type, key, algorithm, or signature.
    """
    _check_caps(statement.type, statement.payload)
    parse_key_id(statement.key_id)
    if len(statement.signature) > limits.MAX_SIGNATURE_BYTES:
        raise LimitExceeded(
            f"a signature of {len(statement.signature)} bytes; "
            f"the cap is {limits.MAX_SIGNATURE_BYTES}"
        )
    if statement.type != expected_type:
        raise SignatureInvalid(
            f"the statement is of type {statement.type!r}, {expected_type!r} is expected here"
        )
    if statement.algorithm not in allowed_algorithms:
        raise SignatureInvalid(
            f"algorithm {statement.algorithm[:40]!r} is not allowed for {expected_type!r}"
        )
    if statement.key_id != public_key_id(public_key):
        raise SignatureInvalid(f"the statement names the key {statement.key_id}, not the sender's")
    message = _signed_bytes_of(statement)
    try:
        match (statement.algorithm, public_key):
            case (str(name), RSAPublicKey()) if name == RSA_PSS_SHA256:
                check_rsa_key(public_key)
                public_key.verify(statement.signature, message, _pss(), hashes.SHA256())
            case (str(name), Ed25519PublicKey()) if name == ED25519:
                public_key.verify(statement.signature, message)
            case _:
                raise SignatureInvalid(
                    f"{statement.algorithm!r} does not go with the sender's kind of key"
                )
    except InvalidSignature as error:
        raise SignatureInvalid(
            f"the signature of {expected_type!r} by key {statement.key_id} does not verify"
        ) from error
    return statement.payload


def _pss() -> padding.PSS:
    return padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=_SALT_BYTES)
