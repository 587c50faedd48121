from __future__ import annotations

import base64
import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_protocol import limits
from boltz_protocol.errors import MalformedMessage
from boltz_protocol.join import JoinString, new_token, parse_join_string, token_hash
from tests.support.keys import load_vectors

JOIN = JoinString(
    mesh="demo",
    enroll_address="mesh.example:7443",
    mesh_address="[2001:db8::1]:7444",
    authority_fingerprint="99" * 32,
    token=b"\xaa" * 32,
)


def packed(fields: bytes) -> str:
    checksum = hashlib.sha256(b"boltz-mesh join v1\0" + fields).digest()[:4]
    body = len(fields).to_bytes(2, "big") + fields + checksum
    return "boltz1." + base64.urlsafe_b64encode(body).decode().rstrip("=")


def test_vector() -> None:
    vector = load_vectors("crypto_join")
    parsed = parse_join_string(vector["join_string"])
    assert parsed == JOIN
    assert parsed.encode() == vector["join_string"]
    assert token_hash(parsed.token).hex() == vector["token_hash"]
    assert parsed.token.hex() == vector["token"]


@given(
    mesh=st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", fullmatch=True),
    host=st.from_regex(r"[a-z0-9.-]{1,253}", fullmatch=True),
    port=st.integers(1, 65535),
    token=st.binary(min_size=32, max_size=32),
)
def test_round_trip(mesh: str, host: str, port: int, token: bytes) -> None:
    join = JoinString(mesh, f"{host}:{port}", f"10.0.0.1:{port}", "0f" * 32, token)
    encoded = join.encode()
    assert len(encoded) <= limits.MAX_JOIN_STRING_CHARS
    assert parse_join_string(encoded) == join
    wrapped = "  " + encoded[:50] + "\r\n\t" + encoded[50:] + "\n"
    assert parse_join_string(wrapped) == join


def test_the_longest_fits() -> None:
    longest = f"{'a' * 253}:65535"
    join = JoinString("m" * 63, longest, longest, "99" * 32, bytes(32))
    assert parse_join_string(join.encode()) == join


def test_every_cut_off_paste_says_so() -> None:
    encoded = JOIN.encode()
    for length in range(len("boltz1."), len(encoded)):
        with pytest.raises(MalformedMessage, match="cut off"):
            parse_join_string(encoded[:length])
    for length in range(len("boltz1.")):
        with pytest.raises(MalformedMessage, match="must begin"):
            parse_join_string(encoded[:length])


@pytest.mark.parametrize("mesh", ["demo", "demo1", "demo12"])
def test_every_mistyped_character_is_found(mesh: str) -> None:
    encoded = replace(JOIN, mesh=mesh).encode()
    for i in range(len("boltz1."), len(encoded)):
        other = "A" if encoded[i] != "A" else "B"
        with pytest.raises(MalformedMessage) as caught:
            parse_join_string(encoded[:i] + other + encoded[i + 1 :])
        assert encoded[20:] not in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "boltz2.AAAA",
        "boltz1.",
        "boltz1.A",
        "boltz1.AAAA!",
        "boltz1.AAAA====",
        "boltz1." + "A" * limits.MAX_JOIN_STRING_CHARS,
        JOIN.encode() + "A",
        JOIN.encode() + "AAAA",
        packed(b""),
        packed(b"\x00"),
        packed(b"\x00\x04dem"),
        packed(b"\x00\x01\xff" * 3 + bytes(64)),
        packed(b"\x00\x01a" * 3 + bytes(64)),
        packed(b"\x00\x04demo\x00\x03a:1\x00\x03b:1" + bytes(63)),
        packed(b"\x00\x04demo\x00\x03a:1\x00\x03b:1" + bytes(65)),
    ],
)
def test_garbage_is_refused(text: str) -> None:
    with pytest.raises(MalformedMessage):
        parse_join_string(text)


@given(st.text(max_size=100))
def test_no_other_error_escapes(text: str) -> None:
    for line in (text, "boltz1." + text):
        with pytest.raises(MalformedMessage):
            parse_join_string(line)


@pytest.mark.parametrize(
    "address",
    ["", "host", "host:", ":1", "host:0", "host:65536", "host:1x", "ho st:1", "a/b:1", "[::1:1"],
)
def test_bad_addresses_are_refused(address: str) -> None:
    with pytest.raises(MalformedMessage):
        replace(JOIN, enroll_address=address)
    with pytest.raises(MalformedMessage):
        replace(JOIN, mesh_address=address)


@pytest.mark.parametrize(
    "change",
    [
        {"mesh": "Demo"},
        {"authority_fingerprint": "99" * 31},
        {"authority_fingerprint": "AA" * 32},
        {"token": bytes(31)},
        {"mesh_address": "a" * limits.MAX_ADDRESS_CHARS + ":1"},
    ],
)
def test_bad_fields_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage):
        replace(JOIN, **change)


def test_repr_hides_the_token() -> None:
    shown = repr(replace(JOIN, token=b"0123456789abcdef" * 2))
    assert "0123456789abcdef" not in shown
    assert "token=hidden" in shown
    assert new_token() != new_token()
