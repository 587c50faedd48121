"""The rules as their papers define them, one number after the other, with weights."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


def trimmed_mean(
    rows: npt.ArrayLike, byzantine: int, weights: npt.ArrayLike | None = None
) -> Float64Array:
    """Drop f at either end, average the rest by weight, and equal values by the same fraction."""
    values = np.asarray(rows, np.float64)
    shares = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    result = []
    for column in values.T:
        kept = sorted(column)[byzantine : len(column) - byzantine]
        masses = {
            value: kept.count(value)
            / np.count_nonzero(column == value)
            * shares[column == value].sum()
            for value in kept
        }
        total = math.fsum(masses.values())
        result.append(math.fsum(value * mass for value, mass in masses.items()) / total)
    return np.array(result)


def median(rows: npt.ArrayLike) -> Float64Array:
    return np.asarray(np.median(np.asarray(rows, np.float64), axis=0), np.float64)


def square(one: Float64Array, other: Float64Array) -> float:
    return float(((one - other) ** 2).sum())


def mixing(
    rows: npt.ArrayLike, byzantine: int, weights: npt.ArrayLike | None = None
) -> Float64Array:
    """The weighted mean of the n - f nearest: itself, then the nearest others, then by place."""
    values = np.asarray(rows, np.float64)
    shares = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    mixed = []
    for place, row in enumerate(values):
        order = sorted(range(len(values)), key=lambda j: (j != place, square(row, values[j]), j))
        nearest = sorted(order[: len(values) - byzantine])
        mixed.append(shares[nearest] @ values[nearest] / shares[nearest].sum())
    return np.array(mixed)


def krum_scores(rows: npt.ArrayLike, byzantine: int) -> list[float]:
    values = np.asarray(rows, np.float64)
    scores = []
    for place, row in enumerate(values):
        others = sorted(square(row, other) for j, other in enumerate(values) if j != place)
        scores.append(math.fsum(others[: len(values) - byzantine - 2]))
    return scores


def multi_krum(
    rows: npt.ArrayLike, byzantine: int, select: int, weights: npt.ArrayLike | None = None
) -> Float64Array:
    values = np.asarray(rows, np.float64)
    shares = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    scores = krum_scores(values, byzantine)
    best = sorted(range(len(values)), key=lambda place: (scores[place], place))[:select]
    return np.asarray(shares[best] @ values[best] / shares[best].sum(), np.float64)


def centered_clipping(rows: npt.ArrayLike, radius: float, rounds: int) -> Float64Array:
    values = np.asarray(rows, np.float64)
    centre = np.zeros(values.shape[1])
    for _ in range(rounds):
        steps = []
        for row in values:
            length = math.sqrt(square(row, centre))
            steps.append((row - centre) * (min(1.0, radius / length) if length else 1.0))
        centre = centre + np.mean(steps, axis=0)
    return centre


def sum_of_distances(
    point: Float64Array, rows: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> float:
    """What the geometric median makes least."""
    values = np.asarray(rows, np.float64)
    shares = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    return float(shares @ np.linalg.norm(values - point, axis=1))
