"""The weighted mean: from an exact integer sum to the mean delta.

Client i contributes round(scale * (w_i / w_max) * clip_C(delta_i)), where w_max is the largest
weight in the frozen roster; the noise is added to the integer sum. The mean is

    sum / scale * w_max / w_total,   w_total = the sum of the survivors' weights

(FedAvg's weighting: McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", algorithm 1, with noise on the sum as in McMahan et al. 2018, "Learning
Differentially Private Recurrent Language Models", section 2.3.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from boltz_protocol import limits


@dataclass(frozen=True, slots=True)
class WeightedMean:
    """The rule of `open` and `sealed` rounds."""

    name: ClassVar[str] = "weighted-mean"

    def l2_sensitivity(self, n: int, f: int, clip: int, weights: Sequence[int]) -> int:
        """The sensitivity of the SUM, to which the noise is added: `clip`.

        Proof. Neighbouring runs have the same roster, weights and survivors, and one client's
        contribution is set to zero in one of them. The other contributions are the same in both
        (each depends on its own client's data and on what was published before), so the sums
        differ by exactly that one contribution, (w_i / w_max) * clip_C(delta_i). Its norm is at
        most (w_i / w_max) * C <= C, as 0 < w_i <= w_max. In integers the encoder refuses whatever
        is longer than `bound_l2`, and so does the server: hand over `bound_l2` as `clip`, and the
        bound holds with rounding included. The factor w_max / (scale * w_total) that makes
        the mean of the noised sum comes from public numbers only: post-processing.

        A bound over all weights, not the tighter (max survivor weight / w_max) * C: the noise
        must not depend on who survived.
        """
        assert n == len(weights)
        assert 0 <= f <= n
        assert clip > 0
        assert all(0 < weight <= limits.MAX_WEIGHT for weight in weights)
        return clip


WEIGHTED_MEAN: Final = WeightedMean()


def block_mean(
    sum_block: NDArray[np.int32], scale: float, w_max: int, w_total: int
) -> NDArray[np.float32]:
    """The mean delta of one block of coordinates.

    Args:
        sum_block: (k,) int32, the noised sum of the survivors' encoded contributions.
        scale: of the encoding, integer units in 1.0.
        w_max: the largest weight of the roster.
        w_total: the sum of the survivors' weights.

    Returns:
        (k,) float32. Computed in float64, where every int32 is exact, and rounded once, so that
        every replica gets the same bits.
    """
    assert sum_block.dtype == np.int32
    assert scale > 0
    assert 0 < w_max <= limits.MAX_WEIGHT
    assert w_total > 0
    return (sum_block * (w_max / (scale * w_total))).astype(np.float32)
