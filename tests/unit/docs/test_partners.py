"""docs/partners.md: its numbers are those of the vectors, its formulas give them."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import itertools
import json
import math
import re
import struct
from fractions import Fraction
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

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
    named = set(re.findall(r"`((?:crypto|numerics|secagg|test)_[a-z_]+\.json)", PAGE))
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


@pytest.mark.parametrize("vector", vectors("numerics_indicator.json"), ids=lambda v: v["name"])
def test_the_clip_indicator(vector: Any) -> None:
    def number(field: Any) -> float:
        value: float = struct.unpack(">d", bytes.fromhex(field["ieee754"]))[0]
        return value

    clip_norm, scale = number(vector["clip_norm"]), number(vector["indicator_scale"])
    values = [struct.unpack(">f", bytes.fromhex(each))[0] for each in vector["values_float32"]]
    norm = math.hypot(*values, *map(number, vector["scaled_lanes"]))
    inner = math.sqrt(clip_norm**2 - (scale / 2) ** 2)
    lane = scale / 2 if norm <= inner else -scale / 2
    assert inner == pytest.approx(number(vector["inner_clip_norm"]), rel=1e-14)
    assert min(1, inner / norm) == pytest.approx(number(vector["factor"]), rel=1e-14)
    assert lane == pytest.approx(scale * vector["bit"])
    assert math.hypot(min(norm, inner), lane) <= clip_norm * (1 + 1e-15)
    real = Fraction(lane) * Fraction(vector["weight"], vector["max_weight"])
    real *= Fraction(2) ** vector["scale_log2"]
    assert {math.floor(real), math.ceil(real)} == set(vector["lane_integers"])


def test_packing() -> None:
    for vector in vectors("numerics_packing.json")["vectors"]:
        packed = b"".join(value.to_bytes(3, "little", signed=True) for value in vector["values"])
        assert packed.hex() == vector["packed"]


def least_tail(population: int, marked: int, draws: int, bits: int) -> int:
    """The smallest q with P(X > q) <= 2^-bits / (population + 1), X hypergeometric."""
    limit = Fraction(math.comb(population, draws), (population + 1) << bits)
    tail, q = 0, min(marked, draws)
    while q > 0:
        tail += math.comb(marked, q) * math.comb(population - marked, draws - q)
        if tail > limit:
            return q
        q -= 1
    return 0


def dimensions(n: int, c: int, d: int, adversary: str) -> tuple[int, int]:
    """The page's rule, as a loop."""
    semi_malicious = adversary == "semi-malicious"
    if n <= 50:
        return n - 1, (n + c) // 2 + 1 if semi_malicious else max(2, c + 1)
    for k in range(2, n - 1, 2):
        q, s = least_tail(n - 1, c, k, 41), least_tail(n - 1, d, k, 20)
        t = (k + q) // 2 + 1 if semi_malicious else max(2, q + 1)
        apart = Fraction(n * (n - k - 1), 2) * Fraction(math.perm(c + d, k), math.perm(n, k))
        if t <= k - s and apart <= Fraction(1, n << 41):
            return k, t
    raise AssertionError("no graph")


def test_dimensions_of_the_graph() -> None:
    found = [v for v in vectors("secagg_graph.json")["parameters"] if v["clients"] <= 100]
    assert len(found) > 50
    for vector in found:
        n, adversary = vector["clients"], vector["adversary"]
        c, d = (
            math.floor(n * Fraction(str(vector[name])))
            for name in ("corrupt_fraction", "dropout_fraction")
        )
        expected = (vector["neighbours"], vector["threshold"])
        assert dimensions(n, c, d, adversary) == expected, vector


