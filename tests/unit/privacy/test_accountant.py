"""Epsilon: known values, agreement of three accountants, relations, and refusals."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting import (
    GaussianDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import example, given, settings
from hypothesis import strategies as st

from boltz_mesh.privacy import accountant
from boltz_mesh.privacy.accountant import (
    epsilon,
    epsilon_of,
    epsilon_renyi,
    epsilon_replace_one,
    least_effective,
    loss_distribution_curve,
    noise_multiplier_for,
    spent,
)
from boltz_mesh.privacy.mechanisms import PrivacyEvent
from boltz_protocol import limits
from boltz_protocol.errors import InvalidPlan
from boltz_protocol.gaussian_dp import RELEASE_DISTANCE, epsilon_of_mu
from boltz_protocol.noise_share import effective_noise_multiplier
from tests.unit.privacy.events import event

INTERVALS: dict[str, Any] = json.loads(
    Path(__file__).with_name("prv_intervals.json").read_text("utf-8")
)


def sampled(noise_multiplier: float, rate: float) -> PrivacyEvent:
    return PrivacyEvent(
        mechanism="discrete-gaussian",
        noise_multiplier=noise_multiplier,
        sensitivity=10,
        sampling_rate=rate,
        model="m",
        round="r",
        attempt=1,
        client="a",
    )


# --- known values ------------------------------------------------------------------------------


def test_one_round_at_noise_multiplier_one() -> None:
    assert epsilon(1.0, 1, 1.0, 1e-6) == pytest.approx(4.8866, abs=5e-5)


def test_rounds_add_up_like_their_inverse_squares() -> None:
    assert epsilon(4.0, 16, 1.0, 1e-6) == pytest.approx(epsilon(1.0, 1, 1.0, 1e-6), rel=1e-12)
    # 1/3^2 + 1/4^2 = 1/2.4^2
    both = epsilon_of([event(3.0), event(4.0, round="r2")], 1e-6)
    assert both == pytest.approx(epsilon(2.4, 1, 1.0, 1e-6), rel=1e-12)


def test_replaced_is_twice_the_sensitivity() -> None:
    assert epsilon_replace_one(3.0, 5, 1.0, 1e-6) == epsilon(1.5, 5, 1.0, 1e-6)
    told = spent([event(3.0)] * 5, 1e-6, relation="contribution-replaced")
    assert told.epsilon == epsilon_replace_one(3.0, 5, 1.0, 1e-6)
    assert told.relation == "contribution-replaced"


def test_nothing_released_costs_nothing() -> None:
    assert epsilon(1.0, 0) == 0.0
    assert epsilon_replace_one(0.0, 0) == 0.0
    assert epsilon_renyi(0.0, 0, 1e-6) == 0.0
    assert spent([], 1e-6).rounds == 0


@pytest.mark.parametrize("measure", [epsilon, epsilon_replace_one])
def test_no_noise_is_infinite(measure: Callable[..., float]) -> None:
    assert measure(0.0, 1, 1.0, 1e-6) == math.inf
    assert measure(0.0, 1, 0.1, 1e-6) == math.inf
    assert epsilon_of([event(4.0), event(0.0)], 1e-6) == math.inf
    assert epsilon_renyi(0.0, 1, 1e-6) == math.inf


# --- agreement with an accountant of others ----------------------------------------------------


def test_the_intervals_cover_what_they_should() -> None:
    points = INTERVALS["points"]
    for rate in (1.0, 0.1):
        many = [p for p in points if p["rounds"] == 100 and p["sampling_rate"] == rate]
        assert len({(p["noise_multiplier"], p["delta"]) for p in many}) >= 12
    assert all(0 < p["high"] - p["low"] < 0.05 for p in points)


@pytest.mark.parametrize(
    "point",
    INTERVALS["points"],
    ids=lambda p: f"{p['rounds']}-{p['sampling_rate']}-{p['noise_multiplier']}-{p['delta']:g}",
)
def test_inside_the_interval_of_prv_accountant(point: dict[str, float]) -> None:
    ours = epsilon(
        point["noise_multiplier"], int(point["rounds"]), point["sampling_rate"], point["delta"]
    )
    assert point["low"] <= ours <= point["high"]
    # Its estimate has an error of 1 / 1000 of delta besides.
    assert ours == pytest.approx(point["estimate"], rel=2e-4, abs=2e-4)


# --- agreement with the library ----------------------------------------------------------------


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (2.0, 6), (3.98, 4)])
def test_the_exact_curve_and_pld_agree(noise: float, rounds: int) -> None:
    for relation, ours in (
        (NeighboringRelation.REPLACE_SPECIAL, epsilon),
        (NeighboringRelation.REPLACE_ONE, epsilon_replace_one),
    ):
        pld = PLDAccountant(relation)
        pld.compose(SelfComposedDpEvent(GaussianDpEvent(noise), rounds))
        for delta in (1e-4, 1e-6):
            exact = ours(noise, rounds, 1.0, delta)
            # Theirs rounds up on its grid; ours has the sampler's part in it.
            assert pld.get_epsilon(delta) == pytest.approx(exact, abs=2e-5)


def test_our_pld_path_meets_the_exact_one_at_rate_one() -> None:
    # A rate of all but one goes the long way.
    almost = math.nextafter(1.0, 0.0)
    assert epsilon(2.0, 3, almost, 1e-6) == pytest.approx(epsilon(2.0, 3, 1.0, 1e-6), abs=1e-5)
    assert epsilon_replace_one(2.0, 3, almost, 1e-6) == pytest.approx(
        epsilon_replace_one(2.0, 3, 1.0, 1e-6), abs=1e-5
    )


def test_sampling_agrees_with_the_library_and_stays_below_renyi() -> None:
    releases = SelfComposedDpEvent(PoissonSampledDpEvent(0.1, GaussianDpEvent(1.5)), 20)
    pld = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL)
    pld.compose(releases)
    rdp = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_SPECIAL)
    rdp.compose(releases)
    ours = epsilon(1.5, 20, 0.1, 1e-6)
    assert ours == pytest.approx(pld.get_epsilon(1e-6), abs=1e-9)
    assert ours <= rdp.get_epsilon(1e-6)
    assert ours < epsilon(1.5, 20, 1.0, 1e-6)
    assert ours < epsilon_replace_one(1.5, 20, 0.1, 1e-6)


def test_sampled_and_unsampled_releases_compose() -> None:
    mixed = epsilon_of([sampled(2.0, 0.2), event(3.0), event(3.0)], 1e-6)
    assert epsilon(3.0, 2, 1.0, 1e-6) < mixed < epsilon_of([event(2.0), *[event(3.0)] * 2], 1e-6)


def test_a_hundred_rounds_are_told_beyond_an_epsilon_of_thirty() -> None:
    assert epsilon(1.0, 100, 1.0, 1e-6) == pytest.approx(96.7173, abs=1e-4)
    assert epsilon_of([event(1.0)] * 100, 1e-6) == epsilon(1.0, 100, 1.0, 1e-6)
    assert epsilon_replace_one(1.0, 100, 1.0, 1e-6) == epsilon(0.5, 100, 1.0, 1e-6)
    assert noise_multiplier_for(epsilon(1.0, 100), 100, 1e-6) == pytest.approx(1.0, rel=1e-9)
    # One release without enough noise, and nothing is told of all.
    assert epsilon_of([*[event(1.0)] * 99, event(0.1)], 1e-6) == math.inf


def test_pld_of_many_rounds_agrees_on_a_coarser_grid() -> None:
    for grid in (1e-3, 1e-2):
        curve = loss_distribution_curve([(1.0, 1.0, 100)], grid=grid)
        assert epsilon(1.0, 100) <= curve(1e-6) + 1e-9 <= epsilon(1.0, 100) * 1.001
    replaced = loss_distribution_curve([(4.0, 1.0, 10)], replaced=True)
    assert replaced(1e-6) == pytest.approx(epsilon_replace_one(4.0, 10), abs=1e-4)


@pytest.mark.parametrize(("noise", "rounds"), [(0.5, 1), (1.0, 1), (4.0, 20), (30.0, 100)])
@pytest.mark.parametrize("delta", [1e-5, 1e-9])
def test_renyi_is_an_upper_bound_and_not_far(noise: float, rounds: int, delta: float) -> None:
    exact = epsilon(noise, rounds, 1.0, delta)
    assert exact <= epsilon_renyi(noise, rounds, delta) <= 1.25 * exact


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 10), (2.0, 100), (8.0, 1000)])
def test_sampled_renyi_is_an_upper_bound_and_not_far(
    noise: float, rounds: int, caplog: pytest.LogCaptureFixture
) -> None:
    exact = epsilon(noise, rounds, 0.1, 1e-6)
    assert exact <= epsilon_renyi(noise, rounds, 1e-6, 0.1) <= 1.25 * exact
    assert not caplog.records  # every order converges


# --- the noise is discrete ---------------------------------------------------------------------


def exact_discrete_epsilon(sigma: float, shift: int, delta: float) -> float:
    """Of the discrete Gaussian shifted along an axis, by summing its probabilities."""
    values = np.arange(-int(14 * sigma), int(14 * sigma) + shift + 1, dtype=np.float64)
    one = np.exp(-(values**2) / (2 * sigma**2))
    other = np.exp(-((values - shift) ** 2) / (2 * sigma**2)) / one.sum()
    one /= one.sum()
    low, high = 0.0, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        if np.maximum(0, other - math.exp(middle) * one).sum() > delta:
            low = middle
        else:
            high = middle
    return high


@pytest.mark.parametrize("noise", [0.7, 1.0, 4.0])
@pytest.mark.parametrize(("shift", "within"), [(100, 2e-4), (1000, 2e-6), (10_000, 2e-8)])
@pytest.mark.parametrize("delta", [1e-5, 1e-8])
def test_the_discrete_curve_is_the_reported_one(
    noise: float, shift: int, within: float, delta: float
) -> None:
    exact = exact_discrete_epsilon(noise * shift, shift, delta)
    assert exact == pytest.approx(epsilon(noise, 1, 1.0, delta), abs=within)


@pytest.mark.parametrize("shift", [1, 2, 5])
def test_the_renyi_bound_holds_for_coarse_discrete_noise(shift: int) -> None:
    assert exact_discrete_epsilon(1.0 * shift, shift, 1e-6) <= epsilon_renyi(1.0, 1, 1e-6)


def test_the_samplers_error_takes_its_part_of_delta() -> None:
    told = epsilon(1.0, 1, 1.0, 1e-12)
    part = (1 + math.exp(told)) * RELEASE_DISTANCE
    assert epsilon_of_mu(1.0, 1e-12 - part) <= told <= epsilon_of_mu(1.0, 1e-12 - 2 * part)
    assert 0 < epsilon(1.0, 1, 0.5, 1e-12) < told
    assert epsilon(0.1, 1, 1.0, 1e-12) == math.inf


# --- calibration -------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    target=st.floats(0.1, 10.0),
    rounds=st.integers(1, 200),
    delta=st.floats(1e-10, 1e-4),
)
# The first bound on the sampler's part alone asks for a millionth more noise here.
@example(target=9.0, rounds=144, delta=1e-10)
def test_calibrated_noise_fits_and_less_does_not(target: float, rounds: int, delta: float) -> None:
    noise = noise_multiplier_for(target, rounds, delta)
    assert epsilon(noise, rounds, 1.0, delta) <= target
    assert epsilon(noise * (1 - 1e-6), rounds, 1.0, delta) > target


@pytest.mark.parametrize("rounds", [1, 64])
@pytest.mark.parametrize("honest", [2, 300])
def test_noise_in_shares_is_calibrated_with_what_a_sum_lacks(rounds: int, honest: int) -> None:
    noise = noise_multiplier_for(2.0, rounds, 1e-6, distributed=True)
    assert noise > noise_multiplier_for(2.0, rounds, 1e-6)
    effective = effective_noise_multiplier(
        noise,
        share_sigma=limits.MIN_NOISE_SHARE_SIGMA,
        contributors=honest,
        coordinates=limits.MAX_COORDINATES,
    )
    assert effective < noise
    assert epsilon(effective, rounds, 1.0, 1e-6) <= 2.0


def test_what_shares_are_sure_to_have_is_the_inverse_of_the_calibration() -> None:
    assert least_effective(0.0) == 0.0
    assert least_effective(4.0) < 4.0
    assert least_effective(4.0) == pytest.approx(4.0, rel=1e-8)
    wanted = noise_multiplier_for(2.0, 9, 1e-6)
    planned = noise_multiplier_for(2.0, 9, 1e-6, distributed=True)
    assert least_effective(planned) == pytest.approx(wanted, rel=1e-14)
    with pytest.raises(InvalidPlan):
        least_effective(-1.0)


def test_an_epsilon_that_no_sum_of_shares_can_have() -> None:
    assert noise_multiplier_for(1e-300, 10_000, 1e-12, distributed=True) == math.inf


@settings(max_examples=60, deadline=None)
@given(noises=st.lists(st.floats(0.5, 20), min_size=1, max_size=6), more=st.floats(0.5, 20))
def test_another_release_never_costs_less_and_order_does_not_matter(
    noises: list[float], more: float
) -> None:
    events = [event(noise) for noise in noises]
    assert epsilon_of([*events, event(more)], 1e-6) > epsilon_of(events, 1e-6)
    assert epsilon_of(events[::-1], 1e-6) == epsilon_of(events, 1e-6)


# --- words and refusals ------------------------------------------------------------------------


def test_an_epsilon_is_never_told_without_unit_and_relation() -> None:
    text = str(spent([event(3.98)] * 4, 1e-5))
    assert text == (
        "epsilon 2.005 at delta 1e-05 (unit: one client; relation: its contribution set to zero; "
        "4 releases)"
    )
    assert "replaced by any other; 1 release)" in str(
        spent([event(4.0)], 1e-5, relation="contribution-replaced")
    )


def test_no_noise_prints_no_epsilon() -> None:
    text = str(spent([event(0.0)], 1e-5))
    assert text.startswith("no differential privacy")
    assert "epsilon" not in text
    assert "unit: one client" in text


def refused(call: Callable[[], object], setting: str) -> None:
    with pytest.raises(InvalidPlan) as error:
        call()
    assert error.value.metadata["setting"] == setting
    assert "would do" in error.value.message


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-6, 1e-16, float("nan")])
def test_delta_out_of_range(delta: float) -> None:
    refused(lambda: epsilon(1.0, 1, 1.0, delta), "delta")
    refused(lambda: epsilon_replace_one(1.0, 1, 1.0, delta), "delta")
    refused(lambda: epsilon_renyi(1.0, 1, delta), "delta")
    refused(lambda: spent([], delta), "delta")
    refused(lambda: noise_multiplier_for(1.0, 1, delta), "delta")


def test_other_arguments_out_of_range() -> None:
    refused(lambda: epsilon(-1.0, 1), "noise_multiplier")
    refused(lambda: epsilon(math.nan, 1), "noise_multiplier")
    refused(lambda: epsilon(1.0, -1), "rounds")
    refused(lambda: epsilon(1.0, 1, 0.0), "sampling_rate")
    refused(lambda: epsilon_replace_one(1.0, 1, 1.1), "sampling_rate")
    refused(lambda: epsilon_renyi(1.0, 1, 1e-6, 1.1), "sampling_rate")
    refused(lambda: noise_multiplier_for(1.0, 0, 1e-6), "rounds")
    refused(lambda: noise_multiplier_for(0.0, 1, 1e-6), "epsilon")
    refused(lambda: noise_multiplier_for(math.inf, 1, 1e-6), "epsilon")
    refused(lambda: noise_multiplier_for(1.0, 10**9, 1e-14), "delta")


def test_two_clients_do_not_add_up() -> None:
    with pytest.raises(AssertionError):
        spent([event(client="a"), event(client="b")], 1e-6)


def test_the_round_path_does_not_load_scipy() -> None:
    script = (
        "import sys; from boltz_mesh.privacy import accountant, budget;"
        "assert accountant.epsilon(1.0, 3) > 0;"
        "loaded = {'scipy', 'dp_accounting'} & set(sys.modules); assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_repeated_questions_are_cached() -> None:
    accountant._epsilon.cache_clear()
    for _ in range(3):
        epsilon(1.25, 7)
    assert accountant._epsilon.cache_info().hits == 2
