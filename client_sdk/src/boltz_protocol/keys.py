"""Public keys: their ids, their DER form, and what this mesh accepts.

A key id is the first 32 hex digits of SHA-256 over the key's SubjectPublicKeyInfo in DER (RFC 5280,
section 4.1), so that every language that can parse a certificate can compute it.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import (
    generate_private_key as _generate_rsa,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from boltz_protocol import limits
from boltz_protocol.errors import LimitExceeded, MalformedMessage
from boltz_protocol.ids import KeyId

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | X25519PublicKey

_RSA_EXPONENT = 65537
# An RSA-4096 SubjectPublicKeyInfo takes 550 bytes.
_MAX_SPKI_BYTES = 1024


def public_key_der(key: PublicKey) -> bytes:
    """SubjectPublicKeyInfo in DER."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def public_key_id(key: PublicKey) -> KeyId:
    """The key's id: the first 32 hex digits of SHA-256 over `public_key_der(key)`."""
    return KeyId(hashlib.sha256(public_key_der(key)).hexdigest()[:32])


def generate_rsa_key() -> RSAPrivateKey:
    """A fresh RSA-3072 key (e = 65537). Takes 0.05 to 0.5 s: call it in a thread."""
    return _generate_rsa(public_exponent=_RSA_EXPONENT, key_size=limits.MIN_RSA_BITS)


def check_rsa_key(key: RSAPublicKey) -> None:
    """Check size and exponent of a client's or an encryption key.

    Raises:
        MalformedMessage: shorter than 3072 or longer than 4096 bits, or e is not 65537.
    """
    if not limits.MIN_RSA_BITS <= key.key_size <= limits.MAX_RSA_BITS:
        raise MalformedMessage(
            f"an RSA key has {key.key_size} bits; {limits.MIN_RSA_BITS} to "
            f"{limits.MAX_RSA_BITS} are required"
        )
    exponent = key.public_numbers().e
    if exponent != _RSA_EXPONENT:
        raise MalformedMessage(f"an RSA key has the exponent {exponent}; {_RSA_EXPONENT} is used")


def load_rsa_public_key(der: bytes) -> RSAPublicKey:
    """Parse and check an RSA SubjectPublicKeyInfo.

    Raises:
        LimitExceeded: longer than any key that could be accepted.
        MalformedMessage: not an RSA key in DER, or refused by `check_rsa_key`.
    """
    key = _load(der)
    if not isinstance(key, RSAPublicKey):
        raise MalformedMessage(f"an RSA public key is required, this is {type(key).__name__}")
    check_rsa_key(key)
    return key


def rsa_private_key_pem(key: RSAPrivateKey) -> bytes:
    """PKCS #8 in PEM, not encrypted: a secret."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def load_rsa_private_key_pem(pem: bytes) -> RSAPrivateKey:
    """Parse an RSA key that this side wrote itself (`rsa_private_key_pem`).

    OpenSSL's own check takes 0.12 s, nearly all of it on whether the factors are prime, which they
    were when the key was made. What damage to a file could break is checked here in microseconds:
    numbers that do not belong together would make signatures that give the factors away.

    Raises:
        MalformedMessage: not such a key, damaged, or refused by `check_rsa_key`.
    """
    try:
        key = serialization.load_pem_private_key(
            pem, password=None, unsafe_skip_rsa_key_validation=True
        )
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise MalformedMessage("not an unencrypted private key in PEM") from error
    if not isinstance(key, RSAPrivateKey):
        raise MalformedMessage(f"an RSA private key is required, this is {type(key).__name__}")
    check_rsa_key(key.public_key())
    numbers = key.private_numbers()
    p, q, d = numbers.p, numbers.q, numbers.d
    consistent = (
        1 not in {p, q}
        and p * q == numbers.public_numbers.n
        and (d * numbers.public_numbers.e - 1) % (p - 1) == 0
        and (d * numbers.public_numbers.e - 1) % (q - 1) == 0
        and (numbers.dmp1, numbers.dmq1) == (d % (p - 1), d % (q - 1))
        and (numbers.iqmp * q) % p == 1
    )
    if not consistent:
        raise MalformedMessage("the numbers of an RSA private key do not belong together")
    return key


def load_ed25519_public_key(der: bytes) -> Ed25519PublicKey:
    """Parse an Ed25519 SubjectPublicKeyInfo (RFC 8410). Raises: as `load_rsa_public_key`."""
    key = _load(der)
    if not isinstance(key, Ed25519PublicKey):
        raise MalformedMessage(f"an Ed25519 public key is required, this is {type(key).__name__}")
    return key


def _load(der: bytes) -> object:
    if len(der) > _MAX_SPKI_BYTES:
        raise LimitExceeded(f"a public key of {len(der)} bytes; the cap is {_MAX_SPKI_BYTES}")
    try:
        return serialization.load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MalformedMessage("not a public key (SubjectPublicKeyInfo, DER)") from error
