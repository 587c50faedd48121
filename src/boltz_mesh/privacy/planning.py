"""How much noise, for how many rounds, at which epsilon: answered before anything runs.

Two of the three are given, the third follows from the accountant that the ledger uses, so that a
plan's budget and what is charged later cannot tell different figures. The other half of the
trade-off is what the noise does to the model: on the mean of n contributions of equal weight, each
bounded by the clip norm C, it has the standard deviation z C / n in each coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from boltz_mesh.privacy import accountant
from boltz_mesh.privacy.federation import Federation, require
from boltz_mesh.privacy.mechanisms import require_noise_multiplier
from boltz_protocol import limits
from boltz_protocol.errors import InvalidPlan

#: Rounds that are planned for: one a minute for two years.
MAX_PLANNED_ROUNDS: Final = 1_000_000
# A noise multiplier that has to be searched for (with sampling) is within this of the least.
_NOISE_PRECISION: Final = 1e-3
# Beyond this chi's mean is its asymptotic series, where log-gamma has lost the digits.
_SERIES_FROM: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """What the noise adds to the mean of one round, in the model's unit.

    Args:
        coordinate_std: standard deviation in each coordinate.
        l2_expected: expected L2 norm over all coordinates.
        l2_over_clip: the same over the clip norm; at 1 the noise is as long as any one
            contribution can be.
    """

    coordinate_std: float
    l2_expected: float
    l2_over_clip: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """An answer: the three figures that belong together, and what they cost.

    Unit: one client. Relation: its contribution set to zero; `epsilon_replace_one` has it replaced
    by any other (sensitivity 2C). `epsilon` is finite; the others are infinite where they cannot be
    told.

    Args:
        asked_epsilon: the target, where epsilon was given; `epsilon` is what is spent of it.
        epsilon_charged: what the ledger would say, at sampling rate 1.
    """

    federation: Federation
    noise_multiplier: float
    rounds: int
    epsilon: float
    epsilon_replace_one: float
    epsilon_charged: float
    asked_epsilon: float | None
    error: Error


def outlook(
    federation: Federation,
    *,
    epsilon: float | None = None,
    noise_multiplier: float | None = None,
    rounds: int | None = None,
) -> Outlook:
    """The third of epsilon, noise and rounds, from the other two.

    A noise multiplier that is the answer is rounded up to four digits, for a person to type.

    Raises:
        InvalidPlan: not exactly two are given, one is out of range, or there is no third.
    """
    given = [value for value in (epsilon, noise_multiplier, rounds) if value is not None]
    if len(given) != 2:
        raise InvalidPlan(
            f"of epsilon, rounds and noise_multiplier two must be given, to tell the third, and "
            f"there {'is' if len(given) == 1 else 'are'} {len(given)}; epsilon 2.0 and rounds 100 "
            "would do",
            setting="epsilon, rounds, noise_multiplier",
        )
    if noise_multiplier is None:
        assert epsilon is not None
        assert rounds is not None
        noise_multiplier = float(_up(noise_for(federation, epsilon, rounds)))
    elif rounds is None:
        assert epsilon is not None
        rounds = rounds_for(federation, epsilon, noise_multiplier)
    accounted, rate = federation.accounted(noise_multiplier), federation.sampling_rate
    told = epsilon_for(federation, noise_multiplier, rounds)
    if math.isinf(told):
        raise InvalidPlan(
            f"noise_multiplier {noise_multiplier:g} is so little that no epsilon can be told of "
            f"{rounds} rounds; 1.0 would do",
            setting="noise_multiplier",
        )
    return Outlook(
        federation=federation,
        noise_multiplier=noise_multiplier,
        rounds=rounds,
        epsilon=told,
        epsilon_replace_one=accountant.epsilon_replace_one(
            accounted, rounds, rate, federation.delta
        ),
        epsilon_charged=accountant.epsilon(accounted, rounds, 1.0, federation.delta),
        asked_epsilon=epsilon,
        error=error_of_mean(federation, noise_multiplier),
    )


def epsilon_for(federation: Federation, noise_multiplier: float, rounds: int) -> float:
    """Epsilon of `rounds` rounds at `noise_multiplier` > 0. Raises: InvalidPlan."""
    _require_noise(noise_multiplier)
    _require_rounds(rounds)
    return accountant.epsilon(
        federation.accounted(noise_multiplier), rounds, federation.sampling_rate, federation.delta
    )


def noise_for(federation: Federation, epsilon: float, rounds: int) -> float:
    """The least noise multiplier at which `rounds` rounds stay within `epsilon`.

    Raises: InvalidPlan where a plan cannot have that much, with the rounds that would fit.
    """
    _require_rounds(rounds)
    _require_epsilon(epsilon)
    sealed = federation.mode == "sealed"
    noise = accountant.noise_multiplier_for(epsilon, rounds, federation.delta, distributed=sealed)
    if federation.sampling_rate < 1 and noise <= limits.MAX_NOISE_MULTIPLIER:
        noise = _least(lambda z: epsilon_for(federation, z, rounds) <= epsilon, enough=noise)
    if noise > limits.MAX_NOISE_MULTIPLIER:
        most = limits.MAX_NOISE_MULTIPLIER
        fewer = _rounds_within(federation, epsilon, most)
        would_do = (
            f"{fewer} rounds would do"
            if fewer
            else f"an epsilon of {_up(epsilon_for(federation, most, 1))} for one round would do"
        )
        raise InvalidPlan(
            f"rounds {rounds} within epsilon {epsilon:g} ({_scope(federation)}) need a "
            f"noise_multiplier of {noise:.4g}, and a plan has at most {most:g}; {would_do}",
            setting="rounds",
        )
    return noise


def rounds_for(federation: Federation, epsilon: float, noise_multiplier: float) -> int:
    """How many rounds at `noise_multiplier` stay within `epsilon`, up to MAX_PLANNED_ROUNDS.

    Raises: InvalidPlan where not even one does, with the noise multiplier at which one would.
    """
    _require_epsilon(epsilon)
    _require_noise(noise_multiplier)
    rounds = _rounds_within(federation, epsilon, noise_multiplier)
    if rounds == 0:
        one = epsilon_for(federation, noise_multiplier, 1)
        raise InvalidPlan(
            f"noise_multiplier {noise_multiplier:g} is too little: one round costs "
            f"{f'epsilon {one:.4g}' if math.isfinite(one) else 'more epsilon than can be told'}, "
            f"and {epsilon:g} are allowed ({_scope(federation)}); "
            f"{_up(noise_for(federation, epsilon, 1))} would do",
            setting="noise_multiplier",
        )
    return rounds


def error_of_mean(federation: Federation, noise_multiplier: float) -> Error:
    """What the noise adds to the mean of a full cohort of equal weights."""
    std = noise_multiplier * federation.noise_growth / federation.clients
    length = std * chi_mean(federation.parameters)
    return Error(
        coordinate_std=std * federation.clip_norm,
        l2_expected=length * federation.clip_norm,
        l2_over_clip=length,
    )


def chi_mean(dimensions: int) -> float:
    """Expected L2 norm of that many standard normal numbers: sqrt(d) within 1 / (4 d)."""
    if dimensions < _SERIES_FROM:
        half = dimensions / 2
        return math.sqrt(2) * math.exp(math.lgamma(half + 0.5) - math.lgamma(half))
    return math.sqrt(dimensions) * (1 - 1 / (4 * dimensions) + 1 / (32 * dimensions**2))


def _rounds_within(federation: Federation, epsilon: float, noise_multiplier: float) -> int:
    def fits(rounds: int) -> bool:
        return epsilon_for(federation, noise_multiplier, rounds) <= epsilon

    if not fits(1):
        return 0
    high = 2
    while high < MAX_PLANNED_ROUNDS and fits(high):
        high *= 2
    low = high // 2
    high = min(high, MAX_PLANNED_ROUNDS + 1)
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def _least(fits: Callable[[float], bool], *, enough: float) -> float:
    """The least number that `fits`, to a relative `_NOISE_PRECISION` from above."""
    high, low = enough, enough / 2
    while fits(low):
        high, low = low, low / 2
    while high - low > _NOISE_PRECISION * high:
        middle = (low + high) / 2
        if fits(middle):
            high = middle
        else:
            low = middle
    return high


def _up(value: float) -> str:
    """Four significant digits, never below the value."""
    digits = 3 - math.floor(math.log10(value))
    return f"{math.ceil(value * 10.0**digits) / 10.0**digits:.{max(0, digits)}f}"


def _scope(federation: Federation) -> str:
    return f"at delta {federation.delta:g}; unit: one client; relation: contribution set to zero"


def _require_epsilon(value: float) -> None:
    require(
        math.isfinite(value) and value > 0,
        "epsilon",
        f"{value} must be a positive number; 2.0 would do",
    )


def _require_rounds(value: int) -> None:
    require(
        1 <= value <= MAX_PLANNED_ROUNDS,
        "rounds",
        f"{value} must be from 1 to {MAX_PLANNED_ROUNDS}; 100 would do",
    )


def _require_noise(value: float) -> None:
    require_noise_multiplier(value)
    require(
        0 < value <= limits.MAX_NOISE_MULTIPLIER,
        "noise_multiplier",
        f"{value} must be above 0 and at most {limits.MAX_NOISE_MULTIPLIER:g}; 4.0 would do",
    )
