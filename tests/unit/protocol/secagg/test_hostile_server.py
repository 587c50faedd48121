"""A server that shows one client something else than the others gets noise or nothing.

Each test runs one attempt in which the mesh signs two views, each consistent in itself: one for the
victim, one for all others. What the server could find at best is the sum with every self mask taken
off; where the views agree that is the sum, as the control shows, and where they differ it is noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_protocol import codec, codec_sealed, weights
from boltz_protocol import messages as m
from boltz_protocol.errors import MeshError, RoundRefused
from boltz_protocol.secagg.bitmap import bitmap
from boltz_protocol.secagg.masks import MaskStream
from boltz_protocol.statement import digest
from tests.support.secagg import (
    World,
    cheap_sign,
    cheap_verify,
    client_id,
    make_configuration,
    make_roster,
)
from tests.unit.protocol.secagg.refusals import sparse

SIZE = 5
VICTIM = 0
Vector = np.ndarray[tuple[int, ...], np.dtype[np.int32]]


def sum_of(world: World, streams: dict[int, tuple[MaskStream, ...]]) -> Vector:
    """What a server finds that gets every self mask: the best that it can hope for."""
    masks = []
    for index, given_out in streams.items():
        world.uploads[index] = world.masked(index, given_out)
        masks.append(given_out[0].removed())
    return world.unmasked_sum(streams={0: masks})


def all_streams(world: World) -> dict[int, tuple[MaskStream, ...]]:
    return {index: world.clients[index].mask_streams() for index in range(world.size)}


def agreed(world: World) -> World:
    world.until_dealt()
    world.share(range(world.size))
    return world


def test_the_control_finds_the_sum() -> None:
    world = agreed(World.of(SIZE, coordinates=50))
    total = sum_of(world, all_streams(world))
    assert np.array_equal(total, world.plain_sum())


# --- configuration, model, roster, weights: all behind the configuration's digest -----------------


def other_root(configuration: m.RoundConfiguration) -> m.RoundConfiguration:
    """The same roster with one weight more for somebody else."""
    roster = make_roster([1, 2, 3, 4, 6])
    return replace(
        configuration,
        roster_root=make_configuration(roster, coordinates=5, min_survivors=2).roster_root,
        total_weight=16,
        max_weight=6,
    )


CHANGES: dict[str, Callable[[m.RoundConfiguration], m.RoundConfiguration]] = {
    "model": lambda c: replace(c, model_sha256=b"\x01" + c.model_sha256[1:]),
    "roster": other_root,
    "hyper-parameter": lambda c: replace(c, hyperparameters={**c.hyperparameters, "epochs": 4}),
    "fewest survivors": lambda c: replace(c, min_survivors=3),
    "deadline": lambda c: replace(c, deadline_ms=c.deadline_ms + 1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_configuration_for_one_client_ends_the_attempt(name: str) -> None:
    """Each side's advertisement names what it saw, so the other side refuses it."""
    world = World.of(SIZE, coordinates=5)
    shown = CHANGES[name](world.configuration)
    sha256 = world.sha256_of(shown)
    assert sha256 != world.configuration_sha256
    world.configurations = {VICTIM: (shown, sha256)}
    world.clients[VICTIM] = world.new_client(VICTIM)
    with pytest.raises(MeshError, match="another configuration"):
        world.advertise([VICTIM])  # an honest server would stop here
    world.advertisements[VICTIM] = world.clients[VICTIM].advertise()
    world.advertise(range(1, SIZE))
    notice = world.fix_roster()
    world.show_roster(range(1, SIZE), notice)
    if name != "roster":
        forged = replace(world.key_roster, configuration_sha256=sha256)
        statement = world.sign(m.KEY_ROSTER, codec_sealed.encode_key_roster(forged))
        world.clients[VICTIM].take_key_roster(
            replace(notice, key_roster=statement), forged, digest(statement)
        )
    world.fix_graph()
    for index in range(1, SIZE):
        with pytest.raises(RoundRefused, match="position 0 are for another attempt"):
            world.clients[index].take_peers(world.peers_of(index), cheap_verify)
    if name != "roster":
        with pytest.raises(RoundRefused, match="position 1 are for another attempt"):
            world.clients[VICTIM].take_peers(world.peers_of(VICTIM), cheap_verify)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_byte_of_the_signed_configuration(data: st.DataObject) -> None:
    """Whatever byte: it does not parse, or its digest parts the victim from the others."""
    world = World.of(3)
    payload = bytearray(codec.encode_round_configuration(world.configuration))
    place = data.draw(st.integers(0, len(payload) - 1))
    payload[place] ^= data.draw(st.integers(1, 255))
    try:
        shown = codec.parse_round_configuration(bytes(payload))
    except MeshError:
        return
    if shown.mode is m.RoundMode.OPEN or shown.secure_aggregation is None:
        return
    sha256 = digest(world.sign(m.ROUND_CONFIGURATION, bytes(payload)))
    world.configurations = {VICTIM: (shown, sha256)}
    world.clients[VICTIM] = world.new_client(VICTIM)
    world.advertisements[VICTIM] = world.clients[VICTIM].advertise()
    world.advertise([1, 2])
    world.show_roster([1, 2], world.fix_roster())
    world.fix_graph()
    for index in (1, 2):
        with pytest.raises(RoundRefused):
            world.clients[index].take_peers(world.peers_of(index), cheap_verify)


