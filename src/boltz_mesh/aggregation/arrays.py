"""The robust rules as functions on whole arrays, for whoever has all updates in memory.

All take `updates` of shape (clients, parameters), float32 or float64, and compute in float64. They
are the block rules of `robust` on one block, and share their definitions, minimum numbers of
clients and bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from boltz_mesh.aggregation.coefficients import clipping
from boltz_mesh.aggregation.robust import (
    CoordinateMedian,
    GeometricMedian,
    MixedTrimmedMean,
    MultiKrum,
    RobustRule,
    TrimmedMean,
    apply_values,
    gram_of_values,
)
from boltz_mesh.aggregation.rows import Float64Array, FloatArray, check_rows
from boltz_protocol import limits
from boltz_protocol.errors import InvalidPlan, NotFinite, ShapeMismatch


def coordinate_median(updates: FloatArray) -> Float64Array:
    """The median of each coordinate: (parameters,) float64.

    Raises: ShapeMismatch, NotFinite.
    """
    return _aggregate(CoordinateMedian(), updates, None)


def trimmed_mean(updates: FloatArray, byzantine: int) -> Float64Array:
    """The mean of each coordinate without its `byzantine` lowest and highest values.

    Needs 2 * byzantine + 1 clients. (parameters,) float64. See `robust.TrimmedMean`.

    Raises: TooFewClients, InvalidPlan, ShapeMismatch, NotFinite.
    """
    return _aggregate(TrimmedMean(byzantine), updates, None)


def multi_krum(updates: FloatArray, byzantine: int, select: int) -> Float64Array:
    """The mean of the `select` updates with the nearest neighbours.

    Needs 2 * byzantine + 3 clients, and byzantine + select. (parameters,) float64. See
    `robust.MultiKrum`.

    Raises: TooFewClients, InvalidPlan, ShapeMismatch, NotFinite.
    """
    return _aggregate(MultiKrum(byzantine, select), updates, None)


def geometric_median(updates: FloatArray, weights: Sequence[int] | None = None) -> Float64Array:
    """The point with the least weighted sum of distances to the updates.

    Args:
        updates: (clients, parameters).
        weights: one for each client, 1 to 255; None for equal ones.

    Returns: (parameters,) float64. See `robust.GeometricMedian`.

    Raises: InvalidPlan for other weights, ShapeMismatch, NotFinite.
    """
    return _aggregate(GeometricMedian(), updates, weights)


def centered_clipping(updates: FloatArray, radius: float, rounds: int) -> Float64Array:
    """From zero, `rounds` steps by the mean of the differences shortened to `radius`.

    Karimireddy, He and Jaggi 2021, "Learning from History for Byzantine Robust Optimization",
    algorithm 2. A step moves by no more than f / n * radius because of f liars. (parameters,)
    float64.

    Args:
        updates: (clients, parameters).
        radius: tau, in the updates' unit, finite and above 0.
        rounds: steps, at least 1.

    Raises: InvalidPlan, ShapeMismatch, NotFinite.
    """
    if not (math.isfinite(radius) and radius > 0):
        raise InvalidPlan(f"radius: {radius:g} is no length; 1.0 would do", setting="radius")
    if rounds < 1:
        raise InvalidPlan(f"rounds: {rounds} steps; 1 would do", setting="rounds")
    values = _checked(updates)
    return np.asarray(clipping(_measured(values), radius, rounds) @ values, np.float64)


def nearest_neighbour_mixing(updates: FloatArray, byzantine: int) -> Float64Array:
    """Each update replaced by the mean of the clients - byzantine updates nearest to it.

    Allouah et al. 2023, "Fixing by Mixing"; to be followed by a rule. Needs
    2 * byzantine + 1 clients. (clients, parameters) float64. See `robust.MixedTrimmedMean`.

    Raises: TooFewClients, InvalidPlan, ShapeMismatch, NotFinite.
    """
    rule = MixedTrimmedMean(byzantine)
    values = _checked(updates)
    state = rule.init(np.ones(len(values), np.int64), _measured(_centred(values)))
    assert state.mixing is not None
    return np.asarray((state.mixing @ values)[state.places], np.float64)


def _checked(updates: FloatArray) -> Float64Array:
    check_rows(updates)
    return updates.astype(np.float64, copy=False)


def _centred(values: Float64Array) -> Float64Array:
    """The rows without what is common to them, for rules that depend on distances only.

    Inner products of rows that are long and close together leave little of their distances. The
    mesh's rows are differences from a published model; arrays may be whole models. The median is
    the centre, as a liar's row decides on the mean.
    """
    counted = np.ones(len(values), np.int64)
    with np.errstate(over="ignore"):
        return values - apply_values(CoordinateMedian().init(counted, None), values)


def _measured(values: Float64Array) -> Float64Array:
    with np.errstate(over="ignore", invalid="ignore"):
        gram = gram_of_values(values)
    if not np.isfinite(gram).all():
        raise NotFinite("an update is too long: its squared length leaves float64")
    return gram


def _aggregate(
    rule: RobustRule, updates: FloatArray, weights: Sequence[int] | None
) -> Float64Array:
    values = _checked(updates)
    if weights is None:
        counted = np.ones(len(values), np.int64)
    else:
        if len(weights) != len(values):
            raise ShapeMismatch(f"{len(weights)} weights of {len(values)} clients")
        if not all(1 <= weight <= limits.MAX_WEIGHT for weight in weights):
            raise InvalidPlan(
                f"weights: they are integers of 1 to {limits.MAX_WEIGHT}", setting="weights"
            )
        counted = np.array(weights, np.int64)
    gram = _measured(_centred(values)) if rule.measures else None
    return apply_values(rule.init(counted, gram), values)
