"""Discrete Gaussian noise from a cryptographic stream, exact up to a stated distance.

The distribution is N_Z(0, sigma^2): P(x) proportional to exp(-x^2 / 2 sigma^2) over the integers
(Canonne, Kamath and Steinke 2020, "The Discrete Gaussian for Differential Privacy"). Integers
leave no floating-point artefacts to attack (Mironov 2012).

Two methods, chosen by sigma alone:

- Up to `_DIRECT_SIGMA`: inversion of one uniform number, taken 16 bits at a time. A guide table
  answers for the cells of width 2^-16 that hold no threshold; for the others 48 more bits are
  compared with the cumulative thresholds, and on a tie 64 more.
- Above: x = +-(m y + r) with m a power of two. y comes from a table for exp(-(m y)^2 / 2 sigma^2)
  over y >= 0, r is uniform in [0, m), and the pair is kept with probability
  exp(-r (r + 2 m y) / 2 sigma^2); a negative zero is drawn again (Ducas et al. 2013, "Lattice
  Signatures and Bimodal Gaussians", algorithms 10 to 12). Over 99% are kept, and for 95% of them
  the first 16 bits of the decision suffice.

`DiscreteGaussian.distance` bounds the statistical distance of one sample to the exact law: the
cut tail, thresholds of 128 bits, decisions of 128 bits.

Constant time is not a goal: the running time depends on the samples drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from boltz_protocol.errors import InvalidPlan
from boltz_protocol.fixed_exp import THRESHOLD_BITS, exp_below, gaussian_masses
from boltz_protocol.keystream import Keystream
from boltz_protocol.limits import MAX_SIGMA, MIN_SIGMA

Int32Array = npt.NDArray[np.int32]
IndexArray = npt.NDArray[np.intp]
UInt64Array = npt.NDArray[np.uint64]

#: Samples drawn at once: their 16-bit numbers, results and scratch stay in the cache.
BLOCK: Final = 1 << 16
# Above this, tables outgrow the cache and the two-level method is faster (measured).
_DIRECT_SIGMA: Final = 2048
# The coarse table of the two-level method has a sigma from this to twice this.
_COARSE_SIGMA: Final = 256
# exp(-13.2^2 / 2) is 2^-125: the tail that a table leaves out.
_TAIL_SIGMAS: Final = Fraction(66, 5)
# An int32 that no table holds, in the guide's cells that 16 bits do not decide.
_UNDECIDED: Final = np.int32(-(1 << 31))
_CELLS: Final = 1 << 16
# A float64 exponential of a number in [0, 1/16] and a 64-bit fraction rounded to float64 are both
# within 2^-51 of the truth; nearer to each other than this, exact arithmetic decides.
_FLOAT_DOUBT: Final = 2.0**-45


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """Inversion table for integers `first`, `first + 1`, ...

    Attributes:
        guide: (65536,) int32; the sample for a cell of width 2^-16, or `_UNDECIDED`.
        base: (65536,) int32; thresholds below the cell's start.
        high, low: (values + 1,) uint64; upper and lower half of each 128-bit cumulative
            threshold, then two entries of all ones that stand for one.
        first: smallest value.
        count: thresholds, one fewer than values.
    """

    guide: Int32Array
    base: Int32Array
    high: UInt64Array
    low: UInt64Array
    first: int
    count: int

    def sample_into(self, out: Int32Array, stream: Keystream) -> None:
        """Fill `out`, shape (n,). Draws 2n bytes, 8 for each undecided, 8 for each tie."""
        cells = stream.uint16(out.size)
        np.take(self.guide, cells, out=out, mode="clip")
        undecided = np.flatnonzero(out == _UNDECIDED)
        if undecided.size:
            start = cells[undecided]
            fraction = (stream.uint64(undecided.size) >> np.uint64(16)) | (
                start.astype(np.uint64) << np.uint64(48)
            )
            index = self._index(self.base[start].astype(np.intp), fraction, stream)
            out[undecided] = index + self.first

    def _index(self, base: IndexArray, fraction: UInt64Array, stream: Keystream) -> IndexArray:
        """How many thresholds are at or below each uniform number, of which 64 bits are known."""
        index = base + (fraction >= self.high[base])
        # Far out, several thresholds share a cell; those few are searched for.
        further = np.flatnonzero(fraction >= self.high[index])
        if further.size:
            index[further] = np.searchsorted(
                self.high[: self.count], fraction[further], side="right"
            )
        ties = np.flatnonzero(fraction == self.high[index - 1])
        for tie in ties:
            index[tie] = self._resolve(int(index[tie]), int(fraction[tie]), stream)
        return index

    def _resolve(self, index: int, fraction: int, stream: Keystream) -> int:
        """Step back over thresholds that the next 64 bits turn out to be below."""
        number = (fraction << 64) | int(stream.uint64(1)[0])
        while index and (int(self.high[index - 1]) << 64 | int(self.low[index - 1])) > number:
            index -= 1
        return index


def _table(masses: list[int], first: int) -> _Table:
    """Build a table from unnormalised integer masses of consecutive values."""
    total = sum(masses)
    thresholds = bytearray()
    cumulative = 0
    for mass in masses[:-1]:
        cumulative += mass
        thresholds += ((cumulative << THRESHOLD_BITS) // total).to_bytes(16, "big")
    thresholds += b"\xff" * 32
    halves = np.frombuffer(bytes(thresholds), dtype=">u8").astype(np.uint64).reshape(-1, 2)
    high, low = np.ascontiguousarray(halves[:, 0]), np.ascontiguousarray(halves[:, 1])
    count = len(masses) - 1
    starts = np.arange(_CELLS, dtype=np.uint64) << np.uint64(48)
    base = np.searchsorted(high[:count], starts, side="left").astype(np.int32)
    # The cell is decided when no threshold's upper half lies inside it; one that lies exactly on
    # its start counts as inside, which costs time but is never wrong.
    after = np.append(base[1:], np.int32(count))
    guide = np.where(base == after, base + np.int32(first), _UNDECIDED).astype(np.int32)
    for array in (guide, base, high, low):
        array.flags.writeable = False
    return _Table(guide=guide, base=base, high=high, low=low, first=first, count=count)


@dataclass(frozen=True, slots=True, eq=False)
class DiscreteGaussian:
    """A sampler for one sigma. Immutable and safe to share between threads.

    Attributes:
        sigma_squared: the parameter, exact, in squared ring units.
        reach: no sample is larger than this in size.
    """

    sigma_squared: Fraction
    reach: int
    _shift: int
    _table: _Table

    def sample_into(self, out: Int32Array, stream: Keystream) -> None:
        """Fill a contiguous int32 array, shape (n,), with independent samples.

        `stream` is `Keystream.fresh()` wherever the noise protects anyone.
        """
        for start in range(0, out.size, BLOCK):
            block = out[start : start + BLOCK]
            if self._shift:
                self._scaled_block(block, stream)
            else:
                self._table.sample_into(block, stream)

    def add_into(self, values: Int32Array, stream: Keystream) -> None:
        """Add independent samples to an int32 array, shape (n,), in place."""
        scratch = np.empty(min(BLOCK, values.size), dtype=np.int32)
        for start in range(0, values.size, BLOCK):
            block = values[start : start + BLOCK]
            self.sample_into(scratch[: block.size], stream)
            block += scratch[: block.size]

    def distance(self) -> float:
        """Bound on the statistical distance of one sample to the exact discrete Gaussian.

        The cut tail (the law is subgaussian with parameter sigma, Canonne et al. 2020), plus
        2^-128 for each threshold and for the decision to keep, all divided by the chance to keep
        (above 0.99). Over n samples distances add up: 2^30 samples stay below 2^-80.
        """
        coarse_reach = self._table.first + self._table.count
        scale = 1 << self._shift
        exponent = Fraction(coarse_reach * scale) ** 2 / (2 * self.sigma_squared)
        tail = 2 * math.exp(-float(exponent))
        return 1.02 * (tail + (self._table.count + 2) * 2.0**-THRESHOLD_BITS)

    def _scaled_block(self, out: Int32Array, stream: Keystream) -> None:
        again = self._scaled_draw(out, stream)
        while again.size:
            fresh = np.empty(again.size, dtype=np.int32)
            rejected = self._scaled_draw(fresh, stream)
            out[again] = fresh
            again = again[rejected]

    def _scaled_draw(self, out: Int32Array, stream: Keystream) -> IndexArray:
        """Fill `out` and return the indexes of samples that have to be drawn again.

        Of each 32-bit number the low `shift` bits are r, bit 15 is the sign and the upper half
        starts the decision to keep.
        """
        self._table.sample_into(out, stream)
        bits = stream.uint32(out.size)
        offset = (bits & np.uint32((1 << self._shift) - 1)).view(np.int32)
        negative = (bits << np.uint32(16)).view(np.int32) >> 31
        # The largest possible exponent bounds what has to be looked at closely.
        reach = self._table.count
        worst = (2 * reach + 1) * 4.0**self._shift / float(2 * self.sigma_squared)
        surely_kept = np.uint32(math.floor(math.exp(-worst) * 0xFFFF)) << np.uint32(16)
        close = np.flatnonzero(bits >= surely_kept)
        dropped = close[self._drop(out[close], offset[close], bits[close], stream)]
        np.left_shift(out, self._shift, out=out)
        out += offset
        # Zero would come up twice, as plus and minus zero; minus zero is drawn again.
        zero = np.flatnonzero(out == 0)
        minus_zero = zero[negative[zero] != 0]
        out ^= negative
        out -= negative
        return np.union1d(dropped, minus_zero) if minus_zero.size else dropped

    def _drop(
        self,
        coarse: Int32Array,
        offset: Int32Array,
        bits: npt.NDArray[np.uint32],
        stream: Keystream,
    ) -> npt.NDArray[np.bool_]:
        """Which candidates fail the decision: a uniform number at or above exp(-exponent)."""
        wide = offset.astype(np.int64)
        numerator = wide * (wide + (coarse.astype(np.int64) << (self._shift + 1)))
        fraction = (stream.uint64(bits.size) >> np.uint64(16)) | (
            (bits >> np.uint32(16)).astype(np.uint64) << np.uint64(48)
        )
        margin = fraction * 2.0**-64 - np.exp(numerator / -float(2 * self.sigma_squared))
        drop = margin >= 0
        for doubtful in np.flatnonzero(np.abs(margin) < _FLOAT_DOUBT):
            drop[doubtful] = self._drops_exactly(
                int(numerator[doubtful]), int(fraction[doubtful]), stream
            )
        return drop

    def _drops_exactly(self, numerator: int, fraction: int, stream: Keystream) -> bool:
        number = (fraction << 64) | int(stream.uint64(1)[0])
        return number >= exp_below(numerator / (2 * self.sigma_squared))


@lru_cache(maxsize=16)
def discrete_gaussian(sigma_squared: Fraction) -> DiscreteGaussian:
    """The sampler for an exact variance parameter; the last 16 are kept (at most 1.5 MB each).

    Args:
        sigma_squared: sigma^2 as an exact fraction, `Fraction(sigma) ** 2` for a float.

    Raises: InvalidPlan when sigma is outside `limits.MIN_SIGMA` to `limits.MAX_SIGMA`.
    """
    if not MIN_SIGMA**2 <= sigma_squared <= MAX_SIGMA**2:
        raise InvalidPlan(
            f"noise of {float(sigma_squared) ** 0.5:g} ring units is outside {MIN_SIGMA} to "
            f"{MAX_SIGMA}",
            setting="noise_multiplier",
        )
    shift = 0
    if sigma_squared > _DIRECT_SIGMA**2:
        while sigma_squared >= (_COARSE_SIGMA << (shift + 1)) ** 2:
            shift += 1
    coarse = sigma_squared / 4**shift
    reach = math.isqrt(math.ceil(coarse * _TAIL_SIGMAS**2)) + 1
    masses = gaussian_masses(coarse, reach)
    table = _table(masses, 0) if shift else _table([*masses[:0:-1], *masses], -reach)
    return DiscreteGaussian(
        sigma_squared=sigma_squared,
        reach=((reach + 1) << shift) - 1 if shift else reach,
        _shift=shift,
        _table=table,
    )
