"""The network: 13-16-1 with tanh, 241 parameters, trained by federated averaging.

A desk's local step is two passes of mini-batch gradient descent over its two years of rows, from
the pulled model; the delta is where it ended minus where it began (McMahan et al. 2017, algorithm
1). Learning rate and weight decay were chosen on the origins 1999 to 2008. The network shows
that the mesh trains more than a linear model; with noise it would be poor, so it has none.

The batched functions carry leading axes (many desks at once); a broker calls `local_delta`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.demo.linear import Float32Array
from boltz_mesh.app.demo.task import FEATURES, MARKET_INPUTS, PublicFacts, Rows

INPUTS: Final = FEATURES + MARKET_INPUTS
HIDDEN: Final = 16
#: Tensors in the order of the flat vector, shaped as torch shapes them.
TENSORS: Final = (
    ("hidden.bias", (HIDDEN,)),
    ("hidden.weight", (HIDDEN, INPUTS)),
    ("output.bias", (1,)),
    ("output.weight", (1, HIDDEN)),
)
PARAMETERS: Final = HIDDEN + HIDDEN * INPUTS + 1 + HIDDEN
LEARNING_RATE: Final = 0.05
WEIGHT_DECAY: Final = 0.05
EPOCHS: Final = 2
#: About this many rows a batch. Batch b of B holds rows b, b+B, b+2B, ...: neighbouring rows
#: share four of five label days, so taking them apart makes batches alike without a shuffle.
BATCH_ROWS: Final = 32
#: Seed of the hidden layer's first weights: public, the same for everybody, protects nothing.
START_SEED: Final = 0


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters with any leading axes (..., ): hidden weight (..., 16, 13), and so on."""

    hidden_bias: FloatArray
    hidden_weight: FloatArray
    output_bias: FloatArray
    output_weight: FloatArray


def start(public: PublicFacts, origin: int) -> Float32Array:
    """The first network of an origin, (241,): forecasts the index's mean residual to date."""
    return start_vector(public.start_bias(origin))


def start_vector(bias: float) -> Float32Array:
    """Random hidden weights of scale 1/sqrt(13), output weights zero, output bias as given."""
    generator = np.random.Generator(np.random.PCG64(START_SEED))
    hidden = generator.standard_normal((HIDDEN, INPUTS)) / np.sqrt(INPUTS)
    return np.concatenate([np.zeros(HIDDEN), hidden.ravel(), [bias], np.zeros(HIDDEN)]).astype(
        np.float32
    )


def unflatten(vectors: npt.ArrayLike) -> Weights:
    """(..., 241) to tensors, as float64."""
    flat = np.asarray(vectors, dtype=np.float64)
    assert flat.shape[-1] == PARAMETERS
    ends = np.cumsum([HIDDEN, HIDDEN * INPUTS, 1])
    hidden_bias, hidden, output_bias, output = np.split(flat, ends, axis=-1)
    return Weights(
        hidden_bias, hidden.reshape(*flat.shape[:-1], HIDDEN, INPUTS), output_bias, output
    )


def flatten(weights: Weights) -> FloatArray:
    """Tensors to (..., 241)."""
    hidden = weights.hidden_weight
    return np.concatenate(
        [
            weights.hidden_bias,
            hidden.reshape(*hidden.shape[:-2], HIDDEN * INPUTS),
            weights.output_bias,
            weights.output_weight,
        ],
        axis=-1,
    )


def predict(parameters: npt.ArrayLike, inputs: FloatArray) -> FloatArray:
    """Forecast residuals (..., m) of inputs (..., m, 13) under parameters (..., 241)."""
    return _forward(unflatten(parameters), inputs)[1]


def local_delta(parameters: npt.ArrayLike, rows: Rows) -> Float32Array:
    """A desk's delta (241,), float32, from the pulled model (241,) and its rows (m, 13)."""
    before = np.asarray(parameters, dtype=np.float64)
    after = descend(before, rows.inputs, rows.target, EPOCHS)
    return (after - before).astype(np.float32)


def descend(
    parameters: FloatArray, inputs: FloatArray, target: FloatArray, epochs: int
) -> FloatArray:
    """Gradient descent on the mean squared error, many desks at once.

    Args:
        parameters: (..., 241).
        inputs: (..., m, 13).
        target: (..., m).
        epochs: passes over the rows.

    Returns:
        Parameters (..., 241) after the last batch.
    """
    count = batches_of(target.shape[-1])
    parts = [
        (np.ascontiguousarray(inputs[..., b::count, :]), target[..., b::count])
        for b in range(count)
    ]
    weights = unflatten(parameters)
    for _ in range(epochs):
        for x, t in parts:
            weights = _step(weights, x, t)
    return flatten(weights)


def batches_of(rows: int) -> int:
    """Batches in one pass over so many rows."""
    return max(1, rows // BATCH_ROWS)


def simulate(
    parameters: FloatArray, inputs: FloatArray, target: FloatArray, rounds: int
) -> FloatArray:
    """Federated averaging without a mesh, for several origins at once.

    Args:
        parameters: (origins, 241), the first models.
        inputs: (origins, desks, m, 13).
        target: (origins, desks, m).
        rounds: how many.

    Returns:
        The last models, (origins, 241).
    """
    models = parameters
    for _ in range(rounds):
        begun = np.repeat(models[:, None], target.shape[1], axis=1)
        models = descend(begun, inputs, target, EPOCHS).mean(axis=1)
    return models


def _forward(weights: Weights, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Hidden activations (..., m, 16) and forecasts (..., m)."""
    drive = x @ np.swapaxes(weights.hidden_weight, -1, -2) + weights.hidden_bias[..., None, :]
    hidden = np.tanh(drive)
    forecast = (hidden @ weights.output_weight[..., :, None])[..., 0] + weights.output_bias
    return hidden, forecast


def _step(weights: Weights, x: FloatArray, t: FloatArray) -> Weights:
    """One mini-batch: the gradient of the mean squared error, and decay of both matrices."""
    hidden, forecast = _forward(weights, x)
    slope = (forecast - t) * (2.0 / t.shape[-1])
    back = slope[..., None] * weights.output_weight[..., None, :] * (1.0 - hidden**2)
    keep = 1.0 - LEARNING_RATE * WEIGHT_DECAY
    output_gradient = (np.swapaxes(hidden, -1, -2) @ slope[..., None])[..., 0]
    return Weights(
        weights.hidden_bias - LEARNING_RATE * back.sum(axis=-2),
        keep * weights.hidden_weight - LEARNING_RATE * (np.swapaxes(back, -1, -2) @ x),
        weights.output_bias - LEARNING_RATE * slope.sum(axis=-1, keepdims=True),
        keep * weights.output_weight - LEARNING_RATE * output_gradient,
    )
