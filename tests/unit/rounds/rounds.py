"""Small rounds for tests."""

from __future__ import annotations

from typing import Any

from boltz_mesh.rounds.effect import Effect
from boltz_mesh.rounds.event import (
    AggregateReady,
    CandidatesSeen,
    Event,
    RosterFixed,
    RoundStarted,
    UpdatesStored,
)
from boltz_mesh.rounds.state import RoundParameters, RoundState
from boltz_mesh.rounds.step import step

START_MS = 1_000_000


def parameters(**changes: Any) -> RoundParameters:
    values: dict[str, Any] = {
        "round_id": "0" * 32,
        "model_id": "model",
        "attempt": 1,
        "base_version": 1,
        "plan_revision": 1,
        "min_clients": 2,
        "target_clients": 3,
        "max_clients": 5,
        "wanted_clients": 4,
        "selecting_ms": 10_000,
        "collecting_ms": 20_000,
        "aggregating_ms": 5_000,
        "releasing_ms": 5_000,
        "recovery_extension_ms": 3_000,
    }
    return RoundParameters(**(values | changes))


def clients(count: int) -> tuple[str, ...]:
    return tuple(f"client-{index}" for index in range(count))


def run(*events: Event, state: RoundState | None = None) -> tuple[RoundState, tuple[Effect, ...]]:
    """The state after the events, and the effects of the last one."""
    effects: tuple[Effect, ...] = ()
    for event in events:
        state, effects = step(state, event)
    assert state is not None
    return state, effects


def started(**changes: Any) -> RoundStarted:
    return RoundStarted(at_ms=START_MS, parameters=parameters(**changes))


def seen(count: int, at_ms: int = START_MS + 100, over_budget: int = 0) -> CandidatesSeen:
    return CandidatesSeen(
        at_ms=at_ms, candidates=frozenset(clients(count)), over_budget=over_budget
    )


def fixed(count: int = 4) -> RosterFixed:
    return RosterFixed(
        at_ms=START_MS + 200,
        roster=clients(count),
        config_digest="ab" * 32,
        deadline_ms=START_MS + 20_200,
    )


def stored(*indexes: int, at_ms: int = START_MS + 300) -> UpdatesStored:
    return UpdatesStored(at_ms=at_ms, clients=frozenset(f"client-{index}" for index in indexes))


def ready(survivors: int = 3, at_ms: int = START_MS + 400) -> AggregateReady:
    return AggregateReady(
        at_ms=at_ms,
        aggregate_digest="cd" * 32,
        survivors=survivors,
        total_weight=survivors * 100,
        metrics={"loss": 0.25},
    )


def selecting() -> RoundState:
    return run(started())[0]


def collecting(count: int = 4) -> RoundState:
    return run(started(), seen(count), fixed(count))[0]


def aggregating() -> RoundState:
    return run(stored(0, 1, 2), state=collecting())[0]


def releasing() -> RoundState:
    return run(ready(), state=aggregating())[0]
