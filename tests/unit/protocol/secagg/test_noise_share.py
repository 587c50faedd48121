from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_protocol.encoding import Encoding, plan_encoding
from boltz_protocol.errors import InvalidPlan
from boltz_protocol.keystream import Keystream
from boltz_protocol.limits import MAX_COORDINATES, MAX_ROSTER, MIN_NOISE_SHARE_SIGMA
from boltz_protocol.noise import discrete_gaussian
from boltz_protocol.noise_share import effective_noise_multiplier, share_variance, sum_excess


def _encoding(noise_multiplier: float, cohort_max: int = 10, clip_norm: float = 1.0) -> Encoding:
    return plan_encoding(
        clip_norm_l2=clip_norm,
        noise_multiplier=noise_multiplier,
        cohort_max=cohort_max,
        coordinates=1000,
    )


@given(
    noise_multiplier=st.floats(0.01, 50),
    least=st.integers(1, 60),
    data=st.data(),
)
def test_the_fewest_honest_shares_have_the_variance_of_the_plan(
    noise_multiplier: float, least: int, data: st.DataObject
) -> None:
    colluders = data.draw(st.integers(0, least - 1))
    encoding = _encoding(noise_multiplier, cohort_max=60)
    share = share_variance(encoding, least_survivors=least, colluders=colluders)
    assert share * (least - colluders) == encoding.sigma_squared
    assert share >= Fraction(MIN_NOISE_SHARE_SIGMA) ** 2


def test_a_plan_without_noise_has_none_to_share() -> None:
    assert share_variance(_encoding(0), least_survivors=3, colluders=2) == 0


@pytest.mark.parametrize(("least", "colluders"), [(3, 3), (3, 4), (0, 0), (1, 1)])
def test_nobody_honest_left_is_refused(least: int, colluders: int) -> None:
    for noise_multiplier in (0.0, 1.0):
        with pytest.raises(InvalidPlan) as refusal:
            share_variance(_encoding(noise_multiplier), least_survivors=least, colluders=colluders)
        assert refusal.value.metadata["setting"] == "least_survivors"
        assert refusal.value.metadata["would_do"] == str(colluders + 1)


def test_a_share_that_is_too_small_is_refused_with_a_value_that_would_do() -> None:
    encoding = _encoding(1e-4, cohort_max=200)
    with pytest.raises(InvalidPlan, match="ring units") as refusal:
        share_variance(encoding, least_survivors=200, colluders=10)
    assert refusal.value.metadata["setting"] == "noise_multiplier"
    better = _encoding(float(refusal.value.metadata["would_do"]), cohort_max=200)
    share = share_variance(better, least_survivors=200, colluders=10)
    assert 2 <= math.sqrt(share) < 2.01


def test_the_last_client_that_makes_shares_too_small_is_refused() -> None:
    encoding = _encoding(2e-5)
    honest = math.floor(encoding.sigma_squared / 4)
    assert honest > 10
    assert 4 <= share_variance(encoding, least_survivors=honest + 3, colluders=3) < Fraction(9, 2)
    with pytest.raises(InvalidPlan):
        share_variance(encoding, least_survivors=honest + 4, colluders=3)


def test_a_sum_of_drawn_shares_has_the_variance_of_the_plan() -> None:
    encoding = _encoding(0.001)
    share = share_variance(encoding, least_survivors=9, colluders=2)
    total = np.zeros(1 << 17, dtype=np.int32)
    for client in range(7):
        discrete_gaussian(share).add_into(total, Keystream(bytes([client] * 32)))
    # The relative error of a variance from n samples has standard deviation sqrt(2 / n).
    measured = float(np.var(total.astype(np.float64)))
    assert measured == pytest.approx(float(encoding.sigma_squared), rel=6 * math.sqrt(2 / 2**17))


