"""Rules that stay in the span of their rows: from inner products to coefficients.

Distances between rows, and from a row to any combination of rows, follow from the Gram matrix G of
the rows, which adds up over blocks of coordinates:

    |x_i - x_j|^2 = G_ii + G_jj - 2 G_ij
    |x_i - A a|^2 = G_ii - 2 (G a)_i + a' G a        with A a = sum of a_j x_j

So a rule is decided on n x n numbers, and applied by one product with the rows. Where two distances
are equal but for rounding, they are taken as equal, and the row with the smaller place comes first
(as Blanchard et al. 2017 have it), so that rounding decides nothing.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from boltz_mesh.aggregation.rows import Float64Array

# Inner products are sums of blocks' sums, with a relative error of a few times 2^-53 of the squared
# lengths. Two squared distances closer than this many times those are not told apart.
_ROUNDING: Final = 2.0**-46
#: Steps converge by a constant factor, but for medians on or near a row; a step is n^2 products.
MAX_STEPS: Final = 1000
_CONVERGED: Final = 1e-10
# Keeps the pull of a row of zeros finite, far below the square of any delta's resolution.
_LEAST_SQUARE: Final = 1e-200


def squared_distances(gram: Float64Array) -> Float64Array:
    """(n, n) float64: squared distances of rows from their inner products; 0 on the diagonal."""
    squares = np.diagonal(gram)
    distances = np.maximum(squares[:, None] + squares[None, :] - (gram + gram.T), 0.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def _rounding_errors(gram: Float64Array) -> Float64Array:
    squares = np.diagonal(gram)
    return np.asarray(_ROUNDING * (squares[:, None] + squares[None, :]), np.float64)


def smallest(values: Float64Array, errors: Float64Array, count: int) -> Float64Array:
    """Which are the `count` smallest of each line: (m, n) float64 of 0 and 1.

    Of values that are not told apart from the last one that counts, those first in the line count.

    Args:
        values: (m, n).
        errors: (m, n), by how much each of them may be off.
        count: 1 to n.
    """
    border = np.partition(values, count - 1, axis=1)[:, count - 1 : count]
    below = values < border - errors
    on_border = (values <= border + errors) & ~below
    left = count - np.count_nonzero(below, axis=1, keepdims=True)
    return (below | (on_border & (np.cumsum(on_border, axis=1) <= left))).astype(np.float64)


def mixing(gram: Float64Array, weights: Float64Array, byzantine: int) -> Float64Array:
    """Nearest-neighbour mixing (Allouah et al. 2023, "Fixing by Mixing"), by weight.

    Args:
        gram: (n, n).
        weights: (n,), positive.
        byzantine: f < n / 2.

    Returns:
        (n, n) float64: line i gives the weighted mean of the n - f rows nearest to row i, itself
        among them. Lines add up to 1.
    """
    distances = squared_distances(gram)
    np.fill_diagonal(distances, -np.inf)
    kept = smallest(distances, _rounding_errors(gram), len(weights) - byzantine)
    shares = kept * weights
    return np.asarray(shares / shares.sum(axis=1, keepdims=True), np.float64)


def krum(gram: Float64Array, weights: Float64Array, byzantine: int, select: int) -> Float64Array:
    """Multi-Krum (Blanchard et al. 2017, section 4): (n,) float64, adding up to 1.

    A row's score is the sum of the squared distances to the n - f - 2 others nearest to it; the
    `select` rows of lowest score are averaged, by weight.
    """
    n = len(weights)
    distances = squared_distances(gram)
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, : n - byzantine - 2]
    scores = nearest.sum(axis=1)
    # A score's rounding is that of its terms, and a row's own square is in each of them.
    errors = _ROUNDING * (np.diagonal(gram) * nearest.shape[1] + scores)
    shares = smallest(scores[None, :], errors[None, :], select)[0] * weights
    return np.asarray(shares / shares.sum(), np.float64)


def _lengths(squares: Float64Array, errors: Float64Array) -> Float64Array:
    """Roots of squared distances; what rounding hides of them counts as distance."""
    return np.asarray(np.sqrt(np.maximum(squares, errors + _LEAST_SQUARE)), np.float64)


def _distances_to(gram: Float64Array, coefficients: Float64Array) -> Float64Array:
    """(n,): distance of each row to the combination."""
    inner = gram @ coefficients
    combined = float(coefficients @ inner)
    squares = np.diagonal(gram)
    return _lengths(squares - 2 * inner + combined, _ROUNDING * (squares + abs(combined)))


def _median_distances(gram: Float64Array, weights: Float64Array) -> Float64Array:
    """(n,): how far from each row half of the weight is, the row's own included."""
    squares = squared_distances(gram)
    order = np.argsort(squares, axis=1)
    reached = np.cumsum(weights[order], axis=1) >= weights.sum() / 2
    half = np.take_along_axis(order, reached.argmax(axis=1)[:, None], axis=1)
    errors = np.take_along_axis(_rounding_errors(gram), half, axis=1)
    return _lengths(np.take_along_axis(squares, half, axis=1)[:, 0], errors[:, 0])


def weiszfeld(gram: Float64Array, weights: Float64Array) -> Float64Array:
    """The weighted geometric median: (n,) float64, at least 0, adding up to 1.

    The smoothed Weiszfeld algorithm (Pillutla, Kakade and Harchaoui 2022, "Robust Aggregation for
    Federated Learning"), until no coefficient moves by more than 1e-10 of itself or MAX_STEPS are
    done. Two things differ, both because of liars far off. It starts from rows weighed by how far
    half of the weight is from them, and not from the mean, which is anywhere. And a distance is
    smoothed at 2^-23 of the length of its own row and of the median: one floor for all rows would
    be set by the longest.
    """
    pull = weights / _median_distances(gram, weights)
    coefficients = pull / pull.sum()
    for _ in range(MAX_STEPS):
        pull = weights / _distances_to(gram, coefficients)
        following = pull / pull.sum()
        moved = np.abs(following - coefficients)
        coefficients = following
        if (moved <= _CONVERGED * following).all():
            break
    return np.asarray(coefficients, np.float64)


def clipping(gram: Float64Array, radius: float, rounds: int) -> Float64Array:
    """Iterated centered clipping from zero (Karimireddy, He and Jaggi 2021, algorithm 2): (n,).

    Coefficients of v after `rounds` steps v' = v + mean of clip_radius(x_i - v).
    """
    n = len(gram)
    coefficients = np.zeros(n)
    for _ in range(rounds):
        factors = radius / np.maximum(_distances_to(gram, coefficients), radius)
        coefficients = coefficients * (1 - factors.sum() / n) + factors / n
    return coefficients
