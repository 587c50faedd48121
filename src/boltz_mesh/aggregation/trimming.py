"""The weighted trimmed mean of each coordinate, over cache-sized blocks.

Yin, Chen, Kannan and Bartlett 2018, "Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates", definition 2: of n values the f lowest and the f highest are dropped, and the
rest is averaged. Here f is a count of values whatever their weights, and the rest is averaged by
weight. Where values at the border of what is dropped are equal, each of them is kept by the same
fraction, so that the result does not depend on the order of the rows.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from boltz_mesh.aggregation.rows import Float64Array, FloatArray

# A block of rows and its copies stay in a core's L2 cache.
_BLOCK_BYTES: Final = 1 << 19
_MIN_BLOCK: Final = 256


def block_coordinates(rows: int, item_bytes: int) -> int:
    """How many coordinates of so many rows make one cache-sized block."""
    return max(_MIN_BLOCK, _BLOCK_BYTES // (rows * item_bytes))


def trimmed_mean_of(values: FloatArray, weights: Float64Array, trimmed: int) -> Float64Array:
    """The weighted mean of each coordinate without its lowest and highest values.

    Args:
        values: (n, k) float32 or float64, finite.
        weights: (n,) float64, positive.
        trimmed: f, values dropped at either end; n >= 2f + 1.

    Returns:
        (k,) float64.
    """
    n, coordinates = values.shape
    assert weights.shape == (n,)
    assert 0 <= trimmed <= (n - 1) // 2, "the rules check the number of their rows"
    shares = weights / weights.sum()
    result = np.empty(coordinates, np.float64)
    step = block_coordinates(n, values.itemsize)
    for start in range(0, coordinates, step):
        block = values[:, start : start + step]
        result[start : start + step] = _trimmed_block(block, shares, trimmed)
    return result


def _trimmed_block(block: FloatArray, shares: Float64Array, trimmed: int) -> Float64Array:
    n = len(shares)
    if trimmed == 0:
        return np.asarray(shares @ block, np.float64)
    # One coordinate a line, so that each sort is of n neighbours in memory.
    ordered = np.ascontiguousarray(block.T)
    ordered.sort(axis=1)
    low = ordered[:, trimmed].copy()
    high = ordered[:, n - 1 - trimmed].copy()
    inside = (block > low) & (block < high)
    # What lies between is kept whole, and what lies on a border by the fraction of its places.
    kept = shares @ np.where(inside, block, 0)
    mass = shares @ inside
    for border, places in (
        (low, _places_kept(ordered, low, trimmed)),
        (high, _places_kept(ordered, high, trimmed)),
    ):
        on_border = block == border
        part = places / np.count_nonzero(on_border, axis=0) * (shares @ on_border)
        kept += part * border
        mass += part
    # With rounding the mean of values in [low, high] may leave it by a bit; a mean does not.
    return np.asarray(np.where(low == high, low, np.clip(kept / mass, low, high)), np.float64)


def _places_kept(ordered: FloatArray, border: FloatArray, trimmed: int) -> Float64Array:
    kept = ordered[:, trimmed : ordered.shape[1] - trimmed]
    return np.asarray(np.count_nonzero(kept == border[:, None], axis=1), np.float64)
