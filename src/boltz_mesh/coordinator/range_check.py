"""The range check of a sum: what no clip, no rounding and no noise of its round can have made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from boltz_mesh.aggregation.calibration import Calibration
from boltz_protocol.encoding import Encoding
from boltz_protocol.errors import MeshError, NormExceeded
from boltz_protocol.messages import RoundConfiguration
from boltz_protocol.packing import WIRE_MAX, decode_sum
from boltz_protocol.sealing import round_share_variance

# The noise's norm leaves sigma (sqrt(d) + 8) with probability exp(-32) (Gaussian concentration).
_NORM_SIGMAS: Final = 8

Int32Array = npt.NDArray[np.int32]
UInt32Array = npt.NDArray[np.uint32]


class AggregateOutOfRange(MeshError):
    """The noised sum lies beyond what clip and noise allow."""

    reason = "AGGREGATE_REJECTED"
    status = "FAILED_PRECONDITION"
    next_step = "Look for a fault in the clients' encoding or in the blob store."


@dataclass(frozen=True, slots=True)
class SumRange:
    """What the sums of a round may be.

    Attributes:
        encoding: of the terms that are added up.
        variance: of a coordinate's noise, in squared ring units: of one client's share where the
            noise comes in shares, else of the whole.
        shared: the noise comes in shares: more clients make more of it.
    """

    encoding: Encoding
    variance: float
    shared: bool

    @classmethod
    def of(
        cls, configuration: RoundConfiguration, encoding: Encoding, calibration: Calibration
    ) -> SumRange:
        """The range of a round's sums."""
        if configuration.secure_aggregation is None or calibration.noise_multiplier == 0:
            return cls(encoding, float(calibration.sigma_squared), shared=False)
        return cls(encoding, float(round_share_variance(configuration, encoding)), shared=True)

    def check_coordinates(self, chunk: Int32Array, survivors: int) -> None:
        """Check one chunk of a noised sum. Raises: AggregateOutOfRange."""
        limit = self.encoding.sum_limit(survivors, noised=self.encoding.noise_multiplier > 0)
        largest = max(int(chunk.max()), -int(chunk.min()))
        if largest > limit:
            raise AggregateOutOfRange(
                f"a coordinate of the noised sum is {largest} in size; clip and noise allow {limit}"
            )

    def check_norm(self, norm_squared: int, survivors: int) -> None:
        """Check the length of a whole noised sum. Raises: AggregateOutOfRange."""
        sigma = math.sqrt(self.variance * (survivors if self.shared else 1))
        noise = sigma * (math.sqrt(self.encoding.coordinates) + _NORM_SIGMAS)
        limit = survivors * self.encoding.bound_l2 + noise
        norm = math.sqrt(norm_squared)
        if norm > limit * (1 + 1e-9):
            raise AggregateOutOfRange(
                f"the noised sum's norm is {norm:.6g}; clip and noise allow {limit:.6g}"
            )


def signed(accumulator: UInt32Array) -> Int32Array:
    """A chunk's signed values, in place. Raises: AggregateOutOfRange."""
    try:
        return decode_sum(accumulator, WIRE_MAX)
    except NormExceeded as error:
        raise AggregateOutOfRange("a coordinate of the sum fills the ring") from error
