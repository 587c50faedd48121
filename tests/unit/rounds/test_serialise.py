"""Events and states survive storage, and what is not one of ours is refused."""

from __future__ import annotations

import json
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_mesh.rounds import event as events
from boltz_mesh.rounds.serialise import (
    event_kind,
    event_of,
    event_payload,
    state_of,
    state_payload,
)
from boltz_mesh.rounds.state import Group
from tests.unit.rounds.rounds import (
    advertising,
    aggregating,
    checking,
    collecting,
    dropped,
    grouped_aggregating,
    grouped_checking,
    grouped_collecting,
    grouped_sharing,
    grouped_unmasking,
    keys,
    parameters,
    releasing,
    revealing,
    run,
    sealed_aggregating,
    sealed_collecting,
    sealed_releasing,
    selecting,
    sharing,
    signed,
    unmasking,
)

TEXT = st.text(max_size=8)
MS = st.integers(0, 2**53)
FINITE = st.floats(allow_nan=False, allow_infinity=False)

EVENTS = st.one_of(
    st.builds(events.RoundStarted, at_ms=MS, parameters=st.just(parameters())),
    st.builds(events.CandidatesSeen, at_ms=MS, candidates=st.frozensets(TEXT), over_budget=MS),
    st.builds(
        events.RosterFixed,
        at_ms=MS,
        roster=st.lists(TEXT).map(tuple),
        config_digest=TEXT,
        deadline_ms=MS,
    ),
    st.builds(events.UpdatesStored, at_ms=MS, clients=st.frozensets(TEXT)),
    *(
        st.builds(kind, at_ms=MS, clients=st.frozensets(TEXT))
        for kind in (
            events.KeysAdvertised,
            events.NoncesRevealed,
            events.SharesDealt,
            events.SurvivorsSigned,
        )
    ),
    st.builds(
        events.GroupsDrawn,
        at_ms=MS,
        groups=st.lists(
            st.builds(Group, clients=st.lists(TEXT).map(tuple), threshold=MS), max_size=3
        ).map(tuple),
    ),
    st.builds(events.SharesReleased, at_ms=MS, clients=st.frozensets(TEXT), enough=st.booleans()),
    st.builds(events.ClientsDropped, at_ms=MS, clients=st.dictionaries(TEXT, TEXT)),
    st.builds(events.DeadlineReached, at_ms=MS),
    st.builds(events.AbortRequested, at_ms=MS, by=TEXT, reason=TEXT),
    st.builds(
        events.AggregateReady,
        at_ms=MS,
        aggregate_digest=TEXT,
        survivors=MS,
        total_weight=MS,
        metrics=st.dictionaries(TEXT, FINITE),
    ),
    st.builds(events.AggregateRejected, at_ms=MS, reason=TEXT),
    st.builds(events.VersionPublished, at_ms=MS, version=MS, model_digest=TEXT),
    st.builds(events.PublishRejected, at_ms=MS, reason=TEXT),
    st.builds(events.Recovered, at_ms=MS, down_ms=MS),
)


@given(EVENTS)
def test_every_event_comes_back(event: events.Event) -> None:
    payload = event_payload(event)
    assert payload["type"] == event_kind(event)
    stored = json.loads(json.dumps(payload, allow_nan=False))
    assert event_of(stored) == event
    # PostgreSQL's jsonb orders keys in its own way.
    assert event_of(dict(reversed(stored.items()))) == event


def test_the_strategy_above_knows_every_event() -> None:
    assert len(get_args(events.Event)) == 18


def test_every_state_comes_back() -> None:
    aborted, _ = run(
        events.AbortRequested(at_ms=1, by="operator/ann", reason="why not"), state=selecting()
    )
    published, _ = run(
        events.VersionPublished(at_ms=1, version=2, model_digest="00"), state=releasing()
    )
    sealed = (
        run(keys(1), dropped(0), state=advertising())[0],
        sharing(),
        sealed_collecting(),
        run(signed(1), dropped(0), state=checking())[0],
        unmasking(),
        sealed_aggregating(),
        sealed_releasing(),
    )
    grouped = (
        grouped_sharing(),
        grouped_collecting(),
        grouped_checking(),
        grouped_unmasking(),
        grouped_aggregating(),
    )
    plain = (selecting(), collecting(), aggregating(), releasing(), aborted, published)
    for state in (*plain, *sealed, *grouped):
        stored = json.loads(json.dumps(state_payload(state)))
        assert state_of(stored) == state
        assert stored["type"] == state.phase
    stored = json.loads(json.dumps(state_payload(revealing())))
    assert state_of(stored) == revealing()
    assert stored["type"] == "REVEALING_NONCES"


def test_a_round_from_before_sealed_rounds_is_an_open_one() -> None:
    stored = state_payload(selecting())
    for name in ("mode", "advertising_ms", "sharing_ms", "checking_ms", "unmasking_ms"):
        del stored["parameters"][name]
    state = state_of(stored)
    assert not state.parameters.is_sealed


def test_a_round_from_before_grouped_rounds_has_no_groups() -> None:
    stored = state_payload(sealed_collecting())
    for name in ("groups", "min_group_survivors"):
        del stored["parameters"][name]
    del stored["groups"]
    assert state_of(stored) == sealed_collecting()


def test_equal_sets_give_equal_bytes() -> None:
    first = events.UpdatesStored(at_ms=1, clients=frozenset(["a", "b", "c"]))
    second = events.UpdatesStored(at_ms=1, clients=frozenset(["c", "b", "a"]))
    assert json.dumps(event_payload(first)) == json.dumps(event_payload(second))


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"type": "Unheard", "at_ms": 1},
        {"type": "DeadlineReached"},
        {"type": "DeadlineReached", "at_ms": 1, "more": 2},
        {"type": "DeadlineReached", "at_ms": "1"},
        {"type": "UpdatesStored", "at_ms": 1, "clients": "ab"},
    ],
)
def test_what_is_not_an_event_is_refused(payload: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        event_of(payload)


def test_what_is_not_a_state_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        state_of({"type": "LINGERING"})
