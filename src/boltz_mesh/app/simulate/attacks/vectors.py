"""Attacks that make up a delta from what attackers see: flips, scalings, noise, shifted means."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Final

import numpy as np

from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.simulate.attacks.sight import Sight

#: Deviations that ALIE moves by at least, as far as the paper's own experiments go (section 4). Its
#: bound for 4 of 20 is 0.16, which hardly moves anything.
LEAST_DEVIATIONS: Final = 1.5


@dataclass(frozen=True, slots=True)
class SignFlip:
    """Each attacker's own delta, turned round and made longer: -factor * own.

    Li et al. 2019, "RSA: Byzantine-Robust Stochastic Aggregation Methods for Distributed Learning
    from Heterogeneous Datasets", section 5 (sign-flipping).
    """

    factor: float = 10.0

    def __call__(self, sight: Sight) -> FloatArray:
        """What the attackers send: (f, d)."""
        return -self.factor * sight.own


@dataclass(frozen=True, slots=True)
class Scaling:
    """Each attacker's own delta, made much longer: factor * own.

    Bhagoji et al. 2019, "Analyzing Federated Learning through an Adversarial Lens", section 3.2
    (explicit boosting), of a delta that is otherwise honest.
    """

    factor: float = 100.0

    def __call__(self, sight: Sight) -> FloatArray:
        """What the attackers send: (f, d)."""
        return self.factor * sight.own


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Independent normal noise in place of a delta, of this standard deviation a coordinate.

    Blanchard et al. 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient
    Descent", section 5, whose standard deviation is 200.
    """

    deviation: float = 200.0

    def __call__(self, sight: Sight) -> FloatArray:
        """What the attackers send: (f, d)."""
        return sight.chance.normal(0.0, self.deviation, sight.own.shape)


def alie_bound(clients: int, attackers: int) -> float:
    """z of ALIE: so many deviations off the mean a majority of clients is still further off.

    Baruch et al. 2019, algorithm 3: s = floor(n / 2 + 1) - f honest supporters are needed, and
    z = Phi^-1((n - f - s) / (n - f)); 0 where that is negative.

    Args:
        clients: n.
        attackers: f, fewer than half of n.
    """
    assert 1 <= attackers < clients / 2
    supporters = clients // 2 + 1 - attackers
    honest = clients - attackers
    share = (honest - supporters) / honest
    return statistics.NormalDist().inv_cdf(share) if share > 0.5 else 0.0


@dataclass(frozen=True, slots=True)
class Alie:
    """A little is enough: the honest mean, and some honest deviations on top in each coordinate.

    Baruch, Baruch and Goldberg 2019, "A Little Is Enough: Circumventing Defenses For Distributed
    Learning", algorithm 3, by `alie_bound` deviations, or by `least` where that is more. The
    deviation is that of the honest deltas, divided by h.
    """

    least: float = LEAST_DEVIATIONS

    def __call__(self, sight: Sight) -> FloatArray:
        """What the attackers send: (f, d)."""
        deviations = max(self.least, alie_bound(sight.clients, sight.attackers))
        spread = sight.honest.std(axis=0)
        return sight.together(sight.honest.mean(axis=0) + deviations * spread)


@dataclass(frozen=True, slots=True)
class InnerProduct:
    """The honest mean turned round, so that the aggregate's inner product with it is negative.

    Xie, Koyejo and Gupta 2020, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner Product
    Manipulation", section 4: -epsilon * mean. A small epsilon is hard to see, a large one hurts a
    rule that lets it in.
    """

    epsilon: float = 10.0

    def __call__(self, sight: Sight) -> FloatArray:
        """What the attackers send: (f, d)."""
        return sight.together(-self.epsilon * sight.honest.mean(axis=0))


@dataclass(frozen=True, slots=True)
class FreeRider:
    """No training: the last published mean, and noise so that no two are equal.

    Fraboni, Vidal and Lorenzi 2021, "Free-rider Attacks on Model Aggregation in Federated
    Learning", section 3.2 (disguised free-riders), with noise in proportion to that mean.
    """

    noise: float = 0.1

    def __call__(self, sight: Sight) -> FloatArray:
        """What the attackers send: (f, d)."""
        scale = self.noise * float(np.linalg.norm(sight.last)) / np.sqrt(sight.last.size)
        return sight.last + sight.chance.normal(0.0, scale, sight.own.shape)
