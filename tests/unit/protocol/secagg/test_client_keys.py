"""What a client refuses of rosters, keys and graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from boltz_protocol import codec, codec_sealed
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    MalformedMessage,
    RoundRefused,
    SignatureInvalid,
)
from boltz_protocol.secagg.bitmap import bitmap
from boltz_protocol.secagg.client import Floors
from boltz_protocol.statement import digest
from tests.support.secagg import (
    World,
    cheap_sign,
    client_id,
    make_configuration,
    make_roster,
    session_id,
)
from tests.unit.protocol.secagg.refusals import (
    OTHER_ROUND,
    SIZE,
    graphed,
    offer_peers,
    refused,
    rostered,
    sparse,
)

LOW_ORDER = bytes(32)


# --- the key roster -----------------------------------------------------------------------------


def offer_roster(
    world: World, notice: m.KeyRosterNotice, payload: m.KeyRoster, index: int = 0
) -> Callable[[], object]:
    """The payload as the mesh would sign it, in a notice like the given one."""
    statement = world.sign(m.KEY_ROSTER, codec_sealed.encode_key_roster(payload))
    shown = replace(notice, key_roster=statement)
    return lambda: world.clients[index].take_key_roster(shown, payload, digest(statement))


@pytest.mark.parametrize(
    "change",
    [
        {"mesh_id": "other"},
        {"round_id": OTHER_ROUND},
        {"attempt": 2},
        {"configuration_sha256": b"x" * 32},
    ],
)
def test_a_key_roster_of_something_else(change: dict[str, object]) -> None:
    world = World.of(SIZE)
    notice = rostered(world)
    payload = replace(world.key_roster, **change)  # type: ignore[arg-type]
    refused(world.clients[0], offer_roster(world, notice, payload), "another round")


def test_a_key_roster_without_its_keys_or_with_others() -> None:
    world = World.of(SIZE)
    notice = rostered(world)
    roster = world.key_roster
    without = replace(
        roster,
        members=bitmap(range(1, SIZE), SIZE),
        advertisement_sha256s=roster.advertisement_sha256s[1:],
        nonce_commitments=roster.nonce_commitments[1:],
    )
    refused(world.clients[0], offer_roster(world, notice, without), "as it sent them")
    others = replace(
        roster,
        advertisement_sha256s=(
            roster.advertisement_sha256s[0],
            b"x" * 32,
            *roster.advertisement_sha256s[2:],
        ),
    )
    refused(world.clients[1], offer_roster(world, notice, others, 1), "as it sent them")
    nonce = replace(roster, nonce_commitments=roster.nonce_commitments[:2] + (b"x" * 32,) * 3)
    refused(world.clients[2], offer_roster(world, notice, nonce, 2), "commitment was altered")
    size = replace(roster, members=roster.members + b"\0")
    refused(world.clients[3], offer_roster(world, notice, size, 3), "a bitmap of", MalformedMessage)


def test_leaves_that_are_not_the_committed_ones() -> None:
    world = World.of(SIZE)
    notice = rostered(world)
    leaves, weights = notice.leaf_hashes, notice.weights
    changes = [
        replace(notice, leaf_hashes=(*leaves[:-1], b"x" * 32)),
        replace(notice, weights=(*weights[:-1], weights[-1] + 1)),
        replace(notice, weights=(weights[1], weights[0], *weights[2:])),
        replace(notice, weights=weights[:-1], leaf_hashes=leaves[:-1]),
    ]
    for index, changed in enumerate(changes):
        refused(
            world.clients[index],
            offer_roster(world, changed, world.key_roster, index),
            "committed root|leaves for a roster",
        )


def test_a_weight_that_is_not_its_own() -> None:
    world = World.of(SIZE)
    world.entries[0] = replace(world.entries[0], weight=9)
    world.clients[0] = world.new_client(0)
    notice = rostered(world)
    refused(
        world.clients[0], offer_roster(world, notice, world.key_roster), "not the committed one"
    )


@pytest.mark.parametrize(("floor", "minimum"), [(4, 2), (1, 4)])
def test_fewer_members_than_the_owner_or_the_configuration_asks_for(
    floor: int, minimum: int
) -> None:
    world = World.of(SIZE, min_survivors=minimum, floors={0: Floors(least_survivors=floor)})
    world.advertise([0, 1, 2])
    notice = world.fix_roster()
    refused(
        world.clients[0], offer_roster(world, notice, world.key_roster), "3 members; at least 4"
    )


# --- peers --------------------------------------------------------------------------------------


def test_peers_of_something_else_or_not_the_neighbours() -> None:
    world = graphed(World.of(6))
    notice = world.peers_of(0)
    peers = notice.peers
    changes = [
        (replace(notice, round_id=OTHER_ROUND), "another round"),
        (replace(notice, attempt=2), "another round"),
        (replace(notice, peers=peers[:-1]), "4 peers of 5"),
        (replace(notice, revealed=bitmap(range(5), 6)), "all members take part"),
        (replace(notice, nonces=(b"n" * 32,) * 6), "no nonce is used"),
    ]
    for index, (changed, match) in enumerate(changes):
        refused(world.clients[index], offer_peers(world, changed, index), match)
    own = world.peers_of(5)
    swapped = replace(own, peers=(own.peers[1], own.peers[0], *own.peers[2:]))
    refused(world.clients[5], offer_peers(world, swapped, 5), "position 1 is shown where 0")


def test_a_peer_that_is_not_in_the_committed_roster() -> None:
    world = graphed(World.of(SIZE))
    notice = world.peers_of(0)
    entry = replace(world.entries[1], session_id=session_id(99))
    peer = replace(notice.peers[0], roster_entry=codec.encode_roster_entry(entry))
    changed = replace(notice, peers=(peer, *notice.peers[1:]))
    refused(world.clients[0], offer_peers(world, changed), "not the committed one")


def test_keys_that_are_not_in_the_key_roster() -> None:
    world = graphed(World.of(SIZE))
    notice = world.peers_of(0)
    again = world.new_client(1, randomness=lambda size: b"r" * size).advertise()
    changed = replace(
        notice, peers=(replace(notice.peers[0], advertisement=again), *notice.peers[1:])
    )
    refused(world.clients[0], offer_peers(world, changed), "not those of the key roster")


def test_a_signature_that_does_not_verify() -> None:
    world = graphed(World.of(SIZE))
    notice = world.peers_of(0)
    forged = replace(notice.peers[0].advertisement, signature=b"s" * 32)
    changed = replace(
        notice, peers=(replace(notice.peers[0], advertisement=forged), *notice.peers[1:])
    )
    refused(world.clients[0], offer_peers(world, changed), "not this client", SignatureInvalid)


def advertised_as(
    world: World, index: int, change: dict[str, object], type: str = m.KEY_ADVERTISEMENT
) -> World:
    """A client in league with the server: it signs something else, and the server takes it."""
    world.advertise(range(world.size))
    payload = codec_sealed.parse_key_advertisement(world.advertisements[index].payload)
    changed = replace(payload, **change)  # type: ignore[arg-type]
    world.advertisements[index] = cheap_sign(
        client_id(index), type, codec_sealed.encode_key_advertisement(changed)
    )
    others = [i for i in range(world.size) if i != index]
    notice = world.fix_roster()
    world.show_roster(others, notice)
    world.fix_graph()
    return world


@pytest.mark.parametrize(
    "change",
    [
        {"round_id": OTHER_ROUND},
        {"attempt": 2},
        {"configuration_sha256": b"x" * 32},
        {"client_id": client_id(3)},
        {"session_id": session_id(3)},
    ],
)
def test_keys_that_were_signed_for_something_else(change: dict[str, object]) -> None:
    world = advertised_as(World.of(SIZE), 1, change)
    refused(world.clients[0], offer_peers(world, world.peers_of(0)), "another attempt or session")


def test_a_nonce_commitment_that_is_not_the_advertised_one() -> None:
    world = World.of(SIZE)
    notice = rostered(world)
    commitments = world.key_roster.nonce_commitments
    altered = replace(
        world.key_roster, nonce_commitments=(commitments[0], b"x" * 32, *commitments[2:])
    )
    world.key_roster_statement = world.sign(m.KEY_ROSTER, codec_sealed.encode_key_roster(altered))
    offer_roster(world, notice, altered)()
    world.fix_graph()
    refused(world.clients[0], offer_peers(world, world.peers_of(0)), "another attempt or session")


def test_another_kind_of_statement_for_keys() -> None:
    world = advertised_as(World.of(SIZE), 1, {}, m.CHECK_IN)
    refused(
        world.clients[0],
        offer_peers(world, world.peers_of(0)),
        "another kind of statement",
        SignatureInvalid,
    )


@pytest.mark.parametrize("name", ["share_public_key", "mask_public_key"])
def test_keys_of_low_order(name: str) -> None:
    world = advertised_as(World.of(SIZE), 1, {name: LOW_ORDER})
    refused(world.clients[0], offer_peers(world, world.peers_of(0)), "low order", MalformedMessage)


def test_two_neighbours_that_are_one_client() -> None:
    roster = make_roster([1, 2, 3, 4])
    twin = replace(codec.parse_roster_entry(roster[2]), client_id=client_id(1))
    roster[2] = codec.encode_roster_entry(twin)
    world = World(roster, make_configuration(roster, coordinates=5, min_survivors=2))
    graphed(world)
    refused(world.clients[0], offer_peers(world, world.peers_of(0)), "the same client id")


# --- the sparse graph ---------------------------------------------------------------------------


def test_nonces_that_do_not_open_their_commitments() -> None:
    world = graphed(sparse())
    notice = world.peers_of(0)
    nonces = notice.nonces
    outside = replace(notice, revealed=bitmap(range(1, 52), 52), nonces=nonces[1:])
    changes = [
        (replace(notice, nonces=(nonces[0], b"x" * 32, *nonces[2:])), RoundRefused, "not open"),
        (replace(notice, nonces=(nonces[1], nonces[0], *nonces[2:])), RoundRefused, "not open"),
        (replace(notice, nonces=()), MalformedMessage, "0 nonces of 52"),
        (outside, RoundRefused, "not among the graph members"),
    ]
    for index, (changed, error, match) in enumerate(changes):
        who = 0 if changed is outside else index + 1
        refused(world.clients[who], offer_peers(world, changed, who), match, error)


def test_a_graph_member_that_is_no_member() -> None:
    world = sparse()
    world.advertise(range(51))
    world.show_roster(range(51), world.fix_roster())
    world.fix_graph()
    notice = world.peers_of(0)
    changed = replace(notice, revealed=bitmap(range(52), 52), nonces=(*notice.nonces, b"x" * 32))
    refused(world.clients[0], offer_peers(world, changed), "is no member")


def test_neighbours_of_another_graph() -> None:
    world = graphed(sparse())
    stranger = next(
        i
        for i in range(1, 52)
        if world.attempt.graph_of(i).neighbours(i) != world.attempt.graph_of(0).neighbours(0)
    )
    refused(world.clients[0], offer_peers(world, world.peers_of(stranger)), "is the neighbour")


def test_survivors_that_cut_the_graph() -> None:
    """A server that knows the ring declares all but one neighbour of a client dropped."""
    world = sparse().until_uploaded()
    gone = set(world.attempt.graph_of(0).neighbours(0)[1:])
    seen_by = next(
        i
        for i in range(1, 52)
        if i not in gone and 0 not in world.attempt.graph_of(i).neighbours(i)
    )
    for index in gone:
        del world.uploads[index]
    payload = world.survivors_payload()
    refused(
        world.clients[seen_by],
        lambda: world.clients[seen_by].take_survivors(payload),
        "surviving neighbours",
    )
