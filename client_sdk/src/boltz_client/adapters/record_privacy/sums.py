"""A step's sum: gradients of single records, clipped, as integers, with discrete Gaussian noise.

The clip norm C is K units long, K = floor(2^19 / z), and the noise has a standard deviation of 2^19
units, so at least z times the bound. A record's gradient is shortened to at most C, expressed in
units and rounded towards zero, which never makes it longer; then the sum of squares of its integers
is checked against K^2, exactly. So one record moves the integer sum by at most K in L2,
exactly, and no floating-point numbers are added between the records and the noise (Mironov 2012
shows what those give away). Rounding takes less than a unit, z / 2^19 of the
clip norm, off each coordinate.

A gradient that is not finite counts as zero: a record must not be able to stop a training, since
that would show.

The bound needs the gradient of a record to depend on that record and the weights alone, to the last
bit. numpy's row-wise sums in `record_privacy.linear` are so; a matrix product in torch may round
differently with the number of rows in a batch, by some 1e-7 of a gradient, which is not covered.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from boltz_protocol.keystream import Keystream
from boltz_protocol.noise import discrete_gaussian

Reals = npt.NDArray[np.float64]

#: Standard deviation of the noise in units: as fine as the sampler takes, with room to its cap.
SIGMA_UNITS: Final = 1 << 19
#: Numbers of the gradients worked on at once: 32 MiB of float64, and as much again for scratch.
BLOCK_NUMBERS: Final = 1 << 22


def block_rows(coordinates: int) -> int:
    """Records whose gradients are worked on at once."""
    return max(1, BLOCK_NUMBERS // coordinates)


def sample_rows(rows: int, rate: float, stream: Keystream) -> npt.NDArray[np.intp]:
    """Indexes of the records of one step: each with probability `rate`, on its own (Poisson).

    The probability is `rate` rounded down to a multiple of 2^-64, so what is charged is no less.

    Args:
        rate: in (0, 1].
        stream: `Keystream.fresh()`; nobody may learn which records were drawn.
    """
    if rate == 1:
        return np.arange(rows)
    # A power of two scales a float without rounding.
    threshold = np.uint64(int(rate * 2.0**64))
    return np.flatnonzero(stream.uint64(rows) < threshold)


def clip_to_units(gradients: Reals, clip_norm: float, bound_units: int) -> None:
    """Turn gradients into whole numbers of units, each row at most `bound_units` long, in place.

    Args:
        gradients: one a row, shape (records, coordinates).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.square(gradients)
        # Row by row in memory order: what one row gives does not depend on the others.
        norms = np.sqrt(squares.sum(axis=1))
        gradients *= (bound_units / np.maximum(norms, clip_norm))[:, np.newaxis]
    gradients[~np.isfinite(norms)] = 0
    np.trunc(gradients, out=gradients)
    drop_long(gradients, squares, bound_units)


def drop_long(units: Reals, squares: Reals, bound_units: int) -> None:
    """Set rows of whole numbers that are longer than the bound to zero, in place.

    The norm that they were scaled by may be off in its last bit. Here nothing is: the bound is
    below 2^23, and float64 adds whole numbers exactly up to 2^53.

    Args:
        squares: scratch of the same shape.
    """
    np.square(units, out=squares)
    units[squares.sum(axis=1) > bound_units**2] = 0


class RecordSum:
    """The sum of one step's clipped gradients. One thread; `release` begins the next step.

    Args:
        coordinates: length of a gradient.
        clip_norm: L2 bound of one record, C.
        noise_multiplier: z.
    """

    __slots__ = ("_clip_norm", "_noise", "_sum", "bound_units")

    def __init__(self, coordinates: int, clip_norm: float, noise_multiplier: float) -> None:
        self.bound_units = int(SIGMA_UNITS / noise_multiplier)
        self._clip_norm = clip_norm
        self._sum = np.zeros(coordinates, dtype=np.int64)
        self._noise = np.empty(coordinates, dtype=np.int32)

    def add(self, gradients: Reals) -> None:
        """Clip and add one gradient a row, shape (records, coordinates), which is overwritten."""
        clip_to_units(gradients, self._clip_norm, self.bound_units)
        # Whole numbers, and far fewer than 2^53 / bound of them: float64 adds them exactly.
        self._sum += gradients.sum(axis=0).astype(np.int64)

    def release(self, stream: Keystream) -> Reals:
        """The noised sum as a gradient, shape (coordinates,); the sum begins anew.

        Args:
            stream: `Keystream.fresh()` wherever the noise protects anyone.
        """
        discrete_gaussian(Fraction(SIGMA_UNITS) ** 2).sample_into(self._noise, stream)
        self._sum += self._noise
        released = self._sum.astype(np.float64)
        released *= self._clip_norm / self.bound_units
        self._sum[:] = 0
        return released
