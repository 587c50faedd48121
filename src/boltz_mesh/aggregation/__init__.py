"""Aggregation rules and server optimizers: pure functions over blocks of coordinates.

Exported are the robust rules as functions on arrays of shape (clients, parameters); the mesh itself
uses their block form in `robust`.
"""

from boltz_mesh.aggregation.arrays import (
    centered_clipping,
    coordinate_median,
    geometric_median,
    multi_krum,
    nearest_neighbour_mixing,
    trimmed_mean,
)

__all__ = [
    "centered_clipping",
    "coordinate_median",
    "geometric_median",
    "multi_krum",
    "nearest_neighbour_mixing",
    "trimmed_mean",
]
