from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from boltz_client.keystore import certificate_request
from boltz_mesh.services.identity.authority import (
    Authority,
    AuthorityKey,
    Lifetimes,
    client_key_of_request,
    new_root,
)
from boltz_protocol.certificates import verify_chain, verify_client_chain
from boltz_protocol.errors import (
    CertificateInvalid,
    ConfigurationError,
    LimitExceeded,
    MalformedMessage,
)
from boltz_protocol.ids import ClientId
from boltz_protocol.names import Role
from tests.support.keys import (
    CLIENT,
    NOW,
    authority,
    client_certificate,
    make_ca,
    other_rsa_key,
    short_rsa_key,
    vector_rsa_key,
)


def extension_of(
    certificate: x509.Certificate, kind: type[x509.ExtensionType]
) -> x509.ExtensionType:
    return certificate.extensions.get_extension_for_class(kind).value


def request_for(key: RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """A request that asks for everything it should not get."""
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")]))
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.UniformResourceIdentifier("spiffe://demo/operator/admin"),
                    x509.DNSName("mesh.example"),
                ]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), critical=False
        )
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_the_server_sets_all_names_and_uses() -> None:
    issued = authority().issue_client(request_for(vector_rsa_key()), CLIENT, now=NOW)
    certificate = issued.certificate
    names = extension_of(certificate, x509.SubjectAlternativeName)
    assert isinstance(names, x509.SubjectAlternativeName)
    assert [name.value for name in names] == [f"spiffe://demo/client/{CLIENT}"]
    assert certificate.subject.rfc4514_string() == f"CN={CLIENT}"
    constraints = extension_of(certificate, x509.BasicConstraints)
    assert constraints == x509.BasicConstraints(ca=False, path_length=None)
    usages = extension_of(certificate, x509.ExtendedKeyUsage)
    assert usages == x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    assert issued.peer.uri == f"spiffe://demo/client/{CLIENT}"
    assert issued.not_after == NOW + Lifetimes().client
    assert certificate.not_valid_before_utc < NOW


def test_serial_numbers_are_random() -> None:
    request = certificate_request(vector_rsa_key())
    serials = {
        authority().issue_client(request, CLIENT, now=NOW).certificate.serial_number
        for _ in range(5)
    }
    assert len(serials) == 5
    assert min(serials) > 1 << 80


def test_bad_requests_are_refused() -> None:
    good = certificate_request(vector_rsa_key())
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    for request, message in (
        (b"", "not a certificate request"),
        (good[:-1], "not a certificate request"),
        (good + b"\0", "not a certificate request"),
        (flipped, "not signed by its own key"),
        (request_for(short_rsa_key()), "2048 bits"),
        (request_for(ec.generate_private_key(ec.SECP256R1())), "must hold an RSA key"),
    ):
        with pytest.raises(MalformedMessage, match=message):
            client_key_of_request(request)
    with pytest.raises(LimitExceeded):
        client_key_of_request(bytes(8193))
    with pytest.raises(MalformedMessage):
        authority().issue_client(good, ClientId("not an id"), now=NOW)


def test_a_request_signed_with_an_unknown_algorithm_is_refused() -> None:
    # rsaEncryption with SHA-256 becomes an object identifier that nobody knows.
    request = certificate_request(vector_rsa_key())
    known = bytes.fromhex("06092a864886f70d01010b")
    assert request.count(known) == 1
    unknown = bytes.fromhex("06092a864886f70d01017f")
    with pytest.raises(MalformedMessage):
        client_key_of_request(request.replace(known, unknown))


def test_operators_and_auditors() -> None:
    for credential, role in (
        (authority().issue_operator("ann", now=NOW), Role.OPERATOR),
        (authority().issue_auditor("bob", now=NOW), Role.AUDITOR),
    ):
        verified = verify_chain(
            credential.issued.chain_der, root=authority().root, mesh="demo", role=role, now=NOW
        )
        assert verified.public_key == credential.private_key.public_key()
        key = serialization.load_pem_private_key(credential.private_key_pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert key.private_numbers() == credential.private_key.private_numbers()
        assert credential.issued.not_after == NOW + Lifetimes().operator
    with pytest.raises(MalformedMessage):
        authority().issue_operator("Ann Other", now=NOW)


def test_server_certificates_pass_another_verifier() -> None:
    hosts = ["mesh.example", "localhost", "127.0.0.1", "::1"]
    issued = authority().issue_server("replica-0", hosts, now=NOW).issued
    names = extension_of(issued.certificate, x509.SubjectAlternativeName)
    assert isinstance(names, x509.SubjectAlternativeName)
    assert [str(name.value) for name in names] == ["spiffe://demo/server/replica-0", *hosts]
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store([authority().root]))
        .time(NOW)
        .build_server_verifier(x509.DNSName("mesh.example"))
    )
    assert verifier.verify(issued.certificate, [])[-1] == authority().root


