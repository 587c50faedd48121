"""What a client of a grouped round refuses, and what a server gets that moves one elsewhere."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from boltz_protocol import codec_sealed
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    InvalidPlan,
    MalformedMessage,
    MeshError,
    RoundRefused,
    ShareRefused,
)
from boltz_protocol.secagg import client_states as states
from boltz_protocol.secagg import server
from boltz_protocol.secagg.bitmap import bitmap
from boltz_protocol.secagg.client import Floors
from tests.support.secagg import World, cheap_verify, fingerprint
from tests.unit.protocol.secagg.refusals import graphed, offer_peers, refused, rostered

SIZE = 12
VICTIM = 0


def shown(world: World, *positions: int) -> m.Survivors:
    return replace(world.survivors_payload(), survivors=bitmap(sorted(positions), world.size))


def members_of(world: World, index: int) -> tuple[int, ...]:
    return world.attempt.graph_of(index).members


def others_of(world: World, index: int) -> tuple[int, ...]:
    return tuple(sorted(world.attempt.graph_members - set(members_of(world, index))))


# --- members and groups --------------------------------------------------------------------------


def test_members_too_few_for_the_groups() -> None:
    world = World.grouped(SIZE, 2)
    world.advertise(range(9))
    notice = world.fix_roster()
    world.show_roster(range(9), notice)
    with pytest.raises(InvalidPlan, match="9 members for 2 groups"):
        world.fix_graph()
    claim = m.PeersNotice(
        world.configuration.round_id,
        1,
        bitmap(range(9), SIZE),
        tuple(world.nonces[index] for index in range(9)),
        (m.Peer(world.roster[1], world.advertisements[1]),),
    )
    refused(world.clients[0], offer_peers(world, claim), "9 members for 2 groups", InvalidPlan)


def test_a_mesh_that_could_not_make_a_group_of_the_owners_size() -> None:
    """Eleven of twelve are members: the larger group has six, whatever is drawn."""
    for least, is_fine in ((6, True), (7, False)):
        world = World.grouped(SIZE, 2, floors={VICTIM: Floors(least_survivors=least)})
        world.advertise(range(11))
        show = partial(world.show_roster_to, VICTIM, world.fix_roster())
        if is_fine:
            show()
            assert VICTIM in world.nonces
        else:
            refused(world.clients[VICTIM], show, "6 members in a group; at least 7")


def test_a_drawn_group_below_the_owners_floor() -> None:
    world = World.grouped(11, 2, floors={i: Floors(least_survivors=6) for i in range(11)})
    graphed(world)
    larger, smaller = world.attempt.groups
    world.deal(larger)
    index = smaller[0]
    refused(
        world.clients[index],
        offer_peers(world, world.peers_of(index), index),
        "5 graph members in a group; at least 6",
    )


def test_too_few_members_in_all_groups() -> None:
    world = World.grouped(SIZE, 2, min_survivors=11)
    world.advertise(range(10))
    show = partial(world.show_roster_to, VICTIM, world.fix_roster())
    refused(world.clients[VICTIM], show, "10 members in all groups; 11 are needed")


def test_no_nonce_no_group() -> None:
    world = World.grouped(SIZE, 2)
    rostered(world)
    for index in range(SIZE):
        world.show_roster_to(
            index, server.key_roster_notice(world.key_roster_statement, world.roster)
        )
    world.fix_graph()
    notice = world.peers_of(0)
    refused(
        world.clients[0],
        offer_peers(world, replace(notice, nonces=())),
        "0 nonces of 12",
        MalformedMessage,
    )
    wrong = (notice.nonces[1], *notice.nonces[1:])
    refused(world.clients[1], offer_peers(world, replace(notice, nonces=wrong), 1), "does not open")


# --- a server that moves somebody ---------------------------------------------------------------


def test_peers_of_another_group_are_refused() -> None:
    world = graphed(World.grouped(SIZE, 2))
    stranger = others_of(world, VICTIM)[0]
    refused(
        world.clients[VICTIM],
        offer_peers(world, world.peers_of(stranger), VICTIM),
        "is shown where",
    )


def test_one_peer_too_many_or_too_few_is_refused() -> None:
    world = graphed(World.grouped(SIZE, 2))
    peers = world.peers_of(VICTIM).peers
    more = world.peers_of(others_of(world, VICTIM)[0]).peers[:1]
    neighbour = members_of(world, VICTIM)[1]
    for index, changed in ((VICTIM, (*peers, *more)), (neighbour, peers[1:])):
        notice = replace(world.peers_of(index), peers=changed)
        refused(world.clients[index], offer_peers(world, notice, index), "peers of 5 neighbours")


def other_view(world: World) -> World:
    """The same attempt as the victim may be shown it: one member fewer revealed its nonce, so that
    the victim is drawn into another group."""
    for gone in range(1, SIZE):
        view = World.grouped(SIZE, 2, coordinates=400)
        view.configuration_sha256 = world.configuration_sha256
        view.advertisements = world.advertisements
        view.key_roster_statement = world.key_roster_statement
        view.nonces = {index: world.nonces[index] for index in world.nonces if index != gone}
        view.fix_graph()
        if set(members_of(view, VICTIM)) - set(members_of(world, VICTIM)):
            return view
    raise AssertionError("one of eleven draws differs")


def test_a_victim_drawn_into_another_group_gets_noise() -> None:
    """The best that a server could do that shows the victim another draw than the others."""
    world = graphed(World.grouped(SIZE, 2, coordinates=400))
    view = other_view(world)
    home, away = members_of(world, VICTIM), members_of(view, VICTIM)
    victim = world.clients[VICTIM]
    shares = victim.take_peers(view.peers_of(VICTIM), cheap_verify)
    payload = codec_sealed.parse_dealt_shares(shares.dealt.payload)
    with pytest.raises(MalformedMessage, match="others than the graph says"):
        server.check_dealt(world.attempt, VICTIM, payload, shares.sealed_shares)
    world.deal(range(1, SIZE))
    # It hands on what was dealt all the same, to those who hold a place in both draws or not.
    (sealed, commitments), *_ = (
        pair for pair in zip(shares.sealed_shares, payload.commitments, strict=True) if pair[0]
    )
    world.dealt[VICTIM] = (
        replace(payload, holders=home, commitments=(commitments,) * len(home)),
        (sealed,) * len(home),
    )
    world.share(index for index in home if index != VICTIM)
    for index in home[1:]:
        state = world.clients[index]._state
        assert isinstance(state, states.Ready)
        assert VICTIM not in state.held, "what was sealed under another context does not open"
    spare = m.DealtShare(1, sealed, *commitments)
    victim.take_shares(
        m.SharesNotice(
            world.configuration.round_id,
            1,
            tuple(replace(spare, dealer=index) for index in away if index != VICTIM),
        )
    )
    # With every self mask in its hands the server finds noise.
    masks = []
    for index in home:
        streams = world.clients[index].mask_streams()
        world.uploads[index] = world.masked(index, streams)
        masks.append(streams[0].removed())
    group = world.attempt.group_of(VICTIM)
    found = world.unmasked_sums({group: masks})[group]
    assert np.count_nonzero(found == world.plain_sums()[group]) < 10


# --- survivors -----------------------------------------------------------------------------------


def test_each_client_counts_its_own_group() -> None:
    """Of twelve survivors only those of its own group are a crowd to a client."""
    world = World.grouped(SIZE, 2, min_group_survivors=5).until_uploaded()
    home, others = members_of(world, VICTIM), others_of(world, VICTIM)
    few = shown(world, *home[:4], *others)
    refused(
        world.clients[home[0]],
        partial(world.clients[home[0]].take_survivors, few),
        "4 survivors in a group; at least 5",
    )
    world.clients[others[0]].take_survivors(few)
    none = shown(world, *others)
    refused(
        world.clients[home[1]],
        partial(world.clients[home[1]].take_survivors, none),
        "0 survivors in a group",
    )


def test_an_owner_may_ask_for_more_survivors_of_its_group() -> None:
    floors = {i: Floors(least_survivors=6) for i in range(SIZE)}
    world = World.grouped(SIZE, 2, floors=floors).until_uploaded()
    home, others = members_of(world, VICTIM), others_of(world, VICTIM)
    few = shown(world, *home[:5], *others)
    client = world.clients[VICTIM]
    refused(client, partial(client.take_survivors, few), "5 survivors in a group; at least 6")


def test_too_few_survivors_in_all_groups() -> None:
    world = World.grouped(SIZE, 2, min_survivors=10).until_uploaded()
    home, others = members_of(world, VICTIM), others_of(world, VICTIM)
    client = world.clients[VICTIM]
    few = shown(world, *home, *others[:3])
    refused(client, partial(client.take_survivors, few), "9 survivors in all groups; 10")


def test_survivors_of_a_group_below_its_threshold() -> None:
    world = World.grouped(SIZE, 2).until_uploaded()
    client = world.clients[VICTIM]
    few = shown(world, *members_of(world, VICTIM)[:3], *others_of(world, VICTIM))
    refused(client, partial(client.take_survivors, few), "3 survivors; 4 shares")


def test_a_survivor_that_is_in_no_group() -> None:
    world = World.grouped(SIZE, 2)
    world.advertise(range(11))
    world.show_roster(range(11), world.fix_roster())
    world.fix_graph()
    world.deal(range(11))
    world.share(range(11))
    world.upload(range(11))
    client = world.clients[VICTIM]
    payload = shown(world, *range(12))
    refused(client, partial(client.take_survivors, payload), "dealt no shares", MalformedMessage)


def with_floors(world: World, index: int, floors: Floors) -> None:
    """The same client, with another owner: whose world would draw other groups otherwise."""
    client = world.clients[index]
    client._member = replace(client._member, floors=floors)


def test_the_weight_is_held_against_that_of_the_own_group() -> None:
    for factor, match in ((1.001, ""), (0.999, "of the survivors' weight")):
        world = World.grouped(SIZE, 2).until_uploaded()
        weights = [world.entries[index].weight for index in members_of(world, VICTIM)]
        share = factor * world.entries[VICTIM].weight / sum(weights)
        with_floors(world, VICTIM, Floors(largest_weight_share=share))
        client = world.clients[VICTIM]
        take = partial(client.take_survivors, world.survivors_payload())
        if match:
            refused(client, take, match)
        else:
            take()


def test_known_peers_are_of_use_in_the_own_group_alone() -> None:
    world = graphed(World.grouped(SIZE, 2))
    strangers = frozenset(map(fingerprint, others_of(world, VICTIM)))
    with_floors(world, VICTIM, Floors(known_peers=strangers, least_known_peers=1))
    call = offer_peers(world, world.peers_of(VICTIM), VICTIM)
    refused(world.clients[VICTIM], call, "0 of the neighbours are known")
    for match in ("", "4 of the survivors are known"):
        world = World.grouped(SIZE, 2).until_uploaded()
        home, others = members_of(world, VICTIM), others_of(world, VICTIM)
        friends = frozenset(map(fingerprint, home)) - {fingerprint(VICTIM)}
        with_floors(world, VICTIM, Floors(known_peers=friends, least_known_peers=5))
        leaving = home[-1] if match else others[0]
        client = world.clients[VICTIM]
        payload = shown(world, *set(range(SIZE)) - {leaving})
        take = partial(client.take_survivors, payload)
        if match:
            refused(client, take, match)
        else:
            take()


# --- signatures and shares -----------------------------------------------------------------------


def test_signatures_of_another_group_do_not_count() -> None:
    world = World.grouped(SIZE, 2).until_seen()
    home, others = members_of(world, VICTIM), others_of(world, VICTIM)
    notice = world.signatures_for(VICTIM)
    assert len(notice.signatures) == 5
    foreign = replace(notice, signatures=(world.seen[others[0]],))
    for index, changed, match, error in (
        (home[0], foreign, "no neighbour", MalformedMessage),
        (home[1], replace(notice, signatures=notice.signatures[1:3]), "3 signatures", RoundRefused),
    ):
        client = world.clients[index]
        call = partial(client.take_signatures, changed, cheap_verify)
        wanted: type[MeshError] = error
        refused(client, call, match, wanted)


def test_the_server_refuses_shares_dealt_or_released_across_groups() -> None:
    world = World.grouped(SIZE, 2).until_seen()
    stranger = others_of(world, VICTIM)[0]
    payload, sealed = world.dealt[VICTIM]
    away = replace(payload, holders=world.dealt[stranger][0].holders)
    with pytest.raises(MalformedMessage, match="others than the graph says"):
        server.check_dealt(world.attempt, VICTIM, away, sealed)
    world.release(range(SIZE))
    with pytest.raises(ShareRefused, match="holds no share of position"):
        server.check_released(
            world.attempt,
            VICTIM,
            world.released[stranger],
            world.signed_deals,
            world.survivors,
            world.sharers,
        )
