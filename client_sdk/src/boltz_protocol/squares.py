"""Sums of squares of a block, on one thread.

OpenBLAS spreads a dot product of more than 10000 numbers over all cores. For a block of 256 KiB
that gains a few microseconds on an idle machine and loses milliseconds on a busy one, where its
threads wait for each other; so blocks go to it in rows below that size.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

#: Numbers worked on at once: 512 KiB of float64 stays in the second-level cache.
BLOCK: Final = 1 << 16
#: Numbers of one dot product.
ROW: Final = 1 << 13


def sum_of_squares(reals: npt.NDArray[np.float64]) -> float:
    """The sum of squares of a contiguous float64 vector, shape (n,).

    Only additions of non-negative numbers take place. The relative error for n up to `BLOCK` is
    below 2^-38; integers are summed exactly as long as the result is below 2^53, since the first
    inexact partial sum would reach that, and later terms never bring a sum down again.
    """
    whole = reals.size - reals.size % ROW
    rows = reals[:whole].reshape(-1, ROW)
    rest = reals[whole:]
    return float(np.vecdot(rows, rows).sum()) + float(np.dot(rest, rest))
