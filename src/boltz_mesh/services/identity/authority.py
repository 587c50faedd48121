"""The mesh authority: it puts names on keys.

Every certificate has exactly one URI name (`boltz_protocol.names`), chosen here: what a request
asks for in names, usages or validity is not looked at. Leaves carry the usage of their role alone,
so that a client's certificate cannot serve as a server's, nor a statement key's in TLS.
Revocation is a matter of the registry (status is looked up at each call), not of lists here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.x509.oid import NameOID

from boltz_protocol import limits
from boltz_protocol.certificates import (
    USAGE_OF_ROLE,
    certificate_fingerprint,
    check_authority,
    der_chain,
    pem_chain,
)
from boltz_protocol.errors import ConfigurationError, LimitExceeded, MalformedMessage
from boltz_protocol.ids import ClientId
from boltz_protocol.keys import check_rsa_key, public_key_id
from boltz_protocol.names import Peer, Role

AuthorityKey = ec.EllipticCurvePrivateKey | RSAPrivateKey

#: A request for an RSA-4096 key with a short name has about 1.1 kB.
_MAX_REQUEST_BYTES: Final = 8 << 10


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long certificates are valid.

    Attributes:
        client: renewed by the client when two thirds are over.
        operator: operators' and auditors' certificates are made by hand, hence longer.
        server: made afresh at each start.
        statement: what was signed can be checked for so long without the log.
        backdate: clocks of devices go wrong; a certificate must not seem to come from the future.
    """

    client: timedelta = timedelta(days=90)
    operator: timedelta = timedelta(days=365)
    server: timedelta = timedelta(days=90)
    statement: timedelta = timedelta(days=90)
    backdate: timedelta = timedelta(milliseconds=limits.MAX_CLOCK_SKEW_MS)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and the authorities between it and the root (which is not included)."""

    peer: Peer
    chain: tuple[x509.Certificate, ...]

    @property
    def certificate(self) -> x509.Certificate:
        """The leaf."""
        return self.chain[0]

    @property
    def chain_der(self) -> tuple[bytes, ...]:
        """Leaf first, as it travels in messages."""
        return der_chain(self.chain)

    @property
    def chain_pem(self) -> bytes:
        """Leaf first, as TLS libraries read it."""
        return pem_chain(self.chain)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the leaf's DER, 64 hex digits."""
        return certificate_fingerprint(self.certificate)

    @property
    def not_after(self) -> datetime:
        """Aware, UTC."""
        return self.certificate.not_valid_after_utc


@dataclass(frozen=True, slots=True)
class Credential:
    """An issued certificate with its private key, made here: for operators, auditors, servers."""

    issued: Issued
    private_key: ec.EllipticCurvePrivateKey

    @property
    def private_key_pem(self) -> bytes:
        """PKCS #8, not encrypted: a secret."""
        return self.private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


class Authority:
    """Issues certificates for one mesh under one root.

    Args:
        mesh: the mesh's name, the host part of every URI name.
        key: of the first certificate in `chain`.
        chain: the issuing certificate, any intermediates, the self-signed root last.
        lifetimes: of what is issued.

    Raises:
        ConfigurationError: key and chain do not belong together.
        CertificateInvalid: a certificate in the chain may not issue, or not now.
    """

    def __init__(
        self,
        *,
        mesh: str,
        key: AuthorityKey,
        chain: Sequence[x509.Certificate],
        now: datetime,
        lifetimes: Lifetimes | None = None,
    ) -> None:
        _check_authority_chain(key, chain, now)
        # The name is checked where every other URI name is.
        Peer(mesh, Role.SERVER, "authority")
        self.mesh = mesh
        self.root = chain[-1]
        self._key = key
        self._issuer = chain[0]
        self._intermediates = tuple(chain[:-1])
        self._lifetimes = lifetimes or Lifetimes()

    @property
    def root_pem(self) -> bytes:
        """The root certificate in PEM."""
        return pem_chain([self.root])

    @property
    def root_der(self) -> bytes:
        """The root certificate in DER."""
        return der_chain([self.root])[0]

    @property
    def fingerprint(self) -> str:
        """The authority fingerprint of join strings: SHA-256 of the root's DER, 64 hex digits."""
        return certificate_fingerprint(self.root)

    def issue_client(self, request_der: bytes, client_id: ClientId, *, now: datetime) -> Issued:
        """Certify a client's RSA key.

        Args:
            request_der: PKCS #10; only its key is used, and its signature as proof of possession.
            now: aware.

        Raises:
            LimitExceeded: the request is over its cap.
            MalformedMessage: not a request, its signature does not verify, or another kind of key.
        """
        key = client_key_of_request(request_der)
        peer = Peer(self.mesh, Role.CLIENT, client_id)
        return self._issue(key, peer, now=now, lifetime=self._lifetimes.client)

    def issue_operator(self, name: str, *, now: datetime) -> Credential:
        """Make a key and a certificate for an operator. Raises: MalformedMessage on the name."""
        return self._make(Peer(self.mesh, Role.OPERATOR, name), now, self._lifetimes.operator)

    def issue_auditor(self, name: str, *, now: datetime) -> Credential:
        """Make a key and a certificate for an auditor. Raises: MalformedMessage on the name."""
        return self._make(Peer(self.mesh, Role.AUDITOR, name), now, self._lifetimes.operator)

    def issue_server(self, replica: str, hosts: Sequence[str], *, now: datetime) -> Credential:
        """Make a key and a TLS certificate for one replica.

        Args:
            replica: the replica's name, in the URI name.
            hosts: DNS names and IP addresses under which clients reach it; at least one.

        Raises:
            ConfigurationError: no hosts, or one that is neither.
            MalformedMessage: on the replica's name.
        """
        peer = Peer(self.mesh, Role.SERVER, replica)
        return self._make(peer, now, self._lifetimes.server, _host_names(hosts))

    def certify_statement_key(self, key: Ed25519PublicKey, *, now: datetime) -> Issued:
        """Certify a key with which this mesh signs statements; its name is its key id."""
        peer = Peer(self.mesh, Role.STATEMENT, public_key_id(key))
        return self._issue(key, peer, now=now, lifetime=self._lifetimes.statement)

    def _make(
        self,
        peer: Peer,
        now: datetime,
        lifetime: timedelta,
        hosts: Sequence[x509.GeneralName] = (),
    ) -> Credential:
        key = ec.generate_private_key(ec.SECP256R1())
        issued = self._issue(key.public_key(), peer, now=now, lifetime=lifetime, hosts=hosts)
        return Credential(issued, key)

    def _issue(
        self,
        key: RSAPublicKey | ec.EllipticCurvePublicKey | Ed25519PublicKey,
        peer: Peer,
        *,
        now: datetime,
        lifetime: timedelta,
        hosts: Sequence[x509.GeneralName] = (),
    ) -> Issued:
        check_authority(self._issuer, authorities_below=0, now=now)
        # A leaf that outlives its authority would fail in the middle of its life, unannounced.
        not_after = min(now + lifetime, self._issuer.not_valid_after_utc)
        not_before = max(now - self._lifetimes.backdate, self._issuer.not_valid_before_utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, peer.name)]))
            .issuer_name(self._issuer.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([USAGE_OF_ROLE[peer.role]]), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(peer.uri), *hosts]),
                critical=False,
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, _hash_for(self._key))
        )
        return Issued(peer, (certificate, *self._intermediates))


