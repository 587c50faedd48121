"""The exact privacy curve of composed Gaussian mechanisms without sampling.

Rounds at noise multipliers z_1..z_k compose to one Gaussian mechanism of parameter
mu = sqrt(sum 1 / z_i^2) (Dong, Roth, Su 2019, "Gaussian Differential Privacy", corollary 3.3), also
when each round depends on the ones before. Its curve is exact (Balle and Wang 2018, "Improving the
Gaussian Mechanism for Differential Privacy", theorem 8):

    delta(epsilon) = Phi(mu/2 - epsilon/mu) - exp(epsilon) * Phi(-mu/2 - epsilon/mu)

`math` only: the path that every round takes must not load scipy. Both ends of a connection count
with this module, so that a client's own ledger and the mesh's tell the same figure.

**The sampler's part of delta.** What is drawn is within a total variation distance t of the exact
noise, over all contributors and coordinates of a release. Both neighbouring outputs move by that
much, so k releases cost (1 + exp(epsilon)) * k * t of delta. t is bounded once for every release
that the caps allow (`RELEASE_DISTANCE`), which spares the ledgers a column and changes no printed
digit of an epsilon that anybody plans for; it also means that none beyond 20 to 30 (by delta) can
be told: infinity is told instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Final

from boltz_protocol import limits

#: Total variation distance of one release to exact noise: every contributor's every coordinate.
RELEASE_DISTANCE: Final = limits.MAX_ROSTER * limits.MAX_COORDINATES * limits.MAX_SAMPLE_DISTANCE
# Most of delta that the sampler may take; beyond it epsilon is not told.
_MAX_SAMPLER_PART: Final = 0.5
# Rounds of the search for the sampler's part; it settles in one unless it is nearly all of delta.
_MAX_SAMPLER_STEPS: Final = 8
# Beyond this exp overflows, and the sampler's part has long been more than delta.
_MAX_EPSILON: Final = 700.0
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


def composed_mu(releases: Iterable[tuple[float, int]], shift: float = 1.0) -> float:
    """The parameter of releases given as (noise multiplier, how often); infinite without noise.

    Args:
        shift: how far the sum moves between neighbours, in sensitivities: 1 where a contribution
            is set to zero, 2 where it is replaced by any other.
    """
    parts = []
    for noise_multiplier, count in releases:
        if noise_multiplier == 0 and count:
            return math.inf
        parts.append(count / noise_multiplier**2 if count else 0.0)
    return shift * math.sqrt(math.fsum(parts))


def epsilon_of_releases(mu: float, delta: float, releases: int) -> float:
    """The smallest epsilon at `delta`, the sampler's part of delta included, rounded up.

    Args:
        mu: parameter of all releases together, from `composed_mu`.
        delta: in (0, 1), the total.
        releases: how many there were, each with `RELEASE_DISTANCE` from exact noise.

    Returns: infinity where something was released without noise, or with so little that the
        sampler's part would be most of `delta`.
    """
    return epsilon_with_sampler(lambda rest: epsilon_of_mu(mu, rest), delta, releases)


def epsilon_with_sampler(curve: Callable[[float], float], delta: float, releases: int) -> float:
    """As `epsilon_of_releases`, for any curve that gives the epsilon of exact noise at a delta."""
    distance = releases * RELEASE_DISTANCE
    epsilon = float(curve(delta))
    for _ in range(_MAX_SAMPLER_STEPS):
        if epsilon > _MAX_EPSILON:
            return math.inf
        # Twice what it is at this epsilon, since less delta makes epsilon a little larger.
        part = 2 * (1 + math.exp(epsilon)) * distance
        if part > _MAX_SAMPLER_PART * delta:
            return math.inf
        epsilon = float(curve(delta - part))
        if (1 + math.exp(min(epsilon, _MAX_EPSILON))) * distance <= part:
            return epsilon
    return math.inf


def mu_within(epsilon: float, delta: float, releases: int) -> float:
    """The largest `mu` at which `epsilon_of_releases` stays within (`epsilon` > 0, `delta`).

    An epsilon beyond what can be told is taken for the largest that can; 0 where none can.
    """
    distance = releases * RELEASE_DISTANCE
    if distance > 0:
        # Half of what the search above allows, so that its every step stays inside.
        most = _MAX_SAMPLER_PART * delta / (4 * distance) - 1
        if most <= 1:
            return 0.0
        epsilon = min(epsilon, math.log(most))
    part = 2 * (1 + math.exp(min(epsilon, _MAX_EPSILON))) * distance
    return mu_of(epsilon, delta - part)
