from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from boltz_protocol import limits
from boltz_protocol.context import BlobContext, context_hash
from boltz_protocol.envelope import ContentKey
from boltz_protocol.errors import DecryptionFailed, LimitExceeded, MalformedMessage
from boltz_protocol.ids import KeyId
from boltz_protocol.key_wrap import (
    KeyEncryptionKey,
    unwrap_key,
    unwrap_secret,
    wrap_key,
    wrap_secret,
)
from tests.support.keys import load_vectors

KEK = KeyEncryptionKey(KeyId("77" * 16), b"\x66" * 32)
CONTEXT = BlobContext("demo", "model", ("forecast", "7"))


def test_vector() -> None:
    vector = load_vectors("crypto_key_wrap")
    fields = vector["context"]
    context = BlobContext(fields["mesh"], fields["kind"], tuple(fields["ids"]))
    kek = KeyEncryptionKey(
        vector["key_encryption_key_id"], bytes.fromhex(vector["key_encryption_key"])
    )
    opened = unwrap_key(bytes.fromhex(vector["wrapped"]), kek, context)
    assert opened.material.hex() == vector["secret"]


def test_what_is_written_opens_by_the_text_of_the_contract() -> None:
    wrapped = wrap_key(ContentKey(bytes(range(32))), KEK, CONTEXT)
    assert len(wrapped) == 61
    assert wrapped[0] == 1
    associated = (
        b"boltz-mesh key wrap v1\0"
        + (32).to_bytes(4, "big")
        + b"77" * 16
        + (32).to_bytes(4, "big")
        + context_hash(CONTEXT)
    )
    plain = AESGCM(KEK.material).decrypt(wrapped[1:13], wrapped[13:], associated)
    assert plain == bytes(range(32))


@given(st.binary(max_size=100))
def test_round_trip(secret: bytes) -> None:
    wrapped = wrap_secret(secret, KEK, CONTEXT)
    assert unwrap_secret(wrapped, KEK, CONTEXT) == secret
    assert wrap_secret(secret, KEK, CONTEXT) != wrapped


def test_nothing_but_the_same_key_and_context_opens() -> None:
    wrapped = wrap_key(ContentKey.generate(), KEK, CONTEXT)
    for kek, context in (
        (KeyEncryptionKey(KEK.key_id, bytes(32)), CONTEXT),
        (KeyEncryptionKey(KeyId("78" * 16), KEK.material), CONTEXT),
        (KEK, replace(CONTEXT, ids=("forecast", "8"))),
        (KEK, replace(CONTEXT, kind="server-key")),
        (KEK, replace(CONTEXT, mesh="other")),
    ):
        with pytest.raises(DecryptionFailed):
            unwrap_key(wrapped, kek, context)


def test_damage_is_refused() -> None:
    wrapped = wrap_key(ContentKey.generate(), KEK, CONTEXT)
    for i in range(len(wrapped)):
        damaged = bytearray(wrapped)
        damaged[i] ^= 1
        with pytest.raises(DecryptionFailed):
            unwrap_key(bytes(damaged), KEK, CONTEXT)
    too_long = bytes([1]) + bytes(limits.MAX_WRAPPED_SECRET_BYTES + 29)
    for wrong in (b"", wrapped[:28], wrapped[:-1], wrapped + b"\0", too_long):
        with pytest.raises(DecryptionFailed):
            unwrap_key(wrong, KEK, CONTEXT)


def test_a_secret_of_another_length_is_no_key() -> None:
    wrapped = wrap_secret(bytes(31), KEK, CONTEXT)
    with pytest.raises(DecryptionFailed, match="31 bytes"):
        unwrap_key(wrapped, KEK, CONTEXT)


def test_caps_and_forms() -> None:
    largest = bytes(limits.MAX_WRAPPED_SECRET_BYTES)
    assert unwrap_secret(wrap_secret(largest, KEK, CONTEXT), KEK, CONTEXT) == largest
    with pytest.raises(LimitExceeded):
        wrap_secret(largest + b"\0", KEK, CONTEXT)
    with pytest.raises(MalformedMessage):
        KeyEncryptionKey(KeyId("short"), bytes(32))
    with pytest.raises(AssertionError):
        KeyEncryptionKey(KEK.key_id, bytes(16))


def test_repr_hides_the_key() -> None:
    kek = KeyEncryptionKey.generate()
    assert kek.key_id in repr(kek)
    assert kek.material.hex() not in repr(kek)
    assert repr(kek.material) not in repr(kek)
