"""The round machine: what happens, what does not, and what must never happen."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from boltz_mesh.rounds.effect import (
    Aggregate,
    Announce,
    CleanUp,
    Publish,
    ScheduleDeadline,
    SelectRoster,
)
from boltz_mesh.rounds.event import (
    AbortRequested,
    AggregateRejected,
    CandidatesSeen,
    Event,
    PublishRejected,
    Recovered,
    VersionPublished,
)
from boltz_mesh.rounds.state import (
    BY_RULES,
    Aborted,
    Aggregating,
    Collecting,
    Phase,
    Published,
    Releasing,
    RoundState,
    Selecting,
    deadline_of,
)
from boltz_mesh.rounds.step import fold, pending, step
from tests.unit.rounds.rounds import (
    LATER,
    START_MS,
    aggregating,
    clients,
    collecting,
    deadline,
    dropped,
    fixed,
    parameters,
    ready,
    releasing,
    run,
    seen,
    selecting,
    started,
    stored,
)


def abort() -> AbortRequested:
    return AbortRequested(at_ms=START_MS, by="operator/ann", reason="a wrong plan")


def published() -> RoundState:
    return run(
        VersionPublished(at_ms=START_MS, version=2, model_digest="ef" * 32), state=releasing()
    )[0]


def aborted() -> RoundState:
    return run(abort(), state=selecting())[0]


# --- SELECTING ----------------------------------------------------------------------------------


def test_a_round_starts_by_selecting() -> None:
    state, effects = run(started())
    assert state == Selecting(parameters=parameters(), deadline_ms=START_MS + 10_000)
    assert effects == (ScheduleDeadline(START_MS + 10_000),)
    assert state.phase is Phase.SELECTING


def test_enough_candidates_are_drawn_from_at_once() -> None:
    state, effects = run(seen(5), state=selecting())
    assert effects == (SelectRoster(frozenset(clients(5)), 4),)
    assert isinstance(state, Selecting)
    assert state.choosing


def test_too_few_candidates_are_waited_for() -> None:
    state, effects = run(seen(3), state=selecting())
    assert effects == ()
    assert isinstance(state, Selecting)
    assert not state.choosing


def test_the_deadline_takes_those_who_are_there() -> None:
    _, effects = run(seen(3), deadline(), state=selecting())
    assert effects == (SelectRoster(frozenset(clients(3)), 3),)


def test_the_deadline_with_too_few_clients_aborts() -> None:
    state, effects = run(seen(1), deadline(), state=selecting())
    assert state == Aborted(parameters=parameters(), reason="TOO_FEW_CLIENTS", by=BY_RULES)
    assert effects == (CleanUp(),)


def test_spent_budgets_are_named_as_the_reason() -> None:
    state, _ = run(seen(1, over_budget=1), deadline(), state=selecting())
    assert isinstance(state, Aborted)
    assert state.reason == "BUDGET_EXCEEDED"


def test_clients_that_leave_during_the_drawing_are_waited_for_again() -> None:
    state, effects = run(seen(4), seen(3), state=selecting())
    assert isinstance(state, Selecting)
    assert (state.choosing, effects) == (False, ())


def test_clients_that_leave_after_the_deadline_end_the_round() -> None:
    state, _ = run(seen(3), deadline(), seen(1), state=selecting())
    assert isinstance(state, Aborted)


def test_the_deadline_during_the_drawing_changes_only_what_is_enough() -> None:
    state, effects = run(seen(4), deadline(), state=selecting())
    assert effects == ()
    assert isinstance(state, Selecting)
    assert state.choosing
    assert deadline_of(state) is None
    _, effects = run(seen(2), state=state)
    assert effects == (SelectRoster(frozenset(clients(2)), 2),)
    # Once expired, the deadline is over for good.
    assert step(state, deadline()) == (state, ())


def test_an_early_timer_is_ignored() -> None:
    state = selecting()
    assert step(state, deadline(START_MS + 9_999)) == (state, ())


def test_the_roster_opens_the_collection() -> None:
    state, effects = run(seen(4), fixed(), state=selecting())
    assert state == Collecting(
        parameters=parameters(),
        participants=clients(4),
        config_digest="ab" * 32,
        deadline_ms=START_MS + 20_200,
    )
    assert effects == (ScheduleDeadline(START_MS + 20_200), Announce())


@pytest.mark.parametrize("count", [1, 5])
def test_a_roster_of_the_wrong_size_is_a_defect(count: int) -> None:
    with pytest.raises(AssertionError):
        run(seen(5), fixed(count), state=selecting())


def test_a_roster_that_nobody_asked_for_is_a_defect() -> None:
    with pytest.raises(AssertionError):
        run(fixed(), state=selecting())


# --- COLLECTING ---------------------------------------------------------------------------------


def test_the_target_ends_the_collection_and_freezes_the_survivors_in_roster_order() -> None:
    state, effects = run(stored(3), stored(2, 0), state=collecting())
    survivors = ("client-0", "client-2", "client-3")
    assert state == Aggregating(
        parameters=parameters(), survivors=survivors, deadline_ms=START_MS + 5_300
    )
    assert effects == (ScheduleDeadline(START_MS + 5_300), Aggregate(survivors))


def test_a_batch_beyond_the_target_counts_as_a_whole() -> None:
    state, _ = run(stored(0, 1, 2, 3), state=collecting())
    assert isinstance(state, Aggregating)
    assert state.survivors == clients(4)


def test_the_last_awaited_client_ends_the_collection() -> None:
    state, _ = run(stored(0, 1), dropped(2, 3), state=collecting())
    assert isinstance(state, Aggregating)
    state, _ = run(dropped(2, 3), stored(0), state=collecting())
    assert isinstance(state, Collecting)
    state, _ = run(stored(1), state=state)
    assert isinstance(state, Aggregating)


def test_an_unreachable_minimum_aborts_at_once() -> None:
    state, effects = run(dropped(0, 1, 2), state=collecting())
    assert isinstance(state, Aborted)
    assert (state.reason, state.charged) == ("TOO_FEW_UPDATES", False)
    assert effects == (CleanUp(),)


def test_the_deadline_counts_what_is_there() -> None:
    state, _ = run(stored(0, 1), deadline(), state=collecting())
    assert isinstance(state, Aggregating)
    state, _ = run(stored(0), deadline(), state=collecting())
    assert isinstance(state, Aborted)
    assert state.reason == "TOO_FEW_UPDATES"


def test_an_update_with_a_receipt_counts_whatever_its_client_does() -> None:
    state, _ = run(dropped(0), stored(0), dropped(0), stored(1), deadline(), state=collecting())
    assert isinstance(state, Aggregating)
    assert state.survivors == clients(2)


def test_the_same_update_counts_once() -> None:
    state, _ = run(stored(0), stored(0), stored(0), state=collecting())
    assert isinstance(state, Collecting)
    assert state.stored == {"client-0"}
    assert state.outstanding() == 3


def test_the_first_reason_of_a_dropout_stands_and_strangers_do_not_drop_out() -> None:
    state, _ = run(dropped(0), dropped(0, 9, reason="left"), state=collecting())
    assert isinstance(state, Collecting)
    assert state.dropped == {"client-0": "declined"}


def test_an_update_from_outside_the_roster_is_a_defect() -> None:
    with pytest.raises(AssertionError):
        run(stored(9), state=collecting())


def test_an_early_timer_leaves_the_collection_open() -> None:
    state = collecting()
    assert step(state, deadline(START_MS + 20_199)) == (state, ())


# --- AGGREGATING, RELEASING ---------------------------------------------------------------------


def test_the_aggregate_is_released() -> None:
    state, effects = run(ready(), state=aggregating())
    assert state == Releasing(
        parameters=parameters(),
        survivors=clients(3),
        aggregate_digest="cd" * 32,
        total_weight=300,
        metrics={"loss": 0.25},
        deadline_ms=START_MS + 5_400,
    )
    assert effects == (ScheduleDeadline(START_MS + 5_400), Publish("cd" * 32))


def test_an_aggregate_of_other_survivors_is_a_defect() -> None:
    with pytest.raises(AssertionError):
        run(ready(2), state=aggregating())


def test_a_rejected_aggregate_stays_charged() -> None:
    state, _ = run(AggregateRejected(at_ms=1, reason="norm 9 over 5"), state=aggregating())
    assert isinstance(state, Aborted)
    assert (state.reason, state.charged) == ("AGGREGATE_REJECTED: norm 9 over 5", True)


def test_publication_ends_the_round() -> None:
    state = published()
    assert state == Published(
        parameters=parameters(), survivors=clients(3), version=2, model_digest="ef" * 32
    )
    assert pending(state) == (CleanUp(),)
    assert deadline_of(state) is None


def test_an_aggregate_that_makes_no_model_stays_charged() -> None:
    state, _ = run(PublishRejected(at_ms=1, reason="overflow"), state=releasing())
    assert isinstance(state, Aborted)
    assert (state.reason, state.charged) == ("PUBLISH_REJECTED: overflow", True)


def test_deadlines_bound_the_retries_of_heavy_work() -> None:
    state, _ = run(deadline(), state=aggregating())
    assert isinstance(state, Aborted)
    assert (state.reason, state.charged) == ("AGGREGATING_TOO_LONG", False)
    state, _ = run(deadline(), state=releasing())
    assert isinstance(state, Aborted)
    assert (state.reason, state.charged) == ("RELEASING_TOO_LONG", True)


# --- aborts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [selecting, collecting, aggregating])
def test_a_round_can_be_aborted_until_it_is_charged(make: Callable[[], RoundState]) -> None:
    state, effects = step(make(), abort())
    assert state == Aborted(
        parameters=parameters(), reason="a wrong plan", by="operator/ann", charged=False
    )
    assert effects == (CleanUp(),)


@pytest.mark.parametrize("make", [releasing, published, aborted])
def test_an_abort_after_the_charge_or_the_end_comes_too_late(
    make: Callable[[], RoundState],
) -> None:
    state = make()
    assert step(state, abort()) == (state, ())


# --- recovery -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [selecting, collecting, aggregating, releasing])
def test_an_outage_extends_the_deadline_within_the_cap(make: Callable[[], RoundState]) -> None:
    before = make()
    after, effects = step(before, Recovered(at_ms=1, down_ms=2_000))
    first, second = deadline_of(before), deadline_of(after)
    assert first is not None
    assert second == first + 2_000
    assert effects == pending(after)
    assert ScheduleDeadline(second) in effects
    again, _ = step(after, Recovered(at_ms=1, down_ms=60_000))
    assert deadline_of(again) == first + 3_000


def test_recovery_draws_again() -> None:
    state, _ = run(seen(5), state=selecting())
    _, effects = step(state, Recovered(at_ms=1, down_ms=0))
    assert SelectRoster(frozenset(clients(5)), 4) in effects
    state, _ = run(deadline(), state=state)
    _, effects = step(state, Recovered(at_ms=1, down_ms=0))
    assert effects == (SelectRoster(frozenset(clients(5)), 4),)


@pytest.mark.parametrize("make", [published, aborted])
def test_recovery_cleans_up_again(make: Callable[[], RoundState]) -> None:
    state = make()
    assert step(state, Recovered(at_ms=1, down_ms=5)) == (state, (CleanUp(),))


# --- late facts and defects ---------------------------------------------------------------------


@pytest.mark.parametrize("make", [collecting, aggregating, releasing, published, aborted])
def test_late_check_ins_are_ignored(make: Callable[[], RoundState]) -> None:
    state = make()
    event = CandidatesSeen(at_ms=LATER, candidates=frozenset(clients(5)))
    assert step(state, event) == (state, ())


@pytest.mark.parametrize("make", [selecting, aggregating, releasing, published, aborted])
def test_dropouts_outside_the_collection_are_ignored(make: Callable[[], RoundState]) -> None:
    state = make()
    assert step(state, dropped(0)) == (state, ())


@pytest.mark.parametrize("make", [published, aborted])
def test_timers_after_the_end_are_ignored(make: Callable[[], RoundState]) -> None:
    state = make()
    assert step(state, deadline()) == (state, ())


@pytest.mark.parametrize("make", [aggregating, releasing])
def test_early_timers_are_ignored(make: Callable[[], RoundState]) -> None:
    state = make()
    assert step(state, deadline(START_MS)) == (state, ())


@pytest.mark.parametrize("make", [aggregating, releasing, published])
def test_a_repeated_update_is_ignored_and_a_new_one_is_a_defect(
    make: Callable[[], RoundState],
) -> None:
    state = make()
    assert step(state, stored(0)) == (state, ())
    with pytest.raises(AssertionError):
        step(state, stored(3))


def test_nothing_counts_in_an_aborted_round() -> None:
    state = aborted()
    assert step(state, stored(0)) == (state, ())


@pytest.mark.parametrize(
    ("make", "event"),
    [
        (selecting, started()),
        (selecting, stored(0)),
        (selecting, ready()),
        (collecting, fixed()),
        (collecting, ready()),
        (aggregating, VersionPublished(at_ms=1, version=2, model_digest="00")),
        (releasing, ready()),
        (releasing, AggregateRejected(at_ms=1, reason="twice")),
        (published, VersionPublished(at_ms=1, version=2, model_digest="00")),
        (aborted, ready()),
    ],
)
def test_moves_that_are_not_in_the_diagram_crash(
    make: Callable[[], RoundState], event: Event
) -> None:
    with pytest.raises(AssertionError):
        step(make(), event)


@pytest.mark.parametrize("event", [seen(3), deadline(), Recovered(at_ms=1, down_ms=1)])
def test_nothing_comes_before_the_start(event: Event) -> None:
    with pytest.raises(AssertionError):
        step(None, event)


def test_folding_gives_the_same_state_as_stepping() -> None:
    events = (started(), seen(4), fixed(), stored(0, 1, 2), ready())
    assert fold(None, events) == releasing()
    assert fold(fold(None, events[:2]), events[2:]) == releasing()


@pytest.mark.parametrize(
    "changes",
    [
        {"min_clients": 0},
        {"min_clients": 4},
        {"wanted_clients": 2},
        {"wanted_clients": 6},
        {"attempt": 0},
        {"attempt": 4},
        {"selecting_ms": 0},
        {"releasing_ms": 13 * 3600 * 1000},
        {"recovery_extension_ms": -1},
        {"max_clients": 10_001, "wanted_clients": 4},
        {"advertising_ms": 0},
        {"sharing_ms": -1},
        {"checking_ms": 13 * 3600 * 1000},
        {"unmasking_ms": 0},
    ],
)
def test_parameters_that_no_plan_allows_are_a_defect(changes: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        parameters(**changes)
