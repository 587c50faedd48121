"""How reals become integers of the ring: scale, integer sensitivity and the room for sums.

A contribution of L2 norm at most C is multiplied by a power of two and rounded stochastically,
again and again until the integer vector is no longer than `bound_l2` (Kairouz, Liu and Steinke
2021, "The Distributed Discrete Gaussian Mechanism", section 4.1, proposition 22 with granularity
1 and beta = exp(-1/2), so that a draw succeeds with probability at least 1 - exp(-1/2) = 0.39):

    bound^2 = min(c^2 + d/4 + c + sqrt(d)/2, (c + sqrt(d))^2),
    c = C * scale + (isqrt(d) + 1) / 2^(f + 1).

The second term of c is there because coordinates are first rounded to f fraction bits, which can
lengthen a vector by sqrt(d) / 2^(f + 1); it is below a millionth of the first for any real model.
`bound_l2` is the least integer at or above that, found in exact arithmetic. It is the sensitivity
of the sum to one client, and the noise is calibrated to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import Final

from boltz_protocol.errors import InvalidPlan, MalformedMessage, NormExceeded
from boltz_protocol.limits import (
    MAX_CLIP_NORM,
    MAX_COORDINATES,
    MAX_NOISE_MULTIPLIER,
    MAX_ROSTER,
    MIN_CLIP_NORM,
    MIN_SIGMA,
    WIRE_BITS,
)

_RING_HALF: Final = 1 << (WIRE_BITS - 1)
# Rounding may lengthen a contribution, and so raise the noise, by a quarter at the most. Beyond
# that the update is mostly rounding error and a coarser scale would be no answer.
_MAX_INFLATION: Final = Fraction(5, 4)
# Gaussian noise of n clients leaves 8 sigma sqrt(n) with probability 1.3e-15 for one coordinate.
_NOISE_SIGMAS: Final = 8
# Fraction bits of the fixed-point form that is rounded: 16 random bits are drawn a coordinate.
_MAX_FRACTION_BITS: Final = 16


def fraction_bits(clip_units: Fraction) -> int:
    """Bits below one unit that are kept before rounding: every coordinate stays below 2^30."""
    return min(_MAX_FRACTION_BITS, 30 - math.ceil(clip_units).bit_length())


def integer_bound_l2(clip_units: Fraction, coordinates: int) -> int:
    """The least integer norm at or above the bound of the module's head.

    Args:
        clip_units: C * scale, at least 0.
        coordinates: parameters and lanes, d.
    """
    grid = Fraction(isqrt(coordinates) + 1, 2 << fraction_bits(clip_units))
    units = clip_units + grid
    rest = units**2 + Fraction(coordinates, 4) + units

    def enough(norm: int) -> bool:
        # norm^2 >= rest + sqrt(d)/2, or norm >= c + sqrt(d): squared, so that all is rational.
        over = norm * norm - rest
        by_chance = over >= 0 and 4 * over * over >= coordinates
        gap = norm - units
        return by_chance or (gap >= 0 and gap * gap >= coordinates)

    norm = math.floor(units)
    step = 1
    while not enough(norm + step):
        step *= 2
    # Bisection between a norm that is too small (or the floor itself) and one that is enough.
    low, high = norm - 1, norm + step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@dataclass(frozen=True, slots=True)
class Encoding:
    """What every client and the server of a round must agree on about the numbers.

    Attributes:
        clip_norm_l2: C, in the delta's own unit; covers parameters and scaled lanes together.
        scale_log2: units of the ring in one unit of the delta, as a power of two.
        bound_l2: the longest integer vector that counts; the sensitivity of the sum.
        coordinates: parameters and lanes, d.
        cohort_max: the most clients whose sum fits the ring.
        noise_multiplier: z; the noise of a sum has standard deviation z * bound_l2.

    Raises: MalformedMessage when the values do not belong together. A client that builds this
        from a round's configuration has therefore checked it.
    """

    clip_norm_l2: float
    scale_log2: int
    bound_l2: int
    coordinates: int
    cohort_max: int
    noise_multiplier: float

    def __post_init__(self) -> None:
        _check_settings(self.clip_norm_l2, self.noise_multiplier, self.cohort_max, self.coordinates)
        if abs(self.scale_log2) > 64:
            raise MalformedMessage(
                f"scale_log2 is {self.scale_log2}, outside -64 to 64", field="scale_log2"
            )
        wanted = integer_bound_l2(self.clip_units, self.coordinates)
        if self.bound_l2 != wanted:
            raise MalformedMessage(
                f"bound_l2 is {self.bound_l2}; clip norm, scale and coordinates give {wanted}",
                field="bound_l2",
            )
        if not _fits(self.bound_l2, Fraction(self.noise_multiplier), self.cohort_max):
            raise MalformedMessage(
                f"a sum of {self.cohort_max} clients does not fit {WIRE_BITS} bits at "
                f"scale_log2 {self.scale_log2}",
                field="scale_log2",
            )

    @property
    def clip_units(self) -> Fraction:
        """C in units of the ring, exact."""
        return Fraction(self.clip_norm_l2) * Fraction(2) ** self.scale_log2

    @property
    def sigma_squared(self) -> Fraction:
        """Variance of a coordinate's noise in a sum, in squared ring units, exact."""
        return (Fraction(self.noise_multiplier) * self.bound_l2) ** 2

    @property
    def fraction_bits(self) -> int:
        """Bits below one unit that are kept before rounding."""
        return fraction_bits(self.clip_units)

    def sum_limit(self, contributors: int, *, noised: bool) -> int:
        """The largest size of one coordinate that clip (and noise, if it is in) allow."""
        assert 1 <= contributors <= self.cohort_max, "a round has at most cohort_max contributors"
        limit = contributors * self.bound_l2
        if noised:
            spread = _NOISE_SIGMAS**2 * self.sigma_squared * self.cohort_max
            limit += isqrt(math.floor(spread))
        return min(limit, _RING_HALF - 1)

    def check_norm(self, norm_squared: int) -> None:
        """Refuse an update longer than the bound. Raises: NormExceeded."""
        if norm_squared > self.bound_l2**2:
            raise NormExceeded(
                f"the update's integer norm is {math.isqrt(norm_squared)}; "
                f"the round allows {self.bound_l2}",
                bound_l2=self.bound_l2,
            )