def test_other_weights_for_one_client_are_refused() -> None:
    world = World.of(SIZE)
    world.advertise(range(SIZE))
    notice = world.fix_roster()
    changed = list(notice.weights)
    changed[3] += 1
    entry = replace(world.entries[3], weight=changed[3])
    leaf = weights.WeightLeaf(
        3, entry.client_id, hashlib.sha256(codec.encode_roster_entry(entry)).digest(), entry.weight
    )
    hashes = list(notice.leaf_hashes)
    hashes[3] = leaf.node().hash
    forged = replace(notice, weights=tuple(changed), leaf_hashes=tuple(hashes))
    with pytest.raises(RoundRefused, match="committed root and total"):
        world.show_roster([VICTIM], forged)


# --- keys: a client in league with the server signs two advertisements ----------------------------


def two_key_rosters(world: World, accomplice: int) -> None:
    """The victim is shown other keys of the accomplice than everybody else."""
    world.advertise(range(world.size))
    double = world.new_client(accomplice, lambda size: hashlib.sha256(b"2").digest()[:size])
    second = double.advertise()
    first = world.advertisements[accomplice]
    honest = [index for index in range(world.size) if index != VICTIM]
    notice = world.fix_roster()
    world.show_roster(honest, notice)
    others = world.fix_graph()
    world.deal(honest)
    dealt = dict(world.dealt)
    world.advertisements[accomplice] = second
    world.show_roster([VICTIM], world.fix_roster())
    world.fix_graph()
    world.deal([VICTIM])
    world.advertisements[accomplice] = first
    shares = world.dealt[VICTIM][1]
    world.attempt = others
    # The signed key roster differs; the server passes the sealed shares on all the same.
    payload = replace(world.dealt[VICTIM][0], key_roster_sha256=others.key_roster_sha256)
    world.dealt = dealt | {VICTIM: (payload, shares)}


def test_other_keys_for_one_client_give_noise_and_then_nothing() -> None:
    world = World.of(SIZE, coordinates=1000)
    two_key_rosters(world, accomplice=1)
    world.share(range(SIZE))
    total = sum_of(world, all_streams(world))
    assert np.count_nonzero(total == world.plain_sum()) < 10
    # Nor is anything released: the victim signs for another key roster than its neighbours.
    payload = world.survivors_payload()
    world.seen = {index: world.clients[index].take_survivors(payload) for index in range(1, SIZE)}
    with pytest.raises(RoundRefused, match="another key roster"):
        world.clients[VICTIM].take_survivors(payload)
    assert world.clients[VICTIM].is_dead


# --- the graph ----------------------------------------------------------------------------------


def test_another_graph_for_one_client_gives_noise() -> None:
    """The server hides one member's nonce from the victim alone."""
    world = sparse()
    world.advertise(range(52))
    world.show_roster(range(52), world.fix_roster())
    attempt = world.fix_graph()
    hidden = next(i for i in range(1, 52) if i not in attempt.graph_of(VICTIM).neighbours(VICTIM))
    nonce = world.nonces.pop(hidden)
    other = world.fix_graph()
    assert other.context != attempt.context
    world.deal([VICTIM])
    dealt = world.dealt.pop(VICTIM)
    world.nonces[hidden] = nonce
    world.fix_graph()
    world.deal(range(1, 52))
    signed = replace(dealt[0], holders=attempt.holders_of(VICTIM))
    world.dealt[VICTIM] = (signed, dealt[1])
    world.share(range(1, 52))
    shown = other.dealers_of(VICTIM)
    notice = m.SharesNotice(
        world.configuration.round_id,
        1,
        tuple(
            replace(world.shares_for(attempt.dealers_of(i)[0]).shares[0], dealer=i) for i in shown
        ),
    )
    world.clients[VICTIM].take_shares(notice)
    total = sum_of(world, all_streams(world))
    assert not np.any(total == world.plain_sum())


# --- survivors ----------------------------------------------------------------------------------


def test_two_sets_of_survivors_release_nothing() -> None:
    """Half of the clients are told that the victim survived, half that it did not."""
    world = World.of(6).until_uploaded()
    all_in = world.survivors_payload()
    without = replace(all_in, survivors=bitmap(range(1, 6), 6))
    for index in range(6):
        shown = all_in if index < 3 else without
        world.seen[index] = world.clients[index].take_survivors(shown)
    for index in range(6):
        near = [world.seen[i] for i in range(6) if i != index and (i < 3) == (index < 3)]
        notice = m.SignaturesNotice(world.configuration.round_id, 1, tuple(near))
        with pytest.raises(RoundRefused, match="3 signatures on the survivors; 4 are needed"):
            world.clients[index].take_signatures(notice, cheap_verify)


def test_an_accomplice_may_sign_both_and_it_is_not_enough() -> None:
    """The threshold of a semi-malicious plan: 2t > n + colluders."""
    world = World.of(7, corrupt_fraction=0.15).until_uploaded()
    assert world.attempt.graph_of(0).threshold == 5
    all_in = world.survivors_payload()
    without = replace(all_in, survivors=bitmap(range(1, 7), 7))
    seen = {
        index: world.clients[index].take_survivors(all_in if index < 3 else without)
        for index in range(6)
    }
    double = [
        cheap_sign(
            client_id(6),
            m.SURVIVORS_SEEN,
            codec_sealed.encode_survivors_seen(
                replace(
                    codec_sealed.parse_survivors_seen(seen[0].payload),
                    client_id=client_id(6),
                    session_id=world.entries[6].session_id,
                    survivors=shown.survivors,
                )
            ),
        )
        for shown in (all_in, without)
    ]
    for index in range(6):
        near = [seen[i] for i in range(6) if i != index and (i < 3) == (index < 3)]
        notice = m.SignaturesNotice(
            world.configuration.round_id, 1, (*near, double[0] if index < 3 else double[1])
        )
        with pytest.raises(RoundRefused, match="4 signatures on the survivors"):
            world.clients[index].take_signatures(notice, cheap_verify)
