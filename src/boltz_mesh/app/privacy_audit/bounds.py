"""Lower bounds on epsilon from guesses: pure.

Canary i of m is in or out by a fair coin, and an attacker who sees what was published guesses.
Two bounds, from the weakest assumption to the tightest figure:

`one_run_bound` assumes nothing but (epsilon, delta) itself: Steinke, Nasr, Jagielski 2023, "Privacy
Auditing with One (1) Training Run", theorem 5.2. For a mechanism that is (epsilon, delta)-private
with respect to each coin, and r guesses chosen in any way from its output (the rest abstains), the
right ones are at least v with probability at most

    f(v) + 2 m delta max_{1 <= i <= v} (f(v - i) - f(v)) / i,   f(v) = P[Binomial(r, q) >= v],

q = e^epsilon / (1 + e^epsilon). So guesses within one round need not be independent of each other.
Rounds that depend on earlier ones are covered: a coin is tossed for one release only, and
everything later is post-processing as far as that coin goes.

`gaussian_bound` assumes that the trade-off between false and missed alarms is a Gaussian
mechanism's and that guesses are independent of each other (the noise on orthogonal directions is):
Nasr et al. 2023, "Tight Auditing of Differentially Private Machine Learning", section 4. For
parameter mu every test has Phi^-1(1 - FPR) - Phi^-1(FNR) <= mu (Dong, Roth, Su 2019), so upper
bounds of Clopper and Pearson 1934 on both error rates give a lower bound on mu, and mu's curve an
epsilon at delta.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from boltz_protocol.gaussian_dp import epsilon_of_mu

#: Halvings of a bracket: far below the digits that are printed.
_BISECTIONS: Final = 45
#: An epsilon beyond this is no promise; the search ends there.
MAX_EPSILON: Final = 50.0
_NORMAL: Final = NormalDist()
#: Shares of the canaries among which the number of guesses is chosen.
_SHARES: Final = tuple(step / 40 for step in range(1, 41))


@dataclass(frozen=True, slots=True)
class Errors:
    """How an attacker who guessed every canary did.

    Attributes:
        out: canaries that were out, and `false_in` of them guessed to be in.
        inside: canaries that were in, and `missed` of them guessed to be out.
    """

    out: int
    false_in: int
    inside: int
    missed: int

    def __post_init__(self) -> None:
        assert 0 <= self.false_in <= self.out
        assert 0 <= self.missed <= self.inside

    @property
    def right(self) -> int:
        """Right guesses."""
        return self.out - self.false_in + self.inside - self.missed

    @property
    def total(self) -> int:
        """Guesses."""
        return self.out + self.inside


def clopper_pearson_upper(hits: int, trials: int, error: float) -> float:
    """The upper end of Clopper and Pearson's interval for a rate, one-sided.

    Args:
        hits: of `trials`, from 0 to `trials`.
        error: probability with which the true rate may lie above.

    Returns: the largest rate at which `hits` or fewer have a probability of at least `error`,
        rounded up; 1 without trials.
    """
    assert 0 <= hits <= trials
    if hits == trials:
        return 1.0
    misses = trials - hits
    # hits or fewer at rate p are `misses` or more at rate 1 - p.
    return 1 - _smallest(lambda rate: at_least(misses, trials, rate) >= error, 0.0, 1.0)[0]


def mu_lower_bound(errors: Errors, confidence: float) -> float:
    """The least Gaussian parameter that the error rates allow, at least 0.

    Half of the error is spent on each rate, so that both bounds hold together.
    """
    error = (1 - confidence) / 2
    false_in = clopper_pearson_upper(errors.false_in, errors.out, error)
    missed = clopper_pearson_upper(errors.missed, errors.inside, error)
    if false_in + missed >= 1:
        return 0.0
    return _NORMAL.inv_cdf(1 - false_in) - _NORMAL.inv_cdf(missed)


def gaussian_bound(errors: Errors, delta: float, confidence: float) -> float:
    """A lower bound on epsilon at `delta` for a mechanism with a Gaussian trade-off, at least 0."""
    return epsilon_of_mu(mu_lower_bound(errors, confidence), delta)


def one_run_bound(
    canaries: int, guesses: int, right: int, *, delta: float, confidence: float
) -> float:
    """A lower bound on epsilon at `delta`, whatever the mechanism; at least 0.

    Args:
        canaries: m, those on which the attacker abstained included.
        guesses: r, fixed before the coins were tossed.
        right: v of them.
    """
    assert 0 <= right <= guesses <= canaries
    error = 1 - confidence
    if one_run_p_value(canaries, guesses, right, 0.0, delta) > error:
        return 0.0
    return _smallest(
        lambda epsilon: one_run_p_value(canaries, guesses, right, epsilon, delta) > error,
        0.0,
        MAX_EPSILON,
    )[0]


def one_run_p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The most probable that `right` or more right guesses are under (epsilon, delta)."""
    accuracy = 1 / (1 + math.exp(-epsilon))
    masses = _masses(guesses, accuracy)
    base = float(masses[right:].sum())
    if delta == 0 or right == 0:
        return min(1.0, base)
    # Sums of the masses below `right`, nearest first: f(v - i) - f(v).
    steps = np.cumsum(masses[:right][::-1])
    worst = float(np.max(steps / np.arange(1, right + 1)))
    return min(1.0, base + 2 * canaries * delta * worst)


