"""One step of centered clipping around the last published mean, in integers of the ring.

Karimireddy, He and Jaggi 2021, "Learning from History for Byzantine Robust Optimization",
algorithm 2 with one iteration: v' = v + mean of clip_tau(delta_i - v). The centre v is the mean
that was published last, noise included, so that it costs no privacy. With x_i a client's encoded
contribution, weight share and rounding included,

    c_i = rint(v * scale * w_i / w_max)                     public
    z_i = x_i - c_i, shortened to the bound of its weight   the client's term
    sum = z_1 + ... + z_n + noise                           what the noise protects
    mean = (sum + c_1 + ... + c_n) * w_max / (scale * w_total)

A term that is short enough stays as it is. A longer one is multiplied by a factor and rounded
stochastically, chunk by chunk: each chunk has an allowance of squared length, drawn again until it
keeps it and cut off towards zero if it never does, and the allowances of a term add up to no more
than its bound squared. All of that is checked on exact integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from boltz_protocol import limits
from boltz_protocol.encoding import Encoding, integer_bound_l2
from boltz_protocol.keystream import Keystream
from boltz_protocol.packing import norm_squared24

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

#: A squared length that no term comes near: what a hostile chunk's is cut down to.
MAX_SQUARE: Final = 1 << 62
_UNIT: Final = 2.0**-32


@dataclass(frozen=True, slots=True)
class CenteredClipping:
    """The rule of `open` rounds that measures each client against what was published last.

    Attributes:
        terms: the encoding that terms keep to: the round's, with tau as its clip norm. Its
            `bound_l2`, T, is the length of tau and of its rounding.
    """

    terms: Encoding

    name: ClassVar[str] = "centered-clipping"

    @classmethod
    def of(cls, encoding: Encoding, radius: float) -> Self:
        """The rule with tau = radius * clip norm, 0 < radius <= 1.

        Raises: MalformedMessage when tau is below the smallest clip norm.
        """
        assert 0 < radius <= 1, "the plan checks it"
        tau = radius * encoding.clip_norm_l2
        bound = integer_bound_l2(
            Fraction(tau) * Fraction(2) ** encoding.scale_log2, encoding.coordinates
        )
        return cls(replace(encoding, clip_norm_l2=tau, bound_l2=bound))

    def l2_sensitivity(self, n: int, f: int, clip: int, weights: Sequence[int]) -> int:
        """The sensitivity of the SUM of terms, to which the noise is added: T, and not `clip`.

        What zero means. A client's contribution under this rule is its term z_i. Set to zero, the
        term is the zero vector: the client is left out of the sum, or what is the same, it sends
        c_i, which repeats what has been published already. (Should it send a delta of zero
        instead, its term is another one of at most the same length. Sums then differ by at most
        2T, as they do when one client's data is replaced by any other: that is the relation
        "replaced", whose epsilon is shown beside.)

        Proof. Neighbouring runs have the same roster, weights and survivors, and the same v: it
        was published before the round, and w_i, w_max and the scale are public, so every c_j is
        the same in both. Each other term depends on its own client's x_j, on c_j and on rounding
        bits of its own. So the sums differ by z_i exactly, for any choice of rounding bits.

        |z_i| <= T_i with T_i = `term_bound(w_i, w_max)`, rounding included: a term is x_i - c_i
        itself only where that integer vector's exact norm is at most T_i. Otherwise each of its
        chunks keeps its allowance a_ij, an integer, by `shortened`; and `shrinking` asserts that
        a_i1 + ... + a_iJ <= T_i^2. The length of x_i is of no matter here, nor that of v.

        T_i <= T: `integer_bound_l2` grows with its units, and w_i <= w_max.

        The centres are added after the noise, from public numbers only: post-processing.
        """
        assert n == len(weights)
        assert 0 <= f <= n
        assert clip >= self.terms.bound_l2, "tau is no longer than the clip norm"
        assert all(0 < weight <= limits.MAX_WEIGHT for weight in weights)
        return self.terms.bound_l2

    def term_bound(self, weight: int, max_weight: int) -> int:
        """T_i: the longest term of a client, in units of the ring. Its share of tau, and room for
        the rounding of its update, which does not grow smaller with its weight.
        """
        assert 1 <= weight <= max_weight <= limits.MAX_WEIGHT
        share = Fraction(weight, max_weight) * self.terms.clip_units
        return integer_bound_l2(share, self.terms.coordinates)


def centre_units(centre: Float64Array, scale: float, weight: int, max_weight: int) -> Int32Array:
    """c_i of one chunk: (k,) int32.

    Args:
        centre: (k,) float64, v in the delta's unit, no longer than the clip norm.
        scale: units of the ring in 1.0.
    """
    assert 1 <= weight <= max_weight
    return np.rint(centre * (scale * weight / max_weight)).astype(np.int32)


@dataclass(frozen=True, slots=True)
class Shrinking:
    """How one term is shortened.

    Attributes:
        factor: of the term, in [0, 1).
        allowances: (J,) int64, the largest squared length of each chunk.
    """

    factor: float = field(repr=False)
    allowances: Int64Array = field(repr=False)


def shrinking(squares: Float64Array, sizes: Int64Array, bound: int) -> Shrinking:
    """Factor and allowances of a term that is longer than its bound.

    Each chunk is allowed factor^2 s + k/4 + factor sqrt(s) + sqrt(k)/2, where s is its squared
    length and k its size. That is what Kairouz, Liu and Steinke 2021 (proposition 22, as at the
    head of `boltz_protocol.encoding`) ask for one stochastic rounding to keep it with a
    probability of at least 0.39. The factor is the largest with which all of it adds up to
    bound^2; 0 where the rounding alone would take more.

    Args:
        squares: (J,), squared lengths of the chunks of x_i - c_i.
        sizes: (J,), their coordinates.
        bound: T_i.
    """
    assert squares.shape == sizes.shape
    square = float(squares.sum())
    assert square > 0, "a term that is too long"
    rounding = sizes / 4 + np.sqrt(sizes) / 2
    lengths = np.sqrt(squares)
    # factor^2 * square + factor * sum(lengths) + sum(rounding) = bound^2, less a billionth that
    # outweighs all rounding errors of this arithmetic.
    rest = bound**2 * (1 - 1e-9) - float(rounding.sum())
    if rest <= 0:
        return Shrinking(0.0, np.zeros(squares.size, np.int64))
    half = float(lengths.sum()) / (2 * square)
    factor = min(math.sqrt(half * half + rest / square) - half, 1 - 1e-9)
    allowances = np.floor(factor**2 * squares + factor * lengths + rounding).astype(np.int64)
    assert int(allowances.sum()) <= bound**2, "the sensitivity is what this adds up to"
    return Shrinking(factor, allowances)


def shortened(term: Int32Array, factor: float, allowance: int, stream: Keystream) -> Int32Array:
    """One chunk of a term times its factor, in integers: (k,) int32.

    Its mean is `factor * term` but for the condition, as in the clients' own rounding; its squared
    length is at most `allowance`, always.
    """
    reals = term.astype(np.float64) * factor
    for _ in range(limits.MAX_ROUNDING_DRAWS if factor > 0 else 0):
        drawn: Int32Array = np.floor(reals + stream.uint32(reals.size) * _UNIT).astype(np.int32)
        if norm_squared24(drawn) <= allowance:
            return drawn
    cut: Int32Array = np.trunc(reals).astype(np.int32)
    assert norm_squared24(cut) <= allowance, "towards zero no coordinate grows"
    return cut
