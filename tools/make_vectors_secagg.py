"""Make the vectors for keys, masks and shares: `proto/vectors/secagg_masks.json`.

A second implementation: it imports nothing of the mesh and uses hashlib, hmac, integer arithmetic
(X25519 after RFC 7748, Shamir's polynomials) and the plain AES block modes, so that it agrees with
the product by the text of the contract alone. Every random choice is fixed: a second run writes the
same bytes.

Run: python tools/make_vectors_secagg.py [FOLDER]
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

VECTORS: Final = Path(__file__).resolve().parent.parent / "proto" / "vectors"
CHUNK_COORDINATES: Final = 1 << 18
FIELD: Final = (1 << 256) + 297

Json = dict[str, object]


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _fixed(label: str) -> bytes:
    """32 bytes that stand for random ones."""
    return _sha256(b"boltz-mesh secagg vector " + label.encode())


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _prefixed(*fields: bytes) -> bytes:
    return b"".join(_u32(len(field)) + field for field in fields)


def _hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block of output."""
    return hmac.digest(hmac.digest(salt, key, "sha256"), info + b"\x01", "sha256")


def _x25519(private: bytes, point: bytes) -> bytes:
    """RFC 7748, section 5: the Montgomery ladder. For vectors: it leaks through its timing."""
    p, a24 = 2**255 - 19, 121665
    k = int.from_bytes(private, "little")
    k = k & ~7 & ~(1 << 255) | 1 << 254
    x1 = int.from_bytes(point, "little") & ((1 << 255) - 1)
    x2, z2, x3, z3 = 1, 0, x1, 1
    for bit in reversed(range(255)):
        swap = k >> bit & 1
        if swap:
            x2, z2, x3, z3 = x3, z3, x2, z2
        plus, minus = (x2 + z2) % p, (x2 - z2) % p
        square_plus, square_minus = plus * plus % p, minus * minus % p
        crossed, other = (x3 - z3) * plus % p, (x3 + z3) * minus % p
        gap = square_plus - square_minus
        x3, z3 = (crossed + other) ** 2 % p, x1 * (crossed - other) ** 2 % p
        x2, z2 = square_plus * square_minus % p, gap * (square_plus + a24 * gap) % p
        if swap:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return (x2 * pow(z2, -1, p) % p).to_bytes(32, "little")


def _public(private: bytes) -> bytes:
    return _x25519(private, (9).to_bytes(32, "little"))


