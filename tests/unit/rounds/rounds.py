"""Small rounds for tests."""

from __future__ import annotations

from typing import Any

from boltz_mesh.rounds.effect import Effect
from boltz_mesh.rounds.event import (
    AggregateReady,
    CandidatesSeen,
    ClientsDropped,
    DeadlineReached,
    Event,
    GroupsDrawn,
    KeysAdvertised,
    NoncesRevealed,
    RosterFixed,
    RoundStarted,
    SharesDealt,
    SharesReleased,
    SurvivorsSigned,
    UpdatesStored,
)
from boltz_mesh.rounds.state import Group, RoundParameters, RoundState
from boltz_mesh.rounds.step import step

START_MS = 1_000_000
#: Past every deadline of these rounds.
LATER = START_MS + 1_000_000


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


def named(*indexes: int) -> frozenset[str]:
    return frozenset(f"client-{index}" for index in indexes)


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
    return UpdatesStored(at_ms=at_ms, clients=named(*indexes))


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


# --- sealed rounds ------------------------------------------------------------------------------


def deadline(at_ms: int = LATER) -> DeadlineReached:
    return DeadlineReached(at_ms=at_ms)


def dropped(*indexes: int, reason: str = "declined") -> ClientsDropped:
    return ClientsDropped(at_ms=START_MS, clients=dict.fromkeys(sorted(named(*indexes)), reason))


def keys(*indexes: int, at_ms: int = START_MS + 210) -> KeysAdvertised:
    return KeysAdvertised(at_ms=at_ms, clients=named(*indexes))


def nonces(*indexes: int, at_ms: int = START_MS + 220) -> NoncesRevealed:
    return NoncesRevealed(at_ms=at_ms, clients=named(*indexes))


def dealt(*indexes: int, at_ms: int = START_MS + 230) -> SharesDealt:
    return SharesDealt(at_ms=at_ms, clients=named(*indexes))


def signed(*indexes: int, at_ms: int = START_MS + 310) -> SurvivorsSigned:
    return SurvivorsSigned(at_ms=at_ms, clients=named(*indexes))


def released(*indexes: int, enough: bool = False, at_ms: int = START_MS + 320) -> SharesReleased:
    return SharesReleased(at_ms=at_ms, clients=named(*indexes), enough=enough)


def sealed_started(**changes: Any) -> RoundStarted:
    values: dict[str, Any] = {
        "mode": "sealed",
        "advertising_ms": 4_000,
        "sharing_ms": 3_000,
        "checking_ms": 2_000,
        "unmasking_ms": 1_000,
    }
    return started(**(values | changes))


def advertising(count: int = 4, **changes: Any) -> RoundState:
    return run(sealed_started(**changes), seen(count), fixed(count))[0]


def sharing(count: int = 4) -> RoundState:
    return run(keys(*range(count)), state=advertising(count))[0]


#: A cohort whose graph is not complete.
MANY = 51


def many(**changes: Any) -> RoundState:
    sizes = {"target_clients": 40, "wanted_clients": MANY, "max_clients": MANY, "min_clients": 30}
    return advertising(MANY, **(sizes | changes))


def revealing() -> RoundState:
    return run(keys(*range(MANY)), state=many())[0]


def sealed_collecting() -> RoundState:
    return run(dealt(0, 1, 2, 3), state=sharing())[0]


def checking() -> RoundState:
    return run(stored(0, 1, 2), state=sealed_collecting())[0]


def unmasking() -> RoundState:
    return run(signed(0, 1, 2), state=checking())[0]


def sealed_aggregating() -> RoundState:
    return run(released(0, 1, 2, enough=True), state=unmasking())[0]


def sealed_releasing() -> RoundState:
    return run(ready(), state=sealed_aggregating())[0]


# --- grouped rounds -----------------------------------------------------------------------------

#: A roster that makes two groups, of the even and of the odd numbers.
TWELVE = 12
EVEN = tuple(range(0, TWELVE, 2))
ODD = tuple(range(1, TWELVE, 2))


def drawn(count: int = TWELVE) -> GroupsDrawn:
    """Two groups in which four shares give a secret back."""
    names = clients(count)
    groups = tuple(Group(clients=names[first::2], threshold=4) for first in range(2))
    return GroupsDrawn(at_ms=START_MS + 225, groups=groups)


def grouped_started(**changes: Any) -> RoundStarted:
    """Five of a group must survive, and five in all."""
    values: dict[str, Any] = {
        "mode": "grouped",
        "groups": 2,
        "min_group_survivors": 5,
        "min_clients": 5,
        "target_clients": 10,
        "wanted_clients": TWELVE,
        "max_clients": TWELVE,
    }
    return sealed_started(**(values | changes))


def grouped_advertising(**changes: Any) -> RoundState:
    return run(grouped_started(**changes), seen(TWELVE), fixed(TWELVE))[0]


def grouped_revealing(**changes: Any) -> RoundState:
    return run(keys(*range(TWELVE)), state=grouped_advertising(**changes))[0]


def undrawn(**changes: Any) -> RoundState:
    """Within the step into SHARING_KEYS, before its groups come in."""
    return run(nonces(*range(TWELVE)), state=grouped_revealing(**changes))[0]


def grouped_sharing(**changes: Any) -> RoundState:
    return run(drawn(), state=undrawn(**changes))[0]


def grouped_collecting(**changes: Any) -> RoundState:
    return run(dealt(*range(TWELVE)), state=grouped_sharing(**changes))[0]


def grouped_checking() -> RoundState:
    return run(stored(*range(TWELVE)), state=grouped_collecting())[0]


def grouped_unmasking() -> RoundState:
    return run(signed(*range(TWELVE)), state=grouped_checking())[0]


def grouped_aggregating() -> RoundState:
    return run(released(*range(TWELVE), enough=True), state=grouped_unmasking())[0]


def grouped_releasing() -> RoundState:
    return run(ready(TWELVE), state=grouped_aggregating())[0]
