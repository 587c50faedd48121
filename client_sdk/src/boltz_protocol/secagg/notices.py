"""What the server shows each client of a sealed or grouped round, from what it has stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from boltz_protocol.messages_sealed import (
    DealtShare,
    DealtShares,
    KeyRosterNotice,
    Peer,
    PeersNotice,
    SharesNotice,
    SignaturesNotice,
    Survivors,
)
from boltz_protocol.secagg.attempt import Attempt, leaves_of
from boltz_protocol.statement import Statement


def key_roster_notice(key_roster: Statement, roster: Sequence[bytes]) -> KeyRosterNotice:
    """The same for every member.

    Args:
        roster: serialised entries in roster order.
    """
    leaves = leaves_of(roster)
    return KeyRosterNotice(
        key_roster=key_roster,
        leaf_hashes=tuple(leaf.hash for leaf in leaves),
        weights=tuple(leaf.total for leaf in leaves),
    )


def peers_notice(
    attempt: Attempt, receiver: int, advertisements: Mapping[int, Statement]
) -> PeersNotice:
    """All neighbours of one graph member: in a grouped round the others of its group.

    Args:
        advertisements: of the neighbours at least.
    """
    return PeersNotice(
        round_id=attempt.configuration.round_id,
        attempt=attempt.configuration.attempt,
        revealed=attempt.revealed,
        nonces=attempt.nonces,
        peers=tuple(
            Peer(attempt.roster[index], advertisements[index])
            for index in attempt.graph_of(receiver).neighbours(receiver)
        ),
    )


def shares_notice(
    attempt: Attempt, receiver: int, dealt: Mapping[int, tuple[DealtShares, Sequence[bytes]]]
) -> SharesNotice:
    """What was dealt to one sharer.

    Args:
        dealt: sharer -> what it signed and its sealed shares; all sharers that the receiver holds
            shares of.
    """
    shares = []
    for dealer in attempt.dealers_of(receiver):
        if dealer != receiver and dealer in dealt:
            signed, sealed = dealt[dealer]
            place = signed.holders.index(receiver)
            shares.append(DealtShare(dealer, sealed[place], *signed.commitments[place]))
    return SharesNotice(
        attempt.configuration.round_id, attempt.configuration.attempt, tuple(shares)
    )


def survivors_payload(attempt: Attempt, survivors: frozenset[int]) -> Survivors:
    """What the mesh signs when collecting ends."""
    return Survivors(
        mesh_id=attempt.configuration.mesh_id,
        round_id=attempt.configuration.round_id,
        attempt=attempt.configuration.attempt,
        key_roster_sha256=attempt.key_roster_sha256,
        survivors=attempt.survivors_bitmap(survivors),
    )


def signatures_notice(
    attempt: Attempt, receiver: int, seen: Mapping[int, Statement]
) -> SignaturesNotice:
    """What the neighbours of one sharer signed.

    Args:
        seen: sharer -> its SurvivorsSeen, checked when it came in.
    """
    return SignaturesNotice(
        attempt.configuration.round_id,
        attempt.configuration.attempt,
        tuple(
            seen[index]
            for index in attempt.graph_of(receiver).neighbours(receiver)
            if index in seen
        ),
    )
