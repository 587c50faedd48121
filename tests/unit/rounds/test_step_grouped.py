"""Grouped rounds: the way of a sealed one, with a minimum for each group."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from boltz_mesh.rounds.charge import charges
from boltz_mesh.rounds.effect import Announce, ScheduleDeadline
from boltz_mesh.rounds.event import GroupsDrawn
from boltz_mesh.rounds.groups import GROUP_TOO_SMALL, in_strong_groups
from boltz_mesh.rounds.quota import updates_awaited
from boltz_mesh.rounds.state import (
    Aborted,
    Aggregating,
    CheckingConsistency,
    Collecting,
    Group,
    RevealingNonces,
    RoundState,
    Selecting,
    SharingKeys,
    Unmasking,
)
from boltz_mesh.rounds.step import step
from tests.unit.rounds.rounds import (
    EVEN,
    LATER,
    ODD,
    START_MS,
    TWELVE,
    clients,
    deadline,
    dealt,
    drawn,
    dropped,
    grouped_advertising,
    grouped_checking,
    grouped_collecting,
    grouped_revealing,
    grouped_sharing,
    grouped_started,
    grouped_unmasking,
    keys,
    nonces,
    parameters,
    ready,
    released,
    run,
    sealed_collecting,
    seen,
    signed,
    stored,
    undrawn,
)

ALL = tuple(range(TWELVE))


def reason(state: RoundState) -> tuple[str, bool]:
    assert isinstance(state, Aborted)
    return state.reason, state.charged


def ordered(*indexes: int) -> tuple[str, ...]:
    return tuple(f"client-{index}" for index in sorted(indexes))


# --- selection and keys -------------------------------------------------------------------------


def test_a_roster_fills_all_groups_or_there_is_none() -> None:
    # Five survivors would do, but ten clients make two groups.
    state, _ = run(grouped_started(), seen(9), deadline())
    assert reason(state) == ("TOO_FEW_CLIENTS", False)
    state, _ = run(grouped_started(), seen(9, over_budget=1), deadline())
    assert reason(state) == ("BUDGET_EXCEEDED", False)
    state, _ = run(grouped_started(), seen(10), deadline())
    assert isinstance(state, Selecting)
    assert state.choosing


def test_nonces_are_revealed_however_few_the_members() -> None:
    state, effects = run(keys(*ALL), state=grouped_advertising())
    assert isinstance(state, RevealingNonces)
    assert state.members == clients(TWELVE)
    assert effects == (ScheduleDeadline(START_MS + 4_210), Announce())


@pytest.mark.parametrize(
    ("make", "answer"), [(grouped_advertising, keys), (grouped_revealing, nonces)]
)
def test_fewer_than_five_a_group_are_too_few(
    make: Callable[[], RoundState], answer: Callable[..., object]
) -> None:
    state, _ = run(answer(*range(9)), deadline(), state=make())  # type: ignore[arg-type]
    assert reason(state) == ("TOO_FEW_KEYS", False)
    state, _ = run(dropped(0, 1, 2), state=make())
    assert reason(state) == ("TOO_FEW_KEYS", False)
    state, _ = run(answer(*range(10)), deadline(), state=make())  # type: ignore[arg-type]
    assert not isinstance(state, Aborted)


def test_the_groups_come_in_with_the_step_that_asks_for_shares() -> None:
    state, _ = run(nonces(*ALL), state=grouped_revealing())
    assert isinstance(state, SharingKeys)
    assert state.groups == ()
    state, effects = step(state, drawn())
    assert isinstance(state, SharingKeys)
    assert effects == ()
    assert [group.clients for group in state.groups] == [ordered(*EVEN), ordered(*ODD)]


def test_groups_are_those_of_the_graph_members_and_drawn_once() -> None:
    event = drawn()
    first, second = event.groups
    wrong = [
        (first,),
        (first, second, Group(clients=(), threshold=4)),
        (first, first),
        (first, Group(clients=second.clients[1:], threshold=4)),
        (first, Group(clients=(*second.clients, "client-99"), threshold=4)),
    ]
    for groups in wrong:
        with pytest.raises(AssertionError):
            step(undrawn(), GroupsDrawn(at_ms=START_MS, groups=groups))
    with pytest.raises(AssertionError):
        step(grouped_sharing(), event)
    with pytest.raises(AssertionError):
        run(dealt(*ALL), state=undrawn())


def test_who_left_in_the_very_step_is_missing_in_its_group() -> None:
    # With four of six in the first group only the second can have a sum.
    state, _ = run(dropped(0, 2), drawn(), state=undrawn())
    assert isinstance(state, SharingKeys)
    state, _ = run(dealt(*ALL), state=state)
    assert isinstance(state, Collecting)
    assert state.participants == ordered(*ODD)
    state, _ = run(dropped(0, 1, 2, 3), drawn(), state=undrawn())
    assert reason(state) == ("TOO_FEW_SHARES", False)


def test_sharers_of_a_group_that_is_too_small_do_not_upload() -> None:
    state, _ = run(dealt(*EVEN), dealt(1, 3, 5, 7), deadline(), state=grouped_sharing())
    assert isinstance(state, Collecting)
    assert state.participants == ordered(*EVEN)
    assert len(state.groups) == 2
    state, _ = run(dealt(0, 2, 4, 6, 1, 3, 5, 7), deadline(), state=grouped_sharing())
    assert reason(state) == ("TOO_FEW_SHARES", False)


def test_no_strong_group_left_ends_the_sharing_at_once() -> None:
    state, _ = run(dropped(0, 2), dropped(1), dropped(3), state=grouped_sharing())
    assert reason(state) == ("TOO_FEW_SHARES", False)
    state, _ = run(dropped(0, 2), dropped(1), state=grouped_sharing())
    assert isinstance(state, SharingKeys)


# --- COLLECTING ---------------------------------------------------------------------------------


def test_the_target_waits_for_a_group_that_can_still_become_strong() -> None:
    # Ten updates are aimed at; six and four are there, and two may follow.
    state, _ = run(stored(*EVEN, 1, 3, 5, 7), state=grouped_collecting())
    assert isinstance(state, Collecting)
    state, _ = run(stored(9), state=state)
    assert isinstance(state, CheckingConsistency)
    assert state.survivors == ordered(*EVEN, 1, 3, 5, 7, 9)
    assert state.dropped == {}


def test_the_target_does_not_wait_for_a_group_that_cannot() -> None:
    collecting = grouped_collecting(target_clients=5)
    state, _ = run(stored(*EVEN), state=collecting)
    assert isinstance(state, Collecting)
    state, _ = run(dropped(1, 3), state=state)
    assert isinstance(state, CheckingConsistency)
    assert state.survivors == ordered(*EVEN)


def test_a_weak_group_is_left_out_whatever_it_uploaded() -> None:
    state, _ = run(
        stored(*EVEN, 1, 3, 5, 7), dropped(9), dropped(11, 7), state=grouped_collecting()
    )
    assert isinstance(state, CheckingConsistency)
    assert state.sharers == clients(TWELVE)
    assert state.survivors == ordered(*EVEN)
    # Nobody of it is waited for; who had left keeps its own reason.
    assert state.dropped == dict.fromkeys(ordered(1, 3, 5), GROUP_TOO_SMALL) | dict.fromkeys(
        ordered(7, 9, 11), "declined"
    )


def test_the_deadline_counts_strong_groups_only() -> None:
    state, _ = run(stored(0, 2, 4, 6, 8, 1, 3), deadline(), state=grouped_collecting())
    assert isinstance(state, CheckingConsistency)
    assert state.survivors == ordered(0, 2, 4, 6, 8)
    # Eight updates, and no group with five.
    state, _ = run(stored(0, 2, 4, 6, 1, 3, 5, 7), deadline(), state=grouped_collecting())
    assert reason(state) == ("TOO_FEW_UPDATES", False)


def test_no_group_that_could_become_strong_ends_the_round_at_once() -> None:
    state, _ = run(stored(0, 2, 4, 6), dropped(8, 10, 9), state=grouped_collecting())
    assert isinstance(state, Collecting)
    state, _ = run(dropped(11), state=state)
    assert reason(state) == ("TOO_FEW_UPDATES", False)


def test_one_group_is_not_enough_where_the_plan_wants_more_survivors() -> None:
    state, _ = run(
        stored(*EVEN, 1, 3, 5, 7), dropped(9, 11), state=grouped_collecting(min_clients=7)
    )
    assert reason(state) == ("TOO_FEW_UPDATES", False)


def test_a_group_is_held_to_its_threshold_too() -> None:
    state = grouped_collecting(min_group_survivors=3, min_clients=3)
    state, _ = run(stored(0, 2, 4, 1, 3, 5, 7), deadline(), state=state)
    assert isinstance(state, CheckingConsistency)
    assert state.survivors == ordered(1, 3, 5, 7)


def test_without_groups_everybody_counts() -> None:
    assert in_strong_groups(parameters(), (), ["b", "a"]) == {"a", "b"}
    assert updates_awaited(grouped_started().parameters, TWELVE) == 10


# --- from the frozen survivors on ---------------------------------------------------------------


def half() -> RoundState:
    """The odd group is left out, though four of it hold receipts."""
    return run(stored(*EVEN, 1, 3, 5, 7), deadline(), state=grouped_collecting())[0]


def test_nobody_of_another_group_is_asked_waited_for_or_charged() -> None:
    checking = half()
    before, _ = run(signed(*EVEN[:-1]), state=checking)
    assert isinstance(before, CheckingConsistency)
    state, _ = run(signed(EVEN[-1]), state=before)
    assert isinstance(state, Unmasking)
    assert charges(before, state) == ordered(*EVEN)
    assert state.outstanding() == len(EVEN)
    state, _ = run(released(*EVEN, enough=True), state=state)
    assert isinstance(state, Aggregating)
    assert (state.survivors, len(state.groups)) == (ordered(*EVEN), 2)


def test_signatures_of_a_group_left_out_do_not_replace_missing_ones() -> None:
    state, _ = run(signed(1, 3, 5, 7, 0), deadline(LATER + 2_000), state=half())
    assert reason(state) == ("TOO_FEW_SIGNATURES", False)
    state, _ = run(dropped(0, 2), state=half())
    assert reason(state) == ("TOO_FEW_SIGNATURES", False)


def test_a_receipt_of_a_group_left_out_is_no_defect() -> None:
    checking = half()
    unmasking, _ = run(signed(*EVEN), state=checking)
    aggregating, _ = run(released(*EVEN, enough=True), state=unmasking)
    releasing, _ = run(ready(len(EVEN)), state=aggregating)
    for state in (checking, unmasking, aggregating, releasing):
        assert step(state, stored(1)) == (state, ())
    # A new one in a group that has survivors is.
    state, _ = run(stored(*range(11)), state=grouped_collecting())
    with pytest.raises(AssertionError):
        step(state, stored(11))


def test_the_groups_go_along() -> None:
    for state in (grouped_collecting(), grouped_checking(), grouped_unmasking()):
        assert isinstance(state, Collecting | CheckingConsistency | Unmasking)
        assert state.groups == drawn().groups
    sealed = sealed_collecting()
    assert isinstance(sealed, Collecting)
    assert sealed.groups == ()


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": 3},  # of at most twelve clients
        {"max_clients": 101},
        {"min_group_survivors": 2},
        {"mode": "sealed"},
        {"least_groups": 3},
    ],
)
def test_parameters_that_do_not_go_together_are_a_defect(changes: dict[str, object]) -> None:
    with pytest.raises(AssertionError):
        grouped_started(**changes)


# --- a rule that compares groups ----------------------------------------------------------------


def test_nothing_is_opened_where_fewer_groups_are_left_than_the_rule_compares() -> None:
    # In SHARING_KEYS and in COLLECTING, at once and at the deadline; nobody is charged.
    both = {"least_groups": 2}
    state, _ = run(dropped(0, 2), state=grouped_sharing(**both))
    assert reason(state) == ("TOO_FEW_SHARES", False)
    state, _ = run(stored(*EVEN), dropped(1, 3), state=grouped_collecting(**both))
    assert reason(state) == ("TOO_FEW_UPDATES", False)
    state, _ = run(stored(*EVEN, 1, 3, 5, 7), deadline(), state=grouped_collecting(**both))
    assert reason(state) == ("TOO_FEW_UPDATES", False)


def test_the_target_waits_for_as_many_groups_as_the_rule_compares() -> None:
    collecting = grouped_collecting(least_groups=2, target_clients=5)
    state, _ = run(stored(*EVEN), state=collecting)
    assert isinstance(state, Collecting)
    state, _ = run(stored(1, 3, 5, 7, 9), state=state)
    assert isinstance(state, CheckingConsistency)
    assert state.survivors == ordered(*EVEN, 1, 3, 5, 7, 9)
