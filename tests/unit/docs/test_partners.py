"""docs/partners.md: its numbers are those of the vectors, its formulas give them."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import math
import re
import struct
from fractions import Fraction
from typing import Any

import pytest

from tests.support.repository import PROTO, ROOT

PAGE = (ROOT / "docs" / "partners.md").read_text("utf-8")
_ROW = re.compile(r"^\| `([a-z_]+\.json)#(/[^`]+)` \| `([^`]+)` \|$", re.MULTILINE)


@functools.cache
def vectors(name: str) -> Any:
    return json.loads((PROTO / "vectors" / name).read_text("utf-8"))


def at(name: str, pointer: str) -> Any:
    """What a JSON pointer (RFC 6901) names."""
    value = vectors(name)
    for step in pointer.removeprefix("/").split("/"):
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value


def len32(*fields: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(field)) + field for field in fields)


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


@pytest.mark.parametrize("row", _ROW.findall(PAGE), ids=lambda row: f"{row[0]}{row[1]}")
def test_a_number_in_the_page_is_the_vectors(row: tuple[str, str, str]) -> None:
    name, pointer, printed = row
    value = str(at(name, pointer))
    if printed.endswith("..."):
        assert value.startswith(printed[:-3])
    else:
        assert value == printed


def test_the_page_names_every_vectors_file_and_no_other() -> None:
    named = set(re.findall(r"`((?:crypto|numerics|test)_[a-z_]+\.json)", PAGE))
    assert named == {path.name for path in (PROTO / "vectors").glob("*.json")}


def test_statements() -> None:
    for vector in vectors("crypto_statement.json"):
        texts = (vector[key].encode() for key in ("algorithm", "key_id", "type"))
        payload = bytes.fromhex(vector["payload"])
        signed = b"boltz-mesh statement v1\0" + len32(*texts) + struct.pack(">Q", len(payload))
        assert signed + payload == bytes.fromhex(vector["signed_bytes"])
        assert sha256(signed + payload).hex() == vector["digest"]
        assert sha256(bytes.fromhex(vector["public_key_spki"])).hex()[:32] == vector["key_id"]


def test_join_strings() -> None:
    vector = vectors("crypto_join.json")
    texts = [vector[key].encode() for key in ("mesh", "enroll_address", "mesh_address")]
    fields = b"".join(struct.pack(">H", len(text)) + text for text in texts)
    fields += bytes.fromhex(vector["authority_fingerprint"] + vector["token"])
    body = struct.pack(">H", len(fields)) + fields
    body += sha256(b"boltz-mesh join v1\0" + fields)[:4]
    encoded = base64.urlsafe_b64encode(body).decode().rstrip("=")
    assert vector["join_string"] == f"boltz1.{encoded}"


def test_the_roster_tree() -> None:
    tree = at("numerics_weights.json", "/trees/1")
    nodes = []
    for leaf in tree["leaves"]:
        name = leaf["client_id"].encode()
        data = struct.pack(">BIB", 0, leaf["index"], len(name)) + name
        data += bytes.fromhex(leaf["entry_digest"]) + struct.pack(">Q", leaf["weight"])
        assert sha256(data).hex() == leaf["hash"]
        nodes.append(sha256(data) + struct.pack(">Q", leaf["weight"]))
    assert sha256(b"\x01" + nodes[0] + nodes[1]).hex() == tree["root"]


def test_weights() -> None:
    for vector in vectors("numerics_weights.json")["weights"]:
        cap = vector["sample_bucket_cap"]
        bucket = min(vector["sample_bucket"], cap)
        exact = Fraction(255 * (vector["quality_bucket"] + 1) * vector["trust_256"], 4 * 256)
        assert max(1, round(exact / 2 ** (cap - bucket))) == vector["weight"]


@pytest.mark.parametrize("position", range(len(vectors("numerics_encoding.json"))))
def test_the_bound(position: int) -> None:
    vector = at("numerics_encoding.json", f"/{position}")
    number = struct.unpack(">d", bytes.fromhex(vector["clip_norm_l2"]["ieee754"]))[0]
    units = Fraction(number) * Fraction(2) ** vector["scale_log2"]
    bits = min(16, 30 - math.ceil(units).bit_length())
    size = vector["coordinates"]
    c = units + Fraction(math.isqrt(size) + 1, 2 ** (bits + 1))
    # Enough digits of sqrt(D) that rounding up cannot depend on them.
    root = Fraction(math.isqrt(size << 200), 1 << 100)
    square = min(c**2 + Fraction(size, 4) + c + root / 2, (c + root) ** 2)
    bound = math.isqrt(math.floor(square))
    bound += bound * bound < square
    assert bits == vector["fraction_bits"]
    assert bound == vector["bound_l2"]


def test_packing() -> None:
    for vector in vectors("numerics_packing.json")["vectors"]:
        packed = b"".join(value.to_bytes(3, "little", signed=True) for value in vector["values"])
        assert packed.hex() == vector["packed"]


def test_encryption() -> None:
    key = bytes.fromhex(vectors("crypto_envelope.json")["content_key"])
    found = at("crypto_envelope.json", "/contexts/0")
    context = found["context"]
    encoding = b"boltz-mesh update context v1\0" + len32(
        context["mesh"].encode(),
        context["round_id"].encode(),
        struct.pack(">I", context["attempt"]),
        context["client_id"].encode(),
        context["session_id"].encode(),
        context["recipient_key_id"].encode(),
        bytes.fromhex(context["model_digest"]),
        bytes.fromhex(context["config_digest"]),
    )
    assert encoding.hex() == found["encoding"]
    extracted = hmac.digest(sha256(encoding), key, "sha256")
    for content in found["contents"]:
        for name, info in (("aes_key", b"key"), ("commitment", b"commitment")):
            derived = hmac.digest(extracted, b"boltz-mesh envelope v1 " + info + b"\x01", "sha256")
            assert derived.hex() == content[name]
        last = len(content["chunks"]) - 1
        for index, chunk in enumerate(content["chunks"]):
            nonce = index.to_bytes(11, "big") + bytes([index == last])
            assert nonce.hex() == chunk["nonce"]
