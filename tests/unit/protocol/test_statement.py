from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from hypothesis import given
from hypothesis import strategies as st

from boltz_protocol import keys, limits
from boltz_protocol.errors import LimitExceeded, MalformedMessage, SignatureInvalid
from boltz_protocol.statement import (
    CLIENT_ALGORITHMS,
    ED25519,
    MESH_ALGORITHMS,
    RSA_PSS_SHA256,
    Statement,
    digest,
    sign_ed25519,
    sign_rsa_pss,
    signed_bytes,
    verify,
)
from tests.support.keys import load_vectors, other_rsa_key, short_rsa_key, vector_rsa_key

MESH_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
KIND = "boltz-mesh/test/v1"


def check(
    statement: Statement,
    key: RSAPublicKey | Ed25519PublicKey,
    *,
    kind: str = KIND,
    allowed: frozenset[str] = CLIENT_ALGORITHMS | MESH_ALGORITHMS,
) -> bytes:
    return verify(statement, expected_type=kind, public_key=key, allowed_algorithms=allowed)


@pytest.mark.parametrize("index", range(4))
def test_vectors(index: int) -> None:
    case = load_vectors("crypto_statement")[index]
    spki = bytes.fromhex(case["public_key_spki"])
    rsa = case["algorithm"] == RSA_PSS_SHA256
    key = keys.load_rsa_public_key(spki) if rsa else keys.load_ed25519_public_key(spki)
    assert keys.public_key_id(key) == case["key_id"]
    assert keys.public_key_der(key) == spki
    statement = Statement(
        type=case["type"],
        payload=bytes.fromhex(case["payload"]),
        key_id=case["key_id"],
        algorithm=case["algorithm"],
        signature=bytes.fromhex(case["signature"]),
    )
    assert check(statement, key, kind=case["type"]) == statement.payload
    assert digest(statement).hex() == case["digest"]
    encoded = signed_bytes(
        type=statement.type,
        payload=statement.payload,
        key_id=statement.key_id,
        algorithm=statement.algorithm,
    )
    assert encoded.hex() == case["signed_bytes"]
    if not rsa:
        again = sign_ed25519(type=case["type"], payload=statement.payload, private_key=MESH_KEY)
        assert again == statement


def test_rsa_round_trip_and_randomised_signature() -> None:
    key = vector_rsa_key()
    first = sign_rsa_pss(type=KIND, payload=b"words", private_key=key)
    second = sign_rsa_pss(type=KIND, payload=b"words", private_key=key)
    assert first.signature != second.signature
    assert digest(first) == digest(second)
    assert check(first, key.public_key(), allowed=CLIENT_ALGORITHMS) == b"words"


@given(
    payload=st.binary(max_size=300),
    kind=st.text(st.characters(codec="utf-8"), min_size=1, max_size=40),
)
def test_ed25519_round_trip(payload: bytes, kind: str) -> None:
    statement = sign_ed25519(type=kind, payload=payload, private_key=MESH_KEY)
    assert check(statement, MESH_KEY.public_key(), kind=kind) == payload


@given(
    fields=st.lists(
        st.tuples(*[st.text(max_size=6)] * 3, st.binary(max_size=6)), unique=True, min_size=2
    )
)
def test_signed_bytes_are_injective(fields: list[tuple[str, str, str, bytes]]) -> None:
    encodings = {
        signed_bytes(type=kind, payload=payload, key_id=key_id, algorithm=algorithm)
        for kind, key_id, algorithm, payload in fields
    }
    assert len(encodings) == len(fields)


