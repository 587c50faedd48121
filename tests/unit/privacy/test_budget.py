"""A round fits every client's budget, or is refused with what would fit."""

import math
import re
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_mesh.privacy.accountant import epsilon, epsilon_of, noise_multiplier_for
from boltz_mesh.privacy.budget import (
    MAX_ROUNDS_COUNTED,
    Budget,
    affordable,
    check_round,
    check_window,
    counted,
    epsilons_after,
    noise_for_cohort,
    noise_that_fits,
    rounds_that_fit,
)
from boltz_mesh.privacy.mechanisms import PrivacyEvent
from boltz_protocol.errors import BudgetExceeded, InvalidPlan
from boltz_protocol.gaussian_dp import mu_of
from tests.unit.privacy.events import event

BUDGET = Budget(epsilon=2.0, delta=1e-5)


def test_exactly_the_planned_rounds_fit() -> None:
    noise = noise_multiplier_for(2.0, 4, 1e-5)
    past: list[PrivacyEvent] = []
    for number in range(4):
        check_round(BUDGET, {"a": past}, [event(noise, round=str(number))])
        past.append(event(noise, round=str(number)))
    with pytest.raises(BudgetExceeded):
        check_round(BUDGET, {"a": past}, [event(noise, round="5")])


def test_a_new_client_has_spent_nothing() -> None:
    check_round(BUDGET, {}, [event(4.0, client="new")])
    check_round(BUDGET, {}, [])


def test_one_client_over_refuses_the_round_and_is_named() -> None:
    past = {"b": [event(4.0, client="b", round=str(i)) for i in range(3)]}
    check_round(BUDGET, past, [event(4.0, client=c) for c in "ab"])
    past["b"].append(event(4.0, client="b", round="hold"))  # a hold counts as spent
    with pytest.raises(BudgetExceeded) as refused:
        check_round(BUDGET, past, [event(4.0, client=c) for c in "abc"])
    assert refused.value.metadata == {"client": "b", "clients_over": "1", "rounds_that_fit": "0"}
    assert "1 of 3 clients" in refused.value.message
    assert "client b" in refused.value.message


def test_the_worst_client_is_named_and_the_noise_it_tells_does_fit() -> None:
    past = {
        "a": [event(4.0, client="a")],
        "b": [event(3.0, client="b"), event(8.0, client="b")],
    }
    new = [event(2.0, client=c) for c in "ab"]
    with pytest.raises(BudgetExceeded) as refused:
        check_round(BUDGET, past, new)
    assert refused.value.metadata["client"] == "b"
    told = re.search(r"at least ([0-9.]+) would fit", refused.value.message)
    assert told is not None
    check_round(BUDGET, past, [event(float(told[1]), client=c) for c in "ab"])
    with pytest.raises(BudgetExceeded):
        check_round(BUDGET, past, [event(0.99 * float(told[1]), client=c) for c in "ab"])


def test_how_many_rounds_fit_is_told() -> None:
    new = [event(6.0, round=str(number)) for number in range(20)]
    with pytest.raises(BudgetExceeded) as refused:
        check_round(BUDGET, {}, new)
    fit = int(refused.value.metadata["rounds_that_fit"])
    assert epsilon(6.0, fit, 1.0, 1e-5) <= 2.0 < epsilon(6.0, fit + 1, 1.0, 1e-5)
    assert f"{fit} more rounds fit" in refused.value.message


def test_one_round_is_a_round() -> None:
    past = {"a": [event(4.0, round=str(number)) for number in range(3)]}
    with pytest.raises(BudgetExceeded, match="1 more round fits"):
        check_round(BUDGET, past, [event(4.0, round=str(number)) for number in range(2)])


def test_a_second_attempt_is_a_second_release() -> None:
    both = [event(4.0), event(4.0, attempt=2)]
    assert epsilons_after(BUDGET, {}, both) == {"a": epsilon(4.0, 2, 1.0, 1e-5)}


def test_no_noise_never_fits() -> None:
    with pytest.raises(BudgetExceeded, match="unbounded epsilon"):
        check_round(BUDGET, {}, [event(0.0)])
    with pytest.raises(BudgetExceeded, match="no amount of noise"):
        check_round(BUDGET, {"a": [event(0.0)]}, [event(50.0)])


def test_the_samplers_part_of_delta_is_not_there_to_spend() -> None:
    budget = Budget(epsilon=8.0, delta=1e-14)
    of_exact_noise = 1 / mu_of(8.0, 1e-14)
    with pytest.raises(BudgetExceeded) as refused:
        check_round(budget, {}, [event(of_exact_noise)])
    told = re.search(r"at least ([0-9.]+) would fit", refused.value.message)
    assert told is not None
    check_round(budget, {}, [event(float(told[1]))])
    assert affordable(budget, {}, [event(of_exact_noise)]) == frozenset()


