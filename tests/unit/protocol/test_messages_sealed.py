"""Messages of sealed rounds cannot hold a value out of range."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from boltz_protocol import limits
from boltz_protocol import messages as m
from boltz_protocol import messages_sealed as ms
from boltz_protocol.errors import LimitExceeded, MalformedMessage, MeshError, NotFinite
from tests.support import samples
from tests.support import samples_sealed as sealed

DIGEST = b"x" * 32
SHORT, LONG = b"x" * 31, b"x" * 33
MANY = limits.MAX_NEIGHBOURS + 1
TOO_LONG_A_BITMAP = b"\1" * (limits.MAX_BITMAP_BYTES + 1)
DEALT = m.DealtShare(3, sealed.SEALED, DIGEST, DIGEST)
RELEASED = m.ReleasedShare(3, m.ShareKind.SEED, b"z" * 33, DIGEST)

Make = Callable[[], Any]


def dealt_share() -> m.DealtShare:
    return DEALT


def released_share() -> m.ReleasedShare:
    return RELEASED


def peer() -> m.Peer:
    return m.Peer(b"entry", samples.STATEMENT)


#: Every message that names a round, and every one that names its sender.
OF_A_ROUND: tuple[Make, ...] = (
    sealed.key_advertisement,
    sealed.key_roster,
    sealed.nonce_reveal,
    sealed.peers_notice,
    sealed.dealt_shares,
    sealed.shares_notice,
    sealed.survivors,
    sealed.survivors_seen,
    sealed.signatures_notice,
    sealed.shares_released,
)
OF_A_SENDER: tuple[Make, ...] = (
    sealed.key_advertisement,
    sealed.dealt_shares,
    sealed.survivors_seen,
)
DIGESTS: tuple[tuple[Make, str], ...] = (
    (sealed.key_advertisement, "configuration_sha256"),
    (sealed.key_advertisement, "share_public_key"),
    (sealed.key_advertisement, "mask_public_key"),
    (sealed.key_advertisement, "nonce_commitment"),
    (sealed.key_roster, "configuration_sha256"),
    (sealed.nonce_reveal, "nonce"),
    (sealed.dealt_shares, "key_roster_sha256"),
    (sealed.dealt_shares, "seed_commitment"),
    (dealt_share, "mask_key_commitment"),
    (dealt_share, "seed_commitment"),
    (sealed.survivors, "key_roster_sha256"),
    (sealed.survivors_seen, "key_roster_sha256"),
    (released_share, "salt"),
)
BITMAPS: tuple[tuple[Make, str], ...] = (
    (sealed.key_roster, "members"),
    (sealed.peers_notice, "revealed"),
    (sealed.survivors, "survivors"),
    (sealed.survivors_seen, "survivors"),
)

REFUSED: list[tuple[Make, dict[str, Any], type[MeshError]]] = [
    *((make, {"round_id": "AA" * 16}, MalformedMessage) for make in OF_A_ROUND),
    *((make, {"attempt": 0}, MalformedMessage) for make in OF_A_ROUND),
    *((make, {"attempt": limits.MAX_ATTEMPTS + 1}, MalformedMessage) for make in OF_A_ROUND),
    *((make, {"client_id": "someone"}, MalformedMessage) for make in OF_A_SENDER),
    *((make, {"session_id": ""}, MalformedMessage) for make in OF_A_SENDER),
    *((make, {name: SHORT}, MalformedMessage) for make, name in DIGESTS),
    *((make, {name: LONG}, MalformedMessage) for make, name in DIGESTS),
    *((make, {name: b""}, MalformedMessage) for make, name in BITMAPS),
    *((make, {name: b"\0\0"}, MalformedMessage) for make, name in BITMAPS),
    *((make, {name: TOO_LONG_A_BITMAP}, LimitExceeded) for make, name in BITMAPS),
    (sealed.key_roster, {"mesh_id": "Not A Name"}, MalformedMessage),
    (sealed.survivors, {"mesh_id": ""}, MalformedMessage),
    # A member more or less than there are digests and commitments.
    (sealed.key_roster, {"members": b"\x1a\x03"}, MalformedMessage),
    (sealed.key_roster, {"members": b"\x1a"}, MalformedMessage),
    (sealed.key_roster, {"advertisement_sha256s": (DIGEST,) * 3}, MalformedMessage),
    (sealed.key_roster, {"advertisement_sha256s": (SHORT,) * 4}, MalformedMessage),
    (sealed.key_roster, {"nonce_commitments": (DIGEST,) * 5}, MalformedMessage),
    (sealed.key_roster, {"nonce_commitments": (LONG,) * 4}, MalformedMessage),
    (sealed.key_roster_notice, {"weights": ()}, MalformedMessage),
    (sealed.key_roster_notice, {"weights": (1,) * 9}, MalformedMessage),
    (sealed.key_roster_notice, {"weights": (0,) * 10}, MalformedMessage),
    (sealed.key_roster_notice, {"weights": (256,) * 10}, MalformedMessage),
    (sealed.key_roster_notice, {"weights": (1,) * (limits.MAX_ROSTER + 1)}, LimitExceeded),
    (sealed.key_roster_notice, {"leaf_hashes": (DIGEST,) * 11}, MalformedMessage),
    (sealed.key_roster_notice, {"leaf_hashes": (SHORT,) * 10}, MalformedMessage),
    (sealed.peers_notice, {"nonces": (DIGEST,) * 3}, MalformedMessage),
    (sealed.peers_notice, {"nonces": (SHORT,) * 4}, MalformedMessage),
    (sealed.peers_notice, {"peers": ()}, MalformedMessage),
    (sealed.peers_notice, {"peers": (peer(),) * MANY}, LimitExceeded),
    (peer, {"roster_entry": b""}, LimitExceeded),
    (peer, {"roster_entry": b"x" * (limits.MAX_STATEMENT_BYTES + 1)}, LimitExceeded),
    (sealed.dealt_shares, {"holders": ()}, MalformedMessage),
    (sealed.dealt_shares, {"holders": tuple(range(MANY))}, LimitExceeded),
    (sealed.dealt_shares, {"holders": (1, 9, 3)}, MalformedMessage),
    (sealed.dealt_shares, {"holders": (1, 3, 3)}, MalformedMessage),
    (sealed.dealt_shares, {"holders": (-1, 3, 9)}, MalformedMessage),
    (sealed.dealt_shares, {"holders": (1, 3, limits.MAX_ROSTER)}, MalformedMessage),
    (sealed.dealt_shares, {"commitments": ((DIGEST, DIGEST),) * 2}, MalformedMessage),
    (sealed.dealt_shares, {"commitments": ((DIGEST, SHORT),) * 3}, MalformedMessage),
    (sealed.dealt_shares, {"commitments": ((LONG, DIGEST),) * 3}, MalformedMessage),
    (sealed.shares_dealt, {"sealed_shares": ()}, MalformedMessage),
    (sealed.shares_dealt, {"sealed_shares": (sealed.SEALED,) * MANY}, LimitExceeded),
    (sealed.shares_dealt, {"sealed_shares": (b"", sealed.SEALED, b"")}, MalformedMessage),
    (sealed.shares_dealt, {"sealed_shares": (sealed.SEALED[1:],)}, MalformedMessage),
    (sealed.shares_dealt, {"sealed_shares": (sealed.SEALED + b"x",)}, MalformedMessage),
    (dealt_share, {"dealer": -1}, MalformedMessage),
    (dealt_share, {"dealer": limits.MAX_ROSTER}, MalformedMessage),
    (dealt_share, {"sealed_share": b""}, MalformedMessage),
    (dealt_share, {"sealed_share": sealed.SEALED + b"x"}, MalformedMessage),
    (sealed.shares_notice, {"shares": (DEALT, DEALT)}, MalformedMessage),
    (sealed.shares_notice, {"shares": (DEALT, replace(DEALT, dealer=2))}, MalformedMessage),
    (sealed.shares_notice, {"shares": (DEALT,) * MANY}, LimitExceeded),
    (sealed.signatures_notice, {"signatures": (samples.STATEMENT,) * MANY}, LimitExceeded),
    (released_share, {"dealer": limits.MAX_ROSTER}, MalformedMessage),
    (released_share, {"share": DIGEST}, MalformedMessage),
    (sealed.shares_released, {"shares": ()}, MalformedMessage),
    (sealed.shares_released, {"shares": (RELEASED,) * MANY}, LimitExceeded),
    (sealed.secure_aggregation, {"corrupt_fraction": -0.1}, MalformedMessage),
    (sealed.secure_aggregation, {"corrupt_fraction": 1.0}, MalformedMessage),
    (sealed.secure_aggregation, {"corrupt_fraction": math.nan}, NotFinite),
    (sealed.secure_aggregation, {"dropout_fraction": -1e-9}, MalformedMessage),
    (sealed.secure_aggregation, {"dropout_fraction": 1.5}, MalformedMessage),
    (sealed.secure_aggregation, {"dropout_fraction": math.inf}, NotFinite),
    (sealed.configuration, {"secure_aggregation": None}, MalformedMessage),
    (sealed.configuration, {"mode": m.RoundMode.OPEN}, MalformedMessage),
    (
        sealed.configuration,
        {"mode": m.RoundMode.GROUPED, "secure_aggregation": None},
        MalformedMessage,
    ),
    (
        samples.configuration,
        {"secure_aggregation": sealed.secure_aggregation()},
        MalformedMessage,
    ),
]


@pytest.mark.parametrize(
    ("make", "change", "error"),
    REFUSED,
    ids=[f"{make.__name__}-{next(iter(change))}" for make, change, _ in REFUSED],
)
def test_a_field_out_of_range_is_refused(
    make: Make, change: dict[str, Any], error: type[MeshError]
) -> None:
    good = make()
    with pytest.raises(error):
        replace(good, **change)


def test_both_shares_of_one_dealer_fit_no_message() -> None:
    both = (RELEASED, replace(RELEASED, kind=m.ShareKind.MASK_KEY))
    with pytest.raises(MalformedMessage):
        m.SharesReleased(samples.ROUND, 1, both)


def test_values_at_the_ends_of_their_ranges_are_fine() -> None:
    assert m.SharesNotice(samples.ROUND, 1, ()).shares == ()
    assert m.SignaturesNotice(samples.ROUND, 1, ()).signatures == ()
    assert replace(sealed.peers_notice(), nonces=()).nonces == ()
    assert replace(DEALT, dealer=limits.MAX_ROSTER - 1).dealer == limits.MAX_ROSTER - 1
    assert m.SecureAggregation(0.0, 0.0, m.Adversary.SEMI_HONEST).corrupt_fraction == 0.0
    everybody = b"\xff" * limits.MAX_BITMAP_BYTES
    assert replace(sealed.survivors(), survivors=everybody).survivors == everybody
    assert sealed.grouped_configuration().secure_aggregation == sealed.secure_aggregation()
    for groups, least in ((2, 3), (limits.MAX_GROUPS, limits.MAX_COMPLETE_GRAPH)):
        assert m.Grouping(groups, least).groups == groups


@pytest.mark.parametrize("numbers", [(1, 5), (limits.MAX_GROUPS + 1, 5), (2, 2), (2, 51)])
def test_groups_out_of_range(numbers: tuple[int, int]) -> None:
    with pytest.raises(MalformedMessage):
        m.Grouping(*numbers)


@pytest.mark.parametrize("roster_size", [19, 201])
def test_a_roster_that_makes_groups_of_another_size(roster_size: int) -> None:
    grouped = sealed.grouped_configuration()
    for fits in (20, 200):
        assert replace(grouped, roster_size=fits, total_weight=fits + 50)
    with pytest.raises(MalformedMessage, match="20 to 200 make groups of 5 to 50"):
        replace(grouped, roster_size=roster_size, total_weight=roster_size + 50)


def test_released_shares_are_not_shown() -> None:
    shown = repr(sealed.shares_released())
    assert "xxx" not in shown
    assert "ttt" not in shown
    assert "dealer=1" in shown


def test_messages_has_all_names() -> None:
    for name in ms.__all__:
        assert getattr(m, name) is getattr(ms, name)
        assert name in m.__all__
