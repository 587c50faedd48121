"""What every event does in every state: a table for each mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest

from boltz_mesh.rounds import event as events
from boltz_mesh.rounds import state as states
from boltz_mesh.rounds.step import pending, step
from tests.unit.rounds.rounds import (
    LATER,
    advertising,
    aggregating,
    checking,
    collecting,
    deadline,
    dealt,
    drawn,
    dropped,
    fixed,
    grouped_advertising,
    grouped_aggregating,
    grouped_checking,
    grouped_collecting,
    grouped_releasing,
    grouped_revealing,
    grouped_sharing,
    grouped_started,
    grouped_unmasking,
    keys,
    nonces,
    ready,
    released,
    releasing,
    revealing,
    run,
    sealed_aggregating,
    sealed_collecting,
    sealed_releasing,
    sealed_started,
    seen,
    selecting,
    sharing,
    signed,
    started,
    stored,
    undrawn,
    unmasking,
)

PUBLISHED = events.VersionPublished(at_ms=LATER, version=2, model_digest="00")
STOP = events.AbortRequested(at_ms=LATER, by="operator/ann", reason="stop")

#: Of every kind one event, as a round in order would see it.
EVENTS: dict[str, events.Event] = {
    "RoundStarted": started(),
    "CandidatesSeen": seen(5),
    "RosterFixed": fixed(),
    "KeysAdvertised": keys(0),
    "NoncesRevealed": nonces(0),
    "GroupsDrawn": drawn(),
    "SharesDealt": dealt(0),
    "UpdatesStored": stored(0),
    "SurvivorsSigned": signed(0),
    "SharesReleased": released(0, enough=True),
    "ClientsDropped": dropped(0),
    "DeadlineReached": deadline(),
    "AbortRequested": STOP,
    "AggregateReady": ready(),
    "AggregateRejected": events.AggregateRejected(at_ms=LATER, reason="norm"),
    "VersionPublished": PUBLISHED,
    "PublishRejected": events.PublishRejected(at_ms=LATER, reason="overflow"),
    "Recovered": events.Recovered(at_ms=LATER, down_ms=5),
}

OPEN: dict[str, Callable[[], states.RoundState | None]] = {
    "none": lambda: None,
    "selecting": selecting,
    "collecting": collecting,
    "aggregating": aggregating,
    "releasing": releasing,
    "published": lambda: run(PUBLISHED, state=releasing())[0],
    "aborted": lambda: run(STOP, state=collecting())[0],
}
SEALED: dict[str, Callable[[], states.RoundState | None]] = {
    "none": lambda: None,
    "selecting": lambda: run(sealed_started())[0],
    "advertising": advertising,
    "revealing": revealing,
    "sharing": sharing,
    "collecting": sealed_collecting,
    "checking": checking,
    "unmasking": unmasking,
    "aggregating": sealed_aggregating,
    "releasing": sealed_releasing,
    "published": lambda: run(PUBLISHED, state=sealed_releasing())[0],
    "aborted": lambda: run(STOP, state=sealed_collecting())[0],
}
GROUPED: dict[str, Callable[[], states.RoundState | None]] = {
    "none": lambda: None,
    "selecting": lambda: run(grouped_started())[0],
    "advertising": grouped_advertising,
    "revealing": grouped_revealing,
    "undrawn": undrawn,
    "sharing": grouped_sharing,
    "collecting": grouped_collecting,
    "checking": grouped_checking,
    "unmasking": grouped_unmasking,
    "aggregating": grouped_aggregating,
    "releasing": grouped_releasing,
    "published": lambda: run(PUBLISHED, state=grouped_releasing())[0],
    "aborted": lambda: run(STOP, state=grouped_collecting())[0],
}

# x: a defect. =: ignored. +: the state stays in its phase but changes, or asks for something.
# A letter: the state it goes to. Capital: charged there.
LETTERS = {
    states.Selecting: "s",
    states.AdvertisingKeys: "a",
    states.RevealingNonces: "r",
    states.SharingKeys: "h",
    states.Collecting: "c",
    states.CheckingConsistency: "k",
    states.Unmasking: "u",
    states.Aggregating: "g",
    states.Releasing: "l",
    states.Published: "p",
    states.Aborted: "b",
}

#                     none sel col agg rel pub abo
OPEN_TABLE = """
    RoundStarted       s    x   x   x   x   x   x
    CandidatesSeen     x    +   =   =   =   =   =
    RosterFixed        x    x   x   x   x   x   x
    KeysAdvertised     x    x   x   x   x   x   x
    NoncesRevealed     x    x   x   x   x   x   x
    GroupsDrawn        x    x   x   x   x   x   x
    SharesDealt        x    x   x   x   x   x   x
    UpdatesStored      x    x   +   =   =   =   =
    SurvivorsSigned    x    x   x   x   x   x   x
    SharesReleased     x    x   x   x   x   x   x
    ClientsDropped     x    =   +   =   =   =   =
    DeadlineReached    x    b   b   b   B   =   =
    AbortRequested     x    b   b   b   =   =   =
    AggregateReady     x    x   x   l   x   x   x
    AggregateRejected  x    x   x   B   x   x   x
    VersionPublished   x    x   x   x   p   x   x
    PublishRejected    x    x   x   x   B   x   x
    Recovered          x    +   +   +   +   +   +
