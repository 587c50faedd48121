"""Sealed rounds under faults of coordinator, network and clients; mutants that the checks see.

A failure prints its seed: `SealedWorld(seed).run(sealed_ops(Random(seed)))` plays that world again.
"""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from boltz_mesh.rounds.charge import charges
from boltz_mesh.rounds.effect import Announce
from boltz_mesh.rounds.event import (
    ClientsDropped,
    DeadlineReached,
    Event,
    SharesDealt,
    SharesReleased,
    SurvivorsSigned,
)
from boltz_mesh.rounds.fact import FactKind
from boltz_mesh.rounds.state import (
    Aborted,
    Aggregating,
    CheckingConsistency,
    Collecting,
    Phase,
    Published,
    Releasing,
    RevealingNonces,
    RoundState,
    SharingKeys,
    Unmasking,
)
from boltz_mesh.rounds.step import Step, step
from boltz_protocol import limits
from tests.simulation.ops import SEALED_LIFE, Kind, Op, sealed_ops
from tests.simulation.sealed import SEALED, SealedWorld
from tests.simulation.world import CLIENTS, ChargeFunction, StepFunction

OPS = st.lists(st.builds(Op, st.sampled_from(list(SEALED_LIFE)), st.integers(0, 39)), max_size=120)
#: Of any phase that waits for an answer: they all have the same here.
ONE_DEADLINE_MS = SEALED.checking_ms
CHECK_INS = [Op(Kind.CHECK_IN, number) for number in range(6)]
#: A whole round, played one delivery, one turn, one effect at a time.
HEALTHY = [*CHECK_INS, *([Op(Kind.EFFECT), Op(Kind.DELIVER), Op(Kind.DELIVER)] * 60)]


