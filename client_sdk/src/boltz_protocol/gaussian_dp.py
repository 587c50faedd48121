"""The exact privacy curve of composed Gaussian mechanisms without sampling.

Rounds at noise multipliers z_1..z_k compose to one Gaussian mechanism of parameter
mu = sqrt(sum 1 / z_i^2) (Dong, Roth, Su 2019, "Gaussian Differential Privacy", corollary 3.3), also
when each round depends on the ones before. Its curve is exact (Balle and Wang 2018, "Improving the
Gaussian Mechanism for Differential Privacy", theorem 8):

    delta(epsilon) = Phi(mu/2 - epsilon/mu) - exp(epsilon) * Phi(-mu/2 - epsilon/mu)

`math` only: the path that every round takes must not load scipy. Both ends of a connection count
with this module, so that a client's own ledger and the mesh's tell the same figure.

**The sampler's part of delta.** What is drawn is within a total variation distance t of the exact
noise, over all contributors and coordinates of a release. t is bounded once for every release that
the caps allow (`RELEASE_DISTANCE`), which spares the ledgers a column. What it costs of delta has
two bounds, and the smaller counts. Let P and Q be the exact outputs of two neighbours, P' and Q'
the drawn ones, L = dP/dQ, and r = min(1, dQ'/dQ), so that E_Q[1 - r] <= t in a release. Going from
P' to P costs t. Going from Q' to Q costs at most E_Q[min(L, exp(epsilon)) (1 - r)], since
max(0, L - exp(epsilon) r) <= max(0, L - exp(epsilon)) + min(L, exp(epsilon)) (1 - r). Over k
releases, each of them chosen in view of those before or not, 1 - r is at most the sum of theirs:

1. min(L, exp(epsilon)) <= exp(epsilon) gives (1 + exp(epsilon)) k t in all: next to nothing, until
   epsilon is 20 to 30 (by delta).
2. min(L, exp(epsilon)) <= L gives E_P[1 - r], the chance that the neighbour's draw ends where the
   sampler is off, whatever epsilon is. 1 - r is a test that Q passes with at most t, and P then,
   in a release of parameter mu, with at most exp(-(sqrt(s) - mu / sqrt(2))^2), s = log(1 / t):
   Hoelder's inequality with the Renyi divergence alpha mu^2 / 2 at alpha = sqrt(2 s) / mu, which
   holds for discrete noise and for sums of shares too. At mu = 1 that is 2e-17 a release.

So an epsilon is told of any number of releases, 97 or 300 as well. It is infinite only where one
release had so little noise that the sampler's part may be most of delta. At a delta of 1e-6 that
is a noise multiplier below 0.22 in one release (an epsilon of 33) and 0.28 in a hundred (814); at
1e-12 below 0.43 (19) and 0.61 (252).
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
# A noise multiplier that is calibrated to this is calibrated well enough.
_MU_STEP: Final = 1e-13
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


def epsilon_of_releases(mu: float, delta: float, releases: int, largest: float = math.inf) -> float:
    """The smallest epsilon at `delta`, the sampler's part of delta included, rounded up.

    Args:
        mu: parameter of all releases together, from `composed_mu`.
        delta: in (0, 1), the total.
        releases: how many there were, each with `RELEASE_DISTANCE` from exact noise.
        largest: parameter of the release with the least noise; at most `mu`, which is taken where
            it is not known.

    Returns: infinity where something was released without noise, or with so little that the
        sampler's part would be most of `delta`.
    """
    return epsilon_with_sampler(
        lambda rest: epsilon_of_mu(mu, rest), delta, releases, min(largest, mu)
    )


def epsilon_with_sampler(
    curve: Callable[[float], float], delta: float, releases: int, largest: float = math.inf
) -> float:
    """As `epsilon_of_releases`, for any curve that gives the epsilon of exact noise at a delta."""
    by_ratio = _epsilon_by_ratio(curve, delta, releases * RELEASE_DISTANCE)
    part = releases * (RELEASE_DISTANCE + _missed(largest))
    # Both hold; the smaller of two that grow with each release grows with each release.
    return (
        min(by_ratio, float(curve(delta - part))) if part <= _MAX_SAMPLER_PART * delta else by_ratio
    )


def _epsilon_by_ratio(curve: Callable[[float], float], delta: float, distance: float) -> float:
    """With the first bound of the module's head; infinite where that takes too much of delta."""
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


def _missed(mu: float) -> float:
    """The second bound of the module's head, for one release: E_P[1 - r]."""
    room = math.sqrt(-math.log(RELEASE_DISTANCE)) - mu / math.sqrt(2)
    return math.exp(-room * room) if room > 0 else 1.0


def mu_within(epsilon: float, delta: float, releases: int) -> float:
    """The largest `mu` at which `epsilon_of_releases` stays within (`epsilon` > 0, `delta`).

    It holds however `mu` is divided among the releases. An epsilon beyond what can be told of all
    divisions is taken for the largest that can; 0 where none can.
    """
    told = _most_told(delta, releases)
    if told == 0:
        return 0.0
    epsilon = min(epsilon, told)
    part = 2 * (1 + math.exp(min(epsilon, _MAX_EPSILON))) * releases * RELEASE_DISTANCE
    return mu_of(epsilon, delta - part)


def mu_within_alike(epsilon: float, delta: float, releases: int) -> float:
    """As `mu_within`, for releases that all have the same noise, of which more can be told."""
    low, high = mu_within(epsilon, delta, releases), mu_of(epsilon, delta)
    for _ in range(_MAX_BISECTIONS):
        middle = (low + high) / 2
        if high - low <= _MU_STEP * high:
            break
        each = middle / math.sqrt(releases)
        if epsilon_of_releases(middle, delta, releases, each) <= epsilon:
            low = middle
        else:
            high = middle
    return low


def _most_told(delta: float, releases: int) -> float:
    """The largest epsilon that the first bound of the module's head surely tells; 0 for none."""
    if releases == 0:
        return math.inf
    # Half of what the search allows, so that its every step stays inside.
    most = _MAX_SAMPLER_PART * delta / (4 * releases * RELEASE_DISTANCE) - 1
    return math.log(most) if most > 1 else 0.0
