"""What a client verifies about the others: the roster behind the key roster, and each neighbour."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from boltz_protocol.codec import parse_roster_entry
from boltz_protocol.codec_sealed import parse_key_advertisement
from boltz_protocol.errors import RoundRefused, SignatureInvalid
from boltz_protocol.messages import RosterEntry, RoundConfiguration
from boltz_protocol.messages_sealed import (
    KEY_ADVERTISEMENT,
    KeyAdvertisement,
    KeyRoster,
    KeyRosterNotice,
    Peer,
)
from boltz_protocol.secagg.agreement import check_key_roster
from boltz_protocol.statement import Statement, digest
from boltz_protocol.weights import SumNode, WeightLeaf, root_of_nodes

#: Checks a peer's certificate chain and its signature; returns the payload or raises.
VerifyPeer = Callable[[RosterEntry, Statement], bytes]


@dataclass(frozen=True, slots=True)
class VerifiedRoster:
    """A key roster, and the leaves of the roster that the configuration commits to.

    Attributes:
        key_roster: the mesh's statement.
        sha256: its digest.
        leaves: hash and weight of every position.
        advertisements: member -> digest of its advertisement.
        commitments: member -> commitment to its nonce.
    """

    key_roster: KeyRoster
    sha256: bytes
    leaves: tuple[SumNode, ...]
    advertisements: Mapping[int, bytes]
    commitments: Mapping[int, bytes]

    def total_weight(self, positions: frozenset[int]) -> int:
        """The sum of the committed weights."""
        return sum(self.leaves[index].total for index in positions)


def verify_roster(
    notice: KeyRosterNotice,
    key_roster: KeyRoster,
    sha256: bytes,
    *,
    configuration: RoundConfiguration,
    configuration_sha256: bytes,
) -> VerifiedRoster:
    """Hold a key roster and its leaves against the configuration.

    Args:
        key_roster: payload of `notice.key_roster`, verified under the mesh's key.
        sha256: that statement's digest.

    Raises: RoundRefused, MalformedMessage.
    """
    members = check_key_roster(key_roster, configuration, configuration_sha256)
    if len(notice.weights) != configuration.roster_size:
        raise RoundRefused(
            f"{len(notice.weights)} leaves for a roster of {configuration.roster_size}"
        )
    leaves = tuple(map(SumNode, notice.leaf_hashes, notice.weights))
    root = root_of_nodes(leaves)
    if root != SumNode(configuration.roster_root, configuration.total_weight):
        raise RoundRefused("leaf hashes and weights do not give the committed root and total")
    return VerifiedRoster(
        key_roster=key_roster,
        sha256=sha256,
        leaves=leaves,
        advertisements=dict(zip(members, key_roster.advertisement_sha256s, strict=True)),
        commitments=dict(zip(members, key_roster.nonce_commitments, strict=True)),
    )


@dataclass(frozen=True, slots=True)
class VerifiedPeer:
    """A neighbour that is in the committed roster, with the keys that it signed.

    Attributes:
        fingerprint: SHA-256 of its certificate, lower-case hex; empty where it sent none.
    """

    entry: RosterEntry
    advertisement: KeyAdvertisement
    fingerprint: str


def verify_peer_shown(
    peer: Peer, index: int, roster: VerifiedRoster, verify_peer: VerifyPeer
) -> VerifiedPeer:
    """Hold what was shown of the neighbour at `index` against the rosters and its signature.

    Raises: RoundRefused; MalformedMessage, LimitExceeded on bytes that do not parse; whatever
        `verify_peer` raises.
    """
    entry = parse_roster_entry(peer.roster_entry)
    entry_digest = hashlib.sha256(peer.roster_entry).digest()
    if entry.index != index:
        raise RoundRefused(f"position {entry.index} is shown where {index} is the neighbour")
    leaf = WeightLeaf(entry.index, entry.client_id, entry_digest, entry.weight)
    if leaf.node() != roster.leaves[index]:
        raise RoundRefused(f"the entry shown for position {index} is not the committed one")
    if digest(peer.advertisement) != roster.advertisements[index]:
        raise RoundRefused(f"the keys shown for position {index} are not those of the key roster")
    if peer.advertisement.type != KEY_ADVERTISEMENT:
        raise SignatureInvalid(f"position {index} is shown with another kind of statement")
    advertisement = parse_key_advertisement(verify_peer(entry, peer.advertisement))
    key_roster = roster.key_roster
    if (
        advertisement.round_id != key_roster.round_id
        or advertisement.attempt != key_roster.attempt
        or advertisement.configuration_sha256 != key_roster.configuration_sha256
        or advertisement.client_id != entry.client_id
        or advertisement.session_id != entry.session_id
        or advertisement.nonce_commitment != roster.commitments[index]
    ):
        raise RoundRefused(f"the keys of position {index} are for another attempt or session")
    chain = entry.certificate_chain_der
    fingerprint = hashlib.sha256(chain[0]).hexdigest() if chain else ""
    return VerifiedPeer(entry, advertisement, fingerprint)
