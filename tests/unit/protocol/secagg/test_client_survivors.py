"""What a client refuses of shares and survivors."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from boltz_protocol.errors import (
    ConfigurationError,
    MalformedMessage,
)
from boltz_protocol.secagg.bitmap import bitmap
from boltz_protocol.secagg.client import Floors
from tests.support.secagg import (
    World,
    cheap_verify,
    fingerprint,
)
from tests.unit.protocol.secagg.refusals import (
    OTHER_ROUND,
    SIZE,
    graphed,
    offer_peers,
    refused,
    sparse,
)

# --- shares and masks ---------------------------------------------------------------------------


def test_shares_of_something_else_or_too_few() -> None:
    world = World.of(SIZE).until_dealt()
    notice = world.shares_for(0)
    threshold = world.attempt.graph_of(0).threshold
    changes = [
        (replace(notice, round_id=OTHER_ROUND), "another round"),
        (replace(notice, attempt=2), "another round"),
        (replace(notice, shares=notice.shares[: threshold - 2]), "2 holders of this client's"),
        (replace(notice, shares=(replace(notice.shares[0], dealer=3),)), "no neighbour"),
    ]
    for index, (changed, match) in enumerate(changes):
        client = world.clients[index]
        refused(client, partial(client.take_shares, changed), match)


def test_a_share_that_does_not_open_is_passed_over() -> None:
    world = World.of(SIZE).until_dealt()
    notice = world.shares_for(0)
    shares = list(notice.shares)
    shares[0] = replace(shares[0], sealed_share=bytes(len(shares[0].sealed_share)))
    shares[1] = replace(shares[1], seed_commitment=b"x" * 32)
    world.clients[0].take_shares(replace(notice, shares=tuple(shares)))
    world.share(range(1, SIZE))
    world.upload(range(SIZE))
    world.show_survivors(range(SIZE))
    released = world.clients[0].take_signatures(world.signatures_for(0), cheap_verify)
    assert [share.dealer for share in released.shares] == [0, 3, 4]


def test_nothing_to_release_is_a_refusal() -> None:
    world = sparse().until_dealt()
    notice = world.shares_for(0)
    spoilt = tuple(
        replace(share, sealed_share=bytes(len(share.sealed_share))) for share in notice.shares
    )
    world.clients[0].take_shares(replace(notice, shares=spoilt))
    world.share(range(1, 52))
    world.upload(range(52))
    world.show_survivors(range(52))
    client = world.clients[0]
    refused(
        client,
        lambda: client.take_signatures(world.signatures_for(0), cheap_verify),
        "none of the shares",
    )


def test_masks_before_the_shares_and_a_second_time() -> None:
    world = World.of(SIZE).until_dealt()
    refused(world.clients[0], world.clients[0].mask_streams, "given out once")
    world.share([1])
    assert len(world.clients[1].mask_streams()) == SIZE
    refused(world.clients[1], world.clients[1].mask_streams, "given out once")


def test_masks_after_the_survivors() -> None:
    world = World.of(SIZE).until_uploaded(gone={0})
    world.show_survivors([0])
    refused(world.clients[0], world.clients[0].mask_streams, "given out once")


# --- survivors ----------------------------------------------------------------------------------


def test_survivors_of_something_else_or_not_allowed() -> None:
    world = World.of(8, min_survivors=3).until_uploaded(gone={7})
    payload = world.survivors_payload()
    changes = [
        (replace(payload, round_id=OTHER_ROUND), "another round"),
        (replace(payload, attempt=2), "another round"),
        (replace(payload, mesh_id="other"), "another key roster"),
        (replace(payload, key_roster_sha256=b"x" * 32), "another key roster"),
        (replace(payload, survivors=bitmap([0, 1], 8)), "2 survivors; at least 3"),
        (replace(payload, survivors=bitmap([0, 1, 2], 8)), "3 survivors; 5 shares"),
    ]
    for index, (changed, match) in enumerate(changes):
        client = world.clients[index]
        refused(client, partial(client.take_survivors, changed), match)
    counted = replace(payload, survivors=bitmap(range(8), 8))
    client = world.clients[7]
    refused(client, lambda: client.take_survivors(counted), "has masked nothing")
    client = world.clients[6]
    size = replace(payload, survivors=payload.survivors + b"\0")
    refused(client, lambda: client.take_survivors(size), "a bitmap of", MalformedMessage)


def test_survivors_that_are_no_sharers() -> None:
    world = World.of(7)
    world.advertise(range(6))
    world.show_roster(range(6), world.fix_roster())
    world.fix_graph()
    world.deal(range(5))
    world.share(range(5))
    world.upload(range(5))
    payload = world.survivors_payload()
    dealt_nothing = replace(payload, survivors=bitmap(range(6), 7))
    refused(
        world.clients[0],
        lambda: world.clients[0].take_survivors(dealt_nothing),
        "not among the sharers",
    )
    no_member = replace(payload, survivors=bitmap([0, 1, 2, 3, 6], 7))
    refused(
        world.clients[1],
        lambda: world.clients[1].take_survivors(no_member),
        "dealt no shares",
        MalformedMessage,
    )


def test_a_second_set_of_survivors() -> None:
    world = World.of(SIZE).until_uploaded()
    payload = world.survivors_payload()
    client = world.clients[0]
    first = client.take_survivors(payload)
    assert client.take_survivors(payload) == first
    fewer = replace(payload, survivors=bitmap(range(SIZE - 1), SIZE))
    refused(client, lambda: client.take_survivors(fewer), "a second, different call")


def test_the_owners_share_of_the_weight() -> None:
    """Weights are 1 to 5: the last client has a third of all, and 5 of 12 without the third."""
    floors = {4: Floors(largest_weight_share=0.4)}
    world = World.of(SIZE, floors=floors).until_uploaded()
    world.clients[4].take_survivors(world.survivors_payload())
    world = World.of(SIZE, floors=floors).until_uploaded(gone={2})
    client = world.clients[4]
    refused(
        client, lambda: client.take_survivors(world.survivors_payload()), "41.7% of the survivors"
    )
    # Whoever is not in the sum weighs nothing in it.
    world = World.of(SIZE, floors=floors).until_uploaded(gone={2, 4})
    world.clients[4].take_survivors(world.survivors_payload())


def test_the_owners_smallest_cohort() -> None:
    world = World.of(6, floors={0: Floors(least_survivors=6)}).until_uploaded(gone={5})
    client = world.clients[0]
    refused(
        client, lambda: client.take_survivors(world.survivors_payload()), "5 survivors; at least 6"
    )


def pins(*known: int, least: int) -> dict[int, Floors]:
    known_peers = frozenset(fingerprint(index) for index in known)
    return {0: Floors(known_peers=known_peers, least_known_peers=least)}


def test_too_few_known_peers_among_neighbours_sharers_and_survivors() -> None:
    world = graphed(World.of(SIZE, floors=pins(1, 77, least=2)))
    refused(world.clients[0], offer_peers(world, world.peers_of(0)), "1 of the neighbours")
    world = World.of(SIZE, floors=pins(1, 2, least=2)).until_dealt()
    notice = world.shares_for(0)
    client = world.clients[0]
    refused(
        client,
        lambda: client.take_shares(replace(notice, shares=notice.shares[1:])),
        "1 of the sharers",
    )
    world = World.of(SIZE, floors=pins(1, 2, least=2)).until_uploaded(gone={2})
    client = world.clients[0]
    refused(client, lambda: client.take_survivors(world.survivors_payload()), "1 of the survivors")
    world = World.of(SIZE, floors=pins(1, 2, least=2)).until_uploaded(gone={3})
    world.clients[0].take_survivors(world.survivors_payload())


def test_pins_that_leave_a_threshold_of_strangers() -> None:
    """Six clients, threshold four: one pinned peer leaves four that could be the mesh's own."""
    world = graphed(World.of(6, floors=pins(1, least=1)))
    refused(world.clients[0], offer_peers(world, world.peers_of(0)), "4 of the holders .* unknown")
    world = graphed(World.of(6, floors=pins(1, 2, least=1)))
    offer_peers(world, world.peers_of(0))()


def test_floors_that_make_no_sense() -> None:
    with pytest.raises(ConfigurationError, match="least_survivors"):
        Floors(least_survivors=0)
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ConfigurationError, match="largest_weight_share"):
            Floors(largest_weight_share=share)
    for least in (-1, 1):
        with pytest.raises(ConfigurationError, match="least_known_peers"):
            Floors(least_known_peers=least)
