"""The weighted trimmed mean of each coordinate of one cache-sized block.

Yin, Chen, Kannan and Bartlett 2018, "Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates", definition 2: of n values the f lowest and the f highest are dropped, and the
rest is averaged. Here f is a count of values whatever their weights, and the rest is averaged by
weight. Where values at the border of what is dropped are equal, each of them is kept by the same
fraction, so that the order of the rows decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from boltz_mesh.aggregation.rows import Float64Array, FloatArray

# A block of rows in float64 and what is computed from it stay in a core's L2 cache, and are small
# enough for the allocator to hand out the same memory again.
_BLOCK_BYTES: Final = 1 << 18
# Below this, the calls would cost more than what they compute.
_MIN_BLOCK: Final = 256


def blocks_of(values: FloatArray) -> Iterator[tuple[slice, Float64Array]]:
    """Cache-sized blocks of coordinates, each with its place: (n, b) float64 copies, all finite."""
    n, coordinates = values.shape
    step = max(_MIN_BLOCK, _BLOCK_BYTES // (8 * n))
    for start in range(0, coordinates, step):
        place = slice(start, start + step)
        yield place, values[:, place].astype(np.float64)


def trimmed_mean_of(block: Float64Array, weights: Float64Array, trimmed: int) -> Float64Array:
    """The weighted mean of each coordinate without its lowest and highest values.

    Args:
        block: (n, b), finite.
        weights: (n,), positive, adding up to 1.
        trimmed: f, values dropped at either end; n >= 2f + 1.

    Returns:
        (b,) float64.
    """
    n = len(weights)
    assert block.shape[0] == n
    assert 0 <= trimmed <= (n - 1) // 2, "the rules check the number of their rows"
    if trimmed == 0:
        return np.asarray(weights @ block, np.float64)
    # In float64 about as fast as a network of compared rows for twenty rows, and faster for more:
    # numpy sorts each coordinate's few values with vector instructions.
    ordered = np.sort(block, axis=0)
    low, high = ordered[trimmed], ordered[n - 1 - trimmed]
    kept = (block >= low).astype(np.float64)
    kept *= block <= high
    mass = weights @ kept
    kept *= block
    result: Float64Array = np.clip((weights @ kept) / mass, low, high)
    # Where both borders are one value, all that is kept is that value, and the clip has put it.
    at_border = (ordered[trimmed - 1] == low) | (ordered[n - trimmed] == high)
    tied = np.flatnonzero(at_border & (low < high))
    if tied.size:
        result[tied] = _with_ties(block[:, tied], ordered[:, tied], weights, trimmed)
    return result


def _with_ties(
    block: Float64Array, ordered: Float64Array, weights: Float64Array, trimmed: int
) -> Float64Array:
    """The same where a dropped value equals a kept one, and the borders differ: (n, b) to (b,)."""
    middle = ordered[trimmed : len(weights) - trimmed]
    low, high = middle[0], middle[-1]
    kept = ((block > low) & (block < high)).astype(np.float64)
    for border in (low, high):
        on_border = block == border
        places = np.count_nonzero(middle == border, axis=0)
        kept += on_border * (places / np.count_nonzero(on_border, axis=0))
    means = (weights @ (kept * block)) / (weights @ kept)
    return np.asarray(np.clip(means, low, high), np.float64)
