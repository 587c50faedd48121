"""Ways of adding up: known values, the order between them, and what each refuses."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_mesh.privacy import composition
from boltz_mesh.privacy.accountant import epsilon
from boltz_mesh.privacy.composition import MAX_COMPARED, advanced, compare, optimal
from boltz_protocol.errors import InvalidPlan


def test_one_release_is_told_alike_by_all_but_advanced() -> None:
    told = compare(1.0, 1, 1.0, 1e-6)
    assert told.reported == pytest.approx(4.8866, abs=5e-5)
    assert told.loss_distribution == pytest.approx(told.reported, abs=1e-5)
    assert told.basic == told.optimal == told.reported
    assert told.reported < told.renyi < told.advanced
    assert (told.unit, told.relation) == ("client", "contribution-set-to-zero")


@pytest.mark.parametrize(
    ("noise", "rounds", "rate"),
    [(1.0, 100, 1.0), (4.0, 100, 1.0), (30.0, 100, 1.0), (300.0, 10_000, 1.0), (4.0, 20, 0.1)],
)
def test_none_is_below_what_is_reported(noise: float, rounds: int, rate: float) -> None:
    told = compare(noise, rounds, rate, 1e-6)
    assert told.reported == epsilon(noise, rounds, rate, 1e-6)
    assert told.reported * (1 - 1e-9) <= told.loss_distribution <= told.reported * 1.001
    assert told.reported <= told.renyi <= told.optimal <= min(told.advanced, told.basic)


def test_advanced_is_worse_than_basic_where_each_release_costs_much() -> None:
    dear, cheap = compare(1.0, 100), compare(300.0, 10_000)
    assert dear.advanced > 100 * dear.basic
    assert cheap.advanced < cheap.basic / 5


def test_advanced_is_the_published_formula() -> None:
    # Dwork and Roth 2014, theorem 3.20, by hand.
    wanted = math.sqrt(2 * 50 * math.log(1e5)) * 0.1 + 50 * 0.1 * (math.exp(0.1) - 1)
    assert advanced(0.1, 50, 1e-5) == pytest.approx(wanted, rel=1e-12)
    assert advanced(1000.0, 2, 1e-5) == math.inf


def published_delta(epsilon: float, delta: float, rounds: int, steps: int) -> float:
    """Delta at (rounds - 2 steps) * epsilon, as theorem 3.3 of Kairouz et al. 2015 writes it."""
    lost = sum(
        math.comb(rounds, number)
        * (
            math.exp((rounds - number) * epsilon)
            - math.exp((rounds - 2 * steps + number) * epsilon)
        )
        for number in range(steps)
    )
    return 1 - (1 - delta) ** rounds * (1 - lost / (1 + math.exp(epsilon)) ** rounds)


@pytest.mark.parametrize(("each", "rounds"), [(0.1, 40), (0.5, 12), (1.5, 5), (0.01, 100)])
def test_optimal_meets_the_published_theorem_on_its_grid(each: float, rounds: int) -> None:
    for steps in range(1, rounds // 2 + 1):
        delta = published_delta(each, 1e-9, rounds, steps)
        if delta < rounds * 1e-9 * 1.01:
            continue  # all of it is given away, and the difference has no digits
        found = optimal(each, 1e-9, rounds, delta)
        assert found == pytest.approx((rounds - 2 * steps) * each, abs=1e-6)


@settings(deadline=None, max_examples=50)
@given(each=st.floats(0.01, 5.0), rounds=st.integers(1, 200), delta=st.floats(1e-9, 1e-2))
def test_optimal_is_between_one_release_and_all_added_up(
    each: float, rounds: int, delta: float
) -> None:
    found = optimal(each, 0.0, rounds, delta)
    assert 0 <= found <= rounds * each
    assert found <= optimal(each, delta / rounds / 2, rounds, delta) * (1 + 1e-12)
    assert found <= optimal(each, 0.0, rounds + 1, delta)


def test_optimal_where_there_is_nothing_to_hide_or_too_much() -> None:
    assert optimal(1e-9, 0.0, 3, 1e-2) == 0.0
    assert optimal(math.inf, 0.0, 3, 1e-6) == math.inf
    assert optimal(0.1, 1e-3, 3, 1e-6) == math.inf


def test_what_cannot_be_told_of_one_release_is_infinite_in_all_but_renyi() -> None:
    told = compare(0.1, 1, 1.0, 1e-6)
    for way in (told.reported, told.loss_distribution, told.optimal, told.advanced, told.basic):
        assert way == math.inf
    assert math.isfinite(told.renyi)


def test_a_share_of_delta_that_is_too_small_is_infinite() -> None:
    told = compare(100.0, 10_000, 1.0, 1e-12)
    assert math.isfinite(told.reported)
    assert told.basic == told.advanced == told.optimal == math.inf


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        ((1.0, 0), "rounds"),
        ((1.0, -3), "rounds"),
        ((1.0, MAX_COMPARED + 1), "rounds"),
        ((0.0, 1), "noise_multiplier"),
        ((-1.0, 1), "noise_multiplier"),
        ((math.nan, 1), "noise_multiplier"),
        ((1.0, 1, 0.0), "sampling_rate"),
        ((1.0, 1, 1.0, 0.0), "delta"),
        ((1.0, 1, 1.0, math.nan), "delta"),
    ],
)
def test_refusals(arguments: tuple[float, ...], setting: str) -> None:
    with pytest.raises(InvalidPlan, match="would do") as error:
        compare(*arguments)  # type: ignore[arg-type]
    assert error.value.metadata["setting"] == setting


def test_binomials_are_those_of_the_library() -> None:
    for total, chosen in itertools.product((1, 7, 300), (0, 1, 3)):
        if chosen <= total:
            found = composition._log_choose(total, chosen)
            assert found == pytest.approx(math.log(math.comb(total, chosen)), abs=1e-9)