def plan_encoding(
    *, clip_norm_l2: float, noise_multiplier: float, cohort_max: int, coordinates: int
) -> Encoding:
    """The finest power-of-two scale at which the sum of a full cohort and its noise fit the ring.

    The condition is n * bound + 8 * z * bound * sqrt(n) < 2^23, in exact arithmetic.

    Args:
        clip_norm_l2: C, between `limits.MIN_CLIP_NORM` and `MAX_CLIP_NORM`.
        noise_multiplier: z, at least 0; 0 means no noise.
        cohort_max: the most clients of a round, n.
        coordinates: parameters and lanes, d.

    Raises: InvalidPlan naming the setting and a value that would do; `metadata["setting"]` and
        `metadata["would_do"]` carry both.
    """
    try:
        _check_settings(clip_norm_l2, noise_multiplier, cohort_max, coordinates)
    except MalformedMessage as error:
        raise InvalidPlan(
            error.message, setting=error.metadata["field"], would_do=error.metadata["would_do"]
        ) from error
    clip, noise = Fraction(clip_norm_l2), Fraction(noise_multiplier)
    # Above this the clip norm alone fills the ring.
    exponent = WIRE_BITS - 1 - math.frexp(clip_norm_l2)[1]
    while True:
        units = clip * Fraction(2) ** exponent
        bound = integer_bound_l2(units, coordinates)
        if bound > _MAX_INFLATION * units:
            raise _does_not_fit(clip, noise, cohort_max, coordinates, exponent + 1)
        if _fits(bound, noise, cohort_max):
            break
        exponent -= 1
    if 0 < noise * bound < MIN_SIGMA:
        least = math.ceil(MIN_SIGMA / bound * 1e9) / 1e9
        raise InvalidPlan(
            f"noise_multiplier {noise_multiplier} is noise of less than {MIN_SIGMA} ring units; "
            f"use 0 for none or at least {least}",
            setting="noise_multiplier",
            would_do=str(least),
        )
    return Encoding(
        clip_norm_l2=clip_norm_l2,
        scale_log2=exponent,
        bound_l2=bound,
        coordinates=coordinates,
        cohort_max=cohort_max,
        noise_multiplier=noise_multiplier,
    )


def _check_settings(
    clip_norm_l2: float, noise_multiplier: float, cohort_max: int, coordinates: int
) -> None:
    settings: tuple[tuple[str, float, float, float], ...] = (
        ("clip_norm_l2", clip_norm_l2, MIN_CLIP_NORM, MAX_CLIP_NORM),
        ("noise_multiplier", noise_multiplier, 0, MAX_NOISE_MULTIPLIER),
        ("cohort_max", cohort_max, 1, MAX_ROSTER),
        ("coordinates", coordinates, 1, MAX_COORDINATES),
    )
    for name, value, least, most in settings:
        # Written so that a NaN fails as well.
        if not least <= value <= most:
            would_do = most if value > most else least
            raise MalformedMessage(
                f"{name} is {value}; it must be between {least} and {most}",
                field=name,
                would_do=str(would_do),
            )


def _fits(bound: int, noise: Fraction, cohort: int) -> bool:
    room = _RING_HALF - cohort * bound
    return room > 0 and (_NOISE_SIGMAS * noise * bound) ** 2 * cohort < room * room


def _does_not_fit(
    clip: Fraction, noise: Fraction, cohort_max: int, coordinates: int, exponent: int
) -> InvalidPlan:
    """What to say when no scale is both coarse enough for the sum and fine enough for the update.

    The advice is worked out at the coarsest scale whose rounding is acceptable, `exponent` or
    finer: there the most clients fit.
    """
    bound = integer_bound_l2(clip * Fraction(2) ** exponent, coordinates)
    low, high = 0, cohort_max
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(bound, noise, middle) else (low, middle)
    problem = (
        f"no scale fits {cohort_max} clients with {coordinates} coordinates and noise multiplier "
        f"{float(noise):g} into {WIRE_BITS} bits"
    )
    if low >= 1:
        return InvalidPlan(
            f"{problem}; cohort_max {low} would do", setting="cohort_max", would_do=str(low)
        )
    # Even one client's noise is too much; leave half of the ring to the contributions.
    cohort = max(1, min(cohort_max, _RING_HALF // (2 * bound)))
    room = _RING_HALF - cohort * bound
    would_do = math.floor(room / (_NOISE_SIGMAS * bound * math.sqrt(cohort)) * 999) / 1000
    return InvalidPlan(
        f"{problem}; noise_multiplier {would_do} with cohort_max {cohort} would do",
        setting="noise_multiplier",
        would_do=str(would_do),
    )