def test_a_budget_beyond_any_use_is_kept_as_well() -> None:
    budget = Budget(epsilon=1000.0, delta=1e-6)
    noise = noise_that_fits(budget, [])
    assert noise is not None
    check_round(budget, {}, [event(noise * 1.001)])
    fit = rounds_that_fit(budget, [], event(1.0))
    assert epsilon(1.0, fit, 1.0, 1e-6) <= 1000 < epsilon(1.0, fit + 1, 1.0, 1e-6)
    with pytest.raises(BudgetExceeded, match="unbounded epsilon"):
        check_round(budget, {}, [event(0.1)])


@pytest.mark.parametrize("distributed", [False, True])
def test_noise_from_the_mesh_and_from_the_clients_adds_up_alike(distributed: bool) -> None:
    mixed = [event(4.0), event(4.0, round="r2", distributed=distributed)]
    assert epsilon_of(mixed, 1e-5) == epsilon(4.0, 2, 1.0, 1e-5)


def test_selection_leaves_out_who_cannot_afford_it() -> None:
    past = {"a": [event(4.0, client="a", round=str(i)) for i in range(4)]}
    assert affordable(BUDGET, past, [event(4.0, client=c) for c in "abc"]) == {"b", "c"}


def test_an_exhausted_budget_has_no_noise_that_fits() -> None:
    noise = noise_multiplier_for(2.0, 1, 1e-5)
    assert noise_that_fits(BUDGET, [event(noise)]) is None
    assert noise_that_fits(BUDGET, [event(noise / 2)]) is None
    assert (
        noise_that_fits(BUDGET, [event(noise * (1 + 1e-9))]) is None
    )  # room for absurd noise only
    assert noise_that_fits(BUDGET, []) == pytest.approx(noise)


def test_counting_ends_somewhere() -> None:
    fit = rounds_that_fit(Budget(epsilon=50.0, delta=1e-3), [], event(1e6))
    assert fit == MAX_ROUNDS_COUNTED


@settings(max_examples=40, deadline=None)
@given(
    past=st.lists(st.floats(2.0, 20.0), max_size=6),
    new=st.floats(1.0, 50.0),
    limit=st.floats(0.5, 8.0),
)
def test_a_round_is_refused_exactly_when_it_overdraws(
    past: list[float], new: float, limit: float
) -> None:
    budget = Budget(epsilon=limit, delta=1e-6)
    already = [event(noise) for noise in past]
    after = epsilon_of([*already, event(new)], 1e-6)
    fit = rounds_that_fit(budget, already, event(new))
    if after <= limit:
        check_round(budget, {"a": already}, [event(new)])
        assert fit >= 1
    else:
        with pytest.raises(BudgetExceeded):
            check_round(budget, {"a": already}, [event(new)])
        assert fit == 0
    noise = noise_that_fits(budget, already)
    if noise is not None:
        assert epsilon_of([*already, event(noise * (1 + 1e-6))], 1e-6) <= limit


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_has_an_epsilon(bad: float) -> None:
    with pytest.raises(InvalidPlan, match=r"budget\.epsilon .* would do"):
        Budget(epsilon=bad, delta=1e-6)


@pytest.mark.parametrize("bad", [0.0, 1.0, -1.0, 1e-16, math.nan])
def test_a_budget_has_a_delta(bad: float) -> None:
    with pytest.raises(InvalidPlan, match=r"budget\.delta .* would do"):
        Budget(epsilon=1.0, delta=bad)


# --- units, periods and windows ------------------------------------------------------------------

QUARTER = Budget(2.0, 1e-5, "client-period", date(2026, 10, 1), date(2027, 1, 1))
Q3, Q4, Q1 = "2026-07-01/2026-10-01", "2026-10-01/2027-01-01", "2027-01-01/2027-04-01"


def of_period(period: str, count: int = 1, noise: float = 4.0) -> list[PrivacyEvent]:
    return [event(noise, round=f"{period} {n}", period=period) for n in range(count)]


def test_another_period_renews_a_budget() -> None:
    most = rounds_that_fit(QUARTER, [], of_period(Q4)[0])
    assert most == 4
    spent = [*of_period(Q3, most), *of_period(Q1, most)]
    assert rounds_that_fit(QUARTER, spent, of_period(Q4)[0]) == most
    check_round(QUARTER, {"a": spent}, of_period(Q4, most))
    with pytest.raises(BudgetExceeded, match="one client's data of one period"):
        check_round(QUARTER, {"a": [*spent, *of_period(Q4)]}, of_period(Q4, most))


def test_a_budget_for_whole_clients_counts_every_period() -> None:
    spent = [*of_period(Q3, 2), *of_period(Q1, 2)]
    assert counted(BUDGET, spent) == spent
    assert affordable(BUDGET, {"a": spent}, [event(4.0)]) == frozenset()


def test_what_was_released_about_a_whole_client_counts_in_every_period() -> None:
    spent = [event(4.0, round=str(number)) for number in range(4)]
    assert counted(QUARTER, [*spent, *of_period(Q3)]) == spent
    with pytest.raises(BudgetExceeded):
        check_round(QUARTER, {"a": spent}, of_period(Q4))