@pytest.fixture(params=["complete", "sparse"])
def graph(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sparse: five clients are too many for a complete graph, so that nonces are revealed."""
    if request.param == "sparse":
        monkeypatch.setattr(limits, "MAX_COMPLETE_GRAPH", 3)
    return str(request.param)


def live(seed: int, machine: StepFunction = step, charging: ChargeFunction = charges) -> RoundState:
    try:
        world = SealedWorld(seed, machine, charges=charging)
        return world.run(sealed_ops(Random(seed)))
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), OPS, st.sampled_from([3, 50]))
def test_whatever_happens_the_round_ends_well(seed: int, ops: list[Op], complete: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "MAX_COMPLETE_GRAPH", complete)
        SealedWorld(seed).run([*CHECK_INS, *ops])


def test_likely_lives_reach_every_end(graph: str) -> None:
    ends = Counter(_end(live(seed)) for seed in range(300))
    assert ends[Phase.PUBLISHED] > 20
    assert {"TOO_FEW_KEYS", "TOO_FEW_SHARES", "TOO_FEW_UPDATES", "TOO_FEW_SIGNATURES"} <= set(ends)
    assert {"TOO_FEW_RELEASED", "stop", "AGGREGATE_REJECTED: norm"} <= set(ends)


def _end(state: RoundState) -> str:
    return state.reason if isinstance(state, Aborted) else str(state.phase)


def assert_prompt(world: SealedWorld) -> None:
    """Published without a deadline, without a client that had to come back, in no time."""
    started_ms = world.now_ms
    assert isinstance(world.run(CHECK_INS), Published)
    assert (world.deadlines_met, world.nudged, world.now_ms) == (0, set(), started_ms)


def test_a_healthy_round_waits_for_no_deadline(graph: str) -> None:
    world = SealedWorld(1)
    assert_prompt(world)
    revealed = bool(world.tables.answers[FactKind.NONCE_REVEALED])
    assert revealed == (graph == "sparse")


def test_an_announced_departure_is_not_waited_for(graph: str) -> None:
    assert_departures_are_not_waited_for(step)


def assert_departures_are_not_waited_for(machine: StepFunction) -> None:
    """In whatever phase a client is known to be gone, what is left goes on at once."""
    for place in range(0, len(HEALTHY), 4):
        world = SealedWorld(1, machine)
        started_ms = world.now_ms
        leaves = [Op(Kind.RESTART, CLIENTS.index(_selected(place)))]
        state = world.run([*HEALTHY[:place], *leaves, *HEALTHY[place:]])
        assert isinstance(state, Published), place
        assert (world.deadlines_met, world.now_ms) == (0, started_ms), place


def _selected(place: int) -> str:
    """Of the clients that the world of seed 1 selects, one; another place, another client."""
    world = SealedWorld(1)
    world.run(CHECK_INS)
    selected = sorted(world.tables.sessions)
    return selected[place % len(selected)]


@pytest.mark.parametrize("fault", [Kind.CRASH_BEFORE_COMMIT, Kind.CRASH_AFTER_COMMIT, Kind.CRASH])
def test_a_crash_anywhere_changes_nothing(fault: Kind, graph: str) -> None:
    for place in range(0, len(HEALTHY), 3):
        ops = [*HEALTHY[:place], Op(fault), Op(Kind.EFFECT), *HEALTHY[place:]]
        world = SealedWorld(1)
        assert isinstance(world.run(ops), Published), place
        assert world.deadlines_met == 0, place


def test_a_client_that_dies_anywhere_costs_a_deadline_at_most(graph: str) -> None:
    for place in range(0, len(HEALTHY), 4):
        ops = [*HEALTHY[:place], Op(Kind.DIE, CLIENTS.index(_selected(place))), *HEALTHY[place:]]
        world = SealedWorld(1)
        started_ms = world.now_ms
        assert isinstance(world.run(ops), Published), place
        assert world.now_ms - started_ms <= ONE_DEADLINE_MS, place


# --- mutants ------------------------------------------------------------------------------------


def charges_with_the_aggregate(before: RoundState | None, after: RoundState) -> tuple[str, ...]:
    """Too late: the shares are out."""
    late = isinstance(before, Aggregating) and isinstance(after, Releasing)
    return after.survivors if late and isinstance(after, Releasing) else ()


def charges_again(before: RoundState | None, after: RoundState) -> tuple[str, ...]:
    again = isinstance(before, Aggregating) and isinstance(after, Releasing)
    return after.survivors if again and isinstance(after, Releasing) else charges(before, after)


def forgets_the_charge(state: RoundState | None, event: Event) -> Step:
    after, effects = step(state, event)
    if isinstance(after, Aborted) and isinstance(state, Unmasking):
        after = replace(after, charged=False)
    return after, effects


def lets_survivors_leave(state: RoundState | None, event: Event) -> Step:
    after, effects = step(state, event)
    if isinstance(event, ClientsDropped) and isinstance(after, CheckingConsistency):
        staying = tuple(c for c in after.survivors if c not in after.dropped)
        after = replace(after, survivors=staying)
    return after, effects


def lets_dealers_join(state: RoundState | None, event: Event) -> Step:
    """Shares that come after the others were told whose count."""
    if isinstance(state, Collecting) and isinstance(event, SharesDealt):
        more = tuple(sorted({*state.participants, *event.clients}))
        return replace(state, participants=more), ()
    return step(state, event)


def takes_the_silent_along(state: RoundState | None, event: Event) -> Step:
    """At the deadline the graph has all who were asked, not those who answered."""
    after, effects = step(state, event)
    if isinstance(state, SharingKeys) and isinstance(after, Collecting):
        after = replace(after, participants=state.graph_members)
    return after, effects


def unmasks_without_signatures(state: RoundState | None, event: Event) -> Step:
    if isinstance(state, CheckingConsistency) and isinstance(event, DeadlineReached):
        few = replace(state.parameters, min_clients=1)
        after, effects = step(replace(state, parameters=few), event)
        return replace(after, parameters=state.parameters), effects
    return step(state, event)


def opens_without_shares(state: RoundState | None, event: Event) -> Step:
    if isinstance(event, SharesReleased):
        event = replace(event, enough=True)
    return step(state, event)


def waits_for_the_last_signature(state: RoundState | None, event: Event) -> Step:
    """Of every sharer, although some of them have long left."""
    if isinstance(state, CheckingConsistency) and isinstance(event, SurvivorsSigned):
        signed = state.signed | event.clients
        if not signed.issuperset(state.sharers):
            return replace(state, signed=signed), ()
    return step(state, event)


def forgets_to_announce(state: RoundState | None, event: Event) -> Step:
    after, effects = step(state, event)
    if isinstance(after, Unmasking) and not isinstance(state, Unmasking):
        effects = tuple(effect for effect in effects if not isinstance(effect, Announce))
    return after, effects


def waits_for_ever(state: RoundState | None, event: Event) -> Step:
    if isinstance(state, RevealingNonces | Unmasking) and isinstance(event, DeadlineReached):
        return state, ()
    return step(state, event)


def forgets_the_slow(state: RoundState | None, event: Event) -> Step:
    """Sharers without an update have masks in the sum all the same."""
    after, effects = step(state, event)
    if isinstance(state, Collecting) and isinstance(after, CheckingConsistency):
        after = replace(after, sharers=after.survivors)
    return after, effects


MACHINES: list[StepFunction] = [
    forgets_the_charge,
    lets_survivors_leave,
    lets_dealers_join,
    takes_the_silent_along,
    unmasks_without_signatures,
    opens_without_shares,
    waits_for_the_last_signature,
    forgets_to_announce,
    waits_for_ever,
    forgets_the_slow,
]


def caught(machine: StepFunction = step, charging: ChargeFunction = charges) -> bool:
    """By the checks that the machine itself passes above, on the same seeds."""
    try:
        assert_prompt(SealedWorld(1, machine, charges=charging))
        assert_departures_are_not_waited_for(machine)
        for seed in range(300):
            live(seed, machine, charging)
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("mutant", MACHINES)
def test_the_checks_see_a_mutant(mutant: StepFunction) -> None:
    assert caught(mutant)


@pytest.mark.parametrize("mutant", [charges_with_the_aggregate, charges_again])
def test_the_checks_see_a_wrong_charge(mutant: ChargeFunction) -> None:
    assert caught(charging=mutant)


def test_the_checks_see_batches_that_are_taken_apart() -> None:
    with pytest.raises(AssertionError):
        SealedWorld(1, batches=False).run(CHECK_INS)
