"""Bounding an update: the joint L2 norm of delta and lanes, and the factor that brings it to C.

The norm is summed in float64 over blocks. The factor is drawn in by a hair more than the error of
that sum, so that the clipped vector is never longer than C, in reals. A zero vector keeps the
factor one: nothing divides by the norm unless it is above C.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from boltz_protocol.errors import NotFinite
from boltz_protocol.squares import BLOCK, sum_of_squares

Float32Array = npt.NDArray[np.float32]

# `sum_of_squares` is off by at most 2^-38 relative, the norm by half of that.
_NORM_SLACK: Final = 2.0**-38
# A lane beyond float32 is a broken metric, and its square must stay finite.
_LANE_MAX: Final = float(np.finfo(np.float32).max)


def scaled_lanes(lanes: Sequence[float], lane_scale: float) -> tuple[float, ...]:
    """Lanes in the delta's unit, `lane_scale * lane`.

    Raises: NotFinite naming the first lane that is not finite or beyond float32.
    """
    scaled = tuple(lane_scale * lane for lane in lanes)
    for index, lane in enumerate(scaled):
        if not abs(lane) <= _LANE_MAX:
            raise NotFinite(f"lane {index} is {lanes[index]}", lane=index)
    return scaled


def joint_norm_l2(values: Float32Array, lanes: Sequence[float]) -> float:
    """The L2 norm of `(values, lanes)`.

    Args:
        values: float32, shape (d,).
        lanes: already scaled, finite.

    Raises: NotFinite naming the offset of the first NaN or infinity.
    """
    scratch = np.empty(min(BLOCK, values.size), dtype=np.float64)
    total = math.fsum(lane * lane for lane in lanes)
    for start in range(0, values.size, BLOCK):
        block = values[start : start + BLOCK]
        reals = scratch[: block.size]
        np.copyto(reals, block)
        square = sum_of_squares(reals)
        # Squares of finite float32 values cannot overflow float64, so this sees every culprit.
        if not math.isfinite(square):
            offset = start + int(np.flatnonzero(~np.isfinite(block))[0])
            raise NotFinite(f"coordinate {offset} of the delta is {values[offset]}", offset=offset)
        total += square
    return math.sqrt(total)


def clip_factor(norm_l2: float, clip_norm_l2: float) -> float:
    """The factor in (0, 1] that brings a vector of this norm to at most `clip_norm_l2`."""
    assert clip_norm_l2 > 0, "checked by the plan"
    assert math.isfinite(norm_l2), "checked when the norm was taken"
    if norm_l2 * (1 + _NORM_SLACK) <= clip_norm_l2:
        return 1.0
    return clip_norm_l2 / norm_l2 * (1 - 2 * _NORM_SLACK)