def test_a_window_that_is_moved_by_a_day_renews_nothing() -> None:
    moved = "2026-10-02/2027-01-02"
    assert counted(QUARTER, of_period(moved, 2)) == of_period(moved, 2)
    # Through the one that overlaps both, the first counts as well.
    chain = [*of_period("2026-12-31/2027-02-01"), *of_period("2027-01-31/2027-03-01")]
    assert counted(QUARTER, chain) == chain
    assert counted(QUARTER, chain[1:]) == []


def test_the_period_is_that_of_the_days() -> None:
    assert (QUARTER.period, BUDGET.period) == (Q4, "")
    assert Budget(1.0, 1e-6, start=date(2026, 1, 1)).period == ""


@pytest.mark.parametrize(
    ("today", "setting", "told"),
    [
        (date(2026, 9, 30), "budget.start", "from 2026-10-01 on"),
        (date(2027, 1, 1), "budget.end", "budget.start = 2027-01-01"),
        (date(2030, 2, 28), "budget.end", "budget.end = 2031-02-28 would do"),
    ],
)
def test_rounds_start_within_the_budgets_days(today: date, setting: str, told: str) -> None:
    with pytest.raises(BudgetExceeded, match=told) as refused:
        check_window(QUARTER, today)
    assert refused.value.metadata["setting"] == setting


def test_a_budget_without_days_is_for_ever() -> None:
    for today in (date.min, date.max):
        check_window(BUDGET, today)
    check_window(QUARTER, date(2026, 10, 1))
    check_window(QUARTER, date(2026, 12, 31))


@pytest.mark.parametrize(
    ("days", "setting"),
    [
        ({"start": date(2026, 1, 2), "end": date(2026, 1, 2)}, "budget.end"),
        ({"start": date(2026, 1, 2), "end": date(2026, 1, 1)}, "budget.end"),
        ({"unit": "client-period"}, "budget.start"),
        ({"unit": "client-period", "start": date(2026, 1, 1)}, "budget.end"),
        ({"unit": "client-period", "end": date(2026, 1, 1)}, "budget.start"),
    ],
)
def test_days_that_are_none_are_refused(days: dict[str, Any], setting: str) -> None:
    with pytest.raises(InvalidPlan, match="would do") as refused:
        Budget(2.0, 1e-5, **days)
    assert refused.value.metadata["setting"] == setting


def test_a_budget_says_what_it_is_a_figure_of() -> None:
    assert str(QUARTER) == (
        "epsilon 2 at delta 1e-05 (unit: one client's data of one period; relation: its "
        "contribution set to zero)"
    )


@settings(max_examples=60, deadline=None)
@given(
    spans=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20)), min_size=1, max_size=8),
)
def test_no_period_is_ever_overdrawn_whatever_windows_follow(
    spans: list[tuple[int, int]],
) -> None:
    """Plans with windows of all kinds, each run until its budget refuses."""
    first = date(2026, 1, 1)
    past: list[PrivacyEvent] = []
    budgets = []
    for offset, length in spans:
        start = first + timedelta(days=offset)
        budget = Budget(2.0, 1e-5, "client-period", start, start + timedelta(days=length))
        budgets.append(budget)
        while affordable(budget, {"a": past}, of_period(budget.period)):
            past.extend(of_period(budget.period))
    # A window that nothing was released under may well hold several periods that were spent.
    spent = {each.period for each in past}
    for budget in budgets:
        if budget.period not in spent:
            continue
        touching = [each for each in past if each in counted(budget, past)]
        assert epsilon_of(touching, 1e-5) <= 2.0


# --- what would do for a cohort -------------------------------------------------------------------


def test_the_noise_at_which_a_cohort_could_go_on() -> None:
    past = {
        "a": [event(4.0, client="a", round=str(n)) for n in range(3)],
        "b": [event(4.0, client="b", round=str(n)) for n in range(2)],
    }
    for cohort, client in ((1, "c"), (2, "b"), (3, "a")):
        noise = noise_for_cohort([(BUDGET, past)], ["a", "b", "c"], cohort)
        assert noise == noise_that_fits(BUDGET, past.get(client, []))
        assert noise is not None
        able = affordable(BUDGET, past, [event(noise * 1.0001, client=c) for c in "abc"])
        assert len(able) >= cohort


def test_the_tighter_of_two_budgets_says_how_much_noise() -> None:
    tight = Budget(0.5, 1e-6)
    assert noise_for_cohort([(BUDGET, {}), (tight, {})], ["a"], 1) == noise_that_fits(tight, [])
    spent = {"a": [event(0.0)]}
    assert noise_for_cohort([(BUDGET, {}), (tight, spent)], ["a", "b"], 2) is None
    assert noise_for_cohort([(BUDGET, {}), (tight, spent)], ["a", "b"], 1) is not None
