"""The weighted mean against the plain formula. Its sensitivity is in `test_sensitivity`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_mesh.aggregation.rule import ProvenRule
from boltz_mesh.aggregation.weighted_mean import WEIGHTED_MEAN, block_mean

WEIGHTS = st.lists(st.integers(1, 255), min_size=1, max_size=12)


@settings(deadline=None)
@given(weights=WEIGHTS, seed=st.integers(0, 2**32 - 1))
def test_the_mean_is_the_naive_one(weights: list[int], seed: int) -> None:
    deltas = np.random.default_rng(seed).normal(0, 0.1, (len(weights), 33))
    scale, w_max = 2.0**16, max(weights)
    encoded = sum(
        np.rint(scale * weight / w_max * delta).astype(np.int32)
        for weight, delta in zip(weights, deltas, strict=True)
    )
    assert isinstance(encoded, np.ndarray)
    mean = block_mean(encoded, scale, w_max, sum(weights))
    naive = np.average(deltas, axis=0, weights=weights)
    # Each encoding is off by at most half a unit of 1 / scale.
    bound = len(weights) * 0.5 / scale * w_max / sum(weights)
    np.testing.assert_allclose(mean, naive, rtol=1e-6, atol=bound + 1e-9)
    assert mean.dtype == np.float32


def test_blocks_give_the_same_bits_as_the_whole() -> None:
    total = np.random.default_rng(7).integers(-(2**23), 2**23, 1000, dtype=np.int32)
    whole = block_mean(total, 4096.0, 255, 1234)
    parts = [block_mean(total[i : i + 77], 4096.0, 255, 1234) for i in range(0, 1000, 77)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_the_ends_of_int32_survive() -> None:
    ends = np.array([-(2**31), 2**31 - 1, 0], np.int32)
    np.testing.assert_array_equal(
        block_mean(ends, 1.0, 1, 1), np.array([-(2.0**31), 2.0**31, 0], np.float32)
    )


def test_the_sensitivity_is_the_clip() -> None:
    rule: ProvenRule = WEIGHTED_MEAN
    assert rule.l2_sensitivity(2, 1, 65_536, [3, 255]) == 65_536
    assert rule.name == "weighted-mean"


@pytest.mark.parametrize(
    ("n", "f", "clip", "weights"),
    [(2, 0, 1, [1]), (1, 2, 1, [1]), (1, 0, 0, [1]), (1, 0, 1, [0]), (1, 0, 1, [256])],
)
def test_a_broken_call_crashes(n: int, f: int, clip: int, weights: list[int]) -> None:
    with pytest.raises(AssertionError):
        WEIGHTED_MEAN.l2_sensitivity(n, f, clip, weights)


@pytest.mark.parametrize(
    ("scale", "w_max", "w_total"), [(0.0, 1, 1), (1.0, 0, 1), (1.0, 256, 1), (1.0, 1, 0)]
)
def test_a_broken_mean_crashes(scale: float, w_max: int, w_total: int) -> None:
    with pytest.raises(AssertionError):
        block_mean(np.zeros(3, np.int32), scale, w_max, w_total)