def _law(variance: Decimal, reach: int) -> list[Decimal]:
    masses = [(-Decimal(x * x) / (2 * variance)).exp() for x in range(-reach, reach + 1)]
    return [mass / sum(masses) for mass in masses]


@pytest.mark.parametrize("sigma", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("contributors", [2, 3, 4])
def test_the_excess_bounds_the_exact_ratio_of_a_sum(sigma: float, contributors: int) -> None:
    """Convolve the exact laws and compare with one discrete Gaussian, point by point."""
    reach, shown = 24, 12
    with localcontext(prec=60):
        variance = Decimal(sigma) ** 2
        one = _law(variance, reach)
        total = one
        for _ in range(contributors - 1):
            total = [
                sum(
                    (
                        one[i] * total[place - i]
                        for i in range(max(0, place - len(total) + 1), min(place + 1, len(one)))
                    ),
                    Decimal(0),
                )
                for place in range(len(one) + len(total) - 1)
            ]
        wide = len(total) // 2
        single = _law(contributors * variance, wide)
        # Further out the cut tails of the convolution show.
        ratios = [
            abs((total[place] / single[place]).ln())
            for place in range(wide - shown, wide + shown + 1)
        ]
        excess = sum_excess(sigma, contributors)
        assert float(max(ratios)) <= excess / 2
        if contributors == 2:
            # Not a guess either: for two shares it is within a factor of five of the truth.
            assert float(max(ratios)) >= excess / 10


def test_the_excess_is_the_papers_sum() -> None:
    assert sum_excess(1.0, 1) == 0
    assert sum_excess(0.5, 2) == pytest.approx(10 * math.exp(-(math.pi**2) / 4))
    assert sum_excess(0.5, 3) == pytest.approx(
        10 * (math.exp(-(math.pi**2) / 4) + math.exp(-(math.pi**2) / 3))
    )
    for contributors in (0, MAX_ROSTER + 1):
        with pytest.raises(AssertionError):
            sum_excess(2.0, contributors)
    with pytest.raises(AssertionError):
        sum_excess(0.49, 3)


@pytest.mark.parametrize("noise_multiplier", [0.1, 1.0, 10.0])
def test_at_the_least_share_the_correction_vanishes(noise_multiplier: float) -> None:
    effective = effective_noise_multiplier(
        noise_multiplier,
        share_sigma=MIN_NOISE_SHARE_SIGMA,
        contributors=MAX_ROSTER,
        coordinates=1_000_000,
    )
    assert 0 <= noise_multiplier - effective < 1e-9
    excess = sum_excess(MIN_NOISE_SHARE_SIGMA, MAX_ROSTER)
    assert excess * 1_000_000 < 1e-10
    assert excess * math.sqrt(MAX_COORDINATES) < 1e-11
    assert excess * MAX_COORDINATES < 1e-7


def test_small_shares_cost() -> None:
    settings = {"contributors": 100, "coordinates": 10_000}
    effective = [
        effective_noise_multiplier(1.0, share_sigma=sigma, **settings)
        for sigma in (0.5, 0.75, 1.0, 1.5, 2.0)
    ]
    assert effective == sorted(effective)
    tau = sum_excess(0.75, 100)
    assert effective[1] == pytest.approx(1 / (1 + tau * 100))
    assert effective[0] < 0.01
    assert effective[-1] == pytest.approx(1.0, abs=1e-12)
    assert effective_noise_multiplier(0.0, share_sigma=2.0, **settings) == 0
    # One contributor adds a discrete Gaussian: nothing to correct.
    assert effective_noise_multiplier(
        3.0, share_sigma=0.5, contributors=1, coordinates=10**6
    ) == pytest.approx(3.0, rel=1e-15)
    for broken in ({"noise_multiplier": -1.0}, {"coordinates": 0}):
        arguments = {"noise_multiplier": 1.0, "share_sigma": 2.0, **settings, **broken}
        with pytest.raises(AssertionError):
            effective_noise_multiplier(**arguments)  # type: ignore[arg-type]
