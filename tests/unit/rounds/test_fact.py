"""Facts become events: whole batches, updates first."""

from __future__ import annotations

import pytest

from boltz_mesh.rounds.event import AbortRequested, ClientsDropped, UpdatesStored
from boltz_mesh.rounds.fact import LEFT, Fact, FactKind, events_of


def stored(client: str) -> Fact:
    return Fact(FactKind.UPDATE_STORED, client, {})


def dropped(client: str, reason: str = LEFT) -> Fact:
    return Fact(FactKind.CLIENT_DROPPED, client, {"reason": reason})


def abort(by: str) -> Fact:
    return Fact(FactKind.ABORT_REQUESTED, None, {"by": by, "reason": "enough"})


def test_a_batch_becomes_one_event_of_each_kind_with_updates_first() -> None:
    facts = [abort("ann"), dropped("c", "DECLINED"), stored("b"), dropped("c"), stored("a")]
    assert events_of([*facts, abort("bob"), stored("a")], 7) == (
        UpdatesStored(at_ms=7, clients=frozenset("ab")),
        ClientsDropped(at_ms=7, clients={"c": "DECLINED"}),
        AbortRequested(at_ms=7, by="ann", reason="enough"),
    )


def test_nothing_makes_no_event() -> None:
    assert events_of([], 7) == ()


@pytest.mark.parametrize("kind", [FactKind.UPDATE_STORED, FactKind.CLIENT_DROPPED])
def test_a_fact_about_nobody_is_a_defect(kind: FactKind) -> None:
    with pytest.raises(AssertionError):
        events_of([Fact(kind, None, {"reason": LEFT})], 7)
