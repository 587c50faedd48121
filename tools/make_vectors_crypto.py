"""Make the vectors for what is hashed, signed and encrypted: `proto/vectors/crypto_*.json`.

A second implementation: it imports nothing of the mesh and uses hashlib, hmac, integer arithmetic
(RSA with OAEP and PSS after RFC 8017) and the plain AES block modes, so that it agrees with the
product by the text of the contract alone. Every random choice is fixed: a second run writes the
same bytes.

Run: python tools/make_vectors_crypto.py [FOLDER]
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

VECTORS: Final = Path(__file__).resolve().parent.parent / "proto" / "vectors"
RSA_BYTES: Final = 384
HASH_BYTES: Final = 32

Json = dict[str, object]


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _prefixed(*fields: bytes) -> bytes:
    return b"".join(_u32(len(field)) + field for field in fields)


def _mgf1(seed: bytes, length: int) -> bytes:
    """RFC 8017, appendix B.2.1."""
    blocks = (_sha256(seed + _u32(i)) for i in range(-(-length // HASH_BYTES)))
    return b"".join(blocks)[:length]


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def _hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 for one block of output."""
    pseudo_random_key = hmac.digest(salt, key, "sha256")
    return hmac.digest(pseudo_random_key, info + b"\x01", "sha256")


def _gcm(key: bytes, nonce: bytes, plain: bytes, associated: bytes = b"") -> bytes:
    encryptor = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
    encryptor.authenticate_additional_data(associated)
    cipher = encryptor.update(plain) + encryptor.finalize()
    return cipher + encryptor.tag


