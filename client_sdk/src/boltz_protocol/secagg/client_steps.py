"""What `client.SecaggClient` does in each step: `(member, state, notice) -> (state, answer)`.

Pure but for the randomness and the signature that a member brings along. Every refusal raises
before anything is returned, so a half-taken step leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from boltz_protocol import codec_sealed
from boltz_protocol import messages_sealed as ms
from boltz_protocol.errors import MalformedMessage, RoundRefused, SignatureInvalid
from boltz_protocol.limits import SECRET_BYTES
from boltz_protocol.messages import RosterEntry, RoundConfiguration
from boltz_protocol.secagg import client_states as states
from boltz_protocol.secagg.agreement import (
    MaskEnd,
    agree,
    nonces_needed,
    pair_stream_of,
    self_stream_of,
)
from boltz_protocol.secagg.bitmap import indexes
from boltz_protocol.secagg.dealing import Randomness, deal, open_dealt
from boltz_protocol.secagg.floors import Floors
from boltz_protocol.secagg.keys import KeyPair, commit_nonce, commit_seed, share_key
from boltz_protocol.secagg.peers import VerifiedPeer, VerifyPeer, verify_peer_shown, verify_roster
from boltz_protocol.statement import Statement, digest

#: Signs a payload of the named type with the client's registered key.
Sign = Callable[[str, bytes], Statement]


@dataclass(frozen=True, slots=True)
class Member:
    """Who takes the steps, and under which configuration; see `client.SecaggClient`."""

    configuration: RoundConfiguration
    configuration_sha256: bytes
    entry: RosterEntry
    sign: Sign = field(repr=False)
    floors: Floors
    randomness: Randomness = field(repr=False)

    def check_attempt(self, round_id: str, attempt: int) -> None:
        """Refuse another round's or attempt's notice. Raises: RoundRefused."""
        if round_id != self.configuration.round_id or attempt != self.configuration.attempt:
            raise RoundRefused("the notice belongs to another round or attempt")

    def check_count(self, what: str, own: int, everywhere: int) -> None:
        """Refuse fewer clients than the owner or the configuration asks for.

        Args:
            own: clients in the sum that this client's update is part of, or that could be.
            everywhere: clients in all sums of the round; the same in a sealed round.

        Raises: RoundRefused.
        """
        grouping, least = self.configuration.grouping, self.configuration.min_survivors
        if grouping is not None:
            if everywhere < least:
                raise RoundRefused(f"{everywhere} {what} in all groups; {least} are needed")
            what, least = f"{what} in a group", grouping.min_group_survivors
        self.floors.check_count(what, own, least)


def advertise(me: Member, _: states.Fresh) -> tuple[states.State, Statement]:
    """Fresh keys, and the commitment to a nonce."""
    share_keys = KeyPair(me.randomness(SECRET_BYTES))
    mask_keys = KeyPair(me.randomness(SECRET_BYTES))
    nonce = me.randomness(SECRET_BYTES)
    payload = ms.KeyAdvertisement(
        round_id=me.configuration.round_id,
        attempt=me.configuration.attempt,
        client_id=me.entry.client_id,
        session_id=me.entry.session_id,
        configuration_sha256=me.configuration_sha256,
        share_public_key=share_keys.public,
        mask_public_key=mask_keys.public,
        nonce_commitment=commit_nonce(nonce),
    )
    statement = me.sign(ms.KEY_ADVERTISEMENT, codec_sealed.encode_key_advertisement(payload))
    return states.Advertised(share_keys, mask_keys, nonce, digest(statement)), statement


def take_key_roster(
    me: Member,
    state: states.Advertised,
    notice: ms.KeyRosterNotice,
    payload: ms.KeyRoster,
    sha256: bytes,
) -> tuple[states.State, ms.NonceReveal | None]:
    """Hold the key roster against the configuration and against what this client sent.

    Raises: RoundRefused, MalformedMessage.
    """
    roster = verify_roster(
        notice,
        payload,
        sha256,
        configuration=me.configuration,
        configuration_sha256=me.configuration_sha256,
    )
    own = me.entry.index
    if roster.leaves[own].total != me.entry.weight:
        raise RoundRefused("this client's weight is not the committed one")
    if roster.advertisements.get(own) != state.advertisement_sha256:
        raise RoundRefused("this client's keys are not in the key roster as it sent them")
    if roster.commitments[own] != commit_nonce(state.nonce):
        raise RoundRefused("this client's nonce commitment was altered")
    members, grouping = len(roster.advertisements), me.configuration.grouping
    largest = members if grouping is None else -(-members // grouping.groups)
    me.check_count("members", largest, members)
    reveal = None
    if nonces_needed(me.configuration, members):
        reveal = ms.NonceReveal(me.configuration.round_id, me.configuration.attempt, state.nonce)
    return states.Rostered(state.share_keys, state.mask_keys, roster), reveal


def take_peers(
    me: Member, state: states.Rostered, notice: ms.PeersNotice, verify_peer: VerifyPeer
) -> tuple[states.State, ms.SharesDealt]:
    """Draw the graph or the groups, verify all neighbours, deal the shares.

    Raises: RoundRefused, MalformedMessage, LimitExceeded, InvalidPlan, whatever `verify_peer`
        raises.
    """
    me.check_attempt(notice.round_id, notice.attempt)
    roster, own = state.roster, me.entry.index
    agreement = agree(
        configuration=me.configuration,
        configuration_sha256=me.configuration_sha256,
        key_roster=roster.key_roster,
        key_roster_sha256=roster.sha256,
        revealed=notice.revealed,
        nonces=notice.nonces,
    )
    if own not in agreement:
        raise RoundRefused("this client is not among the graph members")
    graph, context = agreement.graph_of(own), agreement.context
    me.check_count("graph members", len(graph.members), len(agreement.graph_members))
    neighbours = graph.neighbours(own)
    if len(notice.peers) != len(neighbours):
        raise RoundRefused(f"{len(notice.peers)} peers of {len(neighbours)} neighbours")
    peers = {
        index: verify_peer_shown(peer, index, roster, verify_peer)
        for index, peer in zip(neighbours, notice.peers, strict=True)
    }
    names = {peer.entry.client_id for peer in peers.values()} | {me.entry.client_id}
    if len(names) != len(peers) + 1:
        raise RoundRefused("two neighbours have the same client id")
    me.floors.check_known("neighbours", (peer.fingerprint for peer in peers.values()))
    strangers = sum(
        peers[holder].fingerprint not in me.floors.known_peers
        for holder in graph.holders(own)
        if holder != own
    )
    me.floors.check_strangers(strangers, graph.threshold)
    seed = me.randomness(SECRET_BYTES)
    keys = {
        index: _keys_with(me, peer, state.share_keys, state.mask_keys, context)
        for index, peer in peers.items()
    }
    dealing = deal(
        context=context,
        dealer=own,
        holders=graph.holders(own),
        threshold=graph.threshold,
        mask_private_key=state.mask_keys.private_bytes(),
        seed=seed,
        seal_keys={index: pair.seal for index, pair in keys.items()},
        randomness=me.randomness,
    )
    payload = ms.DealtShares(
        round_id=me.configuration.round_id,
        attempt=me.configuration.attempt,
        client_id=me.entry.client_id,
        session_id=me.entry.session_id,
        key_roster_sha256=roster.sha256,
        seed_commitment=commit_seed(context, own, seed),
        holders=graph.holders(own),
        commitments=dealing.commitments,
    )
    statement = me.sign(ms.DEALT_SHARES, codec_sealed.encode_dealt_shares(payload))
    after = states.Dealt(
        roster=roster,
        graph=graph,
        graph_members=frozenset(agreement.graph_members),
        context=context,
        peers=peers,
        open_keys={index: pair.open for index, pair in keys.items()},
        pair_streams={index: pair.stream for index, pair in keys.items()},
        self_stream=self_stream_of(me.entry.client_id, seed, context),
        kept=dealing.kept,
    )
    return after, ms.SharesDealt(statement, dealing.sealed)


def _keys_with(
    me: Member, peer: VerifiedPeer, share_keys: KeyPair, mask_keys: KeyPair, context: bytes
) -> states.PairKeys:
    own = (me.entry.client_id, share_keys.public)
    other = (peer.entry.client_id, peer.advertisement.share_public_key)
    shared = share_keys.exchange(peer.advertisement.share_public_key)
    return states.PairKeys(
        seal=share_key(shared, context, own, other),
        open=share_key(shared, context, other, own),
        stream=pair_stream_of(
            MaskEnd(me.entry.index, me.entry.client_id, mask_keys.public),
            mask_keys,
            MaskEnd(peer.entry.index, peer.entry.client_id, peer.advertisement.mask_public_key),
            context,
        ),
    )


def take_shares(
    me: Member, state: states.Dealt, notice: ms.SharesNotice
) -> tuple[states.State, None]:
    """Open what the sharers dealt, and decide on the masks.

    Raises: RoundRefused.
    """
    me.check_attempt(notice.round_id, notice.attempt)
    own, graph = me.entry.index, state.graph
    shown = frozenset(share.dealer for share in notice.shares)
    if not shown <= state.peers.keys():
        raise RoundRefused("a share is shown of a client that is no neighbour")
    sharers = shown | {own}
    holders = len(sharers.intersection(graph.holders(own)))
    if holders < graph.threshold:
        raise RoundRefused(
            f"{holders} holders of this client's shares are left; {graph.threshold} are needed"
        )
    me.floors.check_known("sharers", (state.peers[i].fingerprint for i in shown))
    held = {
        share.dealer: open_dealt(
            share, state.open_keys[share.dealer], context=state.context, holder=own
        )
        for share in notice.shares
    }
    held[own] = state.kept
    after = states.Ready(
        roster=state.roster,
        graph=graph,
        graph_members=state.graph_members,
        peers=state.peers,
        sharers=sharers,
        held={dealer: share for dealer, share in held.items() if share is not None},
        streams=(state.self_stream, *(state.pair_streams[i] for i in sorted(shown))),
    )
    return after, None


def take_survivors(
    me: Member, state: states.Ready, payload: ms.Survivors
) -> tuple[states.State, Statement]:
    """Hold the survivors against the sharers and the floors, and sign them.

    Raises: RoundRefused, MalformedMessage.
    """
    me.check_attempt(payload.round_id, payload.attempt)
    roster = state.roster
    if payload.mesh_id != me.configuration.mesh_id or payload.key_roster_sha256 != roster.sha256:
        raise RoundRefused("the survivors belong to another key roster")
    everywhere = frozenset(indexes(payload.survivors, me.configuration.roster_size))
    # In other groups than its own no vector has a mask of this client in it: those who survive
    # there are those groups' own business, but for their number.
    own, survivors = me.entry.index, everywhere.intersection(state.graph.members)
    # Every survivor knows all its surviving neighbours as sharers, so the mask between any two of
    # them is in both vectors, and the graph is checked as it stands among the survivors.
    if not survivors & (state.peers.keys() | {own}) <= state.sharers:
        raise RoundRefused("a survivor is not among the sharers")
    if not everywhere <= state.graph_members:
        raise MalformedMessage("a survivor that dealt no shares", field="survivors")
    me.check_count("survivors", len(survivors), len(everywhere))
    state.graph.check_survivors(survivors)
    if own in survivors:
        if state.streams is not None:
            raise RoundRefused("this client is counted, and has masked nothing")
        me.floors.check_weight(me.entry.weight, roster.total_weight(survivors))
    me.floors.check_known(
        "survivors", (state.peers[i].fingerprint for i in survivors & state.peers.keys())
    )
    seen = ms.SurvivorsSeen(
        round_id=me.configuration.round_id,
        attempt=me.configuration.attempt,
        client_id=me.entry.client_id,
        session_id=me.entry.session_id,
        key_roster_sha256=roster.sha256,
        survivors=payload.survivors,
    )
    statement = me.sign(ms.SURVIVORS_SEEN, codec_sealed.encode_survivors_seen(seen))
    after = states.Signed(
        graph=state.graph, peers=state.peers, held=state.held, seen=seen, survivors=survivors
    )
    return after, statement


def take_signatures(
    me: Member, state: states.Signed, notice: ms.SignaturesNotice, verify: VerifyPeer
) -> tuple[states.State, ms.SharesReleased]:
    """Count the neighbours that signed the same, and release.

    Raises: RoundRefused, MalformedMessage, SignatureInvalid, whatever `verify` raises.
    """
    me.check_attempt(notice.round_id, notice.attempt)
    own, graph = me.entry.index, state.graph
    signers = {own}
    by_name = {peer.entry.client_id: index for index, peer in state.peers.items()}
    for statement in notice.signatures:
        if statement.type != ms.SURVIVORS_SEEN:
            raise SignatureInvalid("a neighbour's statement is not about survivors")
        claimed = codec_sealed.parse_survivors_seen(statement.payload).client_id
        index = by_name.get(claimed)
        if index is None or index in signers:
            raise MalformedMessage("a signature of a client that is no neighbour, or twice")
        entry = state.peers[index].entry
        seen = codec_sealed.parse_survivors_seen(verify(entry, statement))
        if seen != state.expected_from(entry):
            raise RoundRefused(f"position {index} signed other survivors than this client")
        signers.add(index)
    enough = len(signers.intersection(graph.holders(own)))
    if enough < graph.threshold:
        raise RoundRefused(f"{enough} signatures on the survivors; {graph.threshold} are needed")
    released = tuple(
        share.released(
            dealer,
            ms.ShareKind.SEED if dealer in state.survivors else ms.ShareKind.MASK_KEY,
        )
        for dealer, share in sorted(state.held.items())
    )
    if not released:
        raise RoundRefused("none of the shares that were dealt to this client opened")
    answer = ms.SharesReleased(me.configuration.round_id, me.configuration.attempt, released)
    return states.Released(), answer
