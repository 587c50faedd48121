"""Hybrid encryption in chunks: RSA-OAEP or a key-encryption key around AES-256-GCM chunks.

A fresh 32-byte content key K encrypts one content once. From K, by HKDF-SHA256 (RFC 5869) with
salt = SHA-256 of the context's encoding (`context`):

    AES-256-GCM key = info "boltz-mesh envelope v1 key", 32 bytes
    key commitment  = info "boltz-mesh envelope v1 commitment", 32 bytes

The commitment travels beside the wrapped key in a signed manifest and is checked before the first
chunk: GCM alone does not commit to its key, and one ciphertext could be made to open under two
(Albertini et al. 2022, "How to Abuse and Fix Authenticated Encryption Without Key Commitment").

Chunk i: nonce = 11-byte big-endian i, then one byte that is 1 for the last chunk and 0 otherwise
(the STREAM construction: Hoang, Reyhanitabar, Rogaway, Vizar 2015); no associated data; the
16-byte tag behind the ciphertext. So chunks cannot be dropped, moved, repeated, added or taken
from another content. All chunks but the last hold `chunk_bytes` plain bytes; an empty content is
one empty chunk.

Python cannot promise to wipe a key from memory; keys here only hide from `repr`, and callers drop
them early. What can be wiped is: the output buffer, when a chunk fails to authenticate.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from boltz_protocol import limits
from boltz_protocol.context import EnvelopeContext, UpdateContext, context_hash
from boltz_protocol.errors import ChunkOutOfOrder, DecryptionFailed, LimitExceeded, MalformedMessage
from boltz_protocol.keys import check_rsa_key, public_key_id

#: Names all of the above in a message; another suite gets another name.
SUITE: Final = "rsa-oaep-sha256+aes-256-gcm-chunks-v1"
KEY_BYTES: Final = 32
COMMITMENT_BYTES: Final = 32

_KEY_INFO: Final = b"boltz-mesh envelope v1 key"
_COMMITMENT_INFO: Final = b"boltz-mesh envelope v1 commitment"

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class ContentKey:
    """32 secret bytes that encrypt one content once. Hidden from `repr`."""

    material: bytes

    def __post_init__(self) -> None:
        assert len(self.material) == KEY_BYTES

    def __repr__(self) -> str:
        return "ContentKey(hidden)"

    @classmethod
    def generate(cls) -> ContentKey:
        """From the operating system's generator."""
        return cls(secrets.token_bytes(KEY_BYTES))