def changed(statement: Statement) -> list[Statement]:
    flipped = bytearray(statement.signature)
    flipped[len(flipped) // 2] ^= 1
    return [
        replace(statement, payload=statement.payload + b"\0"),
        replace(statement, payload=statement.payload[:-1]),
        replace(statement, signature=bytes(flipped)),
        replace(statement, signature=statement.signature[:-1]),
        replace(statement, signature=b""),
        replace(statement, type="boltz-mesh/other/v1"),
        replace(statement, key_id="00" * 16),
        replace(statement, algorithm="rsa-pkcs1-sha256"),
        replace(statement, algorithm=""),
    ]


@pytest.mark.parametrize("index", range(9))
def test_any_change_is_refused(index: int) -> None:
    rsa = vector_rsa_key()
    for statement, key in (
        (sign_rsa_pss(type=KIND, payload=b"words", private_key=rsa), rsa.public_key()),
        (
            sign_ed25519(type=KIND, payload=b"words", private_key=MESH_KEY),
            MESH_KEY.public_key(),
        ),
    ):
        with pytest.raises(SignatureInvalid):
            check(changed(statement)[index], key)


def test_a_statement_of_another_type_is_refused_although_signed() -> None:
    statement = sign_ed25519(type="boltz-mesh/other/v1", payload=b"", private_key=MESH_KEY)
    with pytest.raises(SignatureInvalid, match="is expected here"):
        check(statement, MESH_KEY.public_key())


def test_relabelled_type_does_not_verify() -> None:
    statement = sign_ed25519(type="boltz-mesh/other/v1", payload=b"", private_key=MESH_KEY)
    with pytest.raises(SignatureInvalid, match="does not verify"):
        check(replace(statement, type=KIND), MESH_KEY.public_key())


def test_another_key_is_refused() -> None:
    statement = sign_rsa_pss(type=KIND, payload=b"", private_key=other_rsa_key())
    with pytest.raises(SignatureInvalid, match="not the sender's"):
        check(statement, vector_rsa_key().public_key())
    borrowed = replace(statement, key_id=keys.public_key_id(vector_rsa_key().public_key()))
    with pytest.raises(SignatureInvalid, match="does not verify"):
        check(borrowed, vector_rsa_key().public_key())


def test_algorithm_must_be_allowed_and_fit_the_key() -> None:
    statement = sign_ed25519(type=KIND, payload=b"", private_key=MESH_KEY)
    with pytest.raises(SignatureInvalid, match="not allowed"):
        check(statement, MESH_KEY.public_key(), allowed=CLIENT_ALGORITHMS)
    with pytest.raises(SignatureInvalid, match="kind of key"):
        check(replace(statement, algorithm=RSA_PSS_SHA256), MESH_KEY.public_key())
    rsa = sign_rsa_pss(type=KIND, payload=b"", private_key=vector_rsa_key())
    with pytest.raises(SignatureInvalid, match="kind of key"):
        check(replace(rsa, algorithm=ED25519), vector_rsa_key().public_key())


def test_short_keys_are_refused_at_both_ends() -> None:
    short = short_rsa_key()
    with pytest.raises(MalformedMessage, match="2048 bits"):
        sign_rsa_pss(type=KIND, payload=b"", private_key=short)
    forged = Statement(KIND, b"", keys.public_key_id(short.public_key()), RSA_PSS_SHA256, b"x")
    with pytest.raises(MalformedMessage, match="2048 bits"):
        check(forged, short.public_key())


def test_caps() -> None:
    with pytest.raises(LimitExceeded):
        sign_ed25519(type=KIND, payload=bytes(limits.MAX_STATEMENT_BYTES + 1), private_key=MESH_KEY)
    for kind in ("", "x" * (limits.MAX_NAME_CHARS + 1)):
        with pytest.raises(LimitExceeded):
            sign_ed25519(type=kind, payload=b"", private_key=MESH_KEY)
    largest = sign_ed25519(
        type="x" * limits.MAX_NAME_CHARS,
        payload=bytes(limits.MAX_STATEMENT_BYTES),
        private_key=MESH_KEY,
    )
    assert check(largest, MESH_KEY.public_key(), kind=largest.type) == largest.payload
    for bad in (
        replace(largest, payload=largest.payload + b"\0"),
        replace(largest, type=largest.type + "x"),
        replace(largest, signature=bytes(limits.MAX_SIGNATURE_BYTES + 1)),
    ):
        with pytest.raises(LimitExceeded):
            check(bad, MESH_KEY.public_key())
    with pytest.raises(MalformedMessage):
        check(replace(largest, key_id="no id"), MESH_KEY.public_key())