def _gcm(key: bytes, nonce: bytes, plain: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
    return encryptor.update(plain) + encryptor.finalize() + encryptor.tag


class Client:
    """One of the two clients of the vectors."""

    def __init__(self, index: int, client_id: str) -> None:
        self.index, self.client_id = index, client_id.encode()
        self.mask_private, self.share_private, self.seed = (
            _fixed(f"{what} {index}") for what in ("mask key", "share key", "seed")
        )
        self.mask_public = _public(self.mask_private)
        self.share_public = _public(self.share_private)

    def fields(self) -> Json:
        """What the vectors say of it."""
        return {
            "index": self.index,
            "client_id": self.client_id.decode(),
            "mask_private_key": self.mask_private.hex(),
            "mask_public_key": self.mask_public.hex(),
            "share_private_key": self.share_private.hex(),
            "share_public_key": self.share_public.hex(),
            "seed": self.seed.hex(),
        }


def _mask_word(key: bytes, coordinate: int) -> int:
    """One word of a mask from one AES block: counter mode by hand."""
    block, word = divmod(coordinate, 4)
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    stream = cipher.update(block.to_bytes(16, "big")) + cipher.finalize()
    return int.from_bytes(stream[4 * word : 4 * word + 4], "little")


def _mask(key: bytes) -> Json:
    edge = CHUNK_COORDINATES
    places = (0, 1, 2, 3, 4, 5, edge - 1, edge, edge + 1, 5 * edge - 1, 5 * edge, (1 << 30) - 1)
    return {
        "key": key.hex(),
        "words": [{"coordinate": c, "word": _mask_word(key, c)} for c in places],
    }


def _masked_chunk(keys: tuple[tuple[bytes, int], ...]) -> Json:
    """The last chunk, of five coordinates, of a vector of 2 * 2^18 + 5."""
    values = [0, 1, -1, (1 << 23) - 1, -(1 << 23)]
    packed = b""
    for place, value in enumerate(values):
        coordinate = 2 * CHUNK_COORDINATES + place
        total = value + sum(sign * _mask_word(key, coordinate) for key, sign in keys)
        packed += (total % (1 << 24)).to_bytes(3, "little")
    return {
        "chunk": 2,
        "values": values,
        "streams": [{"key": key.hex(), "sign": sign} for key, sign in keys],
        "packed": packed.hex(),
    }


def _deal(secret: bytes, threshold: int, indexes: tuple[int, ...], label: str) -> Json:
    """Shares as sums of powers, term by term."""
    # 33 bytes of pseudorandom numbers are at most twice the field; reduced, they are fixed, and
    # that is all that is asked of them here.
    drawn = [
        int.from_bytes(b"\x01" + _fixed(f"{label} coefficient {power}"), "big") % FIELD
        for power in range(1, threshold)
    ]
    polynomial = [int.from_bytes(secret, "big"), *drawn]
    shares = []
    for index in indexes:
        value = sum(a * (index + 1) ** power for power, a in enumerate(polynomial)) % FIELD
        shares.append({"index": index, "share": value.to_bytes(33, "big").hex()})
    return {
        "secret": secret.hex(),
        "threshold": threshold,
        "coefficients": [a.to_bytes(33, "big").hex() for a in drawn],
        "shares": shares,
    }


def _sealed(context: bytes, dealer: Client, holder: Client, shared: bytes) -> Json:
    """What the dealer seals for the holder, and what it signs for that."""
    info = b"boltz-mesh share v1\0" + _prefixed(
        dealer.client_id, dealer.share_public, holder.client_id, holder.share_public
    )
    key = _hkdf(shared, context, info)
    shares, salts, commitments = [], [], []
    for kind, secret in ((1, dealer.mask_private), (2, dealer.seed)):
        label = f"dealer {dealer.index} kind {kind}"
        value = int.from_bytes(secret, "big")
        for power in (1, 2):
            value += int.from_bytes(_fixed(f"{label} {power}"), "big") * (holder.index + 1) ** power
        shares.append((value % FIELD).to_bytes(33, "big"))
        salts.append(_fixed(f"{label} salt for {holder.index}"))
        signed = _prefixed(
            context, _u32(dealer.index), _u32(holder.index), bytes([kind]), shares[-1], salts[-1]
        )
        commitments.append(_sha256(b"boltz-mesh share commitment v1\0" + signed))
    plain = shares[0] + salts[0] + shares[1] + salts[1]
    return {
        "dealer": dealer.index,
        "holder": holder.index,
        "share_key": key.hex(),
        "mask_share": shares[0].hex(),
        "mask_salt": salts[0].hex(),
        "seed_share": shares[1].hex(),
        "seed_salt": salts[1].hex(),
        "mask_key_commitment": commitments[0].hex(),
        "seed_share_commitment": commitments[1].hex(),
        "sealed": _gcm(key, bytes(12), plain).hex(),
    }


def _masks() -> Json:
    context = _fixed("mask context")
    low, high = Client(3, "1b" * 16), Client(270, "0a" * 16)
    mask_shared = _x25519(low.mask_private, high.mask_public)
    share_shared = _x25519(low.share_private, high.share_public)
    pair_info = b"boltz-mesh pair mask v1\0" + _prefixed(
        low.client_id, low.mask_public, high.client_id, high.mask_public
    )
    pair = _hkdf(mask_shared, context, pair_info)
    own = [
        _hkdf(client.seed, context, b"boltz-mesh self mask v1\0" + _prefixed(client.client_id))
        for client in (low, high)
    ]
    nonce = _fixed("nonce")
    return {
        "context": context.hex(),
        "clients": [low.fields(), high.fields()],
        "mask_shared_secret": mask_shared.hex(),
        "share_shared_secret": share_shared.hex(),
        "pair_mask_key": pair.hex(),
        "self_mask_keys": [key.hex() for key in own],
        "masks": [_mask(pair), _mask(own[0])],
        "masked_chunks": [
            _masked_chunk(((own[0], 1), (pair, 1))),
            _masked_chunk(((own[1], 1), (pair, -1))),
        ],
        "nonce": nonce.hex(),
        "nonce_commitment": _sha256(b"boltz-mesh nonce commitment v1\0" + _prefixed(nonce)).hex(),
        "seed_commitments": [
            _sha256(
                b"boltz-mesh seed commitment v1\0"
                + _prefixed(context, _u32(client.index), client.seed)
            ).hex()
            for client in (low, high)
        ],
        "sealed_shares": [
            _sealed(context, low, high, share_shared),
            _sealed(context, high, low, share_shared),
        ],
        "shamir": [
            _deal(bytes(32), 1, (0, 4), "zero"),
            _deal(b"\xff" * 32, 3, (0, 1, 2, 3, 4), "ones"),
            _deal(low.seed, 4, (2, 3, 57, 299, 4000, 9999), "seed"),
        ],
    }


def main(folder: Path) -> None:
    """Write the vector file into the folder."""
    (folder / "secagg_masks.json").write_text(json.dumps(_masks(), indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else VECTORS)
