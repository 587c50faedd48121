"""What the tests of refusals share: worlds at a certain point, and how a client ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from boltz_protocol import messages as m
from boltz_protocol.errors import (
    MeshError,
    RoundRefused,
)
from boltz_protocol.ids import RoundId
from boltz_protocol.secagg import client_states as states
from boltz_protocol.secagg.client import SecaggClient
from tests.support.secagg import (
    World,
    cheap_verify,
)

SIZE = 5
OTHER_ROUND = RoundId("ab" * 16)


def refused(
    client: SecaggClient,
    call: Callable[[], object],
    match: str,
    error: type[MeshError] = RoundRefused,
) -> None:
    """The call is refused, and so is everything after it."""
    with pytest.raises(error, match=match):
        call()
    assert client.is_dead
    assert isinstance(client._state, states.Dead)
    assert not client._answers
    calls: list[Callable[[], object]] = [
        client.advertise,
        client.mask_streams,
        lambda: client.take_signatures(m.SignaturesNotice(OTHER_ROUND, 1, ()), cheap_verify),
        call,
    ]
    for again in calls:
        with pytest.raises(RoundRefused, match="has ended"):
            again()


def rostered(world: World) -> m.KeyRosterNotice:
    world.advertise(range(world.size))
    return world.fix_roster()


def graphed(world: World) -> World:
    notice = rostered(world)
    world.show_roster(range(world.size), notice)
    world.fix_graph()
    return world


def offer_peers(world: World, notice: m.PeersNotice, index: int = 0) -> Callable[[], object]:
    return lambda: world.clients[index].take_peers(notice, cheap_verify)


def sparse() -> World:
    return World.of(52, corrupt_fraction=0.0, dropout_fraction=0.05)
