"""Checks of certificates that both ends make: chain, use, name and validity, at a given time.

The path check is RFC 5280, section 6, cut down to what a mesh authority issues: a leaf, at most
`MAX_CHAIN_CERTIFICATES - 1` authorities below the root, and a root that is pinned by its
fingerprint. What this does not know (name constraints, policies, any unknown critical extension)
is refused, not skipped. (The verifier of `cryptography` follows the web's rules, demands key
identifiers that private authorities leave out, and knows nothing of roles; tests hold it against
this one.) TLS checks its peers itself; this is for certificates that travel inside
messages: statement keys and roster entries.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from boltz_protocol import limits
from boltz_protocol.errors import CertificateInvalid, LimitExceeded, MeshError
from boltz_protocol.ids import KeyId
from boltz_protocol.keys import check_rsa_key, public_key_id
from boltz_protocol.names import Peer, Role, parse_peer_uri

#: Statement keys must never serve for TLS: their certificates say `documentSigning` (RFC 9336).
STATEMENT_USAGE: Final = ObjectIdentifier("1.3.6.1.5.5.7.3.36")
USAGE_OF_ROLE: Final = {
    Role.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH,
    Role.OPERATOR: ExtendedKeyUsageOID.CLIENT_AUTH,
    Role.AUDITOR: ExtendedKeyUsageOID.CLIENT_AUTH,
    Role.SERVER: ExtendedKeyUsageOID.SERVER_AUTH,
    Role.STATEMENT: STATEMENT_USAGE,
}

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

_UNDERSTOOD: Final = frozenset(
    {
        x509.BasicConstraints.oid,
        x509.KeyUsage.oid,
        x509.ExtendedKeyUsage.oid,
        x509.SubjectAlternativeName.oid,
    }
)
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)


@dataclass(frozen=True, slots=True)
class VerifiedCertificate:
    """A leaf that chains to the root, was issued for its role, and is valid now.

    Attributes:
        peer: the one URI name.
        key_id: id of `public_key`.
        fingerprint: SHA-256 of the certificate's DER, 64 lower-case hex digits.
        not_before: aware, UTC.
        not_after: aware, UTC.
    """

    peer: Peer
    public_key: RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
    key_id: KeyId
    fingerprint: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A client's RSA key and name, verified."""

    client_id: str
    public_key: RSAPublicKey
    verified: VerifiedCertificate


@dataclass(frozen=True, slots=True)
class StatementCertificate:
    """A mesh statement key, verified."""

    public_key: Ed25519PublicKey
    verified: VerifiedCertificate


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 over the DER, 64 lower-case hex digits; of the root: the authority fingerprint."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


def load_certificate(der: bytes) -> x509.Certificate:
    """Parse one certificate.

    Raises:
        LimitExceeded: over MAX_CERTIFICATE_CHAIN_BYTES.
        CertificateInvalid: not a certificate in DER.
    """
    _check_size(len(der))
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion) as error:
        raise CertificateInvalid("not an X.509 certificate in DER") from error


