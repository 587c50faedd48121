"""The chain check, against chains as an attacker would make them; pyca's own verifier agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from boltz_mesh.services.identity.authority import AuthorityKey
from boltz_protocol import limits
from boltz_protocol.certificates import (
    STATEMENT_USAGE,
    certificate_fingerprint,
    der_chain,
    load_certificate,
    load_pem_chain,
    load_pinned_root,
    peer_of,
    pem_chain,
    verify_chain,
    verify_client_chain,
    verify_statement_certificate,
)
from boltz_protocol.errors import CertificateInvalid, LimitExceeded
from boltz_protocol.keys import public_key_id
from boltz_protocol.names import Role
from tests.support.keys import (
    CLIENT,
    NOW,
    authority,
    client_certificate,
    foreign_authority,
    key_usage,
    make_ca,
    other_rsa_key,
    short_rsa_key,
    vector_rsa_key,
)

ROOT_KEY, ROOT = make_ca("root")
CLIENT_URI = f"spiffe://demo/client/{CLIENT}"
MESH_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
MESH_KEY_URI = f"spiffe://demo/statement/{public_key_id(MESH_KEY.public_key())}"


@dataclass(frozen=True)
class Leaf:
    """A client's certificate under ROOT, right unless a field says otherwise."""

    key: object = field(default_factory=lambda: vector_rsa_key().public_key())
    uris: tuple[str, ...] = (CLIENT_URI,)
    usage: x509.KeyUsage | None = field(default_factory=lambda: key_usage(cert_sign=False))
    extended: tuple[ObjectIdentifier, ...] | None = (ExtendedKeyUsageOID.CLIENT_AUTH,)
    ca: bool = False
    start: datetime = NOW
    end: datetime = NOW + timedelta(days=1)
    issuer: tuple[AuthorityKey, x509.Certificate] = (ROOT_KEY, ROOT)
    signed_with: hashes.HashAlgorithm = field(default_factory=hashes.SHA256)
    extra: tuple[tuple[x509.ExtensionType, bool], ...] = ()

    def build(self) -> bytes:
        key, issuer = self.issuer
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.subject)
            .public_key(self.key)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.start)
            .not_valid_after(self.end)
            .add_extension(x509.BasicConstraints(ca=self.ca, path_length=None), critical=True)
        )
        extensions = list(self.extra)
        if self.uris:
            names = [x509.UniformResourceIdentifier(uri) for uri in self.uris]
            extensions.append((x509.SubjectAlternativeName(names), True))
        if self.usage is not None:
            extensions.append((self.usage, True))
        if self.extended is not None:
            extensions.append((x509.ExtendedKeyUsage(self.extended), False))
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical=critical)
        signed = builder.sign(key, self.signed_with)  # type: ignore[arg-type]
        return der_chain([signed])[0]


def check(
    chain: Sequence[bytes], root: x509.Certificate = ROOT, now: datetime = NOW, mesh: str = "demo"
) -> RSAPublicKey:
    return verify_client_chain(chain, root=root, mesh=mesh, now=now).public_key


def test_what_our_authority_issues_is_accepted_here_and_by_another_verifier() -> None:
    issued = client_certificate()
    root = authority().root
    client = verify_client_chain(issued.chain_der, root=root, mesh="demo", now=NOW)
    assert client.client_id == CLIENT
    assert client.public_key == vector_rsa_key().public_key()
    assert client.verified.key_id == public_key_id(client.public_key)
    assert client.verified.fingerprint == issued.fingerprint
    assert client.verified.not_before < NOW < client.verified.not_after
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store([root]))
        .time(NOW)
        .build_client_verifier()
    )
    assert verifier.verify(issued.certificate, []).chain == [issued.certificate, root]


def test_a_right_leaf_is_accepted() -> None:
    assert check([Leaf().build()]) == vector_rsa_key().public_key()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uris": ()}, "0 URI names"),
        ({"uris": (CLIENT_URI, CLIENT_URI[:-1] + "3")}, "2 URI names"),
        ({"uris": ("https://demo/x",)}, "not of the form"),
        ({"uris": ("spiffe://demo/operator/ann",)}, "role client"),
        ({"uris": (CLIENT_URI.replace("demo", "other"),)}, "the mesh 'demo' is required"),
        ({"usage": None}, "not for digital signatures"),
        ({"usage": key_usage(cert_sign=True)}, "not for digital signatures"),
        ({"extended": None}, "not for the use of a client"),
        ({"extended": (ExtendedKeyUsageOID.SERVER_AUTH,)}, "not for the use"),
        (
            {"extended": (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)},
            "not for the use",
        ),
        ({"extended": (ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)}, "not for the use"),
        ({"ca": True}, "cannot be used as a leaf"),
        ({"start": NOW + timedelta(seconds=1)}, "valid only from"),
        ({"start": NOW - timedelta(days=2), "end": NOW - timedelta(seconds=1)}, "expired"),
        ({"signed_with": hashes.SHA224()}, "other than SHA-2"),
        (
            {
                "extra": (
                    (x509.UnrecognizedExtension(ObjectIdentifier("1.2.3"), b"\x05\x00"), True),
                )
            },
            "1.2.3, which is not supported",
        ),
        ({"key": MESH_KEY.public_key()}, "must hold an RSA key"),
        ({"key": X25519PrivateKey.generate().public_key()}, "X25519"),
    ],
)
def test_wrong_leaves_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(CertificateInvalid, match=message):
        check([Leaf(**change).build()])  # type: ignore[arg-type]