"""

#                     none sel adv rev sha col che unm agg rel pub abo
SEALED_TABLE = """
    RoundStarted       s    x   x   x   x   x   x   x   x   x   x   x
    CandidatesSeen     x    +   =   =   =   =   =   =   =   =   =   =
    RosterFixed        x    x   x   x   x   x   x   x   x   x   x   x
    KeysAdvertised     x    x   +   =   =   =   =   =   =   =   =   =
    NoncesRevealed     x    x   x   +   =   =   =   =   =   =   =   =
    GroupsDrawn        x    x   x   x   x   x   x   x   x   x   x   x
    SharesDealt        x    x   x   x   +   =   =   =   =   =   =   =
    UpdatesStored      x    x   x   x   x   +   =   =   =   =   =   =
    SurvivorsSigned    x    x   x   x   x   x   +   =   =   =   =   =
    SharesReleased     x    x   x   x   x   x   x   g   =   =   =   =
    ClientsDropped     x    =   +   +   +   +   +   +   =   =   =   =
    DeadlineReached    x    b   b   b   b   b   b   B   B   B   =   =
    AbortRequested     x    b   b   b   b   b   b   B   B   =   =   =
    AggregateReady     x    x   x   x   x   x   x   x   l   x   x   x
    AggregateRejected  x    x   x   x   x   x   x   x   B   x   x   x
    VersionPublished   x    x   x   x   x   x   x   x   x   p   x   x
    PublishRejected    x    x   x   x   x   x   x   x   x   B   x   x
    Recovered          x    +   +   +   +   +   +   +   +   +   +   +
"""

# Groups come in by the step that asks for shares.
#                     none sel adv rev und sha col che unm agg rel pub abo
GROUPED_TABLE = """
    RoundStarted       s    x   x   x   x   x   x   x   x   x   x   x   x
    CandidatesSeen     x    +   =   =   =   =   =   =   =   =   =   =   =
    RosterFixed        x    x   x   x   x   x   x   x   x   x   x   x   x
    KeysAdvertised     x    x   +   =   =   =   =   =   =   =   =   =   =
    NoncesRevealed     x    x   x   +   =   =   =   =   =   =   =   =   =
    GroupsDrawn        x    x   x   x   +   x   x   x   x   x   x   x   x
    SharesDealt        x    x   x   x   +   +   =   =   =   =   =   =   =
    UpdatesStored      x    x   x   x   x   x   +   =   =   =   =   =   =
    SurvivorsSigned    x    x   x   x   x   x   x   +   =   =   =   =   =
    SharesReleased     x    x   x   x   x   x   x   x   g   =   =   =   =
    ClientsDropped     x    =   +   +   +   +   +   +   +   =   =   =   =
    DeadlineReached    x    b   b   b   b   b   b   b   B   B   B   =   =
    AbortRequested     x    b   b   b   b   b   b   b   B   B   =   =   =
    AggregateReady     x    x   x   x   x   x   x   x   x   l   x   x   x
    AggregateRejected  x    x   x   x   x   x   x   x   x   B   x   x   x
    VersionPublished   x    x   x   x   x   x   x   x   x   x   p   x   x
    PublishRejected    x    x   x   x   x   x   x   x   x   x   B   x   x
    Recovered          x    +   +   +   +   +   +   +   +   +   +   +   +
"""


def cells(table: str, columns: dict[str, Callable[[], states.RoundState | None]]) -> list[object]:
    made: list[object] = []
    for line in table.strip().splitlines():
        name, *row = line.split()
        assert len(row) == len(columns)
        made.extend(
            pytest.param(make, name, cell, id=f"{column}-{name}")
            for (column, make), cell in zip(columns.items(), row, strict=True)
        )
    assert len(made) == len(columns) * len(get_args(events.Event))
    return made


def outcome(state: states.RoundState | None, event: events.Event) -> str:
    try:
        after, effects = step(state, event)
    except AssertionError:
        return "x"
    if type(after) is not type(state):
        assert effects == pending(after), "a phase begins without all its effects"
        letter = LETTERS[type(after)]
        return letter.upper() if isinstance(after, states.Aborted) and after.charged else letter
    return "=" if (after, effects) == (state, ()) else "+"


@pytest.mark.parametrize(
    ("make", "name", "cell"),
    [
        *cells(OPEN_TABLE, OPEN),
        *cells(SEALED_TABLE, SEALED),
        *cells(GROUPED_TABLE, GROUPED),
    ],
)
def test_every_event_in_every_state(
    make: Callable[[], states.RoundState | None], name: str, cell: str
) -> None:
    state, event = make(), EVENTS[name]
    if isinstance(state, states.Aggregating) and isinstance(event, events.AggregateReady):
        event = ready(len(state.survivors))
    assert outcome(state, event) == cell


def test_the_tables_know_every_event_and_every_state() -> None:
    assert {type(event).__name__ for event in EVENTS.values()} == set(EVENTS)
    assert {kind.__name__ for kind in get_args(events.Event)} == set(EVENTS)
    assert set(get_args(states.RoundState)) == set(LETTERS)
    assert {type(make()) for make in SEALED.values()} - {type(None)} == set(LETTERS)
