"""Who is charged, by which step: once, and before the server can learn anything."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from boltz_mesh.rounds.charge import charges, is_charged
from boltz_mesh.rounds.event import AbortRequested, AggregateRejected, Event, VersionPublished
from boltz_mesh.rounds.state import Aborted, RoundState
from boltz_mesh.rounds.step import step
from tests.unit.rounds.rounds import (
    LATER,
    advertising,
    aggregating,
    checking,
    clients,
    collecting,
    deadline,
    dealt,
    dropped,
    fixed,
    keys,
    ready,
    released,
    run,
    sealed_collecting,
    sealed_started,
    seen,
    sharing,
    signed,
    started,
    stored,
    unmasking,
)

STOP = AbortRequested(at_ms=LATER, by="operator/ann", reason="stop")
REJECTED = AggregateRejected(at_ms=LATER, reason="norm")
PUBLISHED = VersionPublished(at_ms=LATER, version=2, model_digest="00")
OPEN: list[Event] = [started(), seen(4), fixed(), stored(0, 1, 2), ready(), PUBLISHED]
SEALED: list[Event] = [
    sealed_started(),
    seen(4),
    fixed(),
    keys(0, 1, 2, 3),
    dealt(0, 1, 2, 3),
    stored(0, 1, 2),
    signed(0, 1, 2),
    released(0, 1, 2, enough=True),
    ready(),
    PUBLISHED,
]


def charged_by(life: list[Event]) -> list[str]:
    """The events whose steps charge; each must charge the three survivors."""
    state: RoundState | None = None
    found = []
    for event in life:
        after, _ = step(state, event)
        charge = charges(state, after)
        if charge:
            assert charge == clients(3)
            assert is_charged(after)
            found.append(type(event).__name__)
        state = after
    return found


def test_an_open_round_charges_with_its_aggregate() -> None:
    assert charged_by(OPEN) == ["AggregateReady"]
    assert charged_by([*OPEN[:4], REJECTED]) == ["AggregateRejected"]


def test_a_sealed_round_charges_when_it_starts_to_unmask() -> None:
    assert charged_by(SEALED) == ["SurvivorsSigned"]
    assert charged_by([*SEALED[:8], REJECTED]) == ["SurvivorsSigned"]
    assert charged_by([*SEALED[:6], signed(0, 1), deadline()]) == ["DeadlineReached"]


@pytest.mark.parametrize("life", [OPEN, SEALED])
@pytest.mark.parametrize("end", [STOP, deadline()])
def test_whatever_ends_a_round_it_is_charged_at_most_once(life: list[Event], end: Event) -> None:
    for count in range(1, len(life) + 1):
        state: RoundState | None = None
        charged = 0
        for event in [*life[:count], end, end]:
            after, _ = step(state, event)
            charged += bool(charges(state, after))
            state = after
        assert charged == is_charged(state)
        if isinstance(state, Aborted):
            assert state.charged == bool(charged)


@pytest.mark.parametrize(
    "make", [lambda: None, advertising, sharing, sealed_collecting, checking, collecting]
)
def test_before_that_nobody_is_charged(make: Callable[[], RoundState | None]) -> None:
    assert not is_charged(make())


def test_a_transaction_of_several_steps_charges_like_its_steps() -> None:
    for before, events in (
        (checking(), [signed(0, 1, 2), STOP]),
        (checking(), [signed(0, 1, 2), dropped(0, 1, 2, 3)]),
        (checking(), [signed(0, 1), deadline()]),
        (aggregating(), [REJECTED]),
    ):
        after, _ = run(*events, state=before)
        assert charges(before, after) == clients(3)
    after, _ = run(released(0, enough=True), ready(), PUBLISHED, state=unmasking())
    assert charges(unmasking(), after) == ()
    after, _ = run(STOP, state=checking())
    assert charges(checking(), after) == ()


def test_a_charge_without_frozen_survivors_is_a_defect() -> None:
    charged = Aborted(parameters=sealed_started().parameters, reason="", by="", charged=True)
    with pytest.raises(AssertionError):
        charges(sealed_collecting(), charged)
