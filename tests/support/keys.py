"""Keys, certificates and vector files for tests; slow ones are made once a process."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from boltz_client.keystore import certificate_request
from boltz_mesh.services.identity.authority import Authority, AuthorityKey, Issued, new_root
from boltz_protocol.ids import ClientId
from boltz_protocol.keys import generate_rsa_key

VECTORS = Path(__file__).resolve().parents[2] / "proto" / "vectors"
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
CLIENT = ClientId("22" * 16)
OTHER_CLIENT = ClientId("23" * 16)


def load_vectors(name: str) -> Any:
    return json.loads((VECTORS / f"{name}.json").read_text())


@cache
def vector_rsa_key() -> rsa.RSAPrivateKey:
    """The RSA-3072 key whose factors are in proto/vectors."""
    fields = load_vectors("test_rsa_key")
    p, q, e = int(fields["p"], 16), int(fields["q"], 16), int(fields["e"])
    d = pow(e, -1, (p - 1) * (q - 1))
    return rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=d,
        dmp1=d % (p - 1),
        dmq1=d % (q - 1),
        iqmp=pow(q, -1, p),
        public_numbers=rsa.RSAPublicNumbers(e, p * q),
    ).private_key()


@cache
def other_rsa_key() -> rsa.RSAPrivateKey:
    return generate_rsa_key()


@cache
def short_rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@cache
def authority() -> Authority:
    """A root of its own for the mesh `demo`."""
    key, root = new_root("demo", now=NOW, lifetime=timedelta(days=3650))
    return Authority(mesh="demo", key=key, chain=[root], now=NOW)


@cache
def foreign_authority() -> Authority:
    """Another root for a mesh of the same name."""
    key, root = new_root("demo", now=NOW, lifetime=timedelta(days=3650))
    return Authority(mesh="demo", key=key, chain=[root], now=NOW)


@cache
def client_certificate() -> Issued:
    """Of CLIENT, with the key from proto/vectors."""
    return authority().issue_client(certificate_request(vector_rsa_key()), CLIENT, now=NOW)


def make_ca(
    name: str,
    *,
    key: AuthorityKey | None = None,
    issuer: tuple[AuthorityKey, x509.Certificate] | None = None,
    path_length: int | None = None,
    ca: bool = True,
    extra: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    lifetime: timedelta = timedelta(days=365),
) -> tuple[AuthorityKey, x509.Certificate]:
    """A root, or an intermediate under `issuer`, as an outside authority would make it."""
    own: AuthorityKey = key or generate_private_key(SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, issuer_name = (issuer[0], issuer[1].subject) if issuer else (own, subject)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + lifetime)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
        .add_extension(key_usage(cert_sign=ca), critical=True)
    )
    for extension, critical in extra:
        builder = builder.add_extension(extension, critical=critical)
    return own, builder.sign(signer, SHA256())


def key_usage(*, cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=cert_sign,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
