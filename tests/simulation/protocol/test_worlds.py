"""Sealed rounds under faults of network, mesh and clients, with an honest mesh.

A failure names its seed; `python -m tests.simulation.protocol SEED` plays that world again and
prints what happens in it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_mesh.rounds.state import Aborted, Phase, Published, RoundState
from tests.simulation.protocol import __main__ as command
from tests.simulation.protocol.faults import LENGTH, Fault, Kind
from tests.simulation.protocol.settings import Misdeed, Setting
from tests.simulation.protocol.world import World

#: Played in every run of the tests.
SEEDS = range(100)
#: A round of honest clients takes no more, with every deadline far away.
PROMPT_MS = 150

FAULTS = st.lists(
    st.builds(
        Fault,
        st.integers(0, LENGTH),
        st.sampled_from(list(Kind)),
        st.integers(0, 7),
        st.integers(0, 40),
    ),
    max_size=12,
)
SETTINGS = st.builds(
    lambda clients, sparse, misdeeds: Setting(
        clients=clients, target=clients, sparse=sparse, misdeeds=misdeeds
    ),
    st.integers(4, 7),
    st.booleans(),
    st.dictionaries(st.integers(0, 3), st.sampled_from(list(Misdeed)), max_size=1),
)


def live(seed: int) -> RoundState:
    try:
        return World.of(seed).run()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error


def test_likely_worlds_hold_what_they_must() -> None:
    ends = Counter(_end(live(seed)) for seed in SEEDS)
    assert ends[Phase.PUBLISHED] > len(SEEDS) // 2
    assert len(ends) >= 4, ends


def _end(state: RoundState) -> str:
    return state.reason if isinstance(state, Aborted) else str(state.phase)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), SETTINGS, FAULTS)
def test_whatever_happens_holds_what_it_must(
    seed: int, setting: Setting, faults: list[Fault]
) -> None:
    World(seed, setting, faults).run()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("clients", [3, 4, 6, 8])
def test_a_healthy_round_waits_for_no_deadline(clients: int, sparse: bool) -> None:
    world = World(clients, Setting(clients=clients, target=clients, sparse=sparse))
    state = world.run()
    assert isinstance(state, Published)
    assert len(state.survivors) == clients
    assert (world.deadlines_met, world.network.cuts, world.refused) == (0, 0, [])
    assert world.took_ms is not None
    assert world.took_ms <= PROMPT_MS


def test_a_round_with_a_real_sparse_graph() -> None:
    """More members than a complete graph takes: nothing of the protocol is made smaller here."""
    setting = Setting(clients=52, target=50, corrupt_fraction=0.02, dropout_fraction=0.05)
    world = World(1, setting, [Fault(300, Kind.DIE, 3), Fault(320, Kind.RESTART, 4)])
    assert isinstance(world.run(), Published)


def test_a_world_plays_again_alike() -> None:
    first, second = World.of(11), World.of(11)
    first.run()
    second.run()
    assert first.engine.log == second.engine.log


@pytest.mark.parametrize("kind", [Kind.CRASH, Kind.CRASH_BEFORE_COMMIT, Kind.CRASH_AFTER_COMMIT])
def test_a_crash_of_the_mesh_anywhere_costs_nothing(kind: Kind) -> None:
    for place in range(0, LENGTH, 7):
        world = World(1, Setting(), [Fault(place, kind)])
        state = world.run()
        assert isinstance(state, Published), place
        assert len(state.survivors) == 6, place
        assert world.deadlines_met == 0, place


@pytest.mark.parametrize(
    "kind",
    [Kind.DIE, Kind.CRASH_BEFORE_CHARGE, Kind.CRASH_AFTER_CHARGE, Kind.CRASH_AFTER_SENDING],
)
def test_one_client_less_is_a_smaller_sum_at_most(kind: Kind) -> None:
    places = range(0, LENGTH, 11) if kind is Kind.DIE else (20,)
    for place in places:
        state = World(1, Setting(), [Fault(place, kind, 2)]).run()
        assert isinstance(state, Published), place
        assert len(state.survivors) >= 5, place


def test_what_was_charged_is_sent_by_the_next_run_of_a_client() -> None:
    """And counts, though its secrets are gone: the others hold shares of them."""
    state = World(1, Setting(), [Fault(20, Kind.CRASH_AFTER_CHARGE, 2)]).run()
    assert isinstance(state, Published)
    assert len(state.survivors) == 6


def test_what_was_not_charged_is_never_sent() -> None:
    world = World(1, Setting(), [Fault(20, Kind.CRASH_BEFORE_CHARGE, 2)])
    state = world.run()
    assert isinstance(state, Published)
    assert len(state.survivors) == 5
    assert [s.device.ledger for s in world.sessions if s.device.index == 2] == [[], []]


#: With seven clients of whom five are needed: what one hostile client can do to the round.
_ENDS = {
    Misdeed.WRONG_SECRET: "DEALER_BLAMED",
    Misdeed.GARBAGE: "TOO_FEW_RELEASED",
}


@pytest.mark.parametrize("misdeed", list(Misdeed))
def test_one_hostile_client(misdeed: Misdeed) -> None:
    sparse = misdeed is Misdeed.OTHER_NONCE
    setting = Setting(clients=7, target=7, sparse=sparse, misdeeds={3: misdeed})
    for seed in range(3):
        world = World(seed, setting)
        state = world.run()
        assert _end(state) == _ENDS.get(misdeed, Phase.PUBLISHED)
        assert {client for client, _ in world.refused} <= {3}
        if misdeed is Misdeed.WRONG_SECRET:
            assert world.blamed


def test_floors_above_the_survivors_hold_a_client_back() -> None:
    """Its owner wants more than are left: it releases nothing, and the others go on."""
    setting = Setting(floors={1: 6})
    world = World(1, setting, [Fault(56, Kind.DIE, 4)])
    assert isinstance(world.run(), Published)
    (held_back,) = [s for s in world.sessions if s.device.index == 1]
    assert held_back.part is not None
    assert held_back.part.index not in world.eye.released
    assert len(world.eye.released) >= 4


def test_an_outage_is_given_back_to_the_phase() -> None:
    faults = [Fault(at, Kind.CRASH) for at in range(30, LENGTH, 20)]
    for sparse in (False, True):
        state = World(2, replace(Setting(), sparse=sparse), faults).run()
        assert isinstance(state, Published)


def test_the_command_prints_a_world(capsys: pytest.CaptureFixture[str]) -> None:
    command.main("3")
    assert "RoundStarted: Selecting" in capsys.readouterr().out
    command.main("game", "3")
    assert "learnt:" in capsys.readouterr().out
