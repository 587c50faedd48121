"""Record-level epsilon: as dp-accounting has it, never below the truth, and what would fit."""

from __future__ import annotations

import math
from typing import Any

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_client.record_rdp import (
    MAX_STEPS,
    ORDERS,
    SampledGaussian,
    epsilon_of_steps,
    least_noise_within,
    most_steps_within,
)
from boltz_protocol.errors import ConfigurationError
from boltz_protocol.gaussian_dp import epsilon_of_mu

KINDS = [
    (1.0, 1.0, 1),
    (1.0, 0.1, 100),
    (0.7, 0.01, 1000),
    (2.0, 0.05, 500),
    (10.0, 0.3, 10),
    (1.5, 0.02, 50),
    (100.0, 0.001, 5),
    (1000.0, 1.0, 1),
    (4.0, 0.999, 20),
    (0.5, 1e-5, 3),
]
KIND = st.builds(
    SampledGaussian,
    noise_multiplier=st.floats(0.5, 50),
    sampling_rate=st.floats(1e-4, 1),
    steps=st.integers(1, 2000),
)


@pytest.mark.parametrize(("noise", "rate", "steps"), KINDS)
@pytest.mark.parametrize("delta", [1e-5, 1e-9])
def test_it_is_what_dp_accounting_computes_at_the_same_orders(
    noise: float, rate: float, steps: int, delta: float
) -> None:
    reference = RdpAccountant(orders=list(ORDERS))
    reference.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps)
    found = epsilon_of_steps([SampledGaussian(noise, rate, steps)], delta)
    wanted = reference.get_epsilon(delta)
    # Ours also pays for the sampler's distance from the exact law: next to nothing.
    assert wanted * (1 - 1e-9) - 1e-12 <= found <= wanted * (1 + 2e-6) + 1e-12


@pytest.mark.parametrize(("noise", "rate", "steps"), KINDS[:6])
def test_it_is_never_below_the_tight_figure(noise: float, rate: float, steps: int) -> None:
    tight = PLDAccountant(value_discretization_interval=1e-3)
    tight.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps)
    found = epsilon_of_steps([SampledGaussian(noise, rate, steps)], 1e-6)
    assert tight.get_epsilon(1e-6) - 1e-3 * steps**0.5 <= found < 1.6 * tight.get_epsilon(1e-6)


@given(noise=st.floats(0.3, 100), delta=st.floats(1e-10, 1e-3))
def test_without_sampling_it_is_above_the_exact_curve(noise: float, delta: float) -> None:
    found = epsilon_of_steps([SampledGaussian(noise, 1.0, 1)], delta)
    assert found >= epsilon_of_mu(1 / noise, delta)


@settings(max_examples=25, deadline=None)
@given(runs=st.lists(KIND, max_size=4), more=KIND)
def test_more_steps_more_sampling_and_less_noise_cost_more(
    runs: list[SampledGaussian], more: SampledGaussian
) -> None:
    before = epsilon_of_steps(runs, 1e-6)
    after = epsilon_of_steps([*runs, more], 1e-6)
    assert before <= after
    assert epsilon_of_steps([more, *runs], 1e-6) == after
    quieter = SampledGaussian(more.noise_multiplier / 1.1, more.sampling_rate, more.steps)
    assert epsilon_of_steps([*runs, quieter], 1e-6) >= after
    rarer = SampledGaussian(more.noise_multiplier, more.sampling_rate / 1.1, more.steps)
    assert epsilon_of_steps([*runs, rarer], 1e-6) <= after
    assert epsilon_of_steps([*runs, more], 1e-5) <= after


def test_nothing_costs_nothing_and_too_little_noise_has_no_bound() -> None:
    assert epsilon_of_steps([], 1e-6) == 0
    assert epsilon_of_steps([SampledGaussian(0.1, 0.5, MAX_STEPS)], 1e-6) == math.inf


def test_two_halves_are_one_whole() -> None:
    half, whole = SampledGaussian(1.1, 0.03, 40), SampledGaussian(1.1, 0.03, 80)
    assert epsilon_of_steps([half, half], 1e-6) == epsilon_of_steps([whole], 1e-6)


def test_what_fits_fits_and_no_more() -> None:
    spent = [SampledGaussian(2.0, 0.1, 30)]
    wanted = SampledGaussian(1.0, 0.05, 1000)
    budget = 3.0
    steps = most_steps_within(spent, wanted, 1e-6, budget)
    assert 0 < steps < 1000

    def after(noise: float, steps: int) -> float:
        return epsilon_of_steps([*spent, SampledGaussian(noise, 0.05, steps)], 1e-6)

    assert after(1.0, steps) <= budget < after(1.0, steps + 1)
    noise = least_noise_within(spent, wanted, 1e-6, budget)
    assert noise is not None
    assert after(noise, 1000) <= budget < after(noise - 0.01, 1000)


def test_where_all_fits_or_nothing() -> None:
    wanted = SampledGaussian(5.0, 0.01, 10)
    assert most_steps_within([], wanted, 1e-6, 3.0) == 10
    least = least_noise_within([], wanted, 1e-6, 500.0)
    assert least is not None
    assert least < 1
    spent = [SampledGaussian(1.0, 1.0, 1)]
    assert most_steps_within(spent, wanted, 1e-6, 3.0) == 0
    assert least_noise_within(spent, wanted, 1e-6, 3.0) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("noise_multiplier", value) for value in (0.0, -1.0, 0.09, 1001.0, math.nan, math.inf)),
        *(("sampling_rate", value) for value in (0.0, -0.1, 1.01, math.nan)),
        *(("steps", value) for value in (0, -1, MAX_STEPS + 1)),
    ],
)
def test_a_wrong_value_is_named_with_one_that_would_do(name: str, value: Any) -> None:
    good = {"noise_multiplier": 1.0, "sampling_rate": 0.1, "steps": 10}
    with pytest.raises(ConfigurationError, match=rf"^{name} is .*such as") as caught:
        SampledGaussian(**(good | {name: value}))
    assert caught.value.metadata["setting"] == name
