"""The server's checks, and who is blamed when secrets do not come back."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from boltz_protocol import codec_sealed
from boltz_protocol import messages as m
from boltz_protocol.errors import (
    DealerBlamed,
    InvalidPlan,
    MalformedMessage,
    RoundRefused,
    ShareRefused,
)
from boltz_protocol.ids import RoundId
from boltz_protocol.limits import SHARE_BYTES
from boltz_protocol.secagg import client_steps, server, shamir
from boltz_protocol.secagg.dealing import Deal, deal
from tests.support.secagg import World, cheap_verify, client_id, session_id
from tests.unit.protocol.secagg.refusals import SIZE, graphed, sparse

OTHER = RoundId("ab" * 16)


# --- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"round_id": OTHER},
        {"attempt": 2},
        {"configuration_sha256": b"x" * 32},
        {"client_id": client_id(1)},
        {"session_id": session_id(1)},
        {"share_public_key": bytes(32)},
        {"mask_public_key": b"\x01" + bytes(31)},
    ],
)
def test_advertisements_that_would_spoil_the_round(change: dict[str, object]) -> None:
    world = World.of(SIZE)
    statement = world.clients[0].advertise()
    payload = codec_sealed.parse_key_advertisement(statement.payload)
    check = partial(
        server.check_advertisement,
        configuration=world.configuration,
        configuration_sha256=world.configuration_sha256,
        entry=world.entries[0],
    )
    check(payload)
    with pytest.raises(MalformedMessage):
        check(replace(payload, **change))  # type: ignore[arg-type]


def test_nonces_that_do_not_open() -> None:
    world = sparse()
    world.advertise(range(51))
    world.show_roster(range(51), world.fix_roster())
    reveal = m.NonceReveal(world.configuration.round_id, 1, world.nonces[0])
    check = partial(
        server.check_reveal, configuration=world.configuration, key_roster=world.key_roster
    )
    check(reveal, index=0)
    for changed, index, match in (
        (reveal, 1, "does not open"),
        (reveal, 51, "is no member"),
        (replace(reveal, attempt=2), 0, "another round"),
    ):
        with pytest.raises(MalformedMessage, match=match):
            check(changed, index=index)


def test_deals_to_others_than_the_graph_says() -> None:
    world = World.of(6)
    world.advertise(range(5))
    world.show_roster(range(5), world.fix_roster())
    world.fix_graph()
    world.deal(range(5))
    payload, sealed = world.dealt[0]
    short = replace(payload, holders=payload.holders[:-1], commitments=payload.commitments[:-1])
    outside = replace(payload, client_id=client_id(5), session_id=session_id(5))
    changes = [
        (0, replace(payload, attempt=2), sealed, "another round"),
        (0, replace(payload, session_id=session_id(1)), sealed, "client and session"),
        (1, payload, sealed, "client and session"),
        (0, replace(payload, key_roster_sha256=b"x" * 32), sealed, "another key roster"),
        (0, short, sealed, "to others"),
        (5, outside, sealed, "not in the graph"),
        (0, payload, sealed[:-1], "4 sealed shares for 5"),
        (0, payload, (sealed[1], *sealed[1:]), "position 0 has 146 bytes, not 0"),
        (0, payload, (b"", b"", *sealed[2:]), "position 1 has 0 bytes"),
    ]
    for dealer, dealt, shares, match in changes:
        with pytest.raises(MalformedMessage, match=match):
            server.check_dealt(world.attempt, dealer, dealt, shares)


def test_signatures_on_other_survivors() -> None:
    world = World.of(SIZE).until_seen(gone={4})
    seen = codec_sealed.parse_survivors_seen(world.seen[0].payload)
    announced = world.survivors_payload().survivors
    check = partial(server.check_seen, world.attempt, survivors=announced)
    check(0, seen)
    for changed, signer, match in (
        (seen, 1, "client and session"),
        (replace(seen, attempt=2), 0, "another round"),
        (replace(seen, key_roster_sha256=b"x" * 32), 0, "another key roster"),
        (replace(seen, survivors=b"\x1f"), 0, "not those announced"),
    ):
        with pytest.raises(MalformedMessage, match=match):
            check(signer, changed)


def test_rows_that_do_not_belong_together() -> None:
    world = graphed(World.of(SIZE))
    build = partial(
        server.Attempt.build,
        configuration=world.configuration,
        configuration_sha256=world.configuration_sha256,
        key_roster=world.key_roster_statement,
    )
    payloads = {index: s.payload for index, s in world.advertisements.items()}
    built = build(roster=world.roster, advertisements=payloads, nonces={})
    assert built == world.attempt
    assert built.holders_of(1) == built.dealers_of(1) == (0, 1, 2, 3, 4)
    with pytest.raises(MalformedMessage, match="not those of the roster"):
        build(roster=world.roster[:-1], advertisements=payloads, nonces={})
    with pytest.raises(MalformedMessage, match="not those of the roster"):
        build(roster=world.roster, advertisements={0: payloads[0]}, nonces={})
    with pytest.raises(RoundRefused, match="another round, attempt or configuration"):
        build(
            roster=world.roster,
            advertisements=payloads,
            nonces={},
            configuration_sha256=b"x" * 32,
        )


def test_too_few_members_for_what_the_plan_withstands() -> None:
    world = World.of(SIZE)
    world.advertise([0, 1])
    world.fix_roster()
    with pytest.raises(InvalidPlan, match="2 of 5 clients are left"):
        world.fix_graph()


def test_a_member_that_reveals_nothing_is_not_in_the_graph() -> None:
    world = sparse()
    world.advertise(range(52))
    world.show_roster(range(1, 52), world.fix_roster())
    attempt = world.fix_graph()
    assert attempt.agreement.members == tuple(range(52))
    assert attempt.groups[0] == tuple(range(1, 52))
    world.deal([1])


# --- released shares ----------------------------------------------------------------------------


def changed_share(released: m.SharesReleased, place: int, **change: object) -> m.SharesReleased:
    shares = list(released.shares)
    shares[place] = replace(shares[place], **change)  # type: ignore[arg-type]
    return replace(released, shares=tuple(shares))


def test_a_lying_releaser_is_named_and_the_round_goes_on() -> None:
    world = World.of(7).until_seen(gone={2})
    good = world.clients[3].take_signatures(world.signatures_for(3), cheap_verify)
    first = good.shares[0]
    other_share = bytes(SHARE_BYTES - 1) + b"\x07"
    lies = [
        (changed_share(good, 0, share=other_share), "another share of position 0"),
        (changed_share(good, 4, salt=b"x" * 32), "another share of position 4"),
        (changed_share(good, 2, kind=m.ShareKind.SEED), "wrong kind for position 2"),
        (changed_share(good, 1, kind=m.ShareKind.MASK_KEY), "wrong kind for position 1"),
        (replace(good, shares=(replace(first, dealer=8),)), "no share of position 8"),
    ]
    for lie, match in lies:
        with pytest.raises(ShareRefused, match=match) as caught:
            world.take_released(3, lie)
        assert caught.value.metadata == {"client_id": client_id(3), "index": "3"}
    with pytest.raises(MalformedMessage, match="another round"):
        world.take_released(3, replace(good, attempt=2))
    assert world.released == {}
    world.release([0, 1, 2, 4, 5, 6])
    assert world.is_enough()
    assert np.array_equal(world.unmasked_sum(), world.plain_sum())


def test_shares_of_clients_that_are_no_sharers_or_of_strangers() -> None:
    world = sparse().until_seen()
    good = world.clients[0].take_signatures(world.signatures_for(0), cheap_verify)
    far = next(i for i in range(1, 52) if i not in world.attempt.graph_of(0).neighbours(0))
    with pytest.raises(ShareRefused, match=f"no share of position {far}"):
        world.take_released(0, replace(good, shares=(replace(good.shares[0], dealer=far),)))
    del world.dealt[0]
    with pytest.raises(ShareRefused, match="is no sharer"):
        world.take_released(0, good)


def test_a_missing_share_is_no_fault_and_is_not_covered() -> None:
    world = World.of(SIZE).until_seen()
    good = world.clients[0].take_signatures(world.signatures_for(0), cheap_verify)
    covered = world.take_released(0, replace(good, shares=good.shares[1:]))
    assert covered == {1, 2, 3, 4}
    world.release([1, 2])
    assert not world.is_enough()  # of client 0 there are two shares
    world.release([3])
    assert world.is_enough()
    assert np.array_equal(world.unmasked_sum(), world.plain_sum())


# --- wrong dealers ------------------------------------------------------------------------------


def dealt_wrongly(world: World, dealer: int, **instead: object) -> World:
    """One client deals shares of another secret than it signs for, and seals them properly."""

    def wrong(**arguments: Any) -> Deal:
        return deal(**(arguments | instead))

    graphed(world)
    for index in range(world.size):
        with patch.object(client_steps, "deal", wrong if index == dealer else deal):
            world.deal([index])
    world.share(range(world.size))
    return world


def blamed(world: World, *gone: int) -> DealerBlamed:
    world.upload([index for index in range(world.size) if index not in gone])
    world.show_survivors(range(world.size))
    world.release(range(world.size))
    assert world.is_enough()
    with pytest.raises(DealerBlamed) as caught:
        world.streams_to_remove()
    return caught.value


def test_a_dealer_of_a_wrong_seed_is_blamed() -> None:
    error = blamed(dealt_wrongly(World.of(SIZE), 3, seed=b"s" * 32))
    assert error.dealers == (3,)
    assert error.metadata == {"client_id": client_id(3), "client_ids": client_id(3)}
    assert "1 clients dealt" in error.message


def test_a_dealer_of_a_wrong_mask_key_is_blamed_once_it_matters() -> None:
    world = dealt_wrongly(World.of(SIZE), 3, mask_private_key=b"s" * 32)
    assert blamed(world, 3).dealers == (3,)
    # Nobody needs the mask key of a survivor.
    world = dealt_wrongly(World.of(SIZE), 3, mask_private_key=b"s" * 32)
    world.upload(range(SIZE))
    world.show_survivors(range(SIZE))
    world.release(range(SIZE))
    assert np.array_equal(world.unmasked_sum(), world.plain_sum())


@pytest.mark.parametrize("value", [(1 << 256) + 5, shamir.PRIME])
def test_a_dealer_of_shares_of_no_secret_is_blamed(value: int) -> None:
    def split(secret: bytes, threshold: int, indexes: tuple[int, ...], **_: object) -> Any:
        return dict.fromkeys(indexes, value.to_bytes(SHARE_BYTES, "big"))

    world = graphed(World.of(SIZE))
    for index in range(SIZE):
        with patch.object(shamir, "split", split if index == 2 else shamir.split):
            world.deal([index])
    world.share(range(SIZE))
    assert blamed(world).dealers == (2,)


def test_several_wrong_dealers_are_all_blamed() -> None:
    def wrong(**arguments: Any) -> Deal:
        return deal(**(arguments | {"seed": b"s" * 32}))

    world = graphed(World.of(12))
    with patch.object(client_steps, "deal", wrong):
        world.deal(range(10))
    world.deal([10, 11])
    world.share(range(12))
    error = blamed(world)
    assert error.dealers == tuple(range(10))
    assert error.metadata["client_ids"].split(",") == [client_id(index) for index in range(8)]


def test_secrets_that_came_back_hide() -> None:
    world = World.of(SIZE).until_seen(gone={1})
    world.release(range(SIZE))
    recovered = server.recover(
        world.attempt, world.signed_deals, world.released, world.survivors, world.sharers
    )
    assert set(recovered.seeds) == {0, 2, 3, 4}
    assert set(recovered.mask_keys) == {1}
    assert repr(recovered) == "Recovered()"
    assert "nonces" not in repr(world.attempt)
