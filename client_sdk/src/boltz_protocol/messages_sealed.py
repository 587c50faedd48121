"""What the two ends of a sealed round say to each other beside the messages of every round.

See `messages`, which has all of these names too and is what to import; what is said there about
checks holds here. Positions are indexes in the roster, from 0. Bitmaps are over the whole roster
and stay bytes: their exact length needs the roster's size, which `secagg.bitmap` is given; here
only what holds for any roster is checked.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from boltz_protocol import ids, limits
from boltz_protocol.errors import LimitExceeded, MalformedMessage, NotFinite
from boltz_protocol.message_parts import check_count, check_digest, check_range
from boltz_protocol.secagg.graph import Adversary
from boltz_protocol.statement import Statement

__all__ = [
    "DEALT_SHARES",
    "KEY_ADVERTISEMENT",
    "KEY_ROSTER",
    "SURVIVORS",
    "SURVIVORS_SEEN",
    "Adversary",
    "DealtShare",
    "DealtShares",
    "Grouping",
    "KeyAdvertisement",
    "KeyRoster",
    "KeyRosterNotice",
    "NonceReveal",
    "Peer",
    "PeersNotice",
    "ReleasedShare",
    "SecureAggregation",
    "ShareKind",
    "SharesDealt",
    "SharesNotice",
    "SharesReleased",
    "SignaturesNotice",
    "Survivors",
    "SurvivorsNotice",
    "SurvivorsSeen",
]

# --- statement types: the full protobuf name of the payload -------------------------------------

KEY_ADVERTISEMENT: Final = "boltz_mesh.v1.KeyAdvertisement"
KEY_ROSTER: Final = "boltz_mesh.v1.KeyRoster"
DEALT_SHARES: Final = "boltz_mesh.v1.DealtShares"
SURVIVORS: Final = "boltz_mesh.v1.Survivors"
SURVIVORS_SEEN: Final = "boltz_mesh.v1.SurvivorsSeen"


class ShareKind(enum.IntEnum):
    """Which of a dealer's two secrets a share is of (numbers as in the contract)."""

    MASK_KEY = 1
    SEED = 2


# --- checks -------------------------------------------------------------------------------------


def _check_attempt(round_id: str, attempt: int) -> None:
    ids.parse_round_id(round_id)
    check_range("attempt", attempt, 1, limits.MAX_ATTEMPTS)


def _check_sender(client_id: str, session_id: str) -> None:
    ids.parse_client_id(client_id)
    ids.parse_session_id(session_id)