@pytest.mark.parametrize(
    "hosts", [[], [""], ["-a.example"], ["a..b"], ["a b"], ["ä.example"], ["a" * 64], ["*.example"]]
)
def test_bad_hosts_are_refused(hosts: list[str]) -> None:
    with pytest.raises(ConfigurationError):
        authority().issue_server("replica-0", hosts, now=NOW)


def test_leaves_end_with_their_authority() -> None:
    key, root = new_root("demo", now=NOW, lifetime=timedelta(days=10))
    short = Authority(mesh="demo", key=key, chain=[root], now=NOW)
    issued = short.issue_operator("ann", now=NOW).issued
    assert issued.not_after == root.not_valid_after_utc
    with pytest.raises(CertificateInvalid, match="expired"):
        short.issue_operator("ann", now=NOW + timedelta(days=11))
    with pytest.raises(CertificateInvalid, match="expired"):
        Authority(mesh="demo", key=key, chain=[root], now=NOW + timedelta(days=11))


def test_a_new_root_issues_leaves_only() -> None:
    _, root = new_root("demo", now=NOW, lifetime=timedelta(days=10))
    assert extension_of(root, x509.BasicConstraints) == x509.BasicConstraints(
        ca=True, path_length=0
    )
    assert root.subject.rfc4514_string() == "CN=demo,O=Boltz Mesh"
    with pytest.raises(MalformedMessage):
        new_root("Not a name", now=NOW, lifetime=timedelta(days=10))


def test_lifetimes_can_be_set() -> None:
    key, root = new_root("demo", now=NOW, lifetime=timedelta(days=400))
    lifetimes = replace(Lifetimes(), statement=timedelta(hours=1))
    mine = Authority(mesh="demo", key=key, chain=[root], now=NOW, lifetimes=lifetimes)
    issued = mine.certify_statement_key(Ed25519PrivateKey.generate().public_key(), now=NOW)
    assert issued.not_after == NOW + timedelta(hours=1)


@pytest.mark.parametrize("kind", ["p256", "p384", "rsa"])
def test_an_outside_intermediate(kind: str) -> None:
    root = make_ca("outside root")
    keys: dict[str, AuthorityKey] = {
        "p256": ec.generate_private_key(ec.SECP256R1()),
        "p384": ec.generate_private_key(ec.SECP384R1()),
        "rsa": other_rsa_key(),
    }
    key = keys[kind]
    middle = make_ca("outside issuer", key=key, issuer=root, path_length=0)
    mine = Authority(mesh="demo", key=key, chain=[middle[1], root[1]], now=NOW)
    issued = mine.issue_client(certificate_request(vector_rsa_key()), CLIENT, now=NOW)
    assert issued.chain == (issued.certificate, middle[1])
    assert mine.root == root[1]
    verify_client_chain(issued.chain_der, root=root[1], mesh="demo", now=NOW)


def test_chains_that_do_not_hold_are_refused() -> None:
    root, other = make_ca("root"), make_ca("other")
    middle = make_ca("middle", issuer=root)
    leaf = make_ca("leaf", issuer=root, ca=False)
    for key, chain in (
        (middle[0], [middle[1]]),
        (middle[0], [middle[1], other[1]]),
        (middle[0], [root[1], middle[1]]),
        (other[0], [middle[1], root[1]]),
        (root[0], []),
        (root[0], [root[1]] * 4),
    ):
        with pytest.raises(ConfigurationError):
            Authority(mesh="demo", key=key, chain=chain, now=NOW)
    with pytest.raises(CertificateInvalid, match="not a certificate authority"):
        Authority(mesh="demo", key=leaf[0], chain=[leaf[1], root[1]], now=NOW)
    with pytest.raises(MalformedMessage):
        Authority(mesh="No name", key=root[0], chain=[root[1]], now=NOW)


def test_an_issued_certificate_shows_no_secret() -> None:
    credential = authority().issue_operator("ann", now=NOW)
    assert str(credential.private_key.private_numbers().private_value) not in repr(credential)
    assert client_certificate().chain_pem.startswith(b"-----BEGIN CERTIFICATE-----")
