"""The linear model: one closed-form solve a desk, clipped, averaged (FedAvg).

A desk's local step at parameters w = [bias, slopes]: with A = [1, X] (m rows), H = A'A / m and
g = A'r / m, the delta is (H + diag(0.05, lambda, ..., lambda))^-1 (g - H w), the step of ridge
regression towards w, bounded in length by C. FedAvg as in McMahan et al. 2017, algorithm 1,
with equal weights and server learning rate 1. `simulate` is the same sum without a mesh: an
oracle for the mesh's numbers, never a row of the demo's table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.demo.task import FEATURES, PublicFacts, Rows

Float32Array = npt.NDArray[np.float32]

#: Tensors of the model in the order of the flat vector: name and shape.
TENSORS: Final = (("bias", (1,)), ("weight", (FEATURES,)))
PARAMETERS: Final = 1 + FEATURES
#: Ridge of the bias: small, so that a desk's own level can be learned, yet never singular.
BIAS_RIDGE: Final = 0.05


@dataclass(frozen=True, slots=True)
class LocalStep:
    """A desk's step as an affine map, delta(w) = offset - matrix @ w: made once, used each round.

    Attributes:
        offset: float64 (12,).
        matrix: float64 (12, 12).
    """

    offset: FloatArray
    matrix: FloatArray

    def delta(self, parameters: npt.ArrayLike) -> Float32Array:
        """The unclipped delta (12,) as float32, from the pulled model's flat vector (12,)."""
        w = np.asarray(parameters, dtype=np.float64)
        assert w.shape == (PARAMETERS,)
        return (self.offset - self.matrix @ w).astype(np.float32)


def start(public: PublicFacts, origin: int) -> Float32Array:
    """The first model of an origin: the EWMA plus the index's mean residual to date."""
    parameters = np.zeros(PARAMETERS, dtype=np.float32)
    parameters[0] = public.start_bias(origin)
    return parameters


def local_step(rows: Rows, ridge: float, bias_ridge: float = BIAS_RIDGE) -> LocalStep:
    """What a desk computes from its rows, once.

    Args:
        rows: inputs (m, 11), target (m,).
        ridge: lambda, above 0.
        bias_ridge: above 0.
    """
    design = design_matrix(rows.inputs)
    gram = design.T @ design / len(design)
    moment = design.T @ rows.target / len(design)
    regularised = gram + np.diag([bias_ridge] + [ridge] * FEATURES)
    solved = np.linalg.solve(regularised, np.column_stack([moment, gram])).astype(np.float64)
    return LocalStep(solved[:, 0], solved[:, 1:])


def design_matrix(inputs: FloatArray) -> FloatArray:
    """A = [1, X], shape (m, 12)."""
    return np.hstack([np.ones((len(inputs), 1)), inputs])


def fit(
    rows: Rows, toward: npt.ArrayLike, ridge: float, bias_ridge: float = BIAS_RIDGE
) -> FloatArray:
    """Ridge regression shrunk to `toward` (12,): one unclipped local step from there."""
    w = np.asarray(toward, dtype=np.float64)
    step = local_step(rows, ridge, bias_ridge)
    fitted: FloatArray = w + step.offset - step.matrix @ w
    return fitted


def predict(parameters: npt.ArrayLike, inputs: FloatArray) -> FloatArray:
    """Forecast residuals (m,) of inputs (m, 11)."""
    w = np.asarray(parameters, dtype=np.float64)
    forecast: FloatArray = w[0] + inputs @ w[1:]
    return forecast


def simulate(
    parameters: npt.ArrayLike,
    steps: Sequence[LocalStep],
    *,
    rounds: int,
    clip_norm_l2: float,
    noise_multiplier: float = 0.0,
    generator: np.random.Generator | None = None,
) -> list[FloatArray]:
    """The parameters after each round of the federation, without a mesh.

    Args:
        parameters: the first model (12,).
        steps: one a desk.
        rounds: how many.
        clip_norm_l2: C, above 0.
        noise_multiplier: noise in the sum of deltas has standard deviation C times this.
        generator: needed where there is noise. It protects nobody: simulation only.
    """
    assert clip_norm_l2 > 0
    w = np.array(parameters, dtype=np.float64)
    offsets = np.stack([step.offset for step in steps])
    matrices = np.stack([step.matrix for step in steps])
    trail = []
    for _ in range(rounds):
        deltas = offsets - matrices @ w
        norms = np.linalg.norm(deltas, axis=1)
        total = (deltas * np.minimum(1.0, clip_norm_l2 / np.maximum(norms, 1e-300))[:, None]).sum(0)
        if noise_multiplier > 0:
            assert generator is not None
            total = total + generator.normal(0.0, noise_multiplier * clip_norm_l2, len(w))
        w = w + total / len(steps)
        trail.append(w)
    return trail
