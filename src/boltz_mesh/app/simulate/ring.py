"""From deltas to what the mesh sees of them: the product's clip, encoding, groups and noise.

Masks cancel exactly in every sum that the mesh unmasks, so the simulation leaves them out: it adds
the same integers up. Everything else is what clients and server run.

An attacker need not run it. In `open` rounds the mesh measures each update and refuses one that is
longer than the bound, so attackers clip like everybody. In masked rounds nobody measures a single
update: what is checked is the sum, and attackers make theirs as long as that check lets them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from boltz_mesh.app.demo.data import FloatArray
from boltz_protocol import update
from boltz_protocol.encoding import Encoding
from boltz_protocol.keystream import KEY_BYTES, Keystream
from boltz_protocol.noise import discrete_gaussian
from boltz_protocol.secagg.groups import draw_groups

Int64Array = npt.NDArray[np.int64]

#: A vector of a sum is kept this much below the limit, so that rounding it does not lift it over.
_MARGIN: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Sending:
    """How the clients of one round turn deltas into integers.

    Attributes:
        encoding: of the round.
        weights: committed, of each client of the round, 1 to 255.
        chance: seeded; every keystream of the simulation has its key from it.
    """

    encoding: Encoding
    weights: Mapping[int, int]
    chance: np.random.Generator

    @property
    def max_weight(self) -> int:
        """The largest weight of the roster."""
        return max(self.weights.values())

    def stream(self) -> Keystream:
        """The next keystream."""
        return Keystream(self.chance.bytes(KEY_BYTES))

    def clipped(self, delta: FloatArray) -> FloatArray:
        """What a client's clip leaves of a delta (d,), in reals."""
        local = update.LocalDelta(np.ascontiguousarray(delta, np.float32))
        clipped = update.clip(local, clip_norm_l2=self.encoding.clip_norm_l2)
        reals: FloatArray = clipped.values.astype(np.float64)
        reals *= clipped.factor
        return reals

    def encoded(self, client: int, delta: FloatArray, *, grasping: bool = False) -> Int64Array:
        """A client's contribution to a sum, (d,), by the product's own steps.

        Args:
            grasping: it takes the largest weight, whatever its own.

        Raises: NotFinite.
        """
        local = update.LocalDelta(np.ascontiguousarray(delta, np.float32))
        clipped = update.clip(local, clip_norm_l2=self.encoding.clip_norm_l2)
        weight = self.max_weight if grasping else self.weights[client]
        weighted = update.weigh(clipped, weight=weight, max_weight=self.max_weight)
        return update.encode(weighted, self.encoding, stream=self.stream()).values.astype(np.int64)

    def unclipped(self, client: int, delta: FloatArray) -> FloatArray:
        """What a client that does not clip would add to a sum, (d,), in units of the ring."""
        share = self.weights[client] / self.max_weight
        return delta * (share * 2.0**self.encoding.scale_log2)

    def rounded(self, units: FloatArray) -> Int64Array:
        """What attackers send of a vector in units of the ring, cut off towards zero."""
        cut: Int64Array = np.trunc(units).astype(np.int64)
        return cut

    def mean(self, total: Int64Array, members: Sequence[int]) -> FloatArray:
        """The mean delta of a sum over these clients."""
        scale = 2.0**self.encoding.scale_log2
        weight = sum(self.weights[client] for client in members)
        mean: FloatArray = total.astype(np.float64) * (self.max_weight / (scale * weight))
        return mean

    def noise(self, variance: Fraction) -> Int64Array:
        """Discrete Gaussian noise of this variance parameter, (d,), by the product's sampler."""
        out = np.zeros(self.encoding.coordinates, np.int32)
        if variance > 0:
            discrete_gaussian(variance).sample_into(out, self.stream())
        return out.astype(np.int64)


def range_factor(honest: Int64Array, wanted: FloatArray, limit: int) -> float:
    """How much of what attackers want the norm check of a sum lets through, 0 to 1.

    Args:
        honest: (d,), the sum of the honest contributions. Attackers know it, more than real ones.
        wanted: (d,), what attackers would add, in units of the ring.
        limit: of the sum's norm.
    """
    square = float(wanted @ wanted)
    if square == 0:
        return 1.0
    start = honest.astype(np.float64)
    room = ((1 - _MARGIN) * limit) ** 2 - float(start @ start)
    slope = float(start @ wanted)
    factor = (math.sqrt(slope * slope + square * max(room, 0.0)) - slope) / square
    return min(max(factor, 0.0), 1.0)


def groups_of(
    clients: int, groups: int, chance: np.random.Generator
) -> tuple[tuple[int, ...], ...]:
    """The groups of one round, by the product's draw.

    Raises: InvalidPlan where a group would be too small or too large.
    """
    return draw_groups(range(clients), groups, seed=chance.bytes(KEY_BYTES))