def load_pem_chain(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Parse one or more PEM certificates. Raises: as `load_certificate`."""
    _check_size(len(pem))
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except (ValueError, x509.InvalidVersion) as error:
        raise CertificateInvalid("not X.509 certificates in PEM") from error


def pem_chain(certificates: Sequence[x509.Certificate]) -> bytes:
    """The certificates in PEM, one after the other."""
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


def der_chain(certificates: Sequence[x509.Certificate]) -> tuple[bytes, ...]:
    """The certificates in DER, as they travel in messages."""
    return tuple(c.public_bytes(serialization.Encoding.DER) for c in certificates)


def load_pinned_root(der: bytes, authority_fingerprint: str) -> x509.Certificate:
    """Parse the mesh's root and hold it against the fingerprint from the join string.

    Raises:
        CertificateInvalid: not a certificate, or another authority's.
        LimitExceeded: over its cap.
    """
    root = load_certificate(der)
    found = certificate_fingerprint(root)
    if not hmac.compare_digest(found, authority_fingerprint):
        raise CertificateInvalid(
            f"the server's authority has the fingerprint {found}, "
            f"{authority_fingerprint[:80]} was expected: this may be another mesh, or an attack"
        )
    return root


def verify_client_chain(
    chain_der: Sequence[bytes], *, root: x509.Certificate, mesh: str, now: datetime
) -> ClientCertificate:
    """Check a client's certificate, leaf first, as in a roster entry.

    Args:
        chain_der: leaf and intermediates, without the root.
        root: the pinned root.
        mesh: the name the certificate must carry.
        now: aware.

    Raises:
        CertificateInvalid: any check fails.
        LimitExceeded: too many or too large certificates.
    """
    verified = verify_chain(chain_der, root=root, mesh=mesh, role=Role.CLIENT, now=now)
    key = verified.public_key
    if not isinstance(key, RSAPublicKey):
        raise CertificateInvalid("a client's certificate must hold an RSA key")
    try:
        check_rsa_key(key)
    except MeshError as error:
        raise CertificateInvalid(error.message) from error
    return ClientCertificate(verified.peer.name, key, verified)


def verify_statement_certificate(
    chain_der: Sequence[bytes], *, root: x509.Certificate, mesh: str, now: datetime
) -> StatementCertificate:
    """Check the certificate of a mesh statement key. Arguments, errors: `verify_client_chain`."""
    verified = verify_chain(chain_der, root=root, mesh=mesh, role=Role.STATEMENT, now=now)
    key = verified.public_key
    if not isinstance(key, Ed25519PublicKey):
        raise CertificateInvalid("a statement key's certificate must hold an Ed25519 key")
    if verified.peer.name != verified.key_id:
        raise CertificateInvalid("a statement key's certificate names another key")
    return StatementCertificate(key, verified)


def verify_chain(
    chain_der: Sequence[bytes], *, root: x509.Certificate, mesh: str, role: Role, now: datetime
) -> VerifiedCertificate:
    """Check chain, validity, use and name of a leaf of any role. Errors: `verify_client_chain`."""
    if not 1 <= len(chain_der) <= limits.MAX_CHAIN_CERTIFICATES:
        raise LimitExceeded(
            f"a chain of {len(chain_der)} certificates; "
            f"1 to {limits.MAX_CHAIN_CERTIFICATES} are allowed"
        )
    _check_size(sum(len(der) for der in chain_der))
    leaf, *authorities = (load_certificate(der) for der in chain_der)
    authorities.append(root)
    for depth, authority in enumerate(authorities):
        check_authority(authority, authorities_below=depth, now=now)
    for child, parent in zip([leaf, *authorities[:-1]], authorities, strict=True):
        _check_issued(child, parent)
    _check_validity(leaf, now)
    peer = _check_leaf_use(leaf, role)
    if peer.mesh != mesh or peer.role is not role:
        raise CertificateInvalid(
            f"the certificate names {peer.uri}; the role {role} of the mesh {mesh!r} is required"
        )
    key = _public_key(leaf)
    return VerifiedCertificate(
        peer=peer,
        public_key=key,
        key_id=public_key_id(key),
        fingerprint=certificate_fingerprint(leaf),
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
    )


def check_authority(
    certificate: x509.Certificate, *, authorities_below: int, now: datetime
) -> None:
    """Check that a certificate may issue others.

    Args:
        authorities_below: how many authorities stand between it and the leaf.

    Raises:
        CertificateInvalid: not an authority, not valid now, or its path is too short.
    """
    _check_validity(certificate, now)
    extensions = _extensions(certificate)
    constraints = _find(extensions, x509.BasicConstraints)
    usage = _find(extensions, x509.KeyUsage)
    if constraints is None or not constraints.ca or usage is None or not usage.key_cert_sign:
        raise CertificateInvalid("an issuer in the chain is not a certificate authority")
    if constraints.path_length is not None and constraints.path_length < authorities_below:
        raise CertificateInvalid("the chain is longer than one of its authorities allows")
    match _public_key(certificate):
        case EllipticCurvePublicKey(curve=SECP256R1() | SECP384R1()):
            pass
        case RSAPublicKey() as key if key.key_size >= limits.MIN_RSA_BITS:
            pass
        case _:
            raise CertificateInvalid("an authority needs a P-256, P-384 or RSA-3072 key")


def peer_of(certificate: x509.Certificate) -> Peer:
    """The one URI name of a certificate. It proves nothing by itself: `verify_chain` does.

    Raises:
        CertificateInvalid: no URI name, several, or one of another form.
    """
    names = _find(_extensions(certificate), x509.SubjectAlternativeName)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    if len(uris) != 1:
        raise CertificateInvalid(f"the certificate has {len(uris)} URI names, not one")
    try:
        return parse_peer_uri(uris[0])
    except MeshError as error:
        raise CertificateInvalid(error.message) from error


def _check_size(size_bytes: int) -> None:
    if size_bytes > limits.MAX_CERTIFICATE_CHAIN_BYTES:
        raise LimitExceeded(
            f"certificates of {size_bytes} bytes; the cap is {limits.MAX_CERTIFICATE_CHAIN_BYTES}"
        )


def _check_issued(child: x509.Certificate, parent: x509.Certificate) -> None:
    try:
        algorithm = child.signature_hash_algorithm
        if not isinstance(algorithm, _HASHES):
            raise CertificateInvalid("a certificate is signed with a hash other than SHA-2")
        child.verify_directly_issued_by(parent)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise CertificateInvalid("a certificate was not issued by this mesh's authority") from error


def _check_validity(certificate: x509.Certificate, now: datetime) -> None:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < start:
        raise CertificateInvalid(f"a certificate is valid only from {start:%Y-%m-%d %H:%M:%S} UTC")
    if now > end:
        raise CertificateInvalid(f"a certificate expired at {end:%Y-%m-%d %H:%M:%S} UTC")


def _check_leaf_use(leaf: x509.Certificate, role: Role) -> Peer:
    extensions = _extensions(leaf)
    constraints = _find(extensions, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise CertificateInvalid("an authority's certificate cannot be used as a leaf")
    usage = _find(extensions, x509.KeyUsage)
    if usage is None or not usage.digital_signature or usage.key_cert_sign:
        raise CertificateInvalid("the certificate is not for digital signatures")
    extended = _find(extensions, x509.ExtendedKeyUsage)
    if extended is None or list(extended) != [USAGE_OF_ROLE[role]]:
        raise CertificateInvalid(f"the certificate is not for the use of a {role}")
    return peer_of(leaf)


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    try:
        extensions = certificate.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise CertificateInvalid("a certificate's extensions do not parse") from error
    for extension in extensions:
        # Constraints that are not applied must not be overlooked, whether marked critical or not.
        unknown = extension.critical and extension.oid not in _UNDERSTOOD
        if unknown or extension.oid == x509.NameConstraints.oid:
            raise CertificateInvalid(
                f"a certificate has the extension {extension.oid.dotted_string}, "
                "which is not supported"
            )
    return extensions


def _find(extensions: x509.Extensions, kind: type[_Extension]) -> _Extension | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _public_key(
    certificate: x509.Certificate,
) -> RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey:
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateInvalid("a certificate's public key does not parse") from error
    if not isinstance(key, RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey):
        raise CertificateInvalid(f"a certificate holds a {type(key).__name__}")
    return key