def test_bitmaps() -> None:
    for vector in vectors("secagg_graph.json")["bitmaps"]:
        out = bytearray(-(-vector["size"] // 8))
        for i in vector["positions"]:
            out[i // 8] |= 1 << i % 8
        assert out.hex() == vector["bitmap"]


def test_context_and_graph() -> None:
    found = vectors("secagg_graph.json")
    names = ("configuration_sha256", "model_sha256", "key_roster_sha256", "graph_members_bitmap")
    for vector in (found["complete"], *found["graphs"]):
        fields = [bytes.fromhex(vector[name]) for name in names]
        nonces = [bytes.fromhex(nonce) for nonce in vector.get("nonces", ())]
        label = b"boltz-mesh mask context v1\0"
        context = sha256(label + len32(*fields, sha256(b"".join(nonces))))
        assert context.hex() == vector["mask_context"]
        if not nonces:
            continue
        seed = sha256(b"boltz-mesh graph seed v1\0" + len32(context, *nonces))
        assert seed.hex() == vector["graph_seed"]
        ring = shuffled(vector["graph_members"], seed)
        assert ring == vector["ring"]
        for member, expected in zip(vector["graph_members"], vector["neighbours_of"], strict=True):
            place, reach = ring.index(member), vector["neighbours"] // 2
            steps = [*range(-reach, 0), *range(1, reach + 1)]
            assert sorted(ring[(place + step) % len(ring)] for step in steps) == expected


def of_group(roster: int, c: int, groups: int) -> int:
    """The page's q: corrupt members that no group of a grouped round exceeds."""
    q = 0
    for s in range(5, -(-roster // groups) + 1):
        m = max(5 * groups, (s - 1) * groups + 1)
        marked = min(c, m)
        while groups * sum(
            math.comb(marked, x) * math.comb(m - marked, s - x) for x in range(q + 1, s + 1)
        ) << 40 > math.comb(m, s):
            q += 1
    return q


def test_groups() -> None:
    found = vectors("secagg_graph.json")
    for vector in found["group_colluders"]:
        c = math.floor(vector["roster_size"] * Fraction(str(vector["corrupt_fraction"])))
        assert of_group(vector["roster_size"], c, vector["groups"]) == vector["colluders"]
    for vector in found["groups"]:
        order = shuffled(vector["graph_members"], bytes.fromhex(vector["graph_seed"]))
        drawn, q = vector["groups"], vector["colluders"]
        assert [sorted(order[group :: len(drawn)]) for group in range(len(drawn))] == drawn
        for members, threshold in zip(drawn, vector["thresholds"], strict=True):
            semi_malicious = vector["adversary"] == "semi-malicious"
            n = len(members)
            assert threshold == ((n + q) // 2 + 1 if semi_malicious else max(2, q + 1))


def shuffled(members: list[int], seed: bytes) -> list[int]:
    order = list(members)
    words = (word for block in itertools.count() for word in keystream(seed.hex(), block))
    for last in range(len(order) - 1, 0, -1):
        b = last + 1
        word = next(word for word in words if word < 2**32 - 2**32 % b)
        order[last], order[word % b] = order[word % b], order[last]
    return order


def hkdf(secret: str, salt: bytes, info: bytes) -> str:
    return hmac.digest(
        hmac.digest(salt, bytes.fromhex(secret), "sha256"), info + b"\1", "sha256"
    ).hex()


def test_keys_and_masks_of_sealed_rounds() -> None:
    found = vectors("secagg_masks.json")
    context = bytes.fromhex(found["context"])
    low, high = found["clients"]
    parties = [
        field
        for client in (low, high)
        for field in (client["client_id"].encode(), bytes.fromhex(client["mask_public_key"]))
    ]
    pair = hkdf(
        found["mask_shared_secret"], context, b"boltz-mesh pair mask v1\0" + len32(*parties)
    )
    assert pair == found["pair_mask_key"]
    for client, key in zip((low, high), found["self_mask_keys"], strict=True):
        info = b"boltz-mesh self mask v1\0" + len32(client["client_id"].encode())
        assert hkdf(client["seed"], context, info) == key
    for mask in found["masks"]:
        for at_ in mask["words"]:
            word = keystream(mask["key"], at_["coordinate"] // 4)[at_["coordinate"] % 4]
            assert word == at_["word"]
    for masked in found["masked_chunks"]:
        packed = b""
        for offset, value in enumerate(masked["values"]):
            block = masked["chunk"] * 2**16 + offset // 4
            streams = masked["streams"]
            masks = (s["sign"] * keystream(s["key"], block)[offset % 4] for s in streams)
            packed += ((value + sum(masks)) % 2**24).to_bytes(3, "little")
        assert packed.hex() == masked["packed"]


def keystream(key: str, block: int) -> tuple[int, ...]:
    """Four words of one counter block."""
    cipher = Cipher(algorithms.AES(bytes.fromhex(key)), modes.CTR(block.to_bytes(16, "big")))
    return struct.unpack("<4I", cipher.encryptor().update(bytes(16)))


def test_shares_and_commitments_of_sealed_rounds() -> None:
    found = vectors("secagg_masks.json")
    context = bytes.fromhex(found["context"])
    clients = {client["index"]: client for client in found["clients"]}
    nonce = len32(bytes.fromhex(found["nonce"]))
    commitment = sha256(b"boltz-mesh nonce commitment v1\0" + nonce)
    assert commitment.hex() == found["nonce_commitment"]
    for client, expected in zip(found["clients"], found["seed_commitments"], strict=True):
        fields = len32(context, struct.pack(">I", client["index"]), bytes.fromhex(client["seed"]))
        assert sha256(b"boltz-mesh seed commitment v1\0" + fields).hex() == expected
    for dealt in found["sealed_shares"]:
        roles = [
            field
            for index in (dealt["dealer"], dealt["holder"])
            for field in (
                clients[index]["client_id"].encode(),
                bytes.fromhex(clients[index]["share_public_key"]),
            )
        ]
        info = b"boltz-mesh share v1\0" + len32(*roles)
        assert hkdf(found["share_shared_secret"], context, info) == dealt["share_key"]
        plain = b""
        for kind, name, expected in (
            (1, "mask", dealt["mask_key_commitment"]),
            (2, "seed", dealt["seed_share_commitment"]),
        ):
            share, salt = (bytes.fromhex(dealt[f"{name}_{part}"]) for part in ("share", "salt"))
            places = [struct.pack(">I", dealt[role]) for role in ("dealer", "holder")]
            fields = len32(context, *places, bytes([kind]), share, salt)
            assert sha256(b"boltz-mesh share commitment v1\0" + fields).hex() == expected
            plain += share + salt
        key = AESGCM(bytes.fromhex(dealt["share_key"]))
        assert key.encrypt(bytes(12), plain, None).hex() == dealt["sealed"]


def test_shamir() -> None:
    for vector in vectors("secagg_masks.json")["shamir"]:
        polynomial = [int(text, 16) for text in (vector["secret"], *vector["coefficients"])]
        for share in vector["shares"]:
            x = share["index"] + 1
            value = sum(a * x**power for power, a in enumerate(polynomial)) % (2**256 + 297)
            assert value.to_bytes(33, "big").hex() == share["share"]


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
