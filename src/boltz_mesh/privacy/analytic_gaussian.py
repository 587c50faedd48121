"""The exact privacy curve of composed Gaussian mechanisms without sampling.

Rounds at noise multipliers z_1..z_k compose to one Gaussian mechanism of parameter
mu = sqrt(sum 1 / z_i^2) (Dong, Roth, Su 2019, "Gaussian Differential Privacy", corollary 3.3), also
when each round depends on the ones before. Its curve is exact (Balle and Wang 2018, "Improving the
Gaussian Mechanism for Differential Privacy", theorem 8):

    delta(epsilon) = Phi(mu/2 - epsilon/mu) - exp(epsilon) * Phi(-mu/2 - epsilon/mu)

`math` only: the path that every round takes must not load scipy.
"""

from __future__ import annotations

import math
from typing import Final

# Halvings after which a bracket of doubles no longer shrinks.
_MAX_BISECTIONS: Final = 200
# Beyond this erfc underflows; the asymptotic series is exact to a double far earlier.
_SERIES_FROM: Final = 25.0


def _log_upper_tail(x: float) -> float:
    """log(1 - Phi(x)) for x >= 0 (Abramowitz and Stegun 7.1.23 for the far tail)."""
    if x < _SERIES_FROM:
        return math.log(0.5 * math.erfc(x / math.sqrt(2)))
    square = 1 / (x * x)
    series = 1 - square * (1 - 3 * square * (1 - 5 * square * (1 - 7 * square)))
    return -x * x / 2 - math.log(x * math.sqrt(2 * math.pi)) + math.log(series)


def delta_of(epsilon: float, mu: float) -> float:
    """The smallest delta at `epsilon` >= 0 for parameter `mu` > 0."""
    below = mu / 2 - epsilon / mu
    above = mu / 2 + epsilon / mu
    first = 0.5 * math.erfc(-below / math.sqrt(2))
    # In logarithms: exp(epsilon) alone overflows above 709. The sum is never above 0.
    second = math.exp(min(0.0, epsilon + _log_upper_tail(above)))
    return max(0.0, first - second)


def epsilon_of_mu(mu: float, delta: float) -> float:
    """The smallest epsilon at `delta` in (0, 1) for parameter `mu` >= 0, rounded up.

    Infinite for an infinite `mu`.
    """
    if math.isinf(mu):
        return math.inf
    if mu == 0 or delta_of(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while delta_of(high, mu) > delta:
        low, high = high, 2 * high
    for _ in range(_MAX_BISECTIONS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if delta_of(middle, mu) > delta:
            low = middle
        else:
            high = middle
    return high


def mu_of(epsilon: float, delta: float) -> float:
    """The largest `mu` that stays within (`epsilon` >= 0, `delta` in (0, 1)), rounded down."""
    low, high = 0.0, 1.0
    while delta_of(epsilon, high) <= delta:
        low, high = high, 2 * high
    for _ in range(_MAX_BISECTIONS):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        if delta_of(epsilon, middle) > delta:
            high = middle
        else:
            low = middle
    return low
