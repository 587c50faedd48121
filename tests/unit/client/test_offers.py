"""What a client checks before it trains: each lie is found."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from boltz_client.mesh_keys import MeshKeys
from boltz_client.offers import AcceptedRound, Self, check_base, check_offer
from boltz_client.owner import ALL_MODES, OwnerLimits
from boltz_protocol import codec, limits, weights
from boltz_protocol import messages as m
from boltz_protocol.encoding import plan_encoding
from boltz_protocol.errors import (
    CertificateInvalid,
    LimitExceeded,
    MalformedMessage,
    MeshError,
    NotFinite,
    RoundClosed,
    RoundRefused,
    SignatureInvalid,
    UnknownKey,
    WeightRefused,
)
from boltz_protocol.ids import ClientId, ModelId, SessionId
from boltz_protocol.keys import public_key_der, public_key_id
from boltz_protocol.statement import Statement, digest, sign_ed25519, sign_rsa_pss
from boltz_protocol.v1 import aggregator_pb2
from tests.support import samples, samples_sealed
from tests.support.keys import (
    NOW,
    authority,
    foreign_authority,
    other_rsa_key,
    vector_rsa_key,
)

NOW_MS = int(NOW.timestamp() * 1000)
SIGNER = Ed25519PrivateKey.generate()
STRANGER = Ed25519PrivateKey.generate()
ME = Self("demo", samples.CLIENT, samples.SESSION, vector_rsa_key().public_key())
ENCODING = plan_encoding(clip_norm_l2=1.0, noise_multiplier=1.5, cohort_max=3, coordinates=8)


def sign(type: str, payload: bytes, key: Ed25519PrivateKey = SIGNER) -> Statement:
    return sign_ed25519(type=type, payload=payload, private_key=key)


def certificate(key: Ed25519PrivateKey = SIGNER) -> bytes:
    return authority().certify_statement_key(key.public_key(), now=NOW).chain_der[0]


def mesh_keys() -> MeshKeys:
    keys = MeshKeys("demo", authority().root)
    keys.learn([certificate()], NOW_MS)
    return keys


def encryption_key(**changes: Any) -> Statement:
    public = other_rsa_key().public_key()
    key = m.EncryptionKey(
        mesh_id="demo",
        key_id=public_key_id(public),
        public_key_spki=public_key_der(public),
        not_before_ms=NOW_MS - 1000,
        not_after_ms=NOW_MS + limits.SERVER_KEY_LIFETIME_MS - 1000,
    )
    payload = codec.encode_encryption_key(replace(key, **changes))
    return sign(m.ENCRYPTION_KEY, payload)


@dataclass(frozen=True)
class Lies:
    """What a test changes on the way to an offer."""

    configuration: Callable[[m.RoundConfiguration], m.RoundConfiguration] = lambda c: c
    entry: Callable[[m.RosterEntry], m.RosterEntry] = lambda e: e
    check_in: Callable[[m.CheckIn], m.CheckIn] = lambda c: c
    sign: Callable[[str, bytes], Statement] = sign
    offer: Callable[[m.RoundOffer], m.RoundOffer] = lambda o: o
    encryption_key: Statement | None = None
    check_in_key: Any = None


def make_offer(lies: Lies | None = None) -> m.RoundOffer:
    lies = lies or Lies()
    check_in = lies.check_in(
        m.CheckIn("demo", samples.CLIENT, samples.SESSION, samples.MODEL, 5, 3, "", NOW_MS)
    )
    spoken = sign_rsa_pss(
        type=m.CHECK_IN,
        payload=codec.encode_check_in(check_in),
        private_key=lies.check_in_key or vector_rsa_key(),
    )
    entry = lies.entry(
        replace(samples.roster_entry(), check_in=spoken, weight=10, certificate_chain_der=())
    )
    raw = codec.encode_roster_entry(entry)
    leaves = [
        weights.WeightLeaf(0, ClientId("01" * 16), b"a" * 32, 16),
        weights.WeightLeaf(1, entry.client_id, hashlib.sha256(raw).digest(), entry.weight),
        weights.WeightLeaf(2, ClientId("02" * 16), b"b" * 32, 8),
    ]
    root = weights.root(leaves)
    configuration = lies.configuration(
        replace(
            samples.configuration(),
            mesh_id="demo",
            scale=2.0**ENCODING.scale_log2,
            bound_l2=ENCODING.bound_l2,
            roster_root=root.hash,
            total_weight=root.total,
            encryption_key=lies.encryption_key or encryption_key(),
            created_at_ms=NOW_MS - 5,
            deadline_ms=NOW_MS + 60_000,
        )
    )
    payload = codec.encode_round_configuration(configuration)
    proof = tuple(m.RosterSibling(n.hash, n.total) for n in weights.prove(leaves, 1))
    return lies.offer(m.RoundOffer(lies.sign(m.ROUND_CONFIGURATION, payload), raw, proof))


def check(offer: m.RoundOffer, **changes: Any) -> AcceptedRound:
    arguments: dict[str, Any] = {
        "me": ME,
        "model_id": samples.MODEL,
        "keys": mesh_keys(),
        "owner": OwnerLimits(modes=ALL_MODES),
        "now_ms": NOW_MS,
    }
    return check_offer(offer, **(arguments | changes))


def test_an_honest_offer_is_accepted() -> None:
    offer = make_offer()
    accepted = check(offer)
    assert accepted.configuration_sha256 == digest(offer.configuration)
    assert accepted.encoding.bound_l2 == ENCODING.bound_l2
    assert accepted.recipient.key.key_id == public_key_id(other_rsa_key().public_key())
    assert accepted.entry.weight == 10
    assert samples.ROUND in accepted.label


def _with(**changes: Any) -> Callable[[Any], Any]:
    return lambda value: replace(value, **changes)


def _sealed(**changes: Any) -> Callable[[Any], Any]:
    sealed = {
        "mode": m.RoundMode.SEALED,
        "min_survivors": 3,
        "secure_aggregation": samples_sealed.secure_aggregation(),
    }
    return _with(**(sealed | changes))


def test_a_sealed_offer_is_accepted_with_this_clients_share_of_the_noise() -> None:
    accepted = check(make_offer(Lies(_sealed())), owner=OwnerLimits())
    assert accepted.noise_share == ENCODING.sigma_squared / 3
    # In an open round the server adds the noise.
    assert check(make_offer()).noise_share == 0
    quiet = _sealed(noise_multiplier=0.0, privacy=m.PRIVACY_NONE)
    assert check(make_offer(Lies(quiet))).noise_share == 0


def _trusted(weight: int, trust_256: int) -> Lies:
    """Buckets 5 (of at most 8) and 3 in a roster of largest trust 108 and largest weight 16."""
    terms = m.WeightTerms(sample_bucket_cap=8, top_trust_256=108)
    return Lies(
        configuration=lambda c: replace(c, weight_terms=terms),
        entry=lambda e: replace(e, weight=weight, trust_256=trust_256),
    )


def test_a_weight_that_trust_and_buckets_make_is_accepted() -> None:
    assert check(make_offer(_trusted(16, 54))).entry.trust_256 == 54
    assert check(make_offer(_trusted(16, 108))).entry.weight == 16  # lowered to the largest
    assert check(make_offer(_trusted(8, 27))).entry.weight == 8


def _spoilt(indicator: str, scale: float) -> Callable[[str, bytes], Statement]:
    """Signs a configuration with a clip indicator that nobody could write with our own types."""

    def signed(type: str, payload: bytes) -> Statement:
        message = aggregator_pb2.RoundConfiguration.FromString(payload)
        message.clip_indicator = indicator
        message.lanes[-1].scale = scale
        return sign(type, message.SerializeToString())

    return signed


def test_an_offer_with_a_clip_indicator_is_accepted() -> None:
    for scale in (0.001, 0.2, 1.0):
        accepted = check(make_offer(Lies(sign=_spoilt("loss", scale))))
        assert accepted.configuration.indicator_scale == scale
        assert accepted.configuration.metric_lanes == ()
        # Its lane is one of the coordinates that were agreed on; the bound is the same.
        assert accepted.encoding == ENCODING


LIES: dict[str, tuple[Lies, type[MeshError]]] = {
    "a weight that trust does not make": (_trusted(15, 54), WeightRefused),
    "a weight of another trust": (_trusted(16, 27), WeightRefused),
    "trust above the largest": (_trusted(16, 109), MalformedMessage),
    "trust that is not told": (_trusted(16, 0), MalformedMessage),
    "another signer": (Lies(sign=lambda t, p: sign(t, p, STRANGER)), UnknownKey),
    "another type": (Lies(sign=lambda t, p: sign(m.MODEL_MANIFEST, p)), SignatureInvalid),
    "changed after signing": (
        Lies(
            offer=lambda o: replace(
                o,
                configuration=replace(
                    o.configuration, payload=o.configuration.payload + b"\xa0\x1f\x01"
                ),
            )
        ),
        SignatureInvalid,
    ),
    "not a configuration": (Lies(sign=lambda t, p: sign(t, b"\xff")), MalformedMessage),
    "another mesh": (Lies(_with(mesh_id="other")), RoundRefused),
    "another model": (Lies(_with(model_id=ModelId("other"))), RoundRefused),
    "another protocol": (Lies(_with(protocol_version=2)), RoundRefused),
    "a sealed round of two": (Lies(_sealed(min_survivors=2)), RoundRefused),
    "noise too little to be shared": (Lies(_sealed(noise_multiplier=1e-6)), RoundRefused),
    "deadline over": (Lies(_with(deadline_ms=NOW_MS)), RoundClosed),
    "bound too large": (Lies(_with(bound_l2=ENCODING.bound_l2 + 1)), RoundRefused),
    "bound too small": (Lies(_with(bound_l2=ENCODING.bound_l2 - 1)), RoundRefused),
    "scale that wraps": (Lies(_with(scale=2.0 ** (ENCODING.scale_log2 + 4))), RoundRefused),
    "noise that wraps": (Lies(_with(noise_multiplier=50.0)), RoundRefused),
    "clip norm changed": (Lies(_with(clip_norm=2.0)), RoundRefused),
    "an indicator above the clip norm": (Lies(sign=_spoilt("loss", 1.01)), MalformedMessage),
    "an indicator of nothing": (Lies(sign=_spoilt("loss", 0.0)), MalformedMessage),
    "an indicator that is not a number": (Lies(sign=_spoilt("loss", math.nan)), NotFinite),
    "an indicator that is no lane": (Lies(sign=_spoilt("other", 0.2)), MalformedMessage),
    "another client's entry": (Lies(entry=_with(client_id=ClientId("99" * 16))), RoundRefused),
    "an earlier session": (Lies(entry=_with(session_id=SessionId("98" * 16))), RoundRefused),
    "weight above the largest": (Lies(_with(max_weight=9, total_weight=27)), RoundRefused),
    "another root": (Lies(_with(roster_root=b"z" * 32)), WeightRefused),
    "another total": (Lies(_with(total_weight=35)), WeightRefused),
    "another roster size": (Lies(_with(roster_size=5)), MalformedMessage),
    "proof cut short": (Lies(offer=lambda o: replace(o, proof=o.proof[:1])), MalformedMessage),
    "entry of other bytes": (
        Lies(offer=lambda o: replace(o, roster_entry=o.roster_entry + b"\xa0\x1f\x01")),
        WeightRefused,
    ),
    "a check-in nobody spoke": (Lies(check_in_key=other_rsa_key()), SignatureInvalid),
    "another bucket than spoken": (Lies(entry=_with(sample_bucket=6)), RoundRefused),
    "another quality than spoken": (Lies(entry=_with(quality_bucket=2)), RoundRefused),
    "a check-in for another model": (Lies(check_in=_with(model_id=ModelId("other"))), RoundRefused),
    "a check-in of another session": (
        Lies(check_in=_with(session_id=SessionId("98" * 16))),
        RoundRefused,
    ),
    "key of another mesh": (Lies(encryption_key=encryption_key(mesh_id="other")), MalformedMessage),
    "key id of another key": (
        Lies(encryption_key=encryption_key(key_id=samples.KEY)),
        MalformedMessage,
    ),
    "key not in use yet": (
        Lies(encryption_key=encryption_key(not_before_ms=NOW_MS + 6 * 60_000)),
        UnknownKey,
    ),
    "key that ends too early": (
        Lies(encryption_key=encryption_key(not_after_ms=NOW_MS + 59_999)),
        UnknownKey,
    ),
    "key that is none": (
        Lies(encryption_key=encryption_key(public_key_spki=b"none")),
        MalformedMessage,
    ),
    "key signed as something else": (
        Lies(encryption_key=sign(m.UPDATE_RECEIPT, b"x")),
        SignatureInvalid,
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_found(name: str) -> None:
    lies, error = LIES[name]
    offer = make_offer(lies)
    with pytest.raises(error) as caught:
        check(offer)
    assert type(caught.value) is error


def test_the_owners_limits_come_last() -> None:
    with pytest.raises(RoundRefused, match="owner wants at least 3"):
        check(make_offer(), owner=OwnerLimits(modes=ALL_MODES, smallest_cohort=3))


def test_the_base_must_be_what_the_round_commits_to() -> None:
    configuration = samples.configuration()
    good = replace(samples.manifest(), optimizer_state_sha256=b"o" * 32)
    check_base(configuration, good)
    for change in (
        {"version": 3, "parent_version": 2},
        {"sha256": b"x" * 32},
        {"model_id": ModelId("other")},
        {"tensors": (m.TensorSpec("w", (8,)),)},
        {"optimizer_state_sha256": b""},
    ):
        with pytest.raises(RoundRefused):
            check_base(configuration, replace(good, **change))


# --- the mesh's keys ----------------------------------------------------------------------------


def test_only_certified_keys_are_learnt() -> None:
    keys = MeshKeys("demo", authority().root)
    assert keys.empty
    foreign = foreign_authority().certify_statement_key(SIGNER.public_key(), now=NOW)
    with pytest.raises(CertificateInvalid):
        keys.learn(foreign.chain_der, NOW_MS)
    with pytest.raises(CertificateInvalid):
        MeshKeys("other", authority().root).learn([certificate()], NOW_MS)
    with pytest.raises(CertificateInvalid):
        keys.learn([certificate()], NOW_MS + 91 * 24 * 3600 * 1000)
    with pytest.raises(LimitExceeded):
        keys.learn([certificate()] * 17, NOW_MS)
    keys.learn([certificate(), certificate(STRANGER)], NOW_MS)
    assert keys.knows(public_key_id(STRANGER.public_key()))


def test_statements_do_not_outlive_the_certificate() -> None:
    keys = mesh_keys()
    statement = sign(m.UPDATE_RECEIPT, b"x")
    later_ms = int(datetime(2027, 3, 1, tzinfo=UTC).timestamp() * 1000)
    assert keys.verify(statement, m.UPDATE_RECEIPT, NOW_MS) == b"x"
    with pytest.raises(UnknownKey, match="has ended"):
        keys.verify(statement, m.UPDATE_RECEIPT, later_ms)


def test_what_was_verified_once_is_not_taken_for_something_else() -> None:
    keys = mesh_keys()
    statement = sign(m.UPDATE_RECEIPT, b"x")
    for _ in range(2):
        assert keys.verify(statement, m.UPDATE_RECEIPT, NOW_MS) == b"x"
    with pytest.raises(SignatureInvalid):
        keys.verify(statement, m.ENCRYPTION_KEY, NOW_MS)
    with pytest.raises(SignatureInvalid):
        keys.verify(replace(statement, payload=b"y"), m.UPDATE_RECEIPT, NOW_MS)


def test_memory_of_verified_statements_is_bounded() -> None:
    keys = mesh_keys()
    for i in range(2 * limits.MAX_CACHED_STATEMENTS):
        keys.verify(sign(m.UPDATE_RECEIPT, b"%d" % i), m.UPDATE_RECEIPT, NOW_MS)
        keys.recipient(encryption_key(not_before_ms=NOW_MS - 2 - i), now_ms=NOW_MS, until_ms=NOW_MS)
    assert len(keys._verified) == limits.MAX_CACHED_STATEMENTS
    assert len(keys._recipients) == limits.MAX_CACHED_STATEMENTS
