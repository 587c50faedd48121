"""The exact curve against closed values, another implementation, and its own inverse."""

import math
from fractions import Fraction

import numpy as np
import pytest
from dp_accounting import gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_protocol import gaussian_dp, limits
from boltz_protocol.gaussian_dp import (
    RELEASE_DISTANCE,
    composed_mu,
    delta_of,
    epsilon_of_mu,
    epsilon_of_releases,
    epsilon_with_sampler,
    mu_of,
    mu_within,
    mu_within_alike,
)
from boltz_protocol.noise import discrete_gaussian

DELTAS = st.floats(1e-12, 1e-2)


def test_one_round_at_noise_multiplier_one() -> None:
    assert epsilon_of_mu(1.0, 1e-6) == pytest.approx(4.8866, abs=5e-5)


def test_at_epsilon_zero_delta_is_the_total_variation() -> None:
    for mu in (0.01, 0.5, 3.0):
        assert delta_of(0.0, mu) == pytest.approx(math.erf(mu / 2 / math.sqrt(2)), rel=1e-12)


def test_no_signal_costs_nothing_and_no_noise_everything() -> None:
    assert epsilon_of_mu(0.0, 1e-6) == 0.0
    assert epsilon_of_mu(1e-9, 1e-6) == 0.0  # the total variation alone is below delta
    assert epsilon_of_mu(math.inf, 1e-6) == math.inf


@pytest.mark.parametrize("mu", [0.05, 0.3, 1.0, 2.5, 10.0, 40.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-10])
def test_agrees_with_dp_accounting(mu: float, delta: float) -> None:
    theirs = gaussian_mechanism.get_epsilon_gaussian(1 / mu, delta)
    assert epsilon_of_mu(mu, delta) == pytest.approx(theirs, rel=1e-6, abs=1e-6)


def test_huge_losses_do_not_overflow() -> None:
    # mu = 100: epsilon is about mu^2/2 + mu * 4.75, where exp(epsilon) has no double.
    assert epsilon_of_mu(100.0, 1e-6) == pytest.approx(5000 + 100 * 4.7534, rel=1e-3)


@settings(deadline=None)
@given(mu=st.floats(1e-2, 30.0), delta=DELTAS)
def test_epsilon_keeps_its_delta(mu: float, delta: float) -> None:
    epsilon = epsilon_of_mu(mu, delta)
    assert delta_of(epsilon, mu) <= delta
    if epsilon > 1e-6:
        assert delta_of(epsilon * (1 - 1e-6), mu) >= delta * (1 - 1e-6)


@settings(deadline=None)
@given(epsilon=st.floats(1e-2, 50.0), delta=DELTAS)
def test_mu_of_is_the_inverse_rounded_down(epsilon: float, delta: float) -> None:
    mu = mu_of(epsilon, delta)
    assert delta_of(epsilon, mu) <= delta
    assert epsilon_of_mu(mu, delta) == pytest.approx(epsilon, rel=1e-6)


@settings(deadline=None)
@given(mu=st.floats(0.01, 30), more=st.floats(1.001, 3), delta=DELTAS)
def test_more_signal_never_costs_less(mu: float, more: float, delta: float) -> None:
    assert epsilon_of_mu(mu * more, delta) >= epsilon_of_mu(mu, delta)


# --- several releases, and the sampler ----------------------------------------------------------


def test_inverse_squares_add_up() -> None:
    assert composed_mu([(3.0, 1), (4.0, 1)]) == pytest.approx(1 / 2.4, rel=1e-15)
    assert composed_mu([(4.0, 16)], 2.0) == 2.0
    assert composed_mu([]) == composed_mu([(0.0, 0)]) == 0.0
    assert composed_mu([(1.0, 1), (0.0, 1)]) == math.inf


@pytest.mark.parametrize("sigma", [0.5, 2, 3.7, 255, 2047.9, 2048, 2048.1, 70_000.5, 1 << 20])
def test_no_sampler_is_further_away_than_is_counted(sigma: float) -> None:
    assert discrete_gaussian(Fraction(sigma) ** 2).distance() <= limits.MAX_SAMPLE_DISTANCE


def test_the_samplers_part_changes_no_printed_digit() -> None:
    assert epsilon_of_releases(1.0, 1e-6, 1) == pytest.approx(epsilon_of_mu(1.0, 1e-6), rel=1e-9)
    assert epsilon_of_releases(0.0, 1e-6, 0) == 0.0


@settings(deadline=None)
@given(mu=st.floats(1e-2, 5.0), delta=st.floats(1e-14, 1e-2), releases=st.integers(1, 10_000))
def test_what_is_told_holds_with_the_samplers_part(mu: float, delta: float, releases: int) -> None:
    epsilon = epsilon_of_releases(mu, delta, releases)
    if math.isfinite(epsilon):
        part = (1 + math.exp(epsilon)) * releases * RELEASE_DISTANCE
        assert delta_of(epsilon, mu) + part <= delta * (1 + 1e-12)


@pytest.mark.parametrize("mu", [8.0, 30.0, 60.0, math.inf])
def test_beyond_what_can_be_told_it_is_infinite(mu: float) -> None:
    assert epsilon_of_releases(mu, 1e-6, 1) == math.inf


