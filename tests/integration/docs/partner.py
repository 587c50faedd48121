"""A client written from docs/partners.md alone: generated stubs and `cryptography`, no more.

Each function follows the section of the page that bears its name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import secrets
import socket
import ssl
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from boltz_protocol.v1 import aggregator_pb2 as agg
from boltz_protocol.v1 import common_pb2 as common
from boltz_protocol.v1 import model_store_pb2 as store
from boltz_protocol.v1 import registry_pb2 as reg

PSS = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
Key = rsa.RSAPublicKey | Ed25519PublicKey


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def len32(*fields: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(field)) + field for field in fields)


# --- keys and statements ------------------------------------------------------------------------


def key_id(key: Key) -> str:
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return sha256(der).hex()[:32]


def signed_bytes(statement: common.SignedStatement) -> bytes:
    texts = (statement.algorithm, statement.key_id, statement.type)
    head = b"boltz-mesh statement v1\0" + len32(*(text.encode() for text in texts))
    return head + struct.pack(">Q", len(statement.payload)) + statement.payload


def sign(key: rsa.RSAPrivateKey, message: Any) -> common.SignedStatement:
    statement = common.SignedStatement(
        type=message.DESCRIPTOR.full_name,
        payload=message.SerializeToString(),
        key_id=key_id(key.public_key()),
        algorithm="rsa-pss-sha256",
    )
    statement.signature = key.sign(signed_bytes(statement), PSS, hashes.SHA256())
    return statement


def verified(
    keys: dict[str, Ed25519PublicKey], statement: common.SignedStatement, kind: Any
) -> Any:
    """The payload of a statement by the mesh."""
    assert statement.algorithm == "ed25519"
    assert statement.type == kind.DESCRIPTOR.full_name
    keys[statement.key_id].verify(statement.signature, signed_bytes(statement))
    return kind.FromString(statement.payload)


def statement_keys(
    answer: reg.GetServerKeysResponse, root: x509.Certificate
) -> dict[str, Ed25519PublicKey]:
    keys = {}
    for der in answer.statement_certificates_der:
        certificate = x509.load_der_x509_certificate(der)
        certificate.verify_directly_issued_by(root)
        key = certificate.public_key()
        assert isinstance(key, Ed25519PublicKey)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uri = f"spiffe://{answer.mesh_id}/statement/{key_id(key)}"
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [uri]
        keys[key_id(key)] = key
    return keys


# --- join string and enrolment ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Join:
    mesh: str
    enroll_address: str
    mesh_address: str
    fingerprint: bytes
    token: bytes


def read_join(text: str) -> Join:
    encoded = text.removeprefix("boltz1.")
    body = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4))
    size = int.from_bytes(body[:2], "big")
    fields, checksum = body[2 : 2 + size], body[2 + size :]
    assert checksum == sha256(b"boltz-mesh join v1\0" + fields)[:4]
    texts = []
    for _ in range(3):
        end = 2 + int.from_bytes(fields[:2], "big")
        texts.append(fields[2:end].decode())
        fields = fields[end:]
    return Join(texts[0], texts[1], texts[2], fields[:32], fields[32:])


def fetch_root(join: Join) -> x509.Certificate:
    host, _, port = join.enroll_address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=10) as raw,
        context.wrap_socket(raw) as connection,
    ):
        # Public since Python 3.13.
        inner: Any = connection._sslobj  # type: ignore[attr-defined]
        pems = [found.public_bytes() for found in inner.get_unverified_chain()]
    for pem in pems:
        der = ssl.PEM_cert_to_DER_cert(pem)
        if sha256(der) == join.fingerprint:
            return x509.load_der_x509_certificate(der)
    raise AssertionError("another mesh, or an attack")


def certificate_request(key: rsa.RSAPrivateKey) -> bytes:
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


# --- roster and weights -------------------------------------------------------------------------


def check_roster(offer: agg.RoundOffer, terms: agg.RoundConfiguration) -> agg.RosterEntry:
    """The own entry, in the tree that the configuration commits to."""
    entry = agg.RosterEntry.FromString(offer.roster_entry)
    name = entry.client_id.encode()
    leaf = struct.pack(">BIB", 0, entry.index, len(name)) + name + sha256(offer.roster_entry)
    node = (sha256(leaf + struct.pack(">Q", entry.weight)), entry.weight)
    for left, sibling in zip(
        path(entry.index, terms.roster_size), offer.proof.siblings, strict=True
    ):
        other = (sibling.hash, sibling.sum)
        first, second = (other, node) if left else (node, other)
        data = b"".join(digest + struct.pack(">Q", total) for digest, total in (first, second))
        node = (sha256(b"\x01" + data), first[1] + second[1])
    assert node == (terms.roster_root, terms.total_weight)
    return entry


def path(index: int, size: int) -> list[bool]:
    """From the leaf upwards: whether the sibling is on the left."""
    if size == 1:
        return []
    middle = 1 << ((size - 1).bit_length() - 1)
    if index < middle:
        return [*path(index, middle), False]
    return [*path(index - middle, size - middle), True]


# --- from a delta to integers, packing ----------------------------------------------------------


def check_bound(terms: agg.RoundConfiguration) -> None:
    units = Fraction(terms.clip_norm) * Fraction(terms.scale)
    size = terms.parameters + len(terms.lanes)
    bits = min(16, 30 - math.ceil(units).bit_length())
    c = units + Fraction(math.isqrt(size) + 1, 2 ** (bits + 1))
    root = Fraction(math.isqrt(size << 200), 1 << 100)
    square = min(c**2 + Fraction(size, 4) + c + root / 2, (c + root) ** 2)
    bound = math.isqrt(math.floor(square))
    assert terms.bound_l2 == bound + (bound * bound < square)


def encode(delta: list[float], weight: int, terms: agg.RoundConfiguration) -> bytes:
    norm = math.sqrt(sum(value * value for value in delta))
    # A hair below, for the rounding of these very floats.
    clip = min(1.0, terms.clip_norm / norm * (1 - 1e-12))
    reals = [value * clip * (weight / terms.max_weight) * terms.scale for value in delta]
    while True:
        integers = [
            math.floor(real) + (secrets.randbits(53) / 2**53 < real - math.floor(real))
            for real in reals
        ]
        if sum(value * value for value in integers) <= terms.bound_l2**2:
            return b"".join(value.to_bytes(3, "little", signed=True) for value in integers)


# --- encryption ---------------------------------------------------------------------------------


def seal(
    plain: bytes,
    *,
    entry: agg.RosterEntry,
    terms: agg.RoundConfiguration,
    digest: bytes,
    recipient: reg.EncryptionKey,
    at_ms: int,
) -> tuple[agg.UpdateManifest, list[agg.UpdateChunk]]:
    content_key = secrets.token_bytes(32)
    public = serialization.load_der_public_key(recipient.public_key_spki)
    assert isinstance(public, rsa.RSAPublicKey)
    assert key_id(public) == recipient.key_id
    context = b"boltz-mesh update context v1\0" + len32(
        terms.mesh_id.encode(),
        terms.round_id.encode(),
        struct.pack(">I", terms.attempt),
        entry.client_id.encode(),
        entry.session_id.encode(),
        recipient.key_id.encode(),
        terms.model_sha256,
        digest,
    )

    def derived(label: bytes) -> bytes:
        info = b"boltz-mesh envelope v1 " + label
        return HKDF(hashes.SHA256(), 32, sha256(context), info).derive(content_key)

    aead = AESGCM(derived(b"key"))
    step = 3 * terms.chunk_coordinates
    pieces = [plain[start : start + step] for start in range(0, len(plain), step)]
    chunks = []
    offset = 0
    for index, piece in enumerate(pieces):
        nonce = index.to_bytes(11, "big") + bytes([index == len(pieces) - 1])
        data = aead.encrypt(nonce, piece, None)
        chunks.append(agg.UpdateChunk(offset=offset, data=data))
        offset += len(data)
    manifest = agg.UpdateManifest(
        round_id=terms.round_id,
        attempt=terms.attempt,
        client_id=entry.client_id,
        session_id=entry.session_id,
        configuration_sha256=digest,
        encryption_key_id=recipient.key_id,
        wrapped_content_key=public.encrypt(content_key, OAEP),
        key_commitment=derived(b"commitment"),
        sha256=sha256(b"".join(chunk.data for chunk in chunks)),
        size_bytes=offset,
        weight=entry.weight,
        at_ms=max(at_ms, terms.created_at_ms),
    )
    return manifest, chunks


# --- model files --------------------------------------------------------------------------------


def read_model(manifest: store.ModelManifest, content: bytes) -> list[float]:
    """All coordinates, from a file that has the one form that the mesh stores."""
    assert sha256(content) == manifest.sha256
    entries = {}
    end = 0
    for tensor in manifest.tensors:
        start, end = end, end + 4 * math.prod(tensor.shape)
        entries[tensor.name] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    header = struct.pack("<Q", len(text)) + text
    assert content[: len(header)] == header
    return list(struct.unpack(f"<{end // 4}f", content[len(header) :]))
