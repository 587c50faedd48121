"""Exponentials in fixed point with big integers: what the noise tables are made of."""

from __future__ import annotations

from fractions import Fraction
from typing import Final

#: Bits of the cumulative thresholds and of decisions.
THRESHOLD_BITS: Final = 128
# Bits carried. A mass at k is k multiplications away from one and its relative error grows with
# k^2: with k below 2^15 more than 200 bits stay right, far beyond the thresholds.
_BITS: Final = 256


def _exp_negative(x: Fraction) -> int:
    """exp(-x) * 2^256 for 0 <= x, to within a relative 2^-245 for x up to 8."""
    # The series of exp(x) has positive terms only, so nothing cancels.
    term = total = 1 << _BITS
    order = 1
    while term:
        term = term * x.numerator // (x.denominator * order)
        total += term
        order += 1
    return (1 << 2 * _BITS) // total


def exp_below(x: Fraction) -> int:
    """exp(-x) * 2^128, rounded down, for 0 <= x <= 8."""
    return _exp_negative(x) >> (_BITS - THRESHOLD_BITS)


def gaussian_masses(sigma_squared: Fraction, reach: int) -> list[int]:
    """exp(-k^2 / 2 sigma^2) * 2^256 for k = 0 .. reach, by recurrence.

    The ratio of neighbours is itself geometric: exp(-(2k + 1) / 2 sigma^2).
    """
    ratio = _exp_negative(1 / (2 * sigma_squared))
    step = ratio * ratio >> _BITS
    masses = [1 << _BITS]
    for _ in range(reach):
        masses.append(masses[-1] * ratio >> _BITS)
        ratio = ratio * step >> _BITS
    return masses