@pytest.mark.parametrize(("each", "releases"), [(1.0, 100), (0.5, 1000), (2.0, 30), (4.0, 1)])
def test_many_releases_with_enough_noise_each_are_told(each: float, releases: int) -> None:
    mu = each * math.sqrt(releases)
    told = epsilon_of_releases(mu, 1e-6, releases, each)
    assert told == pytest.approx(epsilon_of_mu(mu, 1e-6), rel=1e-3)
    assert told > 25


def test_another_release_never_costs_less_where_one_bound_takes_over_from_the_other() -> None:
    told = [epsilon_of_releases(math.sqrt(k) / 2, 1e-6, k, 0.5) for k in range(1, 150)]
    assert told == sorted(set(told))
    assert told[0] < 5
    assert told[-1] > 35


@pytest.mark.parametrize("each", [4.8, 9.0, 30.0])
def test_one_release_with_too_little_noise_spoils_all(each: float) -> None:
    assert epsilon_of_releases(30.0, 1e-6, 3, each) == math.inf


@settings(deadline=None)
@given(
    mu=st.floats(1e-2, 30.0),
    share=st.floats(1e-3, 1.0),
    delta=st.floats(1e-14, 1e-2),
    releases=st.integers(1, 10_000),
)
def test_knowing_the_largest_only_helps(
    mu: float, share: float, delta: float, releases: int
) -> None:
    told = epsilon_of_releases(mu, delta, releases, mu * share)
    assert epsilon_of_mu(mu, delta) <= told <= epsilon_of_releases(mu, delta, releases)


def exact_delta_of_a_coarse_sampler(
    epsilon: float, sigma: float, shift: int, cut: int, releases: int
) -> tuple[float, float]:
    """(delta of the cut sampler's releases, its distance from exact noise), by summing up.

    The sampler draws discrete Gaussian noise and never more than `cut`: all of the rest at 0.
    """
    reach = int(12 * sigma) + shift
    values = np.arange(-reach, reach + 1)
    exact = np.exp(-(values.astype(float) ** 2) / (2 * sigma**2))
    exact /= exact.sum()
    drawn = np.where(np.abs(values) <= cut, exact, 0.0)
    distance = 1 - drawn.sum()
    drawn[reach] += distance
    moved = np.roll(drawn, shift)
    one, other = moved, drawn
    for _ in range(releases - 1):
        one, other = np.outer(one, moved).ravel(), np.outer(other, drawn).ravel()
    return float(np.maximum(0, one - math.exp(epsilon) * other).sum()), float(distance)


@pytest.mark.parametrize("cut", [24, 30, 36])
@pytest.mark.parametrize("releases", [1, 2])
@pytest.mark.parametrize("epsilon", [2.0, 4.0, 8.0, 16.0])
def test_both_bounds_of_the_samplers_part_hold_for_a_coarse_one(
    epsilon: float, releases: int, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sigma, shift = 8.0, 8
    delta, distance = exact_delta_of_a_coarse_sampler(epsilon, sigma, shift, cut, releases)
    mu = shift / sigma
    of_noise = delta_of(epsilon, mu * math.sqrt(releases))
    monkeypatch.setattr(gaussian_dp, "RELEASE_DISTANCE", distance)
    by_ratio = releases * (1 + math.exp(epsilon)) * distance
    by_release = releases * (distance + gaussian_dp._missed(mu))
    # What the sampler lacks shows, and neither bound is below it.
    assert of_noise * 0.9 <= delta <= of_noise * 1.02 + min(by_ratio, by_release)


def test_a_curve_that_does_not_settle_is_infinite() -> None:
    steep = iter([20.0, 22.0, 24.0, 26.0, 28.0, 30.0, 32.0, 34.0, 36.0, 38.0])
    assert epsilon_with_sampler(lambda _: next(steep), 0.9, 1) == math.inf


@settings(deadline=None)
@given(
    epsilon=st.floats(1e-2, 100.0),
    delta=st.floats(limits.MIN_DELTA, 1e-2),
    releases=st.integers(0, 10_000),
)
def test_mu_within_stays_within(epsilon: float, delta: float, releases: int) -> None:
    mu = mu_within(epsilon, delta, releases)
    assert mu > 0
    assert epsilon_of_releases(mu, delta, releases) <= epsilon * (1 + 1e-9)


@settings(deadline=None, max_examples=50)
@given(
    epsilon=st.floats(1e-2, 300.0),
    delta=st.floats(1e-12, 1e-2),
    releases=st.integers(0, 10_000),
)
def test_releases_that_are_alike_stay_within_and_may_go_further(
    epsilon: float, delta: float, releases: int
) -> None:
    mu = mu_within_alike(epsilon, delta, releases)
    assert mu >= mu_within(epsilon, delta, releases) > 0
    each = mu / math.sqrt(max(1, releases))
    assert epsilon_of_releases(mu, delta, releases, each) <= epsilon * (1 + 1e-9)


def test_the_noise_of_a_hundred_rounds_is_found_beyond_what_one_can_tell() -> None:
    mu = mu_within_alike(97.0, 1e-6, 100)
    assert epsilon_of_mu(mu, 1e-6) == pytest.approx(97.0, rel=1e-6)
    # One release cannot be told at 97: the largest that can.
    one = mu_within_alike(97.0, 1e-6, 1)
    assert 30 < epsilon_of_releases(one, 1e-6, 1, one) < 40


def test_no_mu_is_within_where_samplers_take_all_of_delta() -> None:
    assert mu_within(1.0, 1e-15, 10**7) == 0.0
    assert mu_within_alike(1.0, 1e-15, 10**7) == 0.0
