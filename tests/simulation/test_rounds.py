"""Rounds under every order of events and crashes, and mutants that prove the checks see."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from boltz_mesh.rounds.event import DeadlineReached, Event, Recovered, UpdatesStored
from boltz_mesh.rounds.state import (
    Aborted,
    Aggregating,
    Collecting,
    Phase,
    Published,
    RoundState,
)
from boltz_mesh.rounds.step import Step, step
from tests.simulation.ops import OPEN_LIFE, Kind, Op, random_ops
from tests.simulation.world import CLIENTS, StepFunction, World

OPS = st.lists(st.builds(Op, st.sampled_from(list(OPEN_LIFE)), st.integers(0, 39)), max_size=60)
HEALTHY = [
    *(Op(Kind.CHECK_IN, number) for number in range(6)),
    *([Op(Kind.EFFECT)] * 3),
    *(Op(Kind.UPLOAD, number) for number in range(6)),
]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), OPS)
def test_whatever_happens_the_round_ends_well(seed: int, ops: list[Op]) -> None:
    World(seed).run(ops)


def test_likely_lives_reach_every_end() -> None:
    ends: Counter[str] = Counter()
    for seed in range(300):
        state = World(seed).run(random_ops(Random(seed), 80))
        ends[state.phase if isinstance(state, Published) else str(_reason(state))] += 1
    assert ends[Phase.PUBLISHED] > 20
    assert {"TOO_FEW_CLIENTS", "TOO_FEW_UPDATES", "stop", "AGGREGATE_REJECTED: norm"} <= set(ends)


def _reason(state: RoundState) -> str:
    assert isinstance(state, Aborted)
    return state.reason


def test_a_healthy_round_waits_for_no_deadline() -> None:
    world = World(1)
    started_ms = world.now_ms
    state = world.run(HEALTHY)
    assert isinstance(state, Published)
    assert world.deadlines_met == 0
    assert world.now_ms == started_ms


@pytest.mark.parametrize("fault", [Kind.CRASH_BEFORE_COMMIT, Kind.CRASH_AFTER_COMMIT, Kind.CRASH])
@pytest.mark.parametrize("place", range(len(HEALTHY) + 6))
def test_a_crash_anywhere_changes_nothing(fault: Kind, place: int) -> None:
    life = [*HEALTHY, *([Op(Kind.EFFECT)] * 6)]
    state = World(1).run([*life[:place], Op(fault), Op(Kind.EFFECT), *life[place:]])
    assert isinstance(state, Published)


def test_a_crash_at_every_step_still_ends() -> None:
    ops = [op for each in HEALTHY for op in (Op(Kind.CRASH_AFTER_COMMIT), each, each)]
    assert isinstance(World(1).run(ops), Published)


def test_spent_budgets_end_the_selection_by_name() -> None:
    ops = [*(Op(Kind.CHECK_IN, n) for n in range(3)), *(Op(Kind.POOR, n) for n in range(2))]
    assert _reason(World(1).run(ops)) == "BUDGET_EXCEEDED"


# --- mutants ------------------------------------------------------------------------------------


def forgets_to_resume(state: RoundState | None, event: Event) -> Step:
    after, effects = step(state, event)
    return (after, ()) if isinstance(event, Recovered) else (after, effects)


def freezes_too_few(state: RoundState | None, event: Event) -> Step:
    if isinstance(state, Collecting) and isinstance(event, DeadlineReached) and state.stored:
        few = replace(state.parameters, min_clients=1)
        after, effects = step(replace(state, parameters=few), event)
        return replace(after, parameters=state.parameters), effects
    return step(state, event)


def loses_an_update(state: RoundState | None, event: Event) -> Step:
    if isinstance(event, UpdatesStored) and isinstance(state, Collecting) and state.dropped:
        event = replace(event, clients=event.clients - {CLIENTS[0]})
    return step(state, event)


def reads_the_clock(state: RoundState | None, event: Event) -> Step:
    reads_the_clock.calls = getattr(reads_the_clock, "calls", 0) + 1  # type: ignore[attr-defined]
    after, effects = step(state, event)
    if isinstance(after, Aggregating) and not isinstance(state, Aggregating):
        after = replace(after, deadline_ms=after.deadline_ms + reads_the_clock.calls)  # type: ignore[attr-defined]
    return after, effects


@pytest.mark.parametrize(
    "mutant", [forgets_to_resume, freezes_too_few, loses_an_update, reads_the_clock]
)
def test_the_checks_see_a_mutant(mutant: StepFunction) -> None:
    def survives(seed: int) -> bool:
        try:
            World(seed, mutant).run(random_ops(Random(seed), 80))
        except AssertionError:
            return False
        return True

    assert not all(map(survives, range(300)))


def test_the_checks_see_batches_that_are_taken_apart() -> None:
    with pytest.raises(AssertionError):
        World(1, batches=False).run(HEALTHY)