def test_short_client_key_is_refused() -> None:
    with pytest.raises(CertificateInvalid, match="2048 bits"):
        check([Leaf(key=short_rsa_key().public_key()).build()])


def test_an_unknown_extension_that_is_not_critical_is_let_be() -> None:
    extra = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3"), b"\x05\x00")
    check([Leaf(extra=((extra, False),)).build()])


def test_another_authority_of_the_same_name_is_refused() -> None:
    issued = client_certificate()
    with pytest.raises(CertificateInvalid, match="not issued by"):
        check(issued.chain_der, root=foreign_authority().root)
    with pytest.raises(CertificateInvalid, match="not issued by"):
        check(issued.chain_der, root=ROOT)


def test_expired_root_is_refused() -> None:
    with pytest.raises(CertificateInvalid, match="expired"):
        check([Leaf(end=NOW + timedelta(days=999)).build()], now=NOW + timedelta(days=500))


def test_intermediates() -> None:
    middle = make_ca("middle", issuer=(ROOT_KEY, ROOT), path_length=0)
    leaf = Leaf(issuer=middle).build()
    between = der_chain([middle[1]])[0]
    check([leaf, between])
    for wrong in ([leaf], [leaf, between, between], [leaf, der_chain([ROOT])[0]]):
        with pytest.raises(CertificateInvalid):
            check(wrong)
    with pytest.raises(LimitExceeded):
        check([leaf] + [between] * limits.MAX_CHAIN_CERTIFICATES)
    with pytest.raises(LimitExceeded):
        check([])


def test_path_length_is_kept() -> None:
    root = make_ca("root0", path_length=0)
    middle = make_ca("middle", issuer=root)
    chain = [Leaf(issuer=middle).build(), der_chain([middle[1]])[0]]
    with pytest.raises(CertificateInvalid, match="longer than"):
        check(chain, root=root[1])


def test_a_leaf_cannot_issue() -> None:
    fake = make_ca("leaf", issuer=(ROOT_KEY, ROOT), ca=False)
    chain = [Leaf(issuer=fake).build(), der_chain([fake[1]])[0]]
    with pytest.raises(CertificateInvalid, match="not a certificate authority"):
        check(chain)


def test_name_constraints_are_refused_even_if_not_critical() -> None:
    constraints = x509.NameConstraints([x509.DNSName("example.com")], None)
    middle = make_ca("middle", issuer=(ROOT_KEY, ROOT), extra=((constraints, False),))
    chain = [Leaf(issuer=middle).build(), der_chain([middle[1]])[0]]
    with pytest.raises(CertificateInvalid, match="not supported"):
        check(chain)


def test_weak_authority_keys_are_refused() -> None:
    for key in (short_rsa_key(), ec.generate_private_key(ec.SECP521R1())):
        weak = make_ca("weak", key=key)
        with pytest.raises(CertificateInvalid, match="an authority needs"):
            check([Leaf(issuer=weak).build()], root=weak[1])


def test_strong_authority_keys_are_accepted() -> None:
    for key in (other_rsa_key(), ec.generate_private_key(ec.SECP384R1())):
        strong = make_ca("strong", key=key)
        check([Leaf(issuer=strong).build()], root=strong[1])


def test_statement_certificates() -> None:
    key = MESH_KEY.public_key()
    issued = authority().certify_statement_key(key, now=NOW)
    root = authority().root
    verified = verify_statement_certificate(issued.chain_der, root=root, mesh="demo", now=NOW)
    assert verified.public_key == key
    assert verified.verified.peer.uri == MESH_KEY_URI
    with pytest.raises(CertificateInvalid, match="not for the use of a statement"):
        verify_statement_certificate(
            client_certificate().chain_der, root=root, mesh="demo", now=NOW
        )
    with pytest.raises(CertificateInvalid, match="not for the use of a client"):
        verify_client_chain(issued.chain_der, root=root, mesh="demo", now=NOW)
    later = NOW + timedelta(days=91)
    with pytest.raises(CertificateInvalid, match="expired"):
        verify_statement_certificate(issued.chain_der, root=root, mesh="demo", now=later)
    with pytest.raises(CertificateInvalid, match="mesh 'other'"):
        verify_statement_certificate(issued.chain_der, root=root, mesh="other", now=NOW)


