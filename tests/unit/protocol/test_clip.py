from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_protocol.clip import clip_factor, joint_norm_l2, scaled_lanes
from boltz_protocol.errors import NotFinite
from boltz_protocol.squares import BLOCK

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
LANES = st.lists(st.floats(-1e9, 1e9), max_size=3)


@given(st.lists(FLOATS, min_size=1, max_size=40), LANES, st.floats(2.0**-30, 2.0**30))
def test_clipped_vector_is_never_longer_than_the_clip_norm(
    values: list[float], lanes: list[float], clip_norm: float
) -> None:
    array = np.array(values, dtype=np.float32)
    factor = clip_factor(joint_norm_l2(array, lanes), clip_norm)
    assert 0 < factor <= 1
    exact = sum(Fraction(value) ** 2 for value in [*array.tolist(), *lanes])
    assert Fraction(factor) ** 2 * exact <= Fraction(clip_norm) ** 2


@given(st.lists(FLOATS, min_size=1, max_size=40), LANES)
def test_a_vector_within_the_norm_stays_as_it_is(values: list[float], lanes: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    norm = joint_norm_l2(array, lanes)
    assert clip_factor(norm, 2 * norm + 1e-300) == 1.0


def test_clipping_loses_next_to_nothing() -> None:
    values = np.random.default_rng(5).standard_normal(3 * BLOCK + 7).astype(np.float32)
    norm = joint_norm_l2(values, (3.0,))
    assert norm == pytest.approx(math.sqrt(math.fsum(v * v for v in [*values.tolist(), 3.0])))
    assert clip_factor(norm, 1.0) * norm == pytest.approx(1.0, rel=1e-10)


def test_zero_gives_no_nan() -> None:
    norm = joint_norm_l2(np.zeros(5, dtype=np.float32), ())
    assert norm == 0.0
    assert clip_factor(norm, 1.0) == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("offset", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 3])
def test_first_offset_that_is_not_finite_is_named(bad: float, offset: int) -> None:
    values = np.ones(2 * BLOCK + 5, dtype=np.float32)
    values[offset] = bad
    values[-1] = math.nan
    with pytest.raises(NotFinite) as refusal:
        joint_norm_l2(values, ())
    assert refusal.value.metadata["offset"] == str(offset)


def test_largest_floats_do_not_overflow() -> None:
    values = np.full(10, np.finfo(np.float32).max, dtype=np.float32)
    assert 0 < clip_factor(joint_norm_l2(values, ()), 1.0) < 1e-37


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_lanes_must_be_finite(bad: float) -> None:
    with pytest.raises(NotFinite) as refusal:
        scaled_lanes((1.0, bad), 2.0)
    assert refusal.value.metadata["lane"] == "1"
    assert scaled_lanes((1.0, -3.0), 2.0) == (2.0, -6.0)
