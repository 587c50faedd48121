"""What different ways of adding up say of the same releases, side by side.

The mesh reports one of them (`accountant`); the others are here for comparison, since an auditor
may know only them. Those that look at one release at a time first turn it into a pair
(epsilon_0, delta_0), and so throw away that its privacy loss is nearly always far below epsilon_0:

- **basic**: k releases of (epsilon_0, delta_0) are (k epsilon_0, k delta_0) (Dwork and Roth 2014,
  theorem 3.16).
- **advanced**: (sqrt(2 k log(1 / delta')) epsilon_0 + k epsilon_0 (exp(epsilon_0) - 1),
  k delta_0 + delta') (Dwork, Rothblum, Vadhan 2010, "Boosting and Differential Privacy", theorem
  III.3). From epsilon_0 = log 2 on it is worse than basic, however many releases there are.
- **optimal**: the least that holds for every k mechanisms with that pair (Kairouz, Oh, Viswanath
  2015, "The Composition Theorem for Differential Privacy", theorem 3.3), here at any epsilon by the
  sum over k randomised responses behind it, and not only at the theorem's grid.

Half of delta goes into the k delta_0 and half into delta' where there are two; all of it into the
k delta_0 in basic, which is told as optimal where it is better. epsilon_0 is the mesh's own for one
release, so these hold too.

Unit: one client. Relation: its contribution set to zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from boltz_mesh.privacy import accountant
from boltz_mesh.privacy.mechanisms import Relation, Unit
from boltz_protocol import limits
from boltz_protocol.errors import InvalidPlan
from boltz_protocol.gaussian_dp import epsilon_with_sampler

#: Releases that can be compared: the optimal sum has a term for each.
MAX_COMPARED: Final = 100_000
# Points of a privacy loss distribution up to epsilon; seconds at most, and exact to four digits.
_GRID_POINTS: Final = 200_000
_FINEST_GRID: Final = 1e-4
# Halvings of the optimal epsilon: to a double's relative precision.
_BISECTIONS: Final = 60
# Beyond this exp overflows.
_MAX_EXPONENT: Final = 700.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Epsilon at `delta` of the same releases, told in six ways. Infinite where one cannot tell.

    Args:
        reported: what the mesh's ledger says: exact without sampling, PLD with.
        loss_distribution: by composed privacy loss distributions.
        renyi: by Rényi divergences.
        optimal, advanced, basic: from one release's pair; see the module's head.
    """

    noise_multiplier: float
    rounds: int
    sampling_rate: float
    delta: float
    reported: float
    loss_distribution: float
    renyi: float
    optimal: float
    advanced: float
    basic: float
    unit: Unit = "client"
    relation: Relation = "contribution-set-to-zero"


def compare(
    noise_multiplier: float, rounds: int, sampling_rate: float = 1.0, delta: float = 1e-6
) -> Comparison:
    """Epsilon of `rounds` equal releases in every way that is known here.

    Args:
        noise_multiplier: standard deviation over sensitivity, above 0.
        rounds: from 1 to `MAX_COMPARED`.
        sampling_rate: Poisson sampling that the adversary does not see; 1 for the mesh's rounds.
        delta: from `limits.MIN_DELTA`, below 1.

    Raises: InvalidPlan.
    """
    if not 1 <= rounds <= MAX_COMPARED:
        raise InvalidPlan(
            f"rounds {rounds} must be from 1 to {MAX_COMPARED} to be compared; 100 would do",
            setting="rounds",
        )
    reported = accountant.epsilon(noise_multiplier, rounds, sampling_rate, delta)
    if noise_multiplier == 0:
        raise InvalidPlan(
            "noise_multiplier 0 leaves nothing to compare, every way says infinity; 1.0 would do",
            setting="noise_multiplier",
        )

    def one_release(share: float) -> float:
        # Of so little delta nothing can be told.
        if share < limits.MIN_DELTA:
            return math.inf
        return accountant.epsilon(noise_multiplier, 1, sampling_rate, share)

    half = delta / 2
    each = one_release(half / rounds)
    basic = rounds * one_release(delta / rounds)
    return Comparison(
        noise_multiplier=noise_multiplier,
        rounds=rounds,
        sampling_rate=sampling_rate,
        delta=delta,
        reported=reported,
        loss_distribution=_loss_distribution(
            noise_multiplier, rounds, sampling_rate, delta, reported
        ),
        renyi=accountant.epsilon_renyi(noise_multiplier, rounds, delta, sampling_rate),
        optimal=min(basic, optimal(each, half / rounds, rounds, delta)),
        advanced=advanced(each, rounds, half),
        basic=basic,
    )


def advanced(epsilon: float, rounds: int, slack: float) -> float:
    """Epsilon of `rounds` releases of (`epsilon`, delta_0) at rounds * delta_0 + `slack`."""
    if epsilon > _MAX_EXPONENT:
        return math.inf
    spread = math.sqrt(2 * rounds * math.log(1 / slack)) * epsilon
    return spread + rounds * epsilon * math.expm1(epsilon)


def optimal(epsilon: float, delta_each: float, rounds: int, delta: float) -> float:
    """The least epsilon at `delta` that holds for all `rounds` (`epsilon`, `delta_each`) releases.

    The worst of them answers one bit, truly with probability p = exp(epsilon) / (1 + exp(epsilon)),
    and gives all away with probability `delta_each`. Of `rounds` answers j are true with C(k, j)
    p^j (1 - p)^(k - j), and under the neighbour with p and 1 - p exchanged.

    Returns: infinity where `epsilon` is, or where `delta_each` alone uses up `delta`.
    """
    if math.isinf(epsilon):
        return math.inf
    given_away = -math.expm1(rounds * math.log1p(-delta_each))
    room = (delta - given_away) / (1 - given_away)
    if room <= 0:
        return math.inf
    true = np.arange(rounds + 1, dtype=np.float64)
    choose = np.array([_log_choose(rounds, j) for j in range(rounds + 1)])
    # log of 1 + exp(epsilon), without overflow.
    chance = choose + true * epsilon - rounds * (epsilon + math.log1p(math.exp(-epsilon)))
    loss = (2 * true - rounds) * epsilon

    def beyond(total: float) -> float:
        above = loss > total
        return float(np.sum(np.exp(chance[above]) * -np.expm1(total - loss[above])))

    low, high = 0.0, rounds * epsilon
    if beyond(low) <= room:
        return 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if beyond(middle) > room:
            low = middle
        else:
            high = middle
    return high


def _log_choose(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)


def _loss_distribution(
    noise_multiplier: float, rounds: int, sampling_rate: float, delta: float, reported: float
) -> float:
    """Composed release by release also where the exact curve is known."""
    if sampling_rate < 1 or math.isinf(reported):
        return reported
    curve = accountant.loss_distribution_curve(
        ((noise_multiplier, sampling_rate, rounds),),
        grid=max(_FINEST_GRID, reported / _GRID_POINTS),
    )
    return epsilon_with_sampler(curve, delta, rounds, 1 / noise_multiplier)
