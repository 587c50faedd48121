"""Who a peer is: certificate, check-in and signatures, and what is remembered of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from boltz_client import peer_checks
from boltz_client.keystore import certificate_request
from boltz_client.peer_checks import PeerChecks, PeerMemory
from boltz_protocol import certificates, codec, codec_sealed, limits
from boltz_protocol import messages as m
from boltz_protocol import statement as statements
from boltz_protocol.errors import (
    CertificateInvalid,
    LimitExceeded,
    MalformedMessage,
    MeshError,
    RoundRefused,
    SignatureInvalid,
    WeightRefused,
)
from boltz_protocol.ids import ClientId, ModelId, SessionId
from boltz_protocol.statement import Statement, sign_rsa_pss
from tests.support import samples, samples_sealed
from tests.support.keys import (
    CLIENT,
    NOW,
    OTHER_CLIENT,
    authority,
    client_certificate,
    foreign_authority,
    other_rsa_key,
    vector_rsa_key,
)

NOW_MS = int(NOW.timestamp() * 1000)
CONFIGURATION = replace(samples_sealed.configuration(), mesh_id="demo")
SEEN = b"what was seen"


def sign(type: str, payload: bytes, key: RSAPrivateKey | None = None) -> Statement:
    return sign_rsa_pss(type=type, payload=payload, private_key=key or vector_rsa_key())


def check_in(key: RSAPrivateKey | None = None, **changes: Any) -> Statement:
    spoken = m.CheckIn("demo", CLIENT, samples.SESSION, samples.MODEL, 5, 3, "", NOW_MS)
    return sign(m.CHECK_IN, codec.encode_check_in(replace(spoken, **changes)), key)


@cache
def entry() -> m.RosterEntry:
    return replace(
        samples.roster_entry(),
        client_id=CLIENT,
        check_in=check_in(),
        certificate_chain_der=client_certificate().chain_der,
    )


@cache
def advertisement() -> Statement:
    payload = replace(samples_sealed.key_advertisement(), client_id=CLIENT)
    return sign(m.KEY_ADVERTISEMENT, codec_sealed.encode_key_advertisement(payload))


def checks(
    clock: Callable[[], int] = lambda: NOW_MS, memory: PeerMemory | None = None
) -> PeerChecks:
    return PeerChecks("demo", authority().root, clock, memory)


def test_an_honest_peer_is_verified() -> None:
    made = checks()
    verified = made.advertisements(CONFIGURATION)
    assert verified(entry(), advertisement()) == advertisement().payload
    assert made.survivors_seen(entry(), sign(m.SURVIVORS_SEEN, SEEN)) == SEEN


def _shown(**changes: Any) -> Callable[[], m.RosterEntry]:
    return lambda: replace(entry(), **changes)


def test_a_peers_weight_is_computed_again() -> None:
    """Buckets 5 of at most 5 and 3, and half of the largest trust."""
    terms = m.WeightTerms(sample_bucket_cap=5, top_trust_256=108)
    told = replace(CONFIGURATION, max_weight=255, total_weight=400, weight_terms=terms)
    verified = checks().advertisements(told)
    for weight in (127, 129, 255):
        with pytest.raises(WeightRefused):
            verified(replace(entry(), weight=weight, trust_256=54), advertisement())
    peer = replace(entry(), weight=128, trust_256=54)
    assert verified(peer, advertisement()) == advertisement().payload


LIES: dict[str, tuple[Callable[[], m.RosterEntry], type[MeshError]]] = {
    "no certificate": (_shown(certificate_chain_der=()), LimitExceeded),
    "not a certificate": (_shown(certificate_chain_der=(b"x",)), CertificateInvalid),
    "another client's id": (_shown(client_id=OTHER_CLIENT), CertificateInvalid),
    "another mesh's authority": (
        lambda: replace(
            entry(),
            certificate_chain_der=foreign_authority()
            .issue_client(certificate_request(vector_rsa_key()), CLIENT, now=NOW)
            .chain_der,
        ),
        CertificateInvalid,
    ),
    "a certificate for another key": (
        lambda: replace(
            entry(),
            certificate_chain_der=authority()
            .issue_client(certificate_request(other_rsa_key()), CLIENT, now=NOW)
            .chain_der,
        ),
        SignatureInvalid,
    ),
    "a check-in nobody spoke": (
        lambda: replace(entry(), check_in=check_in(other_rsa_key())),
        SignatureInvalid,
    ),
    "a check-in that does not parse": (
        lambda: replace(entry(), check_in=sign(m.CHECK_IN, b"\xff")),
        MalformedMessage,
    ),
    "another session": (_shown(session_id=SessionId("98" * 16)), RoundRefused),
    "another bucket": (_shown(sample_bucket=6), RoundRefused),
    "another quality": (_shown(quality_bucket=1), RoundRefused),
    "a check-in of another client": (
        lambda: replace(entry(), check_in=check_in(client_id=ClientId("97" * 16))),
        RoundRefused,
    ),
    "a check-in for another model": (
        lambda: replace(entry(), check_in=check_in(model_id=ModelId("other"))),
        RoundRefused,
    ),
    "a check-in at another mesh": (
        lambda: replace(entry(), check_in=check_in(mesh_id="other")),
        RoundRefused,
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_about_a_peer_is_found(name: str) -> None:
    shown, error = LIES[name]
    with pytest.raises(error) as caught:
        checks().advertisements(CONFIGURATION)(shown(), advertisement())
    assert type(caught.value) is error


def test_keys_that_the_peer_did_not_sign_are_refused() -> None:
    verified = checks().advertisements(CONFIGURATION)
    payload = advertisement().payload
    for statement in (
        sign(m.KEY_ADVERTISEMENT, payload, other_rsa_key()),
        sign(m.SURVIVORS_SEEN, payload),
        replace(advertisement(), payload=payload + b"\xa0\x1f\x01"),
    ):
        with pytest.raises(SignatureInvalid):
            verified(entry(), statement)


def test_survivors_that_the_peer_did_not_sign_are_refused() -> None:
    made = checks()
    for shown, statement, error in (
        (entry(), sign(m.SURVIVORS_SEEN, SEEN, other_rsa_key()), SignatureInvalid),
        (entry(), sign(m.KEY_ADVERTISEMENT, SEEN), SignatureInvalid),
        (
            replace(entry(), client_id=OTHER_CLIENT),
            sign(m.SURVIVORS_SEEN, SEEN),
            CertificateInvalid,
        ),
    ):
        with pytest.raises(error):
            made.survivors_seen(shown, statement)


def test_a_chain_is_verified_once_while_it_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = certificates.verify_client_chain

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return real(*arguments, **named)

    monkeypatch.setattr(peer_checks, "verify_client_chain", counted)
    now_ms = [NOW_MS]
    made = checks(lambda: now_ms[0])
    for _ in range(3):
        made.advertisements(CONFIGURATION)(entry(), advertisement())
        made.survivors_seen(entry(), sign(m.SURVIVORS_SEEN, SEEN))
    assert len(calls) == 1
    # What was valid is not valid for ever.
    now_ms[0] += int(timedelta(days=3650).total_seconds() * 1000)
    with pytest.raises(CertificateInvalid, match="expired"):
        made.survivors_seen(entry(), sign(m.SURVIVORS_SEEN, SEEN))


def test_a_check_in_is_verified_once_and_for_its_own_key_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verified: list[str] = []
    real = statements.verify

    def counted(statement: Statement, **named: Any) -> bytes:
        verified.append(named["expected_type"])
        return real(statement, **named)

    monkeypatch.setattr(peer_checks, "verify", counted)
    shown = checks().advertisements(CONFIGURATION)
    for _ in range(3):
        shown(entry(), advertisement())
    assert verified.count(m.CHECK_IN) == 1
    assert verified.count(m.KEY_ADVERTISEMENT) == 3
    # The same words under another certificate of that client are nobody's any more.
    with pytest.raises(SignatureInvalid):
        shown(LIES["a certificate for another key"][0](), advertisement())
    # And what is remembered is still held against the entry.
    with pytest.raises(RoundRefused):
        shown(replace(entry(), sample_bucket=6), advertisement())


def test_memory_of_peers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CACHED_PEERS", 2)
    memory = PeerMemory()
    made = checks(memory=memory)
    request = certificate_request(vector_rsa_key())
    for _ in range(5):
        chain = authority().issue_client(request, CLIENT, now=NOW).chain_der
        made.survivors_seen(
            replace(entry(), certificate_chain_der=chain), sign(m.SURVIVORS_SEEN, SEEN)
        )
    for at_ms in range(5):
        spoken = replace(entry(), check_in=check_in(at_ms=NOW_MS + at_ms))
        made.advertisements(CONFIGURATION)(spoken, advertisement())
    assert repr(memory) == "PeerMemory(2 certificates, 2 check-ins)"


def test_clients_of_one_process_share_what_they_verified_for_the_same_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    real = certificates.verify_client_chain

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        return real(*arguments, **named)

    monkeypatch.setattr(peer_checks, "verify_client_chain", counted)
    memory = PeerMemory()
    for _ in range(3):
        checks(memory=memory).advertisements(CONFIGURATION)(entry(), advertisement())
    assert len(calls) == 1
    # Whoever trusts another root, or belongs to another mesh, finds nothing in it.
    for mesh, root in (("demo", foreign_authority().root), ("other", authority().root)):
        foreign = PeerChecks(mesh, root, lambda: NOW_MS, memory)
        with pytest.raises(CertificateInvalid):
            foreign.survivors_seen(entry(), sign(m.SURVIVORS_SEEN, SEEN))
