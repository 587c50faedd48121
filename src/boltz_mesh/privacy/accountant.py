"""From privacy events to epsilon.

Without sampling the exact curve of `boltz_protocol.gaussian_dp` is used (microseconds). With
Poisson sampling privacy loss distributions of dp_accounting are composed (PLD: Koskela et al. 2020;
Doroshenko et al. 2022, "Connect the Dots"); it is imported on first use, because it loads scipy.
At rate 1 both agree, which a test holds, as it holds both inside the intervals of prv-accountant.
Rényi divergences (`epsilon_renyi`) are the quick upper bound and the one that is proved for
discrete noise; a round's check needs no quicker one, since the exact curve takes microseconds.
What textbook composition would say of the same releases is in `composition`.

**Continuous, discrete, truncated.** PLD keeps losses on a grid of 1e-4 and cuts off tails of 1e-15
of delta, both to the safe side; that is the only approximation in what is reported with sampling,
and there is none without. The two below are about the noise itself.

**Relation.** `epsilon` and `epsilon_of` speak of one client's contribution set to zero: the sum
moves by at most the sensitivity. `epsilon_replace_one` speaks of it replaced by any other: the
sum moves by at most twice the sensitivity, so that noise multiplier z protects like z / 2.
dp_accounting's RDP and PLD disagree about who doubles (its PLD does, its RDP does not); here the
doubling is explicit at rate 1, and PLD's own REPLACE_ONE pair is used below it.

**Discrete noise.** The mesh adds discrete Gaussian noise to integers. Its Rényi divergences are at
most those of the continuous Gaussian of the same sigma, for integer shifts in any dimension
(Canonne, Kamath, Steinke 2020, "The Discrete Gaussian for Differential Privacy", proposition 5
and theorem 14), so `epsilon_renyi` is a proved bound for the noise as it is. Its (epsilon, delta)
curve is not bounded point by point by the continuous one that is reported here: the privacy loss
lives on a grid, coarsest along an axis, and the curves differ by a term of order 1 / sigma^2, of
either sign. A test computes the exact discrete curve there: at a sensitivity of 1000 units the
epsilons agree within 2e-6, at 10,000 within 2e-8, far below the three decimals that are printed.
Noise that the clients add in shares is a sum of discrete Gaussians, and none itself; its event has
a noise multiplier that was lowered for that (`boltz_protocol.noise_share`), and is then counted
alike. The sampler is exact up to a total variation distance, over all contributors and coordinates;
what that costs of delta is taken off before anything is reported (`gaussian_dp`). Infinity is
reported where a release had no noise, or so little that this is most of delta (there: 0.3 and less
at a delta of 1e-6).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from boltz_mesh.privacy.mechanisms import (
    RELATION_WORDS,
    UNIT_WORDS,
    PrivacyEvent,
    Relation,
    Unit,
    require_noise_multiplier,
    require_sampling_rate,
)
from boltz_protocol import limits
from boltz_protocol.errors import InvalidPlan
from boltz_protocol.gaussian_dp import (
    composed_mu,
    epsilon_of_releases,
    epsilon_with_sampler,
    mu_within_alike,
)
from boltz_protocol.noise_share import sum_excess

# One (noise multiplier, sampling rate) pair and how often it was released.
_Release = tuple[float, float, int]

#: Grid of the privacy losses; dp_accounting's default, pessimistic at any width.
_PLD_GRID: Final = 1e-4
#: Orders of sampled Rényi divergences: at whole numbers they are finite sums, and all are bounds.
_RDP_ORDERS: Final = (*range(2, 65), *range(72, 257, 8), 512, 1024)
#: Different compositions kept; a model's clients share a handful of histories.
_CACHE_SIZE: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySpent:
    """An epsilon that cannot be read without its unit and its relation.

    Args:
        epsilon: at `delta`; infinite when something was released without noise, or with so little
            that no epsilon can be told.
        rounds: releases that were composed.
    """

    epsilon: float
    delta: float
    unit: Unit = "client"
    relation: Relation = "contribution-set-to-zero"
    rounds: int

    def __str__(self) -> str:
        """A sentence for people; epsilon is rounded up, never down."""
        scope = (
            f"unit: {UNIT_WORDS[self.unit]}; relation: {RELATION_WORDS[self.relation]}; "
            f"{self.rounds} {'release' if self.rounds == 1 else 'releases'}"
        )
        if math.isinf(self.epsilon):
            return f"no differential privacy, a sum was released without enough noise ({scope})"
        return (
            f"epsilon {math.ceil(self.epsilon * 1000) / 1000:.3f} at delta {self.delta:g} ({scope})"
        )


def epsilon(
    noise_multiplier: float, rounds: int, sampling_rate: float = 1.0, delta: float = 1e-6
) -> float:
    """Epsilon of `rounds` releases, one client's contribution set to zero.

    Args:
        noise_multiplier: standard deviation over sensitivity; 0 gives infinity.
        rounds: releases the client took part in (or could have been sampled for), from 0.
        sampling_rate: Poisson sampling that the adversary does not see; 1 for the mesh's rounds.
        delta: from `limits.MIN_DELTA`, below 1.

    Raises:
        InvalidPlan: an argument is out of its range; the message has a value that would do.
    """
    _require_rounds(rounds)
    _require_delta(delta)
    require_noise_multiplier(noise_multiplier)
    require_sampling_rate(sampling_rate)
    return _epsilon(((noise_multiplier, sampling_rate, rounds),) if rounds else (), delta, False)


def epsilon_replace_one(
    noise_multiplier: float, rounds: int, sampling_rate: float = 1.0, delta: float = 1e-6
) -> float:
    """As `epsilon`, with the client's contribution replaced by any other (sensitivity 2C).

    Raises: InvalidPlan.
    """
    _require_rounds(rounds)
    _require_delta(delta)
    require_noise_multiplier(noise_multiplier)
    require_sampling_rate(sampling_rate)
    return _epsilon(((noise_multiplier, sampling_rate, rounds),) if rounds else (), delta, True)


def epsilon_of(events: Sequence[PrivacyEvent], delta: float) -> float:
    """Epsilon of all `events` of one client, set to zero; see `spent`. Raises: InvalidPlan."""
    return spent(events, delta).epsilon


def spent(
    events: Sequence[PrivacyEvent],
    delta: float,
    *,
    relation: Relation = "contribution-set-to-zero",
) -> PrivacySpent:
    """What one client has spent by `events`; their noise multipliers may differ.

    Args:
        events: of one client (asserted: epsilons of different clients do not add up), in any
            order.
        delta: the total, sampler's part included; from `limits.MIN_DELTA`, below 1.
        relation: in which epsilon is to be told.

    Raises:
        InvalidPlan: `delta` is out of range.
    """
    _require_delta(delta)
    counts: dict[tuple[float, float], int] = {}
    for event in events:
        assert event.client == events[0].client, "events of several clients"
        key = (event.noise_multiplier, event.sampling_rate)
        counts[key] = counts.get(key, 0) + 1
    releases = tuple(sorted((z, rate, count) for (z, rate), count in counts.items()))
    return PrivacySpent(
        epsilon=_epsilon(releases, delta, relation == "contribution-replaced"),
        delta=delta,
        unit="client",
        relation=relation,
        rounds=len(events),
    )


def noise_multiplier_for(
    epsilon: float, rounds: int, delta: float, *, distributed: bool = False
) -> float:
    """The least noise multiplier whose `rounds` releases (no sampling) stay within `epsilon`.

    With `distributed` it is the one of a plan of sealed rounds: a little more, for what a sum of
    the clients' shares lacks to one Gaussian, whatever the model and the roster (infinite where
    that gap alone is too much). An `epsilon` beyond what can be told (`gaussian_dp`) is taken for
    the largest that can.

    Raises: InvalidPlan.
    """
    _require_rounds(rounds, least=1)
    _require_delta(delta)
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise InvalidPlan(
            f"epsilon {epsilon} must be a positive number; 2.0 would do", setting="epsilon"
        )
    most = mu_within_alike(epsilon, delta, rounds)
    if most == 0:
        raise InvalidPlan(
            f"{rounds} rounds are more than a delta of {delta:g} can serve; 1e-6 would do",
            setting="delta",
        )
    least = math.sqrt(rounds) / most
    # The division rounds either way; who plans with this value must not be refused for it.
    while _epsilon(((least, 1.0, rounds),), delta, False) > epsilon:
        least *= 1 + 1e-15
    if not distributed:
        return least
    inverse = 1 / least - _largest_sum_excess()
    # Rounded up: the effective multiplier of what is returned must not fall below `least`.
    return 1 / inverse * (1 + 1e-15) if inverse > 0 else math.inf


@functools.cache
def _largest_sum_excess() -> float:
    """How much 1 / z grows at most when noise of multiplier z comes in shares."""
    excess = sum_excess(limits.MIN_NOISE_SHARE_SIGMA, limits.MAX_ROSTER)
    return excess * math.sqrt(limits.MAX_COORDINATES)


def least_effective(noise_multiplier: float) -> float:
    """The noise multiplier that sealed rounds of a plan's `noise_multiplier` are sure to have.

    A sum of shares is a little less than one Gaussian; this is what is left of `noise_multiplier`
    for any model and any roster (`boltz_protocol.noise_share`). A ledger has the round's own
    figure, which lies between the two. 0 for 0.

    Raises: InvalidPlan.
    """
    require_noise_multiplier(noise_multiplier)
    if noise_multiplier == 0:
        return 0.0
    return 1 / (1 / noise_multiplier + _largest_sum_excess())


def epsilon_renyi(
    noise_multiplier: float, rounds: int, delta: float, sampling_rate: float = 1.0
) -> float:
    """An upper bound on epsilon through Rényi divergences (RDP), one contribution set to zero.

    Without sampling it is proved for discrete noise as well: `rounds` releases have
    rho = rounds / (2 z^2) in zero-concentrated privacy (Canonne, Kamath, Steinke 2020, theorem 14),
    which converts to epsilon at delta by their proposition 12, minimised over the order. With
    Poisson sampling it is that of dp_accounting (Mironov, Talwar, Zhang 2019, "Rényi Differential
    Privacy of the Sampled Gaussian Mechanism"), for continuous noise. The sampler's part of delta
    is not in it.

    Raises: InvalidPlan.
    """
    _require_rounds(rounds)
    _require_delta(delta)
    require_noise_multiplier(noise_multiplier)
    require_sampling_rate(sampling_rate)
    if rounds == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    if sampling_rate < 1:
        return _sampled_renyi(noise_multiplier, rounds, delta, sampling_rate)
    rho = rounds / (2 * noise_multiplier**2)

    def bound(excess: float) -> float:
        order = 1 + excess
        return rho * order + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / excess

    # Unimodal in the order: ternary search on the logarithm of (order - 1).
    low, high = math.log(1e-6), math.log(1e9)
    for _ in range(200):
        third = (high - low) / 3
        if bound(math.exp(low + third)) < bound(math.exp(high - third)):
            high -= third
        else:
            low += third
    return max(0.0, bound(math.exp((low + high) / 2)))


def _sampled_renyi(
    noise_multiplier: float, rounds: int, delta: float, sampling_rate: float
) -> float:
    from dp_accounting import (  # noqa: PLC0415 (loads scipy: 1 s)
        GaussianDpEvent,
        NeighboringRelation,
        PoissonSampledDpEvent,
    )
    from dp_accounting.rdp import RdpAccountant  # noqa: PLC0415

    # REPLACE_SPECIAL has the divergences of one contribution set to zero. REPLACE_ONE must not be
    # asked for here: see the module's head.
    accountant = RdpAccountant(_RDP_ORDERS, NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(
        PoissonSampledDpEvent(sampling_rate, GaussianDpEvent(noise_multiplier)), rounds
    )
    return float(accountant.get_epsilon(delta))


@functools.lru_cache(maxsize=_CACHE_SIZE)
def _epsilon(releases: tuple[_Release, ...], delta: float, replaced: bool) -> float:
    if any(noise_multiplier == 0 for noise_multiplier, _, _ in releases):
        return math.inf
    total = sum(count for _, _, count in releases)
    shift = 2.0 if replaced else 1.0
    largest = shift / min((z for z, _, _ in releases), default=math.inf)
    if all(rate == 1 for _, rate, _ in releases):
        mu = composed_mu(((z, count) for z, _, count in releases), shift)
        return epsilon_of_releases(mu, delta, total, largest)
    curve = loss_distribution_curve(releases, replaced=replaced)
    return epsilon_with_sampler(curve, delta, total, largest)


def loss_distribution_curve(
    releases: Sequence[tuple[float, float, int]], *, replaced: bool = False, grid: float = _PLD_GRID
) -> Callable[[float], float]:
    """Delta -> epsilon of exact noise, through privacy loss distributions; never too small.

    Args:
        releases: (noise multiplier > 0, sampling rate, how often).
        replaced: a contribution replaced by any other, in place of set to zero.
        grid: width of the losses' grid; time and memory grow with epsilon over it.
    """
    from dp_accounting import NeighboringRelation  # noqa: PLC0415 (loads scipy: 1 s)
    from dp_accounting.pld import privacy_loss_distribution as pld  # noqa: PLC0415

    relation = NeighboringRelation.REPLACE_ONE if replaced else NeighboringRelation.REPLACE_SPECIAL
    total: Any = pld.identity(value_discretization_interval=grid)
    for noise_multiplier, rate, count in releases:
        one = pld.from_gaussian_mechanism(
            standard_deviation=noise_multiplier,
            value_discretization_interval=grid,
            sampling_prob=rate,
            neighboring_relation=relation,
        )
        total = total.compose(one.self_compose(count))
    curve: Callable[[float], float] = total.get_epsilon_for_delta
    return curve


def _require_rounds(rounds: int, least: int = 0) -> None:
    if rounds < least:
        raise InvalidPlan(
            f"rounds {rounds} must be at least {least}; {max(least, 1)} would do", setting="rounds"
        )


def _require_delta(delta: float) -> None:
    if not limits.MIN_DELTA <= delta < 1:
        raise InvalidPlan(
            f"delta {delta} must be at least {limits.MIN_DELTA:g} and below 1; 1e-6 would do",
            setting="delta",
        )