@dataclass(frozen=True, slots=True)
class ChunkLayout:
    """How a content of `size_bytes` plain bytes falls into chunks of `chunk_bytes`.

    Both numbers come from a signed manifest or from a row of ours, so that whether a chunk is the
    last one is never the sender's claim.

    Raises:
        MalformedMessage: a negative size, or a chunk size under one byte.
        LimitExceeded: more than MAX_ENVELOPE_CHUNKS chunks, or chunks over MODEL_CHUNK_BYTES.
    """

    size_bytes: int
    chunk_bytes: int

    def __post_init__(self) -> None:
        if self.size_bytes < 0 or self.chunk_bytes < 1:
            raise MalformedMessage(
                f"a content of {self.size_bytes} bytes in chunks of {self.chunk_bytes}"
            )
        if self.chunk_bytes > limits.MODEL_CHUNK_BYTES:
            raise LimitExceeded(
                f"chunks of {self.chunk_bytes} bytes; the cap is {limits.MODEL_CHUNK_BYTES}"
            )
        if self.count > limits.MAX_ENVELOPE_CHUNKS:
            raise LimitExceeded(f"{self.count} chunks; the cap is {limits.MAX_ENVELOPE_CHUNKS}")

    @property
    def count(self) -> int:
        """Number of chunks, at least 1."""
        return max(1, -(-self.size_bytes // self.chunk_bytes))

    @property
    def cipher_size_bytes(self) -> int:
        """Bytes of all encrypted chunks together."""
        return self.size_bytes + self.count * limits.GCM_TAG_BYTES

    def plain_bytes(self, index: int) -> int:
        """Plain bytes in chunk `index`. Raises: ChunkOutOfOrder where there is no such chunk."""
        if not 0 <= index < self.count:
            raise ChunkOutOfOrder(f"chunk {index} of a content of {self.count} chunks")
        return min(self.chunk_bytes, self.size_bytes - index * self.chunk_bytes)

    def cipher_bytes(self, index: int) -> int:
        """Encrypted bytes of chunk `index`. Raises: ChunkOutOfOrder."""
        return self.plain_bytes(index) + limits.GCM_TAG_BYTES

    def cipher_offset(self, index: int) -> int:
        """Where chunk `index` starts in the stored ciphertext. Raises: ChunkOutOfOrder."""
        self.plain_bytes(index)
        return index * (self.chunk_bytes + limits.GCM_TAG_BYTES)

    def nonce(self, index: int) -> bytes:
        """The 12-byte nonce of chunk `index`."""
        return index.to_bytes(11, "big") + bytes([index == self.count - 1])


class Sealer:
    """Encrypts one content. Safe to share between threads; refuses to seal a chunk twice.

    Attributes:
        layout: how the content falls into chunks.
        commitment: 32 bytes for the manifest.
    """

    __slots__ = ("_aead", "_lock", "_sealed", "commitment", "layout")

    def __init__(
        self, content_key: ContentKey, context: EnvelopeContext, layout: ChunkLayout
    ) -> None:
        self._aead, self.commitment = _derive(content_key, context)
        self.layout = layout
        self._sealed = bytearray(layout.count)
        self._lock = threading.Lock()

    def seal_into(self, index: int, plain: Buffer, out: bytearray | memoryview) -> int:
        """Encrypt chunk `index` into the first bytes of `out`.

        Args:
            plain: exactly `layout.plain_bytes(index)` bytes; may be the front of `out` itself.
            out: writable, at least `layout.cipher_bytes(index)` bytes.

        Returns:
            Number of bytes written.

        Raises:
            ChunkOutOfOrder: there is no such chunk.
        """
        size = self.layout.cipher_bytes(index)
        assert len(plain) == size - limits.GCM_TAG_BYTES, "a chunk of another length"
        with self._lock:
            # A second plain text under the same nonce would give away both.
            assert not self._sealed[index], "a chunk may be sealed once only"
            self._sealed[index] = 1
        return self._aead.encrypt_into(
            self.layout.nonce(index), plain, None, memoryview(out)[:size]
        )


class Opener:
    """Decrypts the chunks of one content, in any order. Safe to share between threads.

    Raises:
        DecryptionFailed: the commitment is not this key's under this context.
    """

    __slots__ = ("_aead", "layout")

    def __init__(
        self,
        content_key: ContentKey,
        context: EnvelopeContext,
        layout: ChunkLayout,
        commitment: bytes,
    ) -> None:
        self._aead, expected = _derive(content_key, context)
        if not hmac.compare_digest(expected, commitment):
            raise DecryptionFailed("the key commitment does not match the key and the context")
        self.layout = layout

    def open_into(self, index: int, cipher: Buffer, out: bytearray | memoryview) -> int:
        """Decrypt chunk `index` into the first bytes of `out`.

        Args:
            cipher: exactly `layout.cipher_bytes(index)` bytes; may be `out` itself.
            out: writable, at least `layout.plain_bytes(index)` bytes; zeroed on failure.

        Returns:
            Number of plain bytes written.

        Raises:
            ChunkOutOfOrder: there is no such chunk.
            MalformedMessage: the chunk has not the length that the layout gives it.
            DecryptionFailed: altered, moved, or encrypted for another content or context.
        """
        size = self.layout.plain_bytes(index)
        if len(cipher) != size + limits.GCM_TAG_BYTES:
            raise MalformedMessage(
                f"chunk {index} has {len(cipher)} bytes, not {size + limits.GCM_TAG_BYTES}"
            )
        target = memoryview(out)[:size]
        try:
            return self._aead.decrypt_into(self.layout.nonce(index), cipher, None, target)
        except InvalidTag as error:
            # OpenSSL decrypts before it checks the tag: the unauthenticated text is already there.
            target[:] = bytes(size)
            raise DecryptionFailed(f"chunk {index} does not authenticate") from error


class SequentialOpener:
    """Decrypts a stream of chunks and knows whether it was complete.

    Args:
        opener: of the content.
        next_index: the first chunk to come, for a stream that goes on where another broke off.
    """

    __slots__ = ("_opener", "next_index")

    def __init__(self, opener: Opener, next_index: int = 0) -> None:
        assert 0 <= next_index <= opener.layout.count
        self._opener = opener
        self.next_index = next_index

    def open_next_into(self, cipher: Buffer, out: bytearray | memoryview) -> int:
        """As `Opener.open_into` for the next chunk. A failed chunk may be tried again."""
        written = self._opener.open_into(self.next_index, cipher, out)
        self.next_index += 1
        return written

    def finish(self) -> None:
        """Raises: DecryptionFailed, where the stream ended before its last chunk."""
        count = self._opener.layout.count
        if self.next_index != count:
            raise DecryptionFailed(f"the stream ended after {self.next_index} of {count} chunks")


def wrap_for_recipient(content_key: ContentKey, recipient: RSAPublicKey) -> bytes:
    """RSA-OAEP (RFC 8017, section 7.1; SHA-256, MGF1-SHA-256, empty label) of the 32-byte key.

    Returns:
        As many bytes as the recipient's modulus has: 384 for RSA-3072.

    Raises:
        MalformedMessage: not an RSA key this mesh accepts.
    """
    check_rsa_key(recipient)
    return recipient.encrypt(content_key.material, _oaep())


def unwrap_as_recipient(wrapped: bytes, private_key: RSAPrivateKey) -> ContentKey:
    """Undo `wrap_for_recipient` (about 2 ms of CPU).

    Raises:
        DecryptionFailed: not a content key wrapped for this key.
    """
    try:
        material = private_key.decrypt(wrapped, _oaep())
    except ValueError as error:
        raise DecryptionFailed("the wrapped key does not open with this server key") from error
    if len(material) != KEY_BYTES:
        raise DecryptionFailed(f"the wrapped key has {len(material)} bytes, not {KEY_BYTES}")
    return ContentKey(material)


def seal_update(
    context: UpdateContext, recipient: RSAPublicKey, layout: ChunkLayout
) -> tuple[Sealer, bytes]:
    """A sealer under a fresh content key, and that key wrapped for the recipient.

    Raises:
        DecryptionFailed: the context names another recipient key: nobody could open it.
        MalformedMessage: not an RSA key this mesh accepts.
    """
    if public_key_id(recipient) != context.recipient_key_id:
        raise DecryptionFailed("the context names another recipient key")
    content_key = ContentKey.generate()
    return Sealer(content_key, context, layout), wrap_for_recipient(content_key, recipient)


def key_commitment(content_key: ContentKey, context: EnvelopeContext) -> bytes:
    """The commitment (32 bytes) to a key that is known.

    For content at rest, where nobody else sends one: there the wrapped key authenticates itself.
    """
    return _derive(content_key, context)[1]


def _derive(content_key: ContentKey, context: EnvelopeContext) -> tuple[AESGCM, bytes]:
    salt = context_hash(context)

    def expand(info: bytes, length: int) -> bytes:
        return HKDF(hashes.SHA256(), length, salt, info).derive(content_key.material)

    return AESGCM(expand(_KEY_INFO, KEY_BYTES)), expand(_COMMITMENT_INFO, COMMITMENT_BYTES)


def _oaep() -> padding.OAEP:
    return padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
