"""The exact curve against closed values, another implementation, and its own inverse."""

import math

import pytest
from dp_accounting import gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_mesh.privacy.analytic_gaussian import delta_of, epsilon_of_mu, mu_of

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