def _check_size(name: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise MalformedMessage(f"{name} has {len(value)} bytes, not {size}", field=name)


def _check_bitmap(name: str, bitmap: bytes) -> int:
    """The number of positions in a bitmap. Raises: MalformedMessage, LimitExceeded."""
    if len(bitmap) > limits.MAX_BITMAP_BYTES:
        raise LimitExceeded(
            f"{name} has {len(bitmap)} bytes; the cap is {limits.MAX_BITMAP_BYTES}", field=name
        )
    count = int.from_bytes(bitmap, "little").bit_count()
    if count == 0:
        raise MalformedMessage(f"{name} is empty", field=name)
    return count


def _check_each(name: str, values: Sequence[bytes], count: int) -> None:
    """Refuse another number of values than `count`, or one that has not 32 bytes."""
    if len(values) != count:
        raise MalformedMessage(f"{name} has {len(values)} entries, not {count}", field=name)
    for value in values:
        _check_size(name, value, limits.SECRET_BYTES)


def _check_ascending(name: str, positions: Sequence[int]) -> None:
    """Refuse positions outside any roster, out of order, or named twice."""
    least = 0
    for position in positions:
        check_range(name, position, least, limits.MAX_ROSTER - 1)
        least = position + 1


# --- the configuration's part -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SecureAggregation:
    """What the graph of neighbours must withstand, as fractions of the members.

    Whether the two can be had together is for `secagg.graph.parameters` to say.
    """

    corrupt_fraction: float
    dropout_fraction: float
    adversary: Adversary

    def __post_init__(self) -> None:
        for name, value in (
            ("corrupt_fraction", self.corrupt_fraction),
            ("dropout_fraction", self.dropout_fraction),
        ):
            if not math.isfinite(value):
                raise NotFinite(f"{name} is not a finite number", field=name)
            if not 0.0 <= value < 1.0:
                raise MalformedMessage(f"{name} is {value}, not 0 to below 1", field=name)


@dataclass(frozen=True, slots=True)
class Grouping:
    """How the members of a grouped round are cut into groups; `secagg.groups` draws them.

    Attributes:
        min_group_survivors: fewest survivors of a group whose sum counts.
    """

    groups: int
    min_group_survivors: int

    def __post_init__(self) -> None:
        check_range("groups", self.groups, 2, limits.MAX_GROUPS)
        least, most = limits.MIN_SEALED_COHORT, limits.MAX_COMPLETE_GRAPH
        check_range("min_group_survivors", self.min_group_survivors, least, most)


# --- keys ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeyAdvertisement:
    """Fresh X25519 public keys of one client, and the commitment to its nonce (32 bytes each).

    Payload of a statement that the client signs.
    """

    round_id: ids.RoundId
    attempt: int
    client_id: ids.ClientId
    session_id: ids.SessionId
    configuration_sha256: bytes
    share_public_key: bytes
    mask_public_key: bytes
    nonce_commitment: bytes

    def __post_init__(self) -> None:
        _check_attempt(self.round_id, self.attempt)
        _check_sender(self.client_id, self.session_id)
        check_digest("configuration_sha256", self.configuration_sha256)
        _check_size("share_public_key", self.share_public_key, limits.SECRET_BYTES)
        _check_size("mask_public_key", self.mask_public_key, limits.SECRET_BYTES)
        check_digest("nonce_commitment", self.nonce_commitment)


@dataclass(frozen=True, slots=True)
class KeyRoster:
    """Whose keys are in: payload of a statement of the mesh, the same bytes for every client.

    Attributes:
        members: bitmap of those whose advertisement arrived in time.
        advertisement_sha256s: statement digest of each member's advertisement, in roster order.
        nonce_commitments: as advertised, in roster order.
    """

    mesh_id: str
    round_id: ids.RoundId
    attempt: int
    configuration_sha256: bytes
    members: bytes
    advertisement_sha256s: tuple[bytes, ...]
    nonce_commitments: tuple[bytes, ...]

    def __post_init__(self) -> None:
        ids.parse_name("mesh_id", self.mesh_id)
        _check_attempt(self.round_id, self.attempt)
        check_digest("configuration_sha256", self.configuration_sha256)
        count = _check_bitmap("members", self.members)
        _check_each("advertisement_sha256s", self.advertisement_sha256s, count)
        _check_each("nonce_commitments", self.nonce_commitments, count)


@dataclass(frozen=True, slots=True)
class KeyRosterNotice:
    """The key roster, and leaf hashes and weights (1 to 255) of all positions.

    From these two follow the root and the total that the configuration commits to.
    """

    key_roster: Statement
    leaf_hashes: tuple[bytes, ...]
    weights: tuple[int, ...]

    def __post_init__(self) -> None:
        check_count("weights", len(self.weights), 1, limits.MAX_ROSTER)
        _check_each("leaf_hashes", self.leaf_hashes, len(self.weights))
        for weight in self.weights:
            check_range("weights", weight, 1, limits.MAX_WEIGHT)


@dataclass(frozen=True, slots=True)
class NonceReveal:
    """Opens the commitment of a client's advertisement. `nonce` has 32 bytes."""

    round_id: ids.RoundId
    attempt: int
    nonce: bytes

    def __post_init__(self) -> None:
        _check_attempt(self.round_id, self.attempt)
        _check_size("nonce", self.nonce, limits.SECRET_BYTES)


@dataclass(frozen=True, slots=True)
class Peer:
    """One neighbour; nothing in it is verified yet. `roster_entry` is what its leaf hashes."""

    roster_entry: bytes
    advertisement: Statement

    def __post_init__(self) -> None:
        if not 1 <= len(self.roster_entry) <= limits.MAX_STATEMENT_BYTES:
            raise LimitExceeded(f"roster_entry has {len(self.roster_entry)} bytes")


@dataclass(frozen=True, slots=True)
class PeersNotice:
    """Who the receiver's neighbours are.

    Attributes:
        revealed: bitmap of the graph members.
        nonces: theirs, 32 bytes each, in roster order; empty with at most 50 members.
        peers: all neighbours, by ascending position.
    """

    round_id: ids.RoundId
    attempt: int
    revealed: bytes
    nonces: tuple[bytes, ...]
    peers: tuple[Peer, ...]

    def __post_init__(self) -> None:
        _check_attempt(self.round_id, self.attempt)
        count = _check_bitmap("revealed", self.revealed)
        _check_each("nonces", self.nonces, count if self.nonces else 0)
        check_count("peers", len(self.peers), 1, limits.MAX_NEIGHBOURS)


# --- shares -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DealtShares:
    """What a client has dealt to whom: payload of a statement that the client signs.

    Attributes:
        seed_commitment: to the seed of its self mask.
        holders: ascending positions of those that hold a share.
        commitments: for each of them, to its share of the mask key and to that of the seed.
    """

    round_id: ids.RoundId
    attempt: int
    client_id: ids.ClientId
    session_id: ids.SessionId
    key_roster_sha256: bytes
    seed_commitment: bytes
    holders: tuple[int, ...]
    commitments: tuple[tuple[bytes, bytes], ...]

    def __post_init__(self) -> None:
        _check_attempt(self.round_id, self.attempt)
        _check_sender(self.client_id, self.session_id)
        check_digest("key_roster_sha256", self.key_roster_sha256)
        check_digest("seed_commitment", self.seed_commitment)
        check_count("holders", len(self.holders), 1, limits.MAX_NEIGHBOURS)
        _check_ascending("holders", self.holders)
        for kind in (0, 1):
            _check_each("commitments", [pair[kind] for pair in self.commitments], len(self.holders))


@dataclass(frozen=True, slots=True)
class SharesDealt:
    """Shares for the neighbours, encrypted for each; empty for the dealer itself."""

    dealt: Statement
    sealed_shares: tuple[bytes, ...]

    def __post_init__(self) -> None:
        check_count("sealed_shares", len(self.sealed_shares), 1, limits.MAX_NEIGHBOURS)
        for sealed in self.sealed_shares:
            if sealed:
                _check_size("sealed_shares", sealed, limits.SEALED_SHARES_BYTES)
        if self.sealed_shares.count(b"") > 1:
            raise MalformedMessage("two sealed shares are empty", field="sealed_shares")


@dataclass(frozen=True, slots=True)
class DealtShare:
    """Two shares of one dealer, encrypted for one holder, with the dealer's commitments."""

    dealer: int
    sealed_share: bytes
    mask_key_commitment: bytes
    seed_commitment: bytes

    def __post_init__(self) -> None:
        check_range("dealer", self.dealer, 0, limits.MAX_ROSTER - 1)
        _check_size("sealed_share", self.sealed_share, limits.SEALED_SHARES_BYTES)
        check_digest("mask_key_commitment", self.mask_key_commitment)
        check_digest("seed_commitment", self.seed_commitment)


@dataclass(frozen=True, slots=True)
class SharesNotice:
    """The shares dealt to the receiver, by ascending dealer. Whether they are enough, it checks."""

    round_id: ids.RoundId
    attempt: int
    shares: tuple[DealtShare, ...]

    def __post_init__(self) -> None:
        _check_attempt(self.round_id, self.attempt)
        check_count("shares", len(self.shares), 0, limits.MAX_NEIGHBOURS)
        _check_ascending("dealer", [share.dealer for share in self.shares])


# --- survivors ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Survivors:
    """Who survived: payload of a statement of the mesh, the same bytes for every client."""

    mesh_id: str
    round_id: ids.RoundId
    attempt: int
    key_roster_sha256: bytes
    survivors: bytes

    def __post_init__(self) -> None:
        ids.parse_name("mesh_id", self.mesh_id)
        _check_attempt(self.round_id, self.attempt)
        check_digest("key_roster_sha256", self.key_roster_sha256)
        _check_bitmap("survivors", self.survivors)


@dataclass(frozen=True, slots=True)
class SurvivorsNotice:
    """The survivors, to be signed by all sharers."""

    survivors: Statement


@dataclass(frozen=True, slots=True)
class SurvivorsSeen:
    """The survivors that a client was shown: payload of a statement that the client signs."""

    round_id: ids.RoundId
    attempt: int
    client_id: ids.ClientId
    session_id: ids.SessionId
    key_roster_sha256: bytes
    survivors: bytes

    def __post_init__(self) -> None:
        _check_attempt(self.round_id, self.attempt)
        _check_sender(self.client_id, self.session_id)
        check_digest("key_roster_sha256", self.key_roster_sha256)
        _check_bitmap("survivors", self.survivors)


@dataclass(frozen=True, slots=True)
class SignaturesNotice:
    """What the receiver's neighbours signed (SurvivorsSeen). Whether they are enough, it checks."""

    round_id: ids.RoundId
    attempt: int
    signatures: tuple[Statement, ...]

    def __post_init__(self) -> None:
        _check_attempt(self.round_id, self.attempt)
        check_count("signatures", len(self.signatures), 0, limits.MAX_NEIGHBOURS)


@dataclass(frozen=True, slots=True)
class ReleasedShare:
    """One share (33 bytes, big-endian) and the salt (32 bytes) of its dealer's commitment."""

    dealer: int
    kind: ShareKind
    share: bytes = field(repr=False)
    salt: bytes = field(repr=False)

    def __post_init__(self) -> None:
        check_range("dealer", self.dealer, 0, limits.MAX_ROSTER - 1)
        _check_size("share", self.share, limits.SHARE_BYTES)
        _check_size("salt", self.salt, limits.SECRET_BYTES)


@dataclass(frozen=True, slots=True)
class SharesReleased:
    """One share for each sharer that the client holds shares of, by ascending dealer.

    No dealer is named twice, so no message can hold both of a dealer's secrets.
    """

    round_id: ids.RoundId
    attempt: int
    shares: tuple[ReleasedShare, ...]

    def __post_init__(self) -> None:
        _check_attempt(self.round_id, self.attempt)
        check_count("shares", len(self.shares), 1, limits.MAX_NEIGHBOURS)
        _check_ascending("dealer", [share.dealer for share in self.shares])
