"""The step of the clip norm, and that noise does not keep it from the quantile, from far away."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_mesh.privacy.adaptive_clip import AdaptiveClipping, next_clip_norm
from boltz_protocol import limits
from boltz_protocol.clip_indicator import SHORTENED, WITHIN, inner_clip_norm

NORMS = st.floats(2.0**-20, 2.0**20)
RATES = st.floats(0.01, 4)
QUANTILES = st.floats(0.01, 0.99)
BITS = st.floats(-0.5, 0.5)


def settings(**changes: float) -> AdaptiveClipping:
    return AdaptiveClipping(**changes).resolved(1.0)


def wide(**changes: float) -> AdaptiveClipping:
    return AdaptiveClipping(min=limits.MIN_CLIP_NORM, max=limits.MAX_CLIP_NORM, **changes)


def test_the_formula_by_hand() -> None:
    # b = 0.75 against 0.5 at a rate of 0.2: C exp(-0.05).
    assert next_clip_norm(settings(), 2.0, 0.25) == pytest.approx(2 * math.exp(-0.05), rel=1e-15)
    # All within asks for less, none within for more: the sign.
    assert next_clip_norm(settings(), 1.0, WITHIN) < 1 < next_clip_norm(settings(), 1.0, SHORTENED)
    assert next_clip_norm(settings(quantile=0.9), 1.0, 0.4) == 1.0


@given(NORMS, BITS, QUANTILES, RATES)
def test_a_step_has_the_sign_and_the_size_of_the_miss(
    norm: float, bit: float, quantile: float, rate: float
) -> None:
    moved = next_clip_norm(wide(quantile=quantile, learning_rate=rate), norm, bit)
    assert math.log(norm / moved) == pytest.approx(rate * (bit + 0.5 - quantile), abs=1e-12)


@given(NORMS, st.floats(-1e6, 1e6), QUANTILES, RATES)
def test_whatever_the_noise_a_step_is_bounded(
    norm: float, bit: float, quantile: float, rate: float
) -> None:
    moved = next_clip_norm(wide(quantile=quantile, learning_rate=rate), norm, bit)
    assert abs(math.log(moved / norm)) <= rate * (1 + 1e-12) + 1e-12


@given(st.floats(0.001, 1000), st.floats(-1e6, 1e6), RATES)
def test_the_bounds_hold(norm: float, bit: float, rate: float) -> None:
    assert 0.001 <= next_clip_norm(settings(learning_rate=rate), norm, bit) <= 1000


def test_bounds_that_are_left_out_follow_the_start() -> None:
    assert (settings().min, settings().max) == (0.001, 1000.0)
    assert AdaptiveClipping(min=0.5, max=2.0).resolved(1.0) == AdaptiveClipping(min=0.5, max=2.0)
    least = AdaptiveClipping().resolved(limits.MIN_CLIP_NORM)
    assert (least.min, least.max) == (limits.MIN_CLIP_NORM, limits.MIN_CLIP_NORM * 1000)
    assert AdaptiveClipping().resolved(limits.MAX_CLIP_NORM).max == limits.MAX_CLIP_NORM


@given(NORMS, st.floats(2.0**-40, 1))
def test_the_lanes_scale_is_never_above_the_clip_norm(norm: float, share: float) -> None:
    assert 0 < AdaptiveClipping(bit_share=share).indicator_scale(norm) <= norm


# --- convergence ----------------------------------------------------------------------------------

CLIENTS = 40
NOISE = 1.0


def simulated(plan: AdaptiveClipping, start: float, rounds: int, seed: int) -> list[float]:
    """C of each round; norms are log-normal around 1, the noise that of the encoded sum."""
    random = np.random.default_rng(seed)
    norms = [start]
    for _ in range(rounds):
        clip_norm = norms[-1]
        scale = plan.indicator_scale(clip_norm)
        inner = inner_clip_norm(clip_norm, scale)
        within = np.exp(0.5 * random.standard_normal(CLIENTS)) <= inner
        bits = np.where(within, WITHIN, SHORTENED)
        noised = (scale * bits.sum() + NOISE * clip_norm * random.standard_normal()) / CLIENTS
        norms.append(next_clip_norm(plan, clip_norm, noised / scale))
    return norms


@pytest.mark.parametrize("start", [100.0, 0.01], ids=["above", "below"])
@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
def test_the_clip_norm_comes_to_the_quantile_from_100_times_above_and_below(
    start: float, quantile: float
) -> None:
    plan = wide(quantile=quantile, learning_rate=0.2)
    wanted = math.exp(0.5 * statistics.NormalDist().inv_cdf(quantile))
    norms = simulated(plan, start * wanted, 600, seed=8)
    # The farthest way, of a factor of 100 = exp(4.6), is at best 0.1 a round for this share of
    # 1 - 0.9 or 0.2; and what comes after it stays.
    settled = [math.log(norm / wanted) for norm in norms[300:]]
    assert statistics.fmean(settled) == pytest.approx(0, abs=0.1)
    assert max(map(abs, settled)) < 0.7
    assert abs(math.log(norms[300] / wanted)) < 0.1 * abs(math.log(start))


def test_noise_beyond_one_does_not_carry_the_norm_away() -> None:
    """The reason for the symmetric bound: with noise of deviation 1.7 on b and a quantile of 0.9,
    cutting b off at 0 and 1 would make the norm grow in every round, on average."""
    plan = wide(quantile=0.9, learning_rate=0.2, bit_share=0.015)
    norms = simulated(plan, 1.0, 4000, seed=3)
    assert 0.1 < statistics.median(norms[-2000:]) < 20
    assert max(norms) < 1e4

    def one_sided(norm: float, bit: float) -> float:
        return norm * math.exp(-0.2 * (min(1.0, max(0.0, bit + 0.5)) - 0.9))

    random = np.random.default_rng(3)
    norm = 1.0
    for _ in range(4000):
        # Even when every client is within.
        norm = one_sided(norm, WITHIN + NOISE / CLIENTS / 0.015 * random.standard_normal())
    assert norm > 1e9
