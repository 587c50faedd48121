"""Centered clipping in integers: bounds, allowances, rounding."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_mesh.aggregation.centered_step import (
    CenteredClipping,
    centre_units,
    shortened,
    shrinking,
)
from boltz_protocol.encoding import Encoding, plan_encoding
from boltz_protocol.errors import MalformedMessage
from boltz_protocol.keystream import Keystream
from boltz_protocol.limits import MIN_CLIP_NORM
from boltz_protocol.packing import norm_squared24
from tests.unit.aggregation.sums import Int32Array, rounds, term_of
from tests.unit.aggregation.sums import Round as Sum


def encoding(coordinates: int = 50, clip_norm: float = 1.0) -> Encoding:
    return plan_encoding(
        clip_norm_l2=clip_norm, noise_multiplier=1.0, cohort_max=10, coordinates=coordinates
    )


def random_term(size: int, length: float, seed: int) -> Int32Array:
    direction = np.random.default_rng(seed).normal(size=size)
    return np.rint(direction / np.linalg.norm(direction) * length).astype(np.int32)


def test_terms_keep_to_tau_and_its_rounding() -> None:
    whole, half = (CenteredClipping.of(encoding(), radius) for radius in (1.0, 0.5))
    assert whole.terms == encoding()
    assert half.name == "centered-clipping"
    assert half.terms.clip_norm_l2 == 0.5
    assert half.terms.scale_log2 == encoding().scale_log2
    assert 0.5 <= half.terms.bound_l2 / encoding().bound_l2 < 0.51
    # A light client has its share of tau, and room for rounding on top.
    assert half.term_bound(200, 200) == half.terms.bound_l2
    light = half.term_bound(2, 200)
    units = float(half.terms.clip_units) / 100
    assert units <= light <= units + math.sqrt(50) + 1


def test_a_broken_call_crashes() -> None:
    rule = CenteredClipping.of(encoding(), 0.5)
    bound = encoding().bound_l2
    assert rule.l2_sensitivity(2, 1, bound, [3, 255]) == rule.terms.bound_l2
    for n, f, clip, weights in (
        (2, 0, bound, [1]),
        (1, 2, bound, [1]),
        (1, 0, bound // 3, [1]),
        (1, 0, bound, [0]),
        (1, 0, bound, [256]),
    ):
        with pytest.raises(AssertionError):
            rule.l2_sensitivity(n, f, clip, weights)
    with pytest.raises(AssertionError):
        CenteredClipping.of(encoding(), 1.5)
    with pytest.raises(AssertionError):
        rule.term_bound(3, 2)
    with pytest.raises(MalformedMessage):
        CenteredClipping.of(encoding(clip_norm=MIN_CLIP_NORM), 0.5)


def test_a_centre_has_its_clients_weight() -> None:
    centre = np.array([0.5, -0.25, 0.0, 1e-9])
    assert centre_units(centre, 1024.0, 5, 10).tolist() == [256, -128, 0, 0]
    assert centre_units(centre, 1024.0, 10, 10).dtype == np.int32


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 400),
    chunk=st.integers(1, 100),
    bound=st.integers(1, 1 << 20),
    excess=st.floats(1.001, 100),
    seed=st.integers(0, 2**32 - 1),
)
def test_whatever_is_too_long_becomes_short_enough(
    size: int, chunk: int, bound: int, excess: float, seed: int
) -> None:
    term = random_term(size, bound * excess, seed)
    if norm_squared24(term) <= bound**2:
        return
    parts = [term[start : start + chunk] for start in range(0, size, chunk)]
    squares = np.array([norm_squared24(part) for part in parts], np.float64)
    how = shrinking(squares, np.array([part.size for part in parts]), bound)
    assert 0 <= how.factor < 1
    assert int(how.allowances.sum()) <= bound**2
    short = [
        shortened(part, how.factor, int(allowance), Keystream.fresh())
        for part, allowance in zip(parts, how.allowances, strict=True)
    ]
    assert sum(map(norm_squared24, short)) <= bound**2


def test_the_direction_stays_and_nothing_is_given_away() -> None:
    term = random_term(1000, 60_000, 1)
    how = shrinking(np.array([float(norm_squared24(term))]), np.array([1000]), 20_000)
    assert how.factor == pytest.approx(1 / 3, rel=1e-3)
    short = shortened(term, how.factor, int(how.allowances[0]), Keystream.fresh())
    assert np.abs(short - how.factor * term).max() < 1
    assert 0.999 * 20_000 <= math.sqrt(norm_squared24(short)) <= 20_000


def test_rounding_is_fair() -> None:
    """Even where a coordinate is a fraction of a unit: cut off, all of this would be 0."""
    term = np.ones(40_000, np.int32)  # 200 long
    how = shrinking(np.array([40_000.0]), np.array([40_000]), 150)
    short = shortened(term, how.factor, int(how.allowances[0]), Keystream.fresh())
    assert how.factor == pytest.approx(math.sqrt(150**2 - 10_000) / 200, rel=0.02)
    assert float(short.mean()) == pytest.approx(how.factor, abs=0.02)


def test_without_room_for_rounding_a_term_is_nothing() -> None:
    term = random_term(10_000, 5_000, 3)
    how = shrinking(np.array([float(norm_squared24(term))]), np.array([10_000]), 40)
    assert how.factor == 0
    assert not how.allowances.any()
    assert not shortened(term, how.factor, 0, Keystream.fresh()).any()


def test_what_no_draw_keeps_is_cut_off_towards_zero() -> None:
    term = np.array([3, -3, 3, -3] * 25, np.int32)
    # 1.5 each, which stochastic rounding leaves at one hundred times 2.5 squared.
    short = shortened(term, 0.5, 100, Keystream.fresh())
    assert short.tolist() == [1, -1, 1, -1] * 25
    with pytest.raises(AssertionError, match="no coordinate grows"):
        shortened(term, 0.5, 99, Keystream.fresh())


@settings(max_examples=100, deadline=None)
@given(rounds())
def test_with_the_whole_radius_nobody_near_the_centre_is_touched(each: Sum) -> None:
    """Terms and centres add up to the contribution where the way is short enough."""
    rule = CenteredClipping.of(each.encoding, 1.0)
    for place, values in enumerate(each.contributions):
        term, units = term_of(each, place, rule)
        bound = rule.term_bound(each.roster[place], each.max_weight)
        if norm_squared24(values - units) <= bound**2:
            assert np.array_equal(term + units, values)
        else:
            assert norm_squared24(term) <= bound**2
