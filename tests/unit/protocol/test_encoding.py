from __future__ import annotations

import math
import struct
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from boltz_protocol.encoding import Encoding, fraction_bits, integer_bound_l2, plan_encoding
from boltz_protocol.errors import InvalidPlan, MalformedMessage, NormExceeded
from boltz_protocol.limits import MIN_SIGMA
from tests.support.keys import load_vectors

PLANS = st.fixed_dictionaries(
    {
        "clip_norm_l2": st.floats(2.0**-30, 2.0**30),
        "noise_multiplier": st.one_of(st.just(0.0), st.floats(0.01, 50)),
        "cohort_max": st.integers(1, 2000),
        "coordinates": st.integers(1, 30_000_000),
    }
)


def _plan(**changes: Any) -> Encoding:
    settings: dict[str, Any] = {
        "clip_norm_l2": 1.0,
        "noise_multiplier": 1.0,
        "cohort_max": 20,
        "coordinates": 1 << 20,
    }
    return plan_encoding(**{**settings, **changes})


def _refusal(plan: dict[str, Any]) -> InvalidPlan | None:
    try:
        plan_encoding(**plan)
    except InvalidPlan as refusal:
        return refusal
    return None


@given(
    st.fractions(0, 2**23, max_denominator=1 << 20),
    st.integers(1, 1 << 30),
)
def test_bound_is_the_least_integer_above_the_proposition(units: Fraction, d: int) -> None:
    bound = integer_bound_l2(units, d)
    c = float(units) + (math.isqrt(d) + 1) / 2 ** (fraction_bits(units) + 1)
    formula = min(math.sqrt(c * c + d / 4 + c + math.sqrt(d) / 2), c + math.sqrt(d))
    assert formula - 1e-5 <= bound <= formula + 1 + 1e-5


@given(PLANS)
def test_a_full_cohort_and_its_noise_fit_and_no_finer_scale_would(plan: dict[str, Any]) -> None:
    try:
        encoding = plan_encoding(**plan)
    except InvalidPlan:
        assume(False)
    n, z, bound = plan["cohort_max"], plan["noise_multiplier"], encoding.bound_l2
    assert n * bound + 8 * z * bound * math.sqrt(n) < 2**23 * (1 + 1e-12)
    finer = integer_bound_l2(encoding.clip_units * 2, plan["coordinates"])
    assert n * finer + 8 * z * finer * math.sqrt(n) > 2**23 * (1 - 1e-12) or (
        encoding.clip_units >= 2**22
    )
    assert bound <= 1.25 * encoding.clip_units
    assert (
        encoding.clip_units == Fraction(plan["clip_norm_l2"]) * Fraction(2) ** encoding.scale_log2
    )
    assert encoding.clip_units * 2**encoding.fraction_bits <= 2**30
    assert encoding.sigma_squared == (Fraction(z) * bound) ** 2
    assert encoding.sum_limit(n, noised=False) == n * bound
    assert n * bound <= encoding.sum_limit(n, noised=True) < 2**23


@given(PLANS)
def test_a_refusal_names_a_value_that_would_do(plan: dict[str, Any]) -> None:
    hard = {**plan, "noise_multiplier": plan["noise_multiplier"] * 20, "cohort_max": 5000}
    refusal = _refusal(hard)
    assume(refusal is not None)
    assert refusal is not None
    setting, would_do = refusal.metadata["setting"], refusal.metadata["would_do"]
    assert would_do in refusal.message
    advised = {**hard, setting: float(would_do) if "noise" in setting else int(would_do)}
    if "with cohort_max" in refusal.message:
        advised["cohort_max"] = int(refusal.message.split("with cohort_max ")[1].split()[0])
    plan_encoding(**advised)


def test_both_kinds_of_advice() -> None:
    with pytest.raises(InvalidPlan, match="cohort_max 7319 would do"):
        _plan(noise_multiplier=0.0, cohort_max=10_000)
    with pytest.raises(InvalidPlan, match=r"noise_multiplier 218\.11 with cohort_max 1 would do"):
        _plan(noise_multiplier=300.0, cohort_max=1, coordinates=25_000_000)


def test_noise_too_small_to_be_discrete_is_refused() -> None:
    with pytest.raises(InvalidPlan) as refusal:
        _plan(noise_multiplier=1e-9)
    would_do = float(refusal.value.metadata["would_do"])
    assert _plan(noise_multiplier=would_do).sigma_squared >= Fraction(MIN_SIGMA) ** 2


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("clip_norm_l2", 0.0),
        ("clip_norm_l2", -1.0),
        ("clip_norm_l2", math.nan),
        ("clip_norm_l2", math.inf),
        ("noise_multiplier", -0.1),
        ("noise_multiplier", math.nan),
        ("noise_multiplier", 1e9),
        ("cohort_max", 0),
        ("cohort_max", 10_001),
        ("coordinates", 0),
        ("coordinates", (1 << 30) + 1),
    ],
)
def test_settings_out_of_range_are_named(setting: str, value: float) -> None:
    with pytest.raises(InvalidPlan) as refusal:
        _plan(**{setting: value})
    assert refusal.value.metadata["setting"] == setting
    if setting == "clip_norm_l2":
        _plan(noise_multiplier=0.0, clip_norm_l2=float(refusal.value.metadata["would_do"]))


def test_vectors() -> None:
    for case in load_vectors("numerics_encoding"):
        encoding = plan_encoding(
            clip_norm_l2=float(case["clip_norm_l2"]["decimal"]),
            noise_multiplier=float(case["noise_multiplier"]["decimal"]),
            cohort_max=case["cohort_max"],
            coordinates=case["coordinates"],
        )
        assert struct.pack(">d", encoding.clip_norm_l2).hex() == case["clip_norm_l2"]["ieee754"]
        assert encoding.scale_log2 == case["scale_log2"]
        assert encoding.bound_l2 == case["bound_l2"]
        assert encoding.fraction_bits == case["fraction_bits"]
        assert encoding.sigma_squared == Fraction(case["sigma_squared"])


def test_an_encoding_that_does_not_hold_together_is_refused() -> None:
    good = _plan()
    for changes in (
        {"bound_l2": good.bound_l2 - 1},
        {"bound_l2": good.bound_l2 + 1},
        {"scale_log2": good.scale_log2 - 1},
        {"scale_log2": 65},
        {"scale_log2": -65},
        {"clip_norm_l2": 2.0},
        {"clip_norm_l2": math.nan},
        {"coordinates": 2 * good.coordinates},
        {"cohort_max": 10_000},
        {"noise_multiplier": 900.0},
    ):
        with pytest.raises(MalformedMessage):
            replace(good, **changes)


def test_norm_check() -> None:
    encoding = _plan()
    encoding.check_norm(encoding.bound_l2**2)
    with pytest.raises(NormExceeded):
        encoding.check_norm(encoding.bound_l2**2 + 1)


def test_sum_limit_asks_for_a_real_cohort() -> None:
    with pytest.raises(AssertionError):
        _plan().sum_limit(21, noised=False)