def test_another_verifier_agrees_on_chains_of_statement_keys() -> None:
    issued = authority().certify_statement_key(MESH_KEY.public_key(), now=NOW)

    def verify(root: x509.Certificate, now: datetime) -> None:
        verification.PolicyBuilder().store(verification.Store([root])).time(now).extension_policies(
            ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(),
            ee_policy=verification.ExtensionPolicy.permit_all(),
        ).build_client_verifier().verify(issued.certificate, [])

    verify(authority().root, NOW)
    for root, now in (
        (foreign_authority().root, NOW),
        (authority().root, NOW + timedelta(days=91)),
    ):
        with pytest.raises(verification.VerificationError):
            verify(root, now)
        with pytest.raises(CertificateInvalid):
            verify_statement_certificate(issued.chain_der, root=root, mesh="demo", now=now)


def test_a_statement_certificate_must_name_and_hold_its_key() -> None:
    other = f"spiffe://demo/statement/{'0' * 32}"
    renamed = Leaf(key=MESH_KEY.public_key(), uris=(other,), extended=(STATEMENT_USAGE,))
    with pytest.raises(CertificateInvalid, match="names another key"):
        verify_statement_certificate([renamed.build()], root=ROOT, mesh="demo", now=NOW)
    rsa = Leaf(uris=(other,), extended=(STATEMENT_USAGE,))
    with pytest.raises(CertificateInvalid, match="Ed25519"):
        verify_statement_certificate([rsa.build()], root=ROOT, mesh="demo", now=NOW)


def test_pinned_root() -> None:
    root = authority().root
    der = authority().root_der
    assert load_pinned_root(der, certificate_fingerprint(root)) == root
    with pytest.raises(CertificateInvalid, match="another mesh, or an attack"):
        load_pinned_root(foreign_authority().root_der, certificate_fingerprint(root))


def test_loading() -> None:
    chain = (client_certificate().certificate, authority().root)
    assert load_pem_chain(pem_chain(chain)) == chain
    assert load_certificate(der_chain(chain)[0]) == chain[0]
    good = der_chain(chain)[0]
    for der in (b"", b"\x30", good[:-1], good + b"\0"):
        with pytest.raises(CertificateInvalid):
            load_certificate(der)
    for pem in (b"", b"words", pem_chain(chain).replace(b"A", b"!")):
        with pytest.raises(CertificateInvalid):
            load_pem_chain(pem)
    for load in (load_certificate, load_pem_chain):
        with pytest.raises(LimitExceeded):
            load(bytes(limits.MAX_CERTIFICATE_CHAIN_BYTES + 1))
    with pytest.raises(LimitExceeded):
        check([bytes(limits.MAX_CERTIFICATE_CHAIN_BYTES)] * 2)


def test_damaged_certificates_are_refused() -> None:
    good = Leaf().build()
    for position in range(0, len(good), 7):
        damaged = bytearray(good)
        damaged[position] ^= 0x10
        with pytest.raises(CertificateInvalid):
            check([bytes(damaged)])


def test_peer_of_and_roles() -> None:
    operator = authority().issue_operator("ann", now=NOW).issued
    assert peer_of(operator.certificate).uri == "spiffe://demo/operator/ann"
    verified = verify_chain(
        operator.chain_der, root=authority().root, mesh="demo", role=Role.OPERATOR, now=NOW
    )
    assert verified.peer.name == "ann"
    with pytest.raises(CertificateInvalid, match="role auditor"):
        verify_chain(
            operator.chain_der, root=authority().root, mesh="demo", role=Role.AUDITOR, now=NOW
        )


def test_odd_key_kinds() -> None:
    with pytest.raises(CertificateInvalid, match="Ed448"):
        check([Leaf(key=Ed448PrivateKey.generate().public_key()).build()])


def test_parts_that_do_not_parse() -> None:
    good = Leaf().build()
    # A URI name (context tag 6) becomes an X.400 address (tag 3), which nobody can read.
    uri = bytes([0x86, len(CLIENT_URI)]) + CLIENT_URI.encode()
    assert good.count(uri) == 1
    with pytest.raises(CertificateInvalid, match="do not parse"):
        peer_of(load_certificate(good.replace(uri, b"\xa3" + uri[1:])))
    # P-256 becomes a curve that nobody knows.
    root = der_chain([ROOT])[0]
    curve = bytes.fromhex("06082a8648ce3d030107")
    assert root.count(curve) == 1
    unknown = load_certificate(root.replace(curve, bytes.fromhex("06082a8648ce3d03017f")))
    with pytest.raises(CertificateInvalid, match="public key does not parse"):
        check([good], root=unknown)
