"""Attacks that stay as near to the honest deltas as those are to each other.

MinMax and MinSum: Shejwalkar and Houmansadr 2021, "Manipulating the Byzantine: Optimizing Model
Poisoning Attacks and Defenses for Federated Learning", section IV-D: mean + gamma * p, with the
largest gamma that keeps a distance condition. The paper searches for gamma; both conditions are
quadratic in it, so that it is solved for here. All pushes of the paper are against the mean.
Attackers may as well push along it: a model that is past its best is made worse by going on. On the
demo's task that does more harm, so the library's strengths do that.

Mimic: Karimireddy, He and Jaggi 2022, "Byzantine-Robust Learning on Heterogeneous Datasets via
Bucketing", section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.simulate.attacks.sight import Sight

#: Ways to push: the paper's, against the mean's direction, signs or spread; and along its signs.
Push = Literal["inverse-unit-vector", "inverse-sign", "inverse-deviation", "sign"]


def pushed(honest: FloatArray, push: Push) -> FloatArray:
    """p, (d,), from honest deltas (h, d)."""
    mean: FloatArray = honest.mean(axis=0)
    spread: FloatArray = honest.std(axis=0)
    match push:
        case "inverse-unit-vector":
            return -mean / max(float(np.linalg.norm(mean)), np.finfo(np.float64).tiny)
        case "inverse-sign":
            return -np.sign(mean)
        case "inverse-deviation":
            return -spread
        case "sign":
            return np.sign(mean)


def squared_distances(honest: FloatArray) -> FloatArray:
    """Squared distance of each honest delta to each, (h, h)."""
    squares = np.einsum("ij,ij->i", honest, honest)
    products = honest @ honest.T
    distances: FloatArray = np.maximum(squares[:, None] + squares[None] - 2 * products, 0.0)
    return distances


@dataclass(frozen=True, slots=True)
class MinMax:
    """No further from any honest delta than the two furthest honest deltas are from each other."""

    push: Push = "sign"

    def __call__(self, sight: Sight) -> FloatArray:
        """What the attackers send: (f, d)."""
        honest = sight.honest
        mean, p = honest.mean(axis=0), pushed(honest, self.push)
        limit = float(squared_distances(honest).max())
        # |mean + gamma p - g|^2 = gamma^2 |p|^2 + 2 gamma p.(mean - g) + |mean - g|^2 for each g.
        slopes = (mean - honest) @ p
        rests = ((mean - honest) ** 2).sum(axis=1) - limit
        gamma = min(
            _largest(float(p @ p), 2 * slope, rest)
            for slope, rest in zip(slopes.tolist(), rests.tolist(), strict=True)
        )
        return sight.together(mean + gamma * p)


@dataclass(frozen=True, slots=True)
class MinSum:
    """Sum of squared distances to the honest deltas no larger than the largest honest one's."""

    push: Push = "sign"

    def __call__(self, sight: Sight) -> FloatArray:
        """What the attackers send: (f, d)."""
        honest = sight.honest
        mean, p = honest.mean(axis=0), pushed(honest, self.push)
        limit = float(squared_distances(honest).sum(axis=1).max())
        # Around the mean the slopes add up to nothing.
        spread = float(((honest - mean) ** 2).sum())
        gamma = _largest(len(honest) * float(p @ p), 0.0, spread - limit)
        return sight.together(mean + gamma * p)


@dataclass(frozen=True, slots=True)
class Mimic:
    """Every attacker repeats one honest client: the one furthest out along the widest direction.

    Nothing that is sent is false, yet one client's data counts f + 1 times. The direction is that
    of the largest variance of the round's honest deltas, where the paper keeps a running estimate
    over many rounds.
    """

    def __call__(self, sight: Sight) -> FloatArray:
        """What the attackers send: (f, d)."""
        centred = sight.honest - sight.honest.mean(axis=0)
        widest = np.linalg.svd(centred, full_matrices=False)[2][0]
        chosen = int(np.argmax(np.abs(centred @ widest)))
        return sight.together(sight.honest[chosen])


def _largest(square: float, slope: float, rest: float) -> float:
    """The largest gamma >= 0 with square * gamma^2 + slope * gamma + rest <= 0, for rest <= 0."""
    if square == 0:
        return 0.0
    root = slope * slope - 4 * square * min(rest, 0.0)
    return (-slope + float(np.sqrt(root))) / (2 * square)