def _der(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def _der_integer(value: int) -> bytes:
    return _der(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


class _RsaKey:
    """RSA by integer arithmetic. For vectors: it is neither fast nor free of side channels."""

    def __init__(self, p: int, q: int, e: int) -> None:
        self.n, self.e = p * q, e
        self.d = pow(e, -1, (p - 1) * (q - 1))

    def spki(self) -> bytes:
        algorithm = bytes.fromhex("300d06092a864886f70d0101010500")
        key = _der(0x30, _der_integer(self.n) + _der_integer(self.e))
        return _der(0x30, algorithm + _der(3, b"\x00" + key))

    def oaep(self, message: bytes, seed: bytes) -> bytes:
        """RFC 8017, section 7.1.1, with SHA-256 and an empty label."""
        padding = bytes(RSA_BYTES - len(message) - 2 * HASH_BYTES - 2)
        block = _sha256(b"") + padding + b"\x01" + message
        masked_block = _xor(block, _mgf1(seed, len(block)))
        masked_seed = _xor(seed, _mgf1(masked_block, HASH_BYTES))
        encoded = int.from_bytes(b"\x00" + masked_seed + masked_block, "big")
        return pow(encoded, self.e, self.n).to_bytes(RSA_BYTES, "big")

    def pss(self, message: bytes, salt: bytes) -> bytes:
        """RFC 8017, sections 8.1.1 and 9.1.1, with SHA-256 and a salt of 32 bytes."""
        digest = _sha256(bytes(8) + _sha256(message) + salt)
        block = bytes(RSA_BYTES - 2 * HASH_BYTES - 2) + b"\x01" + salt
        masked = bytearray(_xor(block, _mgf1(digest, len(block))))
        masked[0] &= 0x7F
        encoded = int.from_bytes(bytes(masked) + digest + b"\xbc", "big")
        return pow(encoded, self.d, self.n).to_bytes(RSA_BYTES, "big")


def _load_key() -> _RsaKey:
    fields = json.loads((VECTORS / "test_rsa_key.json").read_text())
    return _RsaKey(int(fields["p"], 16), int(fields["q"], 16), fields["e"])


def _key_id(spki: bytes) -> str:
    return _sha256(spki).hex()[:32]


def _statements(key: _RsaKey) -> list[Json]:
    seed = bytes(range(32))
    ed25519 = Ed25519PrivateKey.from_private_bytes(seed)
    ed_spki = bytes.fromhex("302a300506032b6570032100") + ed25519.public_key().public_bytes_raw()
    cases: list[Json] = []
    for algorithm, spki in (("rsa-pss-sha256", key.spki()), ("ed25519", ed_spki)):
        for kind, payload in (("boltz-mesh/test/v1", b"payload"), ("t\u00e9st", b"")):
            signed = (
                b"boltz-mesh statement v1\0"
                + _prefixed(algorithm.encode(), _key_id(spki).encode(), kind.encode())
                + len(payload).to_bytes(8, "big")
                + payload
            )
            salt = _sha256(kind.encode())
            rsa = algorithm == "rsa-pss-sha256"
            signature = key.pss(signed, salt) if rsa else ed25519.sign(signed)
            case: Json = {
                "algorithm": algorithm,
                "public_key_spki": spki.hex(),
                "key_id": _key_id(spki),
                "type": kind,
                "payload": payload.hex(),
                "signed_bytes": signed.hex(),
                "digest": _sha256(signed).hex(),
                "signature": signature.hex(),
            }
            case |= {"pss_salt": salt.hex()} if rsa else {"ed25519_seed": seed.hex()}
            cases.append(case)
    return cases


def _update_context(key: _RsaKey) -> tuple[Json, bytes]:
    fields: Json = {
        "mesh": "demo",
        "round_id": "11" * 16,
        "attempt": 1,
        "client_id": "22" * 16,
        "session_id": "33" * 16,
        "recipient_key_id": _key_id(key.spki()),
        "model_digest": "44" * 32,
        "config_digest": "55" * 32,
    }
    encoded = b"boltz-mesh update context v1\0" + _prefixed(
        b"demo",
        b"11" * 16,
        _u32(1),
        b"22" * 16,
        b"33" * 16,
        _key_id(key.spki()).encode(),
        b"\x44" * 32,
        b"\x55" * 32,
    )
    return fields, encoded


def _blob_context() -> tuple[Json, bytes]:
    fields: Json = {"mesh": "demo", "kind": "model", "ids": ["forecast", "7"]}
    encoded = b"boltz-mesh blob context v1\0" + _prefixed(
        b"demo", b"model", _u32(2), b"forecast", b"7"
    )
    return fields, encoded


def _chunks(content_key: bytes, context: bytes, content: bytes, chunk_bytes: int) -> Json:
    salt = _sha256(context)
    key = _hkdf(content_key, salt, b"boltz-mesh envelope v1 key")
    count = max(1, -(-len(content) // chunk_bytes))
    sealed = []
    for i in range(count):
        nonce = i.to_bytes(11, "big") + (b"\x01" if i == count - 1 else b"\x00")
        plain = content[i * chunk_bytes : (i + 1) * chunk_bytes]
        sealed.append({"nonce": nonce.hex(), "cipher": _gcm(key, nonce, plain).hex()})
    return {
        "chunk_bytes": chunk_bytes,
        "content": content.hex(),
        "aes_key": key.hex(),
        "commitment": _hkdf(content_key, salt, b"boltz-mesh envelope v1 commitment").hex(),
        "chunks": sealed,
    }


def _envelopes(key: _RsaKey) -> Json:
    content_key, seed = bytes(range(32)), bytes(range(32, 64))
    update_fields, update = _update_context(key)
    blob_fields, blob = _blob_context()
    contents = (b"", b"x", bytes(range(16)), bytes(range(40)))
    return {
        "content_key": content_key.hex(),
        "recipient_key_spki": key.spki().hex(),
        "oaep_seed": seed.hex(),
        "wrapped_key": key.oaep(content_key, seed).hex(),
        "contexts": [
            {
                "context_type": name,
                "context": fields,
                "encoding": encoded.hex(),
                "context_hash": _sha256(encoded).hex(),
                "contents": [_chunks(content_key, encoded, content, 16) for content in contents],
            }
            for name, fields, encoded in (
                ("update", update_fields, update),
                ("blob", blob_fields, blob),
            )
        ],
    }


def _key_wrap() -> Json:
    kek, kek_id, nonce, secret = b"\x66" * 32, "77" * 16, b"\x88" * 12, bytes(range(32))
    fields, encoded = _blob_context()
    associated = b"boltz-mesh key wrap v1\0" + _prefixed(kek_id.encode(), _sha256(encoded))
    return {
        "key_encryption_key": kek.hex(),
        "key_encryption_key_id": kek_id,
        "context": fields,
        "secret": secret.hex(),
        "associated_data": associated.hex(),
        "wrapped": (b"\x01" + nonce + _gcm(kek, nonce, secret, associated)).hex(),
    }


def _join_string() -> Json:
    fields: Json = {
        "mesh": "demo",
        "enroll_address": "mesh.example:7443",
        "mesh_address": "[2001:db8::1]:7444",
        "authority_fingerprint": "99" * 32,
        "token": "aa" * 32,
    }
    texts = [str(fields[name]).encode() for name in ("mesh", "enroll_address", "mesh_address")]
    body = b"".join(len(text).to_bytes(2, "big") + text for text in texts)
    body += b"\x99" * 32 + b"\xaa" * 32
    checksum = _sha256(b"boltz-mesh join v1\0" + body)[:4]
    packed = len(body).to_bytes(2, "big") + body + checksum
    encoded = base64.urlsafe_b64encode(packed).decode().rstrip("=")
    return fields | {
        "join_string": "boltz1." + encoded,
        "token_hash": _sha256(b"boltz-mesh token v1" + b"\xaa" * 32).hex(),
    }


def main(folder: Path) -> None:
    """Write all vector files into the folder."""
    key = _load_key()
    files: dict[str, object] = {
        "crypto_statement.json": _statements(key),
        "crypto_envelope.json": _envelopes(key),
        "crypto_key_wrap.json": _key_wrap(),
        "crypto_join.json": _join_string(),
    }
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=True) + "\n"
        (folder / name).write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else VECTORS)
