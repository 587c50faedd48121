"""Facts become events: whole batches, updates first."""

from __future__ import annotations

import pytest

from boltz_mesh.rounds.event import (
    AbortRequested,
    ClientsDropped,
    KeysAdvertised,
    NoncesRevealed,
    SharesDealt,
    SharesReleased,
    SurvivorsSigned,
    UpdatesStored,
)
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


ANSWERS = [
    (FactKind.KEYS_ADVERTISED, KeysAdvertised),
    (FactKind.NONCE_REVEALED, NoncesRevealed),
    (FactKind.SHARES_DEALT, SharesDealt),
    (FactKind.UPDATE_STORED, UpdatesStored),
    (FactKind.SURVIVORS_SIGNED, SurvivorsSigned),
    (FactKind.SHARES_RELEASED, SharesReleased),
]


def test_answers_come_in_the_order_of_the_phases_and_before_dropouts_and_aborts() -> None:
    facts = [abort("ann"), dropped("a")]
    facts.extend(Fact(kind, client, {}) for kind, _ in reversed(ANSWERS) for client in "ba")
    made = events_of(facts, 7)
    assert made[:6] == tuple(kind(at_ms=7, clients=frozenset("ab")) for _, kind in ANSWERS)
    assert [type(event) for event in made[6:]] == [ClientsDropped, AbortRequested]


def test_the_caller_says_whether_the_released_shares_are_enough() -> None:
    release = Fact(FactKind.SHARES_RELEASED, "a", {})
    enough = SharesReleased(at_ms=7, clients=frozenset("a"), enough=True)
    assert events_of([release], 7, enough=True) == (enough,)
    assert events_of([stored("a")], 7, enough=True) == (
        UpdatesStored(at_ms=7, clients=frozenset("a")),
    )


@pytest.mark.parametrize(
    "kind", [kind for kind in FactKind if kind is not FactKind.ABORT_REQUESTED]
)
def test_a_fact_about_nobody_is_a_defect(kind: FactKind) -> None:
    with pytest.raises(AssertionError):
        events_of([Fact(kind, None, {"reason": LEFT})], 7)
