"""The phases of sealed rounds: who is asked, who is waited for, who counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest

from boltz_mesh.rounds.effect import Aggregate, Announce, CleanUp, ScheduleDeadline
from boltz_mesh.rounds.event import AbortRequested, AggregateRejected, Event, Recovered
from boltz_mesh.rounds.state import (
    BY_RULES,
    Aborted,
    AdvertisingKeys,
    Aggregating,
    CheckingConsistency,
    Collecting,
    KeyPhase,
    Phase,
    Releasing,
    RevealingNonces,
    RoundState,
    SharingKeys,
    Unmasking,
    deadline_of,
)
from boltz_mesh.rounds.step import pending, step
from tests.unit.rounds.rounds import (
    LATER,
    MANY,
    START_MS,
    advertising,
    checking,
    clients,
    deadline,
    dealt,
    dropped,
    fixed,
    keys,
    many,
    named,
    nonces,
    parameters,
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
    sharing,
    signed,
    stored,
    unmasking,
)

#: Of `fixed`: what the configuration promises.
COLLECTING_ENDS_MS = START_MS + 20_200
ANSWERS: dict[str, tuple[Callable[[], RoundState], Callable[..., Event], str]] = {
    "advertising": (advertising, keys, "TOO_FEW_KEYS"),
    "sharing": (sharing, dealt, "TOO_FEW_SHARES"),
}
IN_KEY_PHASES = pytest.mark.parametrize(("make", "answer", "reason"), ANSWERS.values(), ids=ANSWERS)


def abort() -> AbortRequested:
    return AbortRequested(at_ms=START_MS, by="operator/ann", reason="a wrong plan")


def ended(state: RoundState) -> tuple[str, str, bool]:
    assert isinstance(state, Aborted)
    return state.reason, state.by, state.charged


def on(state: RoundState) -> tuple[str, ...]:
    """Who was taken along into the state."""
    match state:
        case SharingKeys():
            return state.graph_members
        case Collecting():
            return state.participants
        case _:
            raise AssertionError(state.phase)


# --- key phases ---------------------------------------------------------------------------------


def test_the_roster_is_asked_for_keys() -> None:
    state, effects = run(sealed_started(), seen(4), fixed())
    assert state == AdvertisingKeys(
        parameters=sealed_started().parameters,
        roster=clients(4),
        config_digest="ab" * 32,
        collecting_deadline_ms=COLLECTING_ENDS_MS,
        deadline_ms=START_MS + 4_200,
    )
    assert state.phase is Phase.ADVERTISING_KEYS
    assert effects == (ScheduleDeadline(START_MS + 4_200), Announce())


def test_a_small_cohort_shares_keys_in_a_complete_graph_at_once() -> None:
    state, effects = run(keys(3, 1), keys(0, 2, at_ms=START_MS + 500), state=advertising())
    assert isinstance(state, SharingKeys)
    assert (state.graph_members, state.shared) == (clients(4), frozenset())
    assert effects == (ScheduleDeadline(START_MS + 3_500), Announce())


def test_a_large_cohort_reveals_nonces_first() -> None:
    state, effects = run(keys(*range(MANY)), state=many())
    assert isinstance(state, RevealingNonces)
    assert state.phase is Phase.ADVERTISING_KEYS
    assert state.members == clients(MANY)
    assert effects == (ScheduleDeadline(START_MS + 4_210), Announce())
    # One less, and the graph is complete.
    state, _ = run(dropped(7), keys(*range(MANY)), state=many())
    assert isinstance(state, SharingKeys)
    assert len(state.graph_members) == MANY - 1


def test_who_reveals_no_nonce_is_not_in_the_graph() -> None:
    state, _ = run(nonces(*range(1, MANY)), deadline(), state=revealing())
    assert isinstance(state, SharingKeys)
    assert state.graph_members == clients(MANY)[1:]
    assert state.roster == clients(MANY)
    state, _ = run(nonces(*range(29)), deadline(), state=revealing())
    assert ended(state) == ("TOO_FEW_KEYS", BY_RULES, False)
    state, _ = run(dropped(*range(22)), state=revealing())
    assert ended(state) == ("TOO_FEW_KEYS", BY_RULES, False)


def test_sharers_alone_take_part_in_the_collection() -> None:
    state, effects = run(dealt(2, 0), dealt(3), dropped(1), state=sharing())
    assert isinstance(state, Collecting)
    assert state.participants == ("client-0", "client-2", "client-3")
    assert state.graph_members == clients(4)
    assert state.dropped == {}
    # Quick key phases leave the whole rest of the time.
    assert effects == (ScheduleDeadline(COLLECTING_ENDS_MS), Announce())
    with pytest.raises(AssertionError):
        step(state, stored(1))


@IN_KEY_PHASES
def test_a_key_phase_waits_for_those_it_asked(
    make: Callable[[], RoundState], answer: Callable[..., Event], reason: str
) -> None:
    state, effects = run(answer(0, 1), answer(0, 1), answer(2), state=make())
    assert type(state) is type(make())
    assert effects == ()
    state, _ = run(answer(3), state=state)
    assert on(state) == clients(4)


@IN_KEY_PHASES
def test_its_deadline_takes_those_who_have_answered(
    make: Callable[[], RoundState], answer: Callable[..., Event], reason: str
) -> None:
    state, _ = run(answer(3, 1), deadline(), state=make())
    assert on(state) == ("client-1", "client-3")
    state, effects = run(answer(3), deadline(), state=make())
    assert ended(state) == (reason, BY_RULES, False)
    assert effects == (CleanUp(),)
    early = cast(int, deadline_of(make())) - 1
    assert step(make(), deadline(early)) == (make(), ())


@IN_KEY_PHASES
def test_a_dropout_is_not_waited_for_and_leaves_even_after_its_answer(
    make: Callable[[], RoundState], answer: Callable[..., Event], reason: str
) -> None:
    state, _ = run(answer(0, 1), dropped(1), dropped(2), answer(3), state=make())
    assert on(state) == ("client-0", "client-3")


@IN_KEY_PHASES
def test_a_dropout_stays_out(
    make: Callable[[], RoundState], answer: Callable[..., Event], reason: str
) -> None:
    # Its session is gone, and its secrets with it.
    first, _ = run(dropped(0), dropped(0, 9, reason="again"), answer(0), state=make())
    assert cast(KeyPhase, first).dropped == {"client-0": "declined"}
    state, _ = run(answer(1, 2, 3), state=first)
    assert on(state) == clients(4)[1:]


@IN_KEY_PHASES
def test_an_unreachable_minimum_ends_a_key_phase_at_once(
    make: Callable[[], RoundState], answer: Callable[..., Event], reason: str
) -> None:
    state, _ = run(answer(0, 1), dropped(0, 1, 2), state=make())
    assert ended(state) == (reason, BY_RULES, False)


@IN_KEY_PHASES
def test_an_answer_from_outside_is_a_defect(
    make: Callable[[], RoundState], answer: Callable[..., Event], reason: str
) -> None:
    with pytest.raises(AssertionError):
        step(make(), answer(9))


def test_no_key_phase_outlives_the_collection() -> None:
    state = advertising(advertising_ms=60_000, sharing_ms=60_000)
    assert deadline_of(state) == COLLECTING_ENDS_MS
    state, _ = run(keys(0, 1), deadline(COLLECTING_ENDS_MS), state=state)
    assert isinstance(state, SharingKeys)
    assert state.deadline_ms == COLLECTING_ENDS_MS


# --- COLLECTING ---------------------------------------------------------------------------------


def test_the_target_freezes_the_survivors() -> None:
    state, effects = run(stored(3), stored(2, 0), state=sealed_collecting())
    assert state == CheckingConsistency(
        parameters=sealed_started().parameters,
        graph_members=clients(4),
        sharers=clients(4),
        survivors=("client-0", "client-2", "client-3"),
        deadline_ms=START_MS + 2_300,
    )
    assert effects == (ScheduleDeadline(START_MS + 2_300), Announce())


def test_who_left_after_its_upload_counts_but_is_not_asked_to_sign() -> None:
    state, _ = run(
        stored(0), dropped(0), dropped(0, reason="again"), stored(1, 2), state=sealed_collecting()
    )
    assert isinstance(state, CheckingConsistency)
    assert state.survivors == clients(3)
    assert state.dropped == {"client-0": "declined"}
    state, _ = run(signed(1, 2), state=state)
    assert isinstance(state, Unmasking)
    assert state.survivors == clients(3)


def test_who_uploaded_after_its_dropout_counts_but_is_not_asked_to_sign() -> None:
    state, _ = run(dropped(0), stored(0, 1), deadline(), state=sealed_collecting())
    assert isinstance(state, CheckingConsistency)
    assert (state.survivors, state.dropped) == (clients(2), {"client-0": "declined"})


def test_survivors_that_have_all_left_end_the_round_uncharged() -> None:
    state, _ = run(
        stored(0, 1), dropped(0), dropped(1), dropped(2), stored(3), state=sealed_collecting()
    )
    assert ended(state) == ("TOO_FEW_SIGNATURES", BY_RULES, False)


# --- CHECKING_CONSISTENCY -----------------------------------------------------------------------


def test_every_survivor_signs_before_the_shares_are_released() -> None:
    state, effects = run(signed(0, 1), state=checking())
    assert isinstance(state, CheckingConsistency)
    assert effects == ()
    state, effects = run(signed(2, at_ms=START_MS + 600), state=state)
    assert state == Unmasking(
        parameters=sealed_started().parameters,
        graph_members=clients(4),
        sharers=clients(4),
        survivors=clients(3),
        deadline_ms=START_MS + 1_600,
    )
    assert effects == (ScheduleDeadline(START_MS + 1_600), Announce())


def test_the_deadline_is_content_with_the_minimum() -> None:
    state, _ = run(signed(0, 1), deadline(), state=checking())
    assert isinstance(state, Unmasking)
    assert state.survivors == clients(3)
    state, _ = run(signed(0), deadline(), state=checking())
    assert ended(state) == ("TOO_FEW_SIGNATURES", BY_RULES, False)


def test_a_sharer_without_an_update_signs_too_and_counts() -> None:
    state, _ = run(signed(3, 0), deadline(), state=checking())
    assert isinstance(state, Unmasking)
    # It is waited for where the survivors that are left are too few.
    state, _ = run(dropped(1, 2), signed(0), state=checking())
    assert isinstance(state, CheckingConsistency)
    state, _ = run(signed(3), state=state)
    assert isinstance(state, Unmasking)


def test_membership_is_frozen_whoever_leaves() -> None:
    state, _ = run(dropped(0), dropped(0, reason="again"), signed(1, 2), state=checking())
    assert isinstance(state, Unmasking)
    assert (state.sharers, state.survivors) == (clients(4), clients(3))
    assert state.dropped == {"client-0": "declined"}


def test_who_signed_and_left_releases_nothing_and_does_not_count() -> None:
    state, _ = run(signed(0, 1), dropped(0), deadline(), state=checking())
    assert ended(state) == ("TOO_FEW_SIGNATURES", BY_RULES, False)
    state, _ = run(signed(0, 1, 3), dropped(0), deadline(), state=checking())
    assert isinstance(state, Unmasking)


def test_too_few_that_are_there_end_the_check_at_once() -> None:
    state, _ = run(signed(0), dropped(0, 1, 2), state=checking())
    assert ended(state) == ("TOO_FEW_SIGNATURES", BY_RULES, False)


def test_a_signature_of_a_client_that_shared_no_keys_is_a_defect() -> None:
    with pytest.raises(AssertionError):
        step(checking(), signed(9))


# --- UNMASKING ----------------------------------------------------------------------------------


def test_enough_shares_open_the_sum_before_everybody_has_answered() -> None:
    state, effects = run(released(0), released(3, enough=True), state=unmasking())
    assert state == Aggregating(
        parameters=sealed_started().parameters,
        graph_members=clients(4),
        sharers=clients(4),
        survivors=clients(3),
        deadline_ms=START_MS + 5_320,
    )
    assert effects == (ScheduleDeadline(START_MS + 5_320), Aggregate(clients(3)))


def test_too_few_shares_end_the_round_charged() -> None:
    state, _ = run(released(0, 1, 2), deadline(), state=unmasking())
    assert ended(state) == ("TOO_FEW_RELEASED", BY_RULES, True)
    state, effects = run(released(0, 1, 2, 3), state=unmasking())
    assert ended(state) == ("TOO_FEW_RELEASED", BY_RULES, True)
    assert effects == (CleanUp(),)
    state, _ = run(released(0), dropped(1, 2), dropped(3), state=unmasking())
    assert ended(state) == ("TOO_FEW_RELEASED", BY_RULES, True)


def test_shares_stay_when_their_client_leaves_and_count_when_it_had_left() -> None:
    state, _ = run(released(0), dropped(0), dropped(1), state=unmasking())
    assert isinstance(state, Unmasking)
    assert (state.released, state.dropped) == (named(0), {"client-1": "declined"})
    assert state.outstanding() == 2
    state, _ = run(released(1), state=state)
    assert isinstance(state, Unmasking)
    assert (state.released, state.dropped) == (named(0, 1), {})


def test_a_share_of_a_client_that_holds_none_is_a_defect() -> None:
    with pytest.raises(AssertionError):
        step(unmasking(), released(9))


# --- from the charge on -------------------------------------------------------------------------


@pytest.mark.parametrize("make", [advertising, revealing, sharing, sealed_collecting, checking])
def test_a_sealed_round_can_be_aborted_uncharged_until_it_unmasks(
    make: Callable[[], RoundState],
) -> None:
    state, effects = step(make(), abort())
    assert ended(state) == ("a wrong plan", "operator/ann", False)
    assert effects == (CleanUp(),)


@pytest.mark.parametrize("make", [unmasking, sealed_aggregating])
def test_from_unmasking_on_an_abort_stays_charged(make: Callable[[], RoundState]) -> None:
    assert ended(step(make(), abort())[0]) == ("a wrong plan", "operator/ann", True)
    assert step(sealed_releasing(), abort()) == (sealed_releasing(), ())


def test_a_sealed_fold_that_takes_too_long_stays_charged() -> None:
    state, _ = step(sealed_aggregating(), deadline())
    assert ended(state) == ("AGGREGATING_TOO_LONG", BY_RULES, True)
    state, _ = step(sealed_aggregating(), AggregateRejected(at_ms=1, reason="norm"))
    assert ended(state) == ("AGGREGATE_REJECTED: norm", BY_RULES, True)


def test_the_sum_is_released_as_in_open_rounds() -> None:
    state, effects = step(sealed_aggregating(), ready())
    assert isinstance(state, Releasing)
    assert (state, effects[1:]) == (
        Releasing(
            parameters=sealed_started().parameters,
            survivors=clients(3),
            aggregate_digest="cd" * 32,
            total_weight=300,
            metrics={"loss": 0.25},
            deadline_ms=START_MS + 5_400,
        ),
        pending(releasing())[1:],
    )


# --- recovery -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [advertising, revealing, sharing, sealed_collecting, checking, unmasking, sealed_aggregating],
)
def test_an_outage_extends_the_deadline_within_the_cap(make: Callable[[], RoundState]) -> None:
    before = make()
    after, effects = step(before, Recovered(at_ms=1, down_ms=2_000))
    first, second = deadline_of(before), deadline_of(after)
    assert first is not None
    assert second == first + 2_000
    assert effects == pending(after)
    again, _ = step(after, Recovered(at_ms=1, down_ms=60_000))
    assert deadline_of(again) == first + parameters().recovery_extension_ms


def test_outages_of_the_key_phases_extend_the_collection_within_one_cap() -> None:
    outage = Recovered(at_ms=1, down_ms=2_000)
    state, _ = run(outage, keys(0, 1, 2, 3), outage, dealt(0, 1, 2, 3), state=advertising())
    assert isinstance(state, Collecting)
    assert (state.deadline_ms, state.extended_ms) == (COLLECTING_ENDS_MS + 3_000, 3_000)
    assert step(state, outage)[0] == state


def test_parameters_say_what_the_server_may_see() -> None:
    assert not parameters().is_sealed
    assert parameters(mode="sealed").is_sealed
    assert LATER > COLLECTING_ENDS_MS
