"""What a modified client does to its integers after clip and weight: for `seal` and `masked`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from boltz_protocol.packing import WIRE_MIN

Int32Array = npt.NDArray[np.int32]
Falsified = Callable[[Int32Array], None]


def longest(bound_l2: int, direction: float) -> Falsified:
    """As far in one direction as the integer bound lets any client go, whatever its weight.

    Args:
        direction: 1.0 or -1.0, in each coordinate.
    """

    def falsify(values: Int32Array) -> None:
        values[:] = math.trunc(direction * bound_l2 / math.sqrt(values.size))

    return falsify


def flood(values: Int32Array) -> None:
    """The far end of the ring in each coordinate, which no sum of honest updates reaches."""
    values[:] = WIRE_MIN
