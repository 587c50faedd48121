"""A round fits every client's budget, or is refused with what would fit."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_mesh.privacy.accountant import epsilon, epsilon_of, noise_multiplier_for
from boltz_mesh.privacy.budget import (
    MAX_ROUNDS_COUNTED,
    Budget,
    affordable,
    check_round,
    epsilons_after,
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


def test_a_budget_beyond_what_can_be_told_ends_there() -> None:
    budget = Budget(epsilon=1000.0, delta=1e-6)
    noise = noise_that_fits(budget, [])
    assert noise is not None
    check_round(budget, {}, [event(noise * 1.001)])
    fit = rounds_that_fit(budget, [], event(1.0))
    assert 10 < fit < 100
    with pytest.raises(BudgetExceeded, match="unbounded epsilon"):
        check_round(budget, {}, [event(1.0)] * 100)


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