def at_least(hits: int, trials: int, rate: float) -> float:
    """P[Binomial(trials, rate) >= hits]."""
    if hits <= 0:
        return 1.0
    return min(1.0, float(_masses(trials, rate)[hits:].sum()))


def best_guesses(canaries: int, mu: float, *, delta: float, confidence: float) -> int:
    """How many guesses to make so that `one_run_bound` is expected to be largest.

    An even number: as many "in" from the highest scores as "out" from the lowest. Fewer guesses
    are surer ones, and fewer of them prove less.

    Args:
        mu: Gaussian parameter that is expected of one canary's score, above 0; infinite without
            noise.
    """
    if math.isinf(mu):
        return canaries - canaries % 2

    def expected(share: float) -> tuple[float, int]:
        guesses = 2 * max(1, round(canaries * share / 2))
        if guesses > canaries:
            return 0.0, 2
        right = math.floor(guesses * expected_accuracy(share, mu))
        bound = one_run_bound(canaries, guesses, right, delta=delta, confidence=confidence)
        return bound, guesses

    return max(expected(share) for share in _SHARES)[1]


def expected_accuracy(share: float, mu: float) -> float:
    """Right guesses among the surest `share` of canaries, for a Gaussian score.

    A score is normal with variance 1 around +mu/2 (in) or -mu/2 (out); guessed are those at least
    t away from 0.
    """
    assert 0 < share <= 1

    def right(t: float) -> float:
        return _NORMAL.cdf(mu / 2 - t)

    def wrong(t: float) -> float:
        return _NORMAL.cdf(-mu / 2 - t)

    # right + wrong falls from 1 at t = 0.
    t = _smallest(lambda t: right(t) + wrong(t) <= share, 0.0, mu / 2 + 10)[1]
    return right(t) / (right(t) + wrong(t)) if share < 1 else right(0.0)


def _smallest(condition: Callable[[float], bool], low: float, high: float) -> tuple[float, float]:
    """Ends of the narrow bracket in which a condition turns true for good.

    It is false at `low`, or never looked at there; `high` counts as true.
    """
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if condition(middle):
            high = middle
        else:
            low = middle
    return low, high


@functools.lru_cache(maxsize=16)
def _log_ways(trials: int) -> npt.NDArray[np.float64]:
    """Logarithms of the binomial coefficients of `trials`, float64 (trials + 1,), read-only."""
    steps = np.log(np.arange(1, trials + 1, dtype=np.float64))
    log_factorials = np.concatenate(([0.0], np.cumsum(steps)))
    ways = log_factorials[trials] - log_factorials - log_factorials[::-1]
    ways.flags.writeable = False
    return np.asarray(ways, dtype=np.float64)


def _masses(trials: int, rate: float) -> npt.NDArray[np.float64]:
    """A binomial's probabilities of 0 to `trials` hits, float64 (trials + 1,)."""
    hits = np.arange(trials + 1)
    if rate in {0.0, 1.0}:
        return np.asarray(hits == trials * int(rate), dtype=np.float64)
    logs = _log_ways(trials) + hits * math.log(rate) + (trials - hits) * math.log1p(-rate)
    return np.asarray(np.exp(logs), dtype=np.float64)
