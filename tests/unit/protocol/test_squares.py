from __future__ import annotations

import math

import numpy as np
import pytest

from boltz_protocol.squares import BLOCK, sum_of_squares


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 8193, BLOCK - 1, BLOCK])
def test_every_number_counts_once(size: int) -> None:
    reals = np.random.default_rng(size).standard_normal(size)
    wanted = math.fsum(value * value for value in reals.tolist())
    assert sum_of_squares(reals) == pytest.approx(wanted, rel=2.0**-38)


def test_integers_are_exact_below_two_to_the_53() -> None:
    # 2^19 squared, 2^15 times, is 2^53: one number less and a one stays exact.
    count = 1 << 15
    reals = np.full(count, 2.0**19)
    reals[7] = 1.0
    assert int(sum_of_squares(reals)) == (count - 1) * 2**38 + 1
