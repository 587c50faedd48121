"""Well-formed messages of sealed rounds, for a roster of 10 with the members 1, 3, 4 and 9."""

from __future__ import annotations

from dataclasses import replace

from boltz_protocol import limits
from boltz_protocol import messages as m
from tests.support import samples

MEMBERS = b"\x1a\x02"
SURVIVORS = b"\x12\x02"
SEALED = b"e" * limits.SEALED_SHARES_BYTES


def secure_aggregation() -> m.SecureAggregation:
    return m.SecureAggregation(0.1, 0.05, m.Adversary.SEMI_MALICIOUS)


def configuration() -> m.RoundConfiguration:
    return replace(
        samples.configuration(),
        mode=m.RoundMode.SEALED,
        secure_aggregation=secure_aggregation(),
    )


def grouped_configuration() -> m.RoundConfiguration:
    """Of a roster of 40 in four groups."""
    return replace(
        configuration(),
        mode=m.RoundMode.GROUPED,
        roster_size=40,
        total_weight=100,
        grouping=m.Grouping(4, 5),
    )


def key_advertisement() -> m.KeyAdvertisement:
    return m.KeyAdvertisement(
        round_id=samples.ROUND,
        attempt=1,
        client_id=samples.CLIENT,
        session_id=samples.SESSION,
        configuration_sha256=b"c" * 32,
        share_public_key=b"s" * 32,
        mask_public_key=b"m" * 32,
        nonce_commitment=b"n" * 32,
    )


def key_roster() -> m.KeyRoster:
    return m.KeyRoster(
        mesh_id=samples.MESH,
        round_id=samples.ROUND,
        attempt=1,
        configuration_sha256=b"c" * 32,
        members=MEMBERS,
        advertisement_sha256s=tuple(bytes([i]) * 32 for i in range(4)),
        nonce_commitments=tuple(bytes([i + 4]) * 32 for i in range(4)),
    )


def key_roster_notice() -> m.KeyRosterNotice:
    return m.KeyRosterNotice(
        key_roster=samples.STATEMENT,
        leaf_hashes=tuple(bytes([i]) * 32 for i in range(10)),
        weights=(1, 255, *range(2, 10)),
    )


def nonce_reveal() -> m.NonceReveal:
    return m.NonceReveal(samples.ROUND, 1, b"n" * 32)


def peers_notice() -> m.PeersNotice:
    return m.PeersNotice(
        round_id=samples.ROUND,
        attempt=1,
        revealed=MEMBERS,
        nonces=tuple(bytes([i]) * 32 for i in range(4)),
        peers=tuple(m.Peer(bytes([i]) * 5, samples.STATEMENT) for i in range(3)),
    )


def dealt_shares() -> m.DealtShares:
    return m.DealtShares(
        round_id=samples.ROUND,
        attempt=1,
        client_id=samples.CLIENT,
        session_id=samples.SESSION,
        key_roster_sha256=b"k" * 32,
        seed_commitment=b"s" * 32,
        holders=(1, 3, 9),
        commitments=tuple((bytes([i]) * 32, bytes([i + 3]) * 32) for i in range(3)),
    )


def shares_dealt() -> m.SharesDealt:
    return m.SharesDealt(samples.STATEMENT, (SEALED, b"", SEALED))


def shares_notice() -> m.SharesNotice:
    shares = tuple(m.DealtShare(i, SEALED, b"m" * 32, b"s" * 32) for i in (1, 9))
    return m.SharesNotice(samples.ROUND, 1, shares)


def survivors() -> m.Survivors:
    return m.Survivors(samples.MESH, samples.ROUND, 1, b"k" * 32, SURVIVORS)


def survivors_notice() -> m.SurvivorsNotice:
    return m.SurvivorsNotice(samples.STATEMENT)


def survivors_seen() -> m.SurvivorsSeen:
    return m.SurvivorsSeen(samples.ROUND, 1, samples.CLIENT, samples.SESSION, b"k" * 32, SURVIVORS)


def signatures_notice() -> m.SignaturesNotice:
    return m.SignaturesNotice(samples.ROUND, 1, (samples.STATEMENT,) * 2)


def shares_released() -> m.SharesReleased:
    shares = (
        m.ReleasedShare(1, m.ShareKind.SEED, b"\1" + b"x" * 32, b"t" * 32),
        m.ReleasedShare(3, m.ShareKind.MASK_KEY, b"\0" + b"y" * 32, b"u" * 32),
    )
    return m.SharesReleased(samples.ROUND, 1, shares)
