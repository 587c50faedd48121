"""What a client or a group contributed to a round: agreement, and influence on a validation set.

Agreement is the coefficient of a row's projection on the result (<row, result> / |result|^2, in
`aggregation.observations`): 1 for a row that equals the result, and weighed by the rows' weights it
averages to 1 under a weighted mean.

Influence says more, where the operator has a validation set. A weighted mean moves the model by
rate * sum_i (w_i / W) * delta_i. So, to first order, row i brings down the validation loss L by

    -rate * (w_i / W) * <gradient of L at the round's base version, delta_i>,

the measure of TracIn (Pruthi, Liu, Kale and Sundararajan, "Estimating Training Data Influence by
Tracing Gradient Descent", 2020, section 3) with a client's step in place of an example's. Above 0
it helped. The rows' influences add up to the first-order effect of the whole mean; under a robust
rule a row that was held back is told what it would have done. What it leaves out is of second
order: two clients that say the same share in what each would have brought alone, and a step that
is too long looks good.

The loss is the mean squared error of a linear model, whose gradient the mesh can compute from two
arrays without running anybody's code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from boltz_protocol.errors import NotFinite, ShapeMismatch

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ValidationSet:
    """An operator's held-out rows for a linear model: prediction = inputs @ parameters.

    Attributes:
        inputs: (rows, parameters) float32, finite; a model with an offset has a column of ones.
        targets: (rows,) float32, finite.

    Raises: ShapeMismatch, NotFinite.
    """

    inputs: Float32Array = field(repr=False)
    targets: Float32Array = field(repr=False)

    def __post_init__(self) -> None:
        if (
            self.inputs.dtype != np.float32
            or self.targets.dtype != np.float32
            or self.inputs.ndim != 2
            or self.targets.shape != self.inputs.shape[:1]
            or self.inputs.size == 0
        ):
            raise ShapeMismatch(
                "a validation set has inputs (rows, parameters) and targets (rows,) of float32, "
                f"not {self.inputs.shape} of {self.inputs.dtype} and {self.targets.shape} of "
                f"{self.targets.dtype}"
            )
        if not (np.isfinite(self.inputs).all() and np.isfinite(self.targets).all()):
            raise NotFinite("a validation set holds NaN or infinity")

    def loss(self, parameters: Float32Array | Float64Array) -> float:
        """Mean squared error. Raises: ShapeMismatch."""
        return float(np.mean(self._residuals(parameters) ** 2))

    def gradient(self, parameters: Float32Array | Float64Array) -> Float64Array:
        """Gradient of the loss at (parameters,), float64 of that shape. Raises: ShapeMismatch."""
        residuals = self._residuals(parameters)
        return (2 / len(residuals)) * (self.inputs.astype(np.float64).T @ residuals)

    def _residuals(self, parameters: Float32Array | Float64Array) -> Float64Array:
        if parameters.shape != self.inputs.shape[1:]:
            raise ShapeMismatch(
                f"the validation set is for {self.inputs.shape[1]} parameters, the model has "
                f"{parameters.size}"
            )
        inputs = self.inputs.astype(np.float64)
        return inputs @ parameters.astype(np.float64) - self.targets.astype(np.float64)


def influences(
    slopes: Float64Array, weights: Sequence[int], *, learning_rate: float
) -> tuple[float, ...]:
    """The fall of the validation loss that each row brings, to first order.

    Args:
        slopes: (n,) float64: <gradient, row> of each row.
        weights: n, above 0 in sum.
        learning_rate: of the server's step.
    """
    total = sum(weights)
    assert total > 0
    return tuple(
        -learning_rate * weight / total * float(slope)
        for slope, weight in zip(slopes, weights, strict=True)
    )
