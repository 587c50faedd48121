"""Record-level epsilon of DP-SGD: Renyi differential privacy of the Poisson-sampled Gaussian.

Unit: one record of one table of this device. Neighbours: one record added or removed. This is not
the unit of the mesh's rounds (one client's whole contribution), and the two do not compare.

A step draws every record with probability q on its own and adds noise of standard deviation z
times the bound of one record. At an integer order a its Renyi divergence is at most (Mironov,
Talwar and Zhang 2019, "Renyi Differential Privacy of the Sampled Gaussian Mechanism", section 3.3)

    log(sum over k of C(a, k) (1 - q)^(a - k) q^k exp((k^2 - k) / (2 z^2))) / (a - 1)

and steps, trainings and models add up order by order. They show that the other direction of the
divergence is never larger, since a reflection swaps the two Gaussians.

It holds unchanged for the discrete Gaussian around sums of integers, which is what is drawn here:
its divergence at integer shifts is at most the Gaussian's (Canonne, Kamath and Steinke 2020, "The
Discrete Gaussian for Differential Privacy", proposition 5, one coordinate after the other), the sum
over k needs nothing else, and x -> shift - x is the reflection, a bijection of the integers.
Epsilon at a delta comes from their proposition 12, with the sampler's distance from the exact law
taken off delta as in the ledgers of rounds. Only integer orders are used, so that a figure is an
upper bound; it is loose where epsilon is far above 10.

`math` only: the client does not need scipy or dp-accounting, which the tests compare this with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from boltz_protocol import limits
from boltz_protocol.errors import ConfigurationError
from boltz_protocol.gaussian_dp import epsilon_with_sampler

#: Orders that are looked at. The best one is about sqrt(2 log(1/delta)) z / sqrt(steps) for one
#: that is not sampled: 2 to 64 serve an epsilon above 0.3, the others very small ones.
ORDERS: Final = (*range(2, 65), 72, 80, 96, 128, 192, 256, 512, 1024)
#: Least noise multiplier. One step then has an epsilon beyond 100: no guarantee worth a name.
MIN_NOISE_MULTIPLIER: Final = 0.1
#: Steps of one training: a week of ten steps a second. Keeps the sampler's part far below delta.
MAX_STEPS: Final = 1 << 23

# A noise multiplier is suggested with so many per unit, rounded up.
_NOISE_STEPS: Final = 100


@dataclass(frozen=True, slots=True)
class SampledGaussian:
    """Steps of DP-SGD, whatever they trained.

    Attributes:
        noise_multiplier: standard deviation of the noise over the L2 bound of one record, from
            `MIN_NOISE_MULTIPLIER`.
        sampling_rate: chance of each record in each step, in (0, 1]; drawn for each by itself, in
            secret.
        steps: from 1.

    Raises: ConfigurationError that names the value and one that would do.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        # Each written so that a NaN fails.
        if not MIN_NOISE_MULTIPLIER <= self.noise_multiplier <= limits.MAX_NOISE_MULTIPLIER:
            raise ConfigurationError(
                f"noise_multiplier is {self.noise_multiplier}; from {MIN_NOISE_MULTIPLIER} to "
                f"{limits.MAX_NOISE_MULTIPLIER:g}, such as 1.0",
                setting="noise_multiplier",
            )
        if not 0 < self.sampling_rate <= 1:
            raise ConfigurationError(
                f"sampling_rate is {self.sampling_rate}; above 0, at most 1, such as 0.05",
                setting="sampling_rate",
            )
        if not 1 <= self.steps <= MAX_STEPS:
            raise ConfigurationError(
                f"steps is {self.steps}; from 1 to {MAX_STEPS}, such as 100", setting="steps"
            )


@lru_cache(maxsize=256)
def step_divergences(noise_multiplier: float, sampling_rate: float) -> tuple[float, ...]:
    """Renyi divergence of one step at each of `ORDERS`, natural logarithm."""
    twice_variance = 2 * noise_multiplier**2
    if sampling_rate == 1:
        return tuple(order / twice_variance for order in ORDERS)
    log_in, log_out = math.log(sampling_rate), math.log1p(-sampling_rate)
    divergences = []
    for order in ORDERS:
        top = math.lgamma(order + 1)
        terms = [
            top
            - math.lgamma(k + 1)
            - math.lgamma(order - k + 1)
            + (order - k) * log_out
            + k * log_in
            + k * (k - 1) / twice_variance
            for k in range(order + 1)
        ]
        most = max(terms)
        total = most + math.log(math.fsum(math.exp(term - most) for term in terms))
        # Rounding may leave a sum that is truly 1 a little below it.
        divergences.append(max(0.0, total) / (order - 1))
    return tuple(divergences)


def epsilon_of_steps(runs: Iterable[SampledGaussian], delta: float) -> float:
    """Record-level epsilon at `delta` of everything in `runs`, one record added or removed.

    Args:
        delta: in (0, 1).

    Returns: 0 for nothing; infinity where the sampler's part would be most of `delta`.
    """
    steps = _steps_by_kind(runs)
    # Whether a record was drawn or not, it moves a step's sum by at most 1 / z standard deviations.
    largest = max((1 / noise_multiplier for noise_multiplier, _ in steps), default=0.0)
    return epsilon_with_sampler(
        lambda rest: _epsilon(_divergences(steps), rest), delta, sum(steps.values()), largest
    )


def most_steps_within(
    spent: Sequence[SampledGaussian], wanted: SampledGaussian, delta: float, budget: float
) -> int:
    """How many steps like those of `wanted`, and no more, keep all within `budget`; may be 0."""
    low, high = 0, wanted.steps
    while low < high:
        middle = (low + high + 1) // 2
        if epsilon_of_steps([*spent, replace(wanted, steps=middle)], delta) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def least_noise_within(
    spent: Sequence[SampledGaussian], wanted: SampledGaussian, delta: float, budget: float
) -> float | None:
    """The least noise multiplier, in hundredths, at which `wanted` keeps all within `budget`.

    None where even `limits.MAX_NOISE_MULTIPLIER` would not do, so that nothing is left.
    """

    def fits(hundredths: int) -> bool:
        noisier = replace(wanted, noise_multiplier=hundredths / _NOISE_STEPS)
        return epsilon_of_steps([*spent, noisier], delta) <= budget

    low = math.ceil(MIN_NOISE_MULTIPLIER * _NOISE_STEPS) - 1
    high = int(limits.MAX_NOISE_MULTIPLIER * _NOISE_STEPS)
    if not fits(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle
    return high / _NOISE_STEPS


def _steps_by_kind(runs: Iterable[SampledGaussian]) -> dict[tuple[float, float], int]:
    steps: dict[tuple[float, float], int] = {}
    for run in runs:
        kind = (run.noise_multiplier, run.sampling_rate)
        steps[kind] = steps.get(kind, 0) + run.steps
    # Sorted, so that the same steps in another order give the same last digit.
    return dict(sorted(steps.items()))


def _divergences(steps: dict[tuple[float, float], int]) -> list[float]:
    curves = [(count, step_divergences(*kind)) for kind, count in steps.items()]
    return [math.fsum(count * curve[i] for count, curve in curves) for i in range(len(ORDERS))]


def _epsilon(divergences: list[float], delta: float) -> float:
    if not any(divergences):
        return 0.0
    best: float = min(
        divergence + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        for order, divergence in zip(ORDERS, divergences, strict=True)
    )
    return max(0.0, best)
