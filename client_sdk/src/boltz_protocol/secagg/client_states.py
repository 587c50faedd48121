"""The states of `client.SecaggClient`, each with what it needs and no more; secrets hide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from boltz_protocol.messages import RosterEntry
from boltz_protocol.messages_sealed import SurvivorsSeen
from boltz_protocol.secagg.dealing import HeldShare
from boltz_protocol.secagg.graph import Graph
from boltz_protocol.secagg.keys import KeyPair
from boltz_protocol.secagg.masks import MaskStream
from boltz_protocol.secagg.peers import VerifiedPeer, VerifiedRoster


@dataclass(frozen=True, slots=True)
class PairKeys:
    """What two neighbours derive together.

    Attributes:
        seal, open: keys of the shares dealt to the other, and by the other.
        stream: the pair mask.
    """

    seal: bytes = field(repr=False)
    open: bytes = field(repr=False)
    stream: MaskStream = field(repr=False)


@dataclass(frozen=True, slots=True)
class Fresh:
    """Nothing has happened."""


@dataclass(frozen=True, slots=True)
class Advertised:
    """Keys are made and signed."""

    share_keys: KeyPair = field(repr=False)
    mask_keys: KeyPair = field(repr=False)
    nonce: bytes = field(repr=False)
    advertisement_sha256: bytes


@dataclass(frozen=True, slots=True)
class Rostered:
    """The members are known."""

    share_keys: KeyPair = field(repr=False)
    mask_keys: KeyPair = field(repr=False)
    roster: VerifiedRoster = field(repr=False)


@dataclass(frozen=True, slots=True)
class Dealt:
    """The neighbours are known and hold shares; private keys are gone.

    Attributes:
        graph: the one that this client is in.
        graph_members: those of the other groups too, where there are groups.
        open_keys, pair_streams: by neighbour.
        kept: this client's share of its own secrets, where it holds one.
    """

    roster: VerifiedRoster = field(repr=False)
    graph: Graph = field(repr=False)
    graph_members: frozenset[int] = field(repr=False)
    context: bytes
    peers: Mapping[int, VerifiedPeer] = field(repr=False)
    open_keys: Mapping[int, bytes] = field(repr=False)
    pair_streams: Mapping[int, MaskStream] = field(repr=False)
    self_stream: MaskStream = field(repr=False)
    kept: HeldShare | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ready:
    """The sharers among the neighbours are known: the vector may be masked.

    Attributes:
        sharers: those among the neighbours, and this client.
        held: dealer -> its shares, of the sharers whose shares opened.
        streams: until they are given out.
    """

    roster: VerifiedRoster = field(repr=False)
    graph: Graph = field(repr=False)
    graph_members: frozenset[int] = field(repr=False)
    peers: Mapping[int, VerifiedPeer] = field(repr=False)
    sharers: frozenset[int]
    held: Mapping[int, HeldShare] = field(repr=False)
    streams: tuple[MaskStream, ...] | None = field(repr=False)

    def masked(self) -> Ready:
        """The masks are given out."""
        return replace(self, streams=None)


@dataclass(frozen=True, slots=True)
class Signed:
    """One set of survivors is signed; which share of whom may be released is decided."""

    graph: Graph = field(repr=False)
    peers: Mapping[int, VerifiedPeer] = field(repr=False)
    held: Mapping[int, HeldShare] = field(repr=False)
    seen: SurvivorsSeen
    survivors: frozenset[int]

    def expected_from(self, entry: RosterEntry) -> SurvivorsSeen:
        """What a neighbour signs when it was shown the same."""
        return replace(self.seen, client_id=entry.client_id, session_id=entry.session_id)


@dataclass(frozen=True, slots=True)
class Released:
    """Done; nothing secret is left."""


@dataclass(frozen=True, slots=True)
class Dead:
    """Something was refused."""

    reason: str


State = Fresh | Advertised | Rostered | Dealt | Ready | Signed | Released | Dead
