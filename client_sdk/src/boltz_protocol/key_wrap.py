"""Secrets at rest: wrapped under a key-encryption key by AES-256-GCM.

Wrapped bytes: `0x01` (the algorithm: AES-256-GCM), 12 random bytes of nonce, ciphertext, 16 bytes
of tag. Associated data: `"boltz-mesh key wrap v1" 0x00`, then, each with its length (`framing`),
the key-encryption key's id and the SHA-256 of the secret's `BlobContext`: a wrapped key cannot be
moved to another row. A key-encryption key rotates long before the 2^32 wraps that random 96-bit
nonces allow (NIST SP 800-38D, section 8.3).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from boltz_protocol import limits
from boltz_protocol.context import BlobContext, context_hash
from boltz_protocol.envelope import KEY_BYTES, ContentKey
from boltz_protocol.errors import DecryptionFailed, LimitExceeded
from boltz_protocol.framing import length_prefixed
from boltz_protocol.ids import KeyId, new_key_id, parse_key_id

_AES_256_GCM: Final = 1
_NONCE_BYTES: Final = 12
_OVERHEAD_BYTES: Final = 1 + _NONCE_BYTES + limits.GCM_TAG_BYTES
_LABEL: Final = b"boltz-mesh key wrap v1\0"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class KeyEncryptionKey:
    """A key that wraps other keys, and the id by which rows name it.

    Raises:
        MalformedMessage: the id has not the form of one.
    """

    key_id: KeyId
    material: bytes

    def __post_init__(self) -> None:
        parse_key_id(self.key_id)
        assert len(self.material) == KEY_BYTES

    def __repr__(self) -> str:
        return f"KeyEncryptionKey({self.key_id}, hidden)"

    @classmethod
    def generate(cls) -> KeyEncryptionKey:
        """From the operating system's generator, under a fresh random id."""
        return cls(new_key_id(), secrets.token_bytes(KEY_BYTES))


def wrap_secret(secret: bytes, kek: KeyEncryptionKey, context: BlobContext) -> bytes:
    """Wrap a short secret. Raises: LimitExceeded over MAX_WRAPPED_SECRET_BYTES."""
    if len(secret) > limits.MAX_WRAPPED_SECRET_BYTES:
        raise LimitExceeded(
            f"a secret of {len(secret)} bytes; the cap is {limits.MAX_WRAPPED_SECRET_BYTES}"
        )
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = AESGCM(kek.material).encrypt(nonce, secret, _associated_data(kek, context))
    return bytes([_AES_256_GCM]) + nonce + sealed


def unwrap_secret(wrapped: bytes, kek: KeyEncryptionKey, context: BlobContext) -> bytes:
    """Undo `wrap_secret`.

    Raises:
        DecryptionFailed: altered, another algorithm, or wrapped under another key or context.
    """
    length = len(wrapped) - _OVERHEAD_BYTES
    if not 0 <= length <= limits.MAX_WRAPPED_SECRET_BYTES or wrapped[0] != _AES_256_GCM:
        raise DecryptionFailed("not a secret wrapped by AES-256-GCM (form 1)")
    nonce, sealed = wrapped[1 : 1 + _NONCE_BYTES], wrapped[1 + _NONCE_BYTES :]
    try:
        return AESGCM(kek.material).decrypt(nonce, sealed, _associated_data(kek, context))
    except InvalidTag as error:
        raise DecryptionFailed(
            f"a wrapped secret of kind {context.kind!r} does not open under key {kek.key_id}"
        ) from error


def wrap_key(content_key: ContentKey, kek: KeyEncryptionKey, context: BlobContext) -> bytes:
    """Wrap a content key (61 bytes)."""
    return wrap_secret(content_key.material, kek, context)


def unwrap_key(wrapped: bytes, kek: KeyEncryptionKey, context: BlobContext) -> ContentKey:
    """Undo `wrap_key`. Raises: DecryptionFailed, also where the secret is not 32 bytes."""
    material = unwrap_secret(wrapped, kek, context)
    if len(material) != KEY_BYTES:
        raise DecryptionFailed(f"a wrapped key has {len(material)} bytes, not {KEY_BYTES}")
    return ContentKey(material)


def _associated_data(kek: KeyEncryptionKey, context: BlobContext) -> bytes:
    return _LABEL + length_prefixed(kek.key_id.encode(), context_hash(context))
