"""The clip indicator's lane: its value, what it leaves for the delta, and what is refused."""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_protocol import clip_indicator
from boltz_protocol import messages as m
from boltz_protocol.clip_indicator import SHORTENED, WITHIN, check_indicator, inner_clip_norm
from boltz_protocol.encoding import plan_encoding
from boltz_protocol.errors import MalformedMessage
from boltz_protocol.packing import norm_squared24
from boltz_protocol.update import LocalDelta, clip, encode, weigh
from tests.support.keys import load_vectors

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
LANES = st.lists(st.floats(-1e9, 1e9), max_size=3)
CLIP_NORMS = st.floats(2.0**-30, 2.0**30)


@given(st.lists(FLOATS, min_size=1, max_size=40), LANES, CLIP_NORMS, st.floats(2.0**-20, 1))
def test_the_whole_vector_is_never_longer_than_the_clip_norm(
    values: list[float], lanes: list[float], clip_norm: float, share: float
) -> None:
    scale = share * clip_norm
    delta = LocalDelta(np.array(values, dtype=np.float32), tuple(lanes))
    clipped = clip(delta, clip_norm_l2=clip_norm, indicator_scale=scale)
    # As it is rounded: the factor times every coordinate, in float64.
    formed = [float(value) * clipped.factor for value in [*delta.values.tolist(), *clipped.lanes]]
    assert sum(Fraction(value) ** 2 for value in formed) <= Fraction(clip_norm) ** 2
    assert abs(formed[-1]) == pytest.approx(scale / 2, rel=1e-14)
    within = clipped.norm_l2 <= inner_clip_norm(clip_norm, scale) * (1 - 1e-9)
    beyond = clipped.norm_l2 > inner_clip_norm(clip_norm, scale)
    if within:
        assert (clipped.factor, formed[-1] > 0) == (1.0, True)
    if beyond:
        assert formed[-1] < 0


@given(CLIP_NORMS, st.floats(2.0**-20, 1))
def test_the_shares_add_up(clip_norm: float, share: float) -> None:
    inner = inner_clip_norm(clip_norm, share * clip_norm)
    assert inner == pytest.approx(clip_norm * math.sqrt(1 - share**2 / 4), rel=1e-12)
    assert inner >= 0.866 * clip_norm


def test_without_an_indicator_nothing_changes() -> None:
    delta = LocalDelta(np.full(4, 0.5, np.float32), (0.25,))
    plain = clip(delta, clip_norm_l2=1.0)
    assert plain.lanes == (0.25,)
    assert plain.factor == pytest.approx(1 / math.sqrt(1 + 0.25**2))


def test_zero_is_within() -> None:
    clipped = clip(LocalDelta(np.zeros(3, np.float32)), clip_norm_l2=1.0, indicator_scale=0.2)
    assert (clipped.factor, clipped.lanes) == (1.0, (0.1,))


@pytest.mark.parametrize("size", [0.001, 0.05, 1e6])
@pytest.mark.parametrize("weight", [1, 128])
def test_the_bit_arrives_weighted_and_within_the_integer_bound(size: float, weight: int) -> None:
    encoding = plan_encoding(clip_norm_l2=1.0, noise_multiplier=0.0, cohort_max=4, coordinates=102)
    delta = LocalDelta(np.full(100, size, np.float32), (0.01,))
    clipped = clip(delta, clip_norm_l2=1.0, indicator_scale=0.2)
    encoded = encode(weigh(clipped, weight=weight, max_weight=128), encoding)
    assert norm_squared24(encoded.values) <= encoding.bound_l2**2
    bit = encoded.values[-1] / 2.0**encoding.scale_log2 / 0.2 * 128 / weight
    expected = WITHIN if size * 10 < 0.99 else SHORTENED
    assert bit == pytest.approx(expected, abs=1e-2)


# --- refusals -------------------------------------------------------------------------------------

LOSS = m.Lane("loss", 0.5)


@pytest.mark.parametrize(
    ("name", "lanes", "scale"),
    [
        ("other", (LOSS,), 0.2),
        ("loss", (LOSS,), None),
        ("clip-indicator", (LOSS,), 1.0 + 2**-52),
        ("clip-indicator", (), 7.0),
        ("loss" * 100, (LOSS,), 0.2),
    ],
)
def test_a_lane_that_is_no_indicator_is_refused(
    name: str, lanes: tuple[m.Lane, ...], scale: float | None
) -> None:
    if scale is not None:
        lanes = (*lanes, m.Lane(clip_indicator.LANE, scale))
    else:
        lanes = (*lanes, m.Lane("hits", 0.2))
    with pytest.raises(MalformedMessage) as refusal:
        check_indicator(name, lanes, 1.0)
    assert refusal.value.metadata["field"] == "clip_indicator"
    assert len(refusal.value.message) < 200


def test_no_lanes_no_indicator() -> None:
    with pytest.raises(MalformedMessage):
        check_indicator("clip-indicator", (), 1.0)


def test_an_indicator_may_have_any_name_and_all_of_the_clip_norm() -> None:
    check_indicator("", (LOSS,), 1.0)
    check_indicator("was-it-clipped", (LOSS, m.Lane("was-it-clipped", 1.0)), 1.0)
    with pytest.raises(AssertionError):
        inner_clip_norm(1.0, 1.1)


# --- vectors --------------------------------------------------------------------------------------


def _double(number: dict[str, str]) -> float:
    value: float = struct.unpack(">d", bytes.fromhex(number["ieee754"]))[0]
    assert value == float(number["decimal"])
    return value


@pytest.mark.parametrize("case", load_vectors("numerics_indicator"), ids=lambda case: case["name"])
def test_vectors(case: dict[str, Any]) -> None:
    clip_norm, scale = _double(case["clip_norm"]), _double(case["indicator_scale"])
    values = np.frombuffer(bytes.fromhex("".join(case["values_float32"])), ">f4")
    delta = LocalDelta(values.astype(np.float32), tuple(map(_double, case["scaled_lanes"])))
    assert inner_clip_norm(clip_norm, scale) == pytest.approx(
        _double(case["inner_clip_norm"]), rel=1e-12
    )
    clipped = clip(delta, clip_norm_l2=clip_norm, indicator_scale=scale)
    assert clipped.norm_l2 == pytest.approx(_double(case["norm"]), rel=1e-12)
    assert clipped.factor == pytest.approx(_double(case["factor"]), rel=1e-9)
    assert clipped.lanes[-1] * clipped.factor / scale == pytest.approx(case["bit"], rel=1e-12)
    encoding = plan_encoding(
        clip_norm_l2=clip_norm,
        noise_multiplier=0.0,
        cohort_max=case["cohort_max"],
        coordinates=values.size + len(case["scaled_lanes"]) + 1,
    )
    assert encoding.scale_log2 == case["scale_log2"]
    weighted = weigh(clipped, weight=case["weight"], max_weight=case["max_weight"])
    assert encode(weighted, encoding).values[-1] in case["lane_integers"]
