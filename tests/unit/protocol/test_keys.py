from __future__ import annotations

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from boltz_protocol import keys
from boltz_protocol.errors import LimitExceeded, MalformedMessage
from tests.support.keys import short_rsa_key, vector_rsa_key


def test_key_id_is_the_start_of_the_digest() -> None:
    key = X25519PrivateKey.generate().public_key()
    digest = hashlib.sha256(keys.public_key_der(key)).hexdigest()
    assert keys.public_key_id(key) == digest[:32]


def test_generated_keys_are_accepted() -> None:
    key = keys.generate_rsa_key()
    assert key.key_size == 3072
    assert key.public_key().public_numbers().e == 65537
    der = keys.public_key_der(key.public_key())
    assert keys.load_rsa_public_key(der) == key.public_key()


def test_ed25519_loads() -> None:
    key = Ed25519PrivateKey.generate().public_key()
    assert keys.load_ed25519_public_key(keys.public_key_der(key)) == key


def test_other_kinds_and_garbage_are_refused() -> None:
    edward = keys.public_key_der(Ed25519PrivateKey.generate().public_key())
    good = keys.public_key_der(vector_rsa_key().public_key())
    for der in (edward, b"", b"\x30\x00", good[:-1], good + b"\0", bytes(600)):
        with pytest.raises(MalformedMessage):
            keys.load_rsa_public_key(der)
    with pytest.raises(MalformedMessage):
        keys.load_ed25519_public_key(good)
    with pytest.raises(LimitExceeded):
        keys.load_rsa_public_key(bytes(1025))


def test_weak_rsa_keys_are_refused() -> None:
    with pytest.raises(MalformedMessage, match="2048"):
        keys.load_rsa_public_key(keys.public_key_der(short_rsa_key().public_key()))
    numbers = vector_rsa_key().public_key().public_numbers()
    odd = rsa.RSAPublicNumbers(3, numbers.n).public_key()
    with pytest.raises(MalformedMessage, match="exponent 3"):
        keys.check_rsa_key(odd)
    long = rsa.RSAPublicNumbers(65537, numbers.n << 1025 | 1).public_key()
    with pytest.raises(MalformedMessage, match="4097"):
        keys.check_rsa_key(long)


def test_private_keys_load() -> None:
    key = vector_rsa_key()
    loaded = keys.load_rsa_private_key_pem(keys.rsa_private_key_pem(key))
    assert loaded.private_numbers() == key.private_numbers()


def test_damaged_private_keys_are_refused() -> None:
    pem = keys.rsa_private_key_pem(vector_rsa_key())
    der = base64.b64decode(b"".join(pem.splitlines()[1:-1]))
    for position in range(len(der)):
        damaged = bytearray(der)
        damaged[position] ^= 1
        body = base64.encodebytes(bytes(damaged))
        with pytest.raises(MalformedMessage):
            keys.load_rsa_private_key_pem(
                b"-----BEGIN PRIVATE KEY-----\n" + body + b"-----END PRIVATE KEY-----\n"
            )


def test_other_private_keys_are_refused() -> None:
    edward = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    locked = vector_rsa_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )
    short = keys.rsa_private_key_pem(short_rsa_key())
    for pem in (b"", edward, locked, short):
        with pytest.raises(MalformedMessage):
            keys.load_rsa_private_key_pem(pem)
