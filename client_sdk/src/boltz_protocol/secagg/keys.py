"""Keys and commitments of one attempt of a sealed round.

A client makes two X25519 pairs (RFC 7748) for each attempt: the share pair agrees on the keys under
which shares travel, the mask pair on the masks. Every key and commitment is bound to the mask
context, a digest of the signed configuration, the model, the key roster and the graph (`context`):
two clients that were shown different rounds share nothing.

With `u32be` for 4 bytes big-endian, `prefixed(a, b, ...)` for `u32be(length) || field` of each one
(`framing.length_prefixed`), ids as their 32 ASCII characters and `dh` for the 32 bytes of X25519::

    pair mask key  HKDF-SHA256(ikm = dh(mask keys), salt = context, length = 32,
                     info = "boltz-mesh pair mask v1" 0x00 ||
                            prefixed(low id, low mask key, high id, high mask key))
    self mask key  HKDF-SHA256(ikm = seed, salt = context, length = 32,
                     info = "boltz-mesh self mask v1" 0x00 || prefixed(client id))
    share key      HKDF-SHA256(ikm = dh(share keys), salt = context, length = 32,
                     info = "boltz-mesh share v1" 0x00 ||
                            prefixed(dealer id, dealer share key, holder id, holder share key))

    nonce commitment  SHA-256("boltz-mesh nonce commitment v1" 0x00 || prefixed(nonce))
    share commitment  SHA-256("boltz-mesh share commitment v1" 0x00 ||
                        prefixed(context, u32be(dealer), u32be(holder), kind, share, salt))
    seed commitment   SHA-256("boltz-mesh seed commitment v1" 0x00 ||
                        prefixed(context, u32be(dealer), seed))

`low` is the client with the smaller roster index; dealer and holder are roster indexes in the
commitments; kind is one byte, 1 for a share of the mask key and 2 for one of the seed, as in the
contract's `ShareKind`. Nonces, seeds and salts are 32 random bytes, so that commitments hide them.

Sealed shares are AES-256-GCM under the share key with a nonce of 12 zero bytes and no associated
data. That is sound because a key encrypts once: it is bound to the attempt and to the direction.
Plain bytes: share of the mask key (33), its salt (32), share of the seed (33), its salt (32).
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from boltz_protocol.errors import DecryptionFailed, MalformedMessage
from boltz_protocol.framing import length_prefixed
from boltz_protocol.limits import MAX_ROSTER, SEALED_SHARES_BYTES, SECRET_BYTES, SHARE_BYTES

_PAIR_MASK: Final = b"boltz-mesh pair mask v1\0"
_SELF_MASK: Final = b"boltz-mesh self mask v1\0"
_SHARE: Final = b"boltz-mesh share v1\0"
_NONCE_COMMITMENT: Final = b"boltz-mesh nonce commitment v1\0"
_SHARE_COMMITMENT: Final = b"boltz-mesh share commitment v1\0"
_SEED_COMMITMENT: Final = b"boltz-mesh seed commitment v1\0"
_ZERO_NONCE: Final = bytes(12)


class KeyPair:
    """An X25519 pair that lives in memory for one attempt. `repr` hides the private half.

    Args:
        private: the 32 private bytes, clamped where they are used (RFC 7748, section 5), so that
            bytes put together again from shares give the same public key.

    Raises: MalformedMessage when they are not 32.
    """

    __slots__ = ("_key", "public")

    def __init__(self, private: bytes) -> None:
        if len(private) != SECRET_BYTES:
            raise MalformedMessage(f"an X25519 private key has 32 bytes, not {len(private)}")
        self._key = X25519PrivateKey.from_private_bytes(private)
        #: The 32 public bytes.
        self.public = self._key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> KeyPair:
        """A fresh pair from the operating system's generator."""
        return cls(secrets.token_bytes(SECRET_BYTES))

    def __repr__(self) -> str:
        return f"KeyPair({self.public.hex()}, private=hidden)"

    def private_bytes(self) -> bytes:
        """The 32 private bytes: what is shared among the holders."""
        return self._key.private_bytes_raw()

    def exchange(self, public: bytes) -> bytes:
        """The 32 bytes that both ends can compute; input of a key derivation, never a key.

        Raises: MalformedMessage for a key that is not 32 bytes or a point of low order, with which
            the result would be known to everybody (RFC 7748, section 6.1).
        """
        if len(public) != SECRET_BYTES:
            raise MalformedMessage(f"an X25519 public key has 32 bytes, not {len(public)}")
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise MalformedMessage(
                f"the X25519 public key {public.hex()} is a point of low order"
            ) from error


def pair_mask_key(
    shared: bytes, context: bytes, low: tuple[str, bytes], high: tuple[str, bytes]
) -> bytes:
    """The 32 bytes that generate the mask between two clients.

    Args:
        shared: `exchange` of their mask keys.
        context: the mask context's digest.
        low, high: client id and mask public key, `low` with the smaller roster index.
    """
    return _derive(shared, context, _PAIR_MASK + _two_roles(low, high))


