"""What honest clients may never do, watched as they do it; and what an adversary learns from it.

`Eye` is told whatever honest clients mask, sign and release, and asserts on the spot. `Adversary`
and `learnt` come afterwards: from released shares, and from all that corrupt clients hold they
put secrets together, derive every mask they can, and say of which sets of vectors the sum is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from boltz_protocol import codec_sealed
from boltz_protocol import messages as m
from boltz_protocol.errors import MalformedMessage, SignatureInvalid
from boltz_protocol.messages import ShareKind
from boltz_protocol.secagg.bitmap import indexes
from boltz_protocol.secagg.client_states import Dealt, Ready, Signed
from boltz_protocol.secagg.client_steps import Member
from boltz_protocol.secagg.keys import KeyPair, commit_nonce, pair_mask_key, self_mask_key
from boltz_protocol.secagg.masks import MaskStream
from boltz_protocol.secagg.peers import VerifiedRoster
from boltz_protocol.secagg.shamir import Interpolator
from tests.support.secagg import cheap_verify

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Masked:
    """One vector of an honest client, and the masks on it."""

    index: int
    session: str
    streams: tuple[MaskStream, ...] = field(repr=False)
    vector: bytes = field(repr=False)
    values: Int32Array = field(repr=False)


class Eye:
    """See the head of this module."""

    def __init__(self) -> None:
        self.masked: list[Masked] = []
        self.signed: dict[str, m.SurvivorsSeen] = {}
        #: Holder -> what it released.
        self.released: dict[int, m.SharesReleased] = {}
        self._vector_under: dict[tuple[int, bytes], bytes] = {}
        self._kind_of: dict[tuple[str, int], ShareKind] = {}

    def saw_masked(self, masked: Masked) -> None:
        """A client has applied its masks."""
        for stream in masked.streams:
            under = self._vector_under.setdefault((masked.index, stream.key), masked.vector)
            assert under == masked.vector, f"two vectors of client {masked.index} under one mask"
        self.masked.append(masked)

    def saw_graph(self, member: Member, roster: VerifiedRoster, notice: m.PeersNotice) -> None:
        """A client has dealt shares in a graph: nobody may have chosen it."""
        size = member.configuration.roster_size
        inside = indexes(notice.revealed, size)
        assert set(inside) <= set(roster.advertisements), "a graph of others than the members"
        if notice.nonces:
            for index, nonce in zip(inside, notice.nonces, strict=True):
                same = commit_nonce(nonce) == roster.commitments[index]
                assert same, f"the graph comes from another nonce of {index}"

    def saw_signed(self, member: Member, seen: m.SurvivorsSeen) -> None:
        """A client has signed who survived."""
        known = self.signed.setdefault(member.entry.session_id, seen)
        assert known == seen, f"client {member.entry.index} signed two sets of survivors"
        count = len(indexes(seen.survivors, member.configuration.roster_size))
        floor = max(member.floors.least_survivors, member.configuration.min_survivors)
        assert count >= floor, f"{count} survivors signed, below the floor of {floor}"

    def saw_released(
        self, member: Member, before: Signed, notice: m.SignaturesNotice, answer: m.SharesReleased
    ) -> None:
        """A client has let go of shares: counted again, what it should have counted."""
        index, session = member.entry.index, member.entry.session_id
        assert session in self.signed, "released without having signed"
        survivors = indexes(before.seen.survivors, member.configuration.roster_size)
        for share in answer.shares:
            wanted = ShareKind.SEED if share.dealer in survivors else ShareKind.MASK_KEY
            assert share.kind is wanted, "a kind that the survivors do not ask for"
            kind = self._kind_of.setdefault((session, share.dealer), share.kind)
            assert kind is share.kind, f"both shares of dealer {share.dealer} released by {index}"
        signers = {index, *_signers(before, notice)}
        enough = len(signers.intersection(before.graph.holders(index)))
        assert enough >= before.graph.threshold, f"released for {enough} signatures"
        self.released[index] = answer


def _signers(state: Signed, notice: m.SignaturesNotice) -> Iterable[int]:
    """The neighbours of whom the notice has a signature on these very survivors."""
    by_name = {peer.entry.client_id: index for index, peer in state.peers.items()}
    for statement in notice.signatures:
        try:
            said = codec_sealed.parse_survivors_seen(statement.payload)
            entry = state.peers[by_name[said.client_id]].entry
            cheap_verify(entry, statement)
        except (SignatureInvalid, MalformedMessage, KeyError):
            continue
        ours = state.seen
        if (said.key_roster_sha256, said.survivors) == (
            ours.key_roster_sha256,
            ours.survivors,
        ) and (said.session_id == entry.session_id):
            yield entry.index


# --- the adversary ------------------------------------------------------------------------------


@dataclass(slots=True)
class Adversary:
    """All that a server and the clients that collude with it can put together.

    Attributes:
        names, publics: position -> client id; the mask keys advertised from there.
        contexts: every mask context that any client computed.
        thresholds: dealer -> shares that give its secrets back.
        shares: (dealer, kind) -> holder -> share.
        keys: of masks, known because an end of them is corrupt.
    """

    names: Mapping[int, str]
    publics: Mapping[int, bytes]
    contexts: frozenset[bytes]
    thresholds: Mapping[int, int]
    shares: dict[tuple[int, ShareKind], dict[int, bytes]] = field(default_factory=dict)
    keys: set[bytes] = field(default_factory=set)

    def take(self, holder: int, released: m.SharesReleased) -> None:
        """Shares that were released by an honest client."""
        for share in released.shares:
            self.shares.setdefault((share.dealer, share.kind), {})[holder] = share.share

    def corrupt(self, holder: int, dealt: Dealt | None, ready: Ready | None) -> None:
        """All that a corrupt client has in its memory."""
        if dealt is not None:
            self.keys.update(stream.key for stream in dealt.pair_streams.values())
        if ready is not None:
            for dealer, share in ready.held.items():
                self.shares.setdefault((dealer, ShareKind.SEED), {})[holder] = share.seed
                self.shares.setdefault((dealer, ShareKind.MASK_KEY), {})[holder] = share.mask_key

    def has(self, dealer: int, kind: ShareKind) -> bool:
        """Whether a secret is known."""
        return len(self.shares.get((dealer, kind), ())) >= self.thresholds.get(dealer, 1 << 30)

    def check_never_both(self, honest: Iterable[int]) -> None:
        """The one thing on which everything hangs."""
        for dealer in honest:
            both = self.has(dealer, ShareKind.SEED) and self.has(dealer, ShareKind.MASK_KEY)
            assert not both, f"both secrets of client {dealer} can be put together"

    def known_keys(self) -> set[bytes]:
        """Keys of all masks that can be computed."""
        known = set(self.keys)
        for (dealer, kind), shares in self.shares.items():
            if not self.has(dealer, kind):
                continue
            threshold = self.thresholds[dealer]
            some = dict(sorted(shares.items())[:threshold])
            try:
                secret = Interpolator(threshold).reconstruct(some)
            except MalformedMessage:
                continue
            for context in self.contexts:
                if kind is ShareKind.SEED:
                    known.add(self_mask_key(secret, context, self.names[dealer]))
                else:
                    known.update(self._pairs_of(dealer, KeyPair(secret), context))
        return known

    def _pairs_of(self, dealer: int, keys: KeyPair, context: bytes) -> Iterable[bytes]:
        for other, public in self.publics.items():
            if other != dealer:
                ends = {
                    dealer: (self.names[dealer], keys.public),
                    other: (self.names[other], public),
                }
                low, high = sorted(ends)
                yield pair_mask_key(keys.exchange(public), context, ends[low], ends[high])


def learnt(masked: Sequence[Masked], known: set[bytes]) -> list[frozenset[int]]:
    """The least sets of clients of whose vectors the adversary can compute the sum.

    A mask that is not known and on one vector only hides that vector in every combination; one that
    is added to one vector and subtracted from another forces both into a combination, or neither.
    So the mask-free combinations are the connected parts of which every unknown mask is shared.
    """
    part = {each.index: each.index for each in masked}

    def top(index: int) -> int:
        while part[index] != index:
            index = part[index]
        return index

    ends: dict[bytes, list[tuple[int, int]]] = {}
    for each in masked:
        for stream in each.streams:
            if stream.key not in known:
                ends.setdefault(stream.key, []).append((each.index, stream.sign))
    hidden: set[int] = set()
    for pair in ends.values():
        if len(pair) == 1:
            hidden.add(pair[0][0])
            continue
        (one, sign), (other, opposite) = pair
        assert sign == -opposite, "a mask that does not cancel"
        part[top(one)] = top(other)
    lost = {top(index) for index in hidden}
    found: dict[int, set[int]] = {}
    for index in part:
        if top(index) not in lost:
            found.setdefault(top(index), set()).add(index)
    return [frozenset(members) for members in found.values()]