def client_key_of_request(request_der: bytes) -> RSAPublicKey:
    """The checked RSA key of a certificate request.

    Raises:
        LimitExceeded: the request is over its cap.
        MalformedMessage: not a request, its signature does not verify, or another kind of key.
    """
    if len(request_der) > _MAX_REQUEST_BYTES:
        raise LimitExceeded(
            f"a certificate request of {len(request_der)} bytes; the cap is {_MAX_REQUEST_BYTES}"
        )
    try:
        request = x509.load_der_x509_csr(request_der)
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise MalformedMessage("not a certificate request (PKCS #10, DER)") from error
    if not isinstance(key, RSAPublicKey):
        raise MalformedMessage("a client's certificate request must hold an RSA key")
    # Before the signature: its cost grows with the key.
    check_rsa_key(key)
    if not request.is_signature_valid:
        raise MalformedMessage("the certificate request is not signed by its own key")
    return key


def new_root(
    mesh: str, *, now: datetime, lifetime: timedelta
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A fresh ECDSA P-256 key and its self-signed root; it may issue leaves only (path length 0).

    Raises:
        MalformedMessage: the mesh's name has not the form of one.
    """
    Peer(mesh, Role.SERVER, "authority")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Boltz Mesh"),
            x509.NameAttribute(NameOID.COMMON_NAME, mesh),
        ]
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    root = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - Lifetimes().backdate)
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, root


def _check_authority_chain(
    key: AuthorityKey, chain: Sequence[x509.Certificate], now: datetime
) -> None:
    if not 1 <= len(chain) <= limits.MAX_CHAIN_CERTIFICATES:
        raise ConfigurationError(
            f"the authority's chain has {len(chain)} certificates; "
            f"1 to {limits.MAX_CHAIN_CERTIFICATES} are supported"
        )
    if key.public_key() != chain[0].public_key():
        raise ConfigurationError("the authority's key does not belong to its first certificate")
    for depth, certificate in enumerate(chain):
        check_authority(certificate, authorities_below=depth, now=now)
        parent = chain[min(depth + 1, len(chain) - 1)]
        try:
            certificate.verify_directly_issued_by(parent)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise ConfigurationError(
                "the authority's chain must go from the issuing certificate, one issuer after the "
                "other, to a self-signed root"
            ) from error


def _host_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    if not hosts:
        raise ConfigurationError("a server certificate needs at least one host name or address")
    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(_dns_name(host))
    return names


def _dns_name(host: str) -> x509.DNSName:
    labels = host.split(".")
    legal = all(
        1 <= len(label) <= 63
        and label.isascii()
        and label.replace("-", "").isalnum()
        and label[0] != "-" != label[-1]
        for label in labels
    )
    if not legal or len(host) > 253:
        raise ConfigurationError(f"{host[:80]!r} is neither a host name nor an IP address")
    return x509.DNSName(host)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _hash_for(key: AuthorityKey) -> hashes.SHA256 | hashes.SHA384:
    wide = isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1)
    return hashes.SHA384() if wide else hashes.SHA256()