def self_mask_key(seed: bytes, context: bytes, client_id: str) -> bytes:
    """The 32 bytes that generate a client's own mask, from its 32-byte seed."""
    return _derive(seed, context, _SELF_MASK + length_prefixed(client_id.encode()))


def share_key(
    shared: bytes, context: bytes, dealer: tuple[str, bytes], holder: tuple[str, bytes]
) -> bytes:
    """The 32 bytes under which a dealer seals the shares for one holder.

    Args:
        shared: `exchange` of their share keys.
        context: the mask context's digest.
        dealer, holder: client id and share public key. The other direction has another key.
    """
    return _derive(shared, context, _SHARE + _two_roles(dealer, holder))


def commit_nonce(nonce: bytes) -> bytes:
    """What a client advertises of its nonce before anybody's nonce is known: 32 bytes."""
    _assert_sizes(nonce)
    return hashlib.sha256(_NONCE_COMMITMENT + length_prefixed(nonce)).digest()


def commit_share(  # noqa: PLR0917 - in the order in which they are hashed
    context: bytes, dealer: int, holder: int, kind: int, share: bytes, salt: bytes
) -> bytes:
    """What a dealer signs for one share, so that a wrong one is its own and no holder's: 32 bytes.

    Args:
        context: the mask context's digest.
        dealer, holder: roster indexes.
        kind: the contract's `ShareKind`: 1 for the mask key, 2 for the seed.
        share: 33 bytes.
        salt: 32 random bytes.
    """
    assert kind in (1, 2), "two kinds of share"
    assert len(share) == SHARE_BYTES, "a share has 33 bytes"
    _assert_sizes(context, salt)
    fields = (context, _index(dealer), _index(holder), bytes([kind]), share, salt)
    return hashlib.sha256(_SHARE_COMMITMENT + length_prefixed(*fields)).digest()


def commit_seed(context: bytes, dealer: int, seed: bytes) -> bytes:
    """What a dealer signs for its seed, so that a wrong reconstruction shows: 32 bytes."""
    _assert_sizes(context, seed)
    fields = (context, _index(dealer), seed)
    return hashlib.sha256(_SEED_COMMITMENT + length_prefixed(*fields)).digest()


def seal_shares(
    key: bytes, mask_share: bytes, mask_salt: bytes, seed_share: bytes, seed_salt: bytes
) -> bytes:
    """Seal both shares for one holder (146 bytes). Once for each key: the nonce is fixed.

    Args:
        key: `share_key` from this dealer to this holder.
        mask_share, seed_share: 33 bytes each.
        mask_salt, seed_salt: 32 random bytes each.
    """
    _assert_sizes(key, mask_salt, seed_salt)
    assert len(mask_share) == len(seed_share) == SHARE_BYTES, "a share has 33 bytes"
    plain = mask_share + mask_salt + seed_share + seed_salt
    return AESGCM(key).encrypt(_ZERO_NONCE, plain, None)


def open_shares(key: bytes, sealed: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Undo `seal_shares`: share of the mask key, its salt, share of the seed, its salt.

    Raises: DecryptionFailed for another length, key or context, or for altered bytes. That what
        was sealed is what the dealer signed is for the commitments to say.
    """
    _assert_sizes(key)
    if len(sealed) != SEALED_SHARES_BYTES:
        raise DecryptionFailed(f"sealed shares have {SEALED_SHARES_BYTES} bytes, not {len(sealed)}")
    try:
        plain = AESGCM(key).decrypt(_ZERO_NONCE, sealed, None)
    except InvalidTag as error:
        raise DecryptionFailed("sealed shares do not open under this dealer's key") from error
    half = SHARE_BYTES + SECRET_BYTES
    mask, seed = plain[:half], plain[half:]
    return mask[:SHARE_BYTES], mask[SHARE_BYTES:], seed[:SHARE_BYTES], seed[SHARE_BYTES:]


def _derive(secret: bytes, context: bytes, info: bytes) -> bytes:
    _assert_sizes(secret, context)
    return HKDF(algorithm=SHA256(), length=SECRET_BYTES, salt=context, info=info).derive(secret)


def _two_roles(first: tuple[str, bytes], second: tuple[str, bytes]) -> bytes:
    assert first[0] != second[0], "nobody shares a key with itself"
    _assert_sizes(first[1], second[1])
    return length_prefixed(first[0].encode(), first[1], second[0].encode(), second[1])


def _index(index: int) -> bytes:
    assert 0 <= index < MAX_ROSTER, "a roster index"
    return struct.pack(">I", index)


def _assert_sizes(*values: bytes) -> None:
    # Messages and statements were checked when they were decoded; what comes here has its size.
    assert all(len(value) == SECRET_BYTES for value in values), "32 bytes each"
