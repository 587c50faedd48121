"""Gradient inversion in closed form: what an update of one record gives away. Pure.

A linear model w.x + b that takes one gradient step from zero on one record (x, y) moves by

    delta_w = rate * g * x,   delta_b = rate * g,   g = y - (w.x + b),

so that delta_w / delta_b is the record itself, to the last digit, whatever rate, label and clip
norm were (clipping scales both alike). Zhu, Liu, Han 2019, "Deep Leakage from Gradients", recover
records from deeper networks by optimisation; Phong et al. 2018, "Privacy-Preserving Deep Learning
via Additively Homomorphic Encryption", section 3, have this closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from boltz_mesh.app.privacy_audit.canaries import Float64Array
from boltz_protocol.model_file import Vector

#: One number for each five minutes of a session of six and a half hours.
FIELDS: Final = 78
#: Step size; any would do.
_RATE: Final = 0.1


@dataclass(frozen=True, slots=True)
class TradingRecord:
    """One trading day of one desk, made up.

    Attributes:
        quantities: net quantity bought in each five minutes, in thousands, float64 (FIELDS,).
        label: what the model is to forecast from it.
    """

    quantities: Float64Array
    label: float


def record_of(desk: int) -> TradingRecord:
    """A desk's day: busy at the open and at the close, with turns of its own. The same each time.

    Args:
        desk: from 0.
    """
    at = np.linspace(-1.0, 1.0, FIELDS)
    busy = 0.4 + at**2
    turns = np.sin((3 + 2 * desk) * math.pi * at + desk) + 0.5 * np.cos((11 + desk) * at * math.pi)
    return TradingRecord(np.asarray(busy * turns, dtype=np.float64), 1.0 + 0.1 * desk)


def update_of(record: TradingRecord) -> Vector:
    """One gradient step from zero: weights, then the bias; float32 (FIELDS + 1,)."""
    step = _RATE * record.label
    return np.append(step * record.quantities, step).astype(np.float32)


def invert(update: Float64Array) -> Float64Array:
    """The record that an update of one record was made from, float64 (FIELDS,).

    Args:
        update: weights, then the bias, float64 (FIELDS + 1,); of any scale. Without a bias that
            moved there is nothing to divide by, and the direction of the weights is all there is.
    """
    weights, bias = update[:-1], float(update[-1])
    return weights / bias if bias else weights


@dataclass(frozen=True, slots=True)
class Likeness:
    """How much a recovered record is like the true one.

    Attributes:
        cosine: of the angle between them: 1 for the same direction, about 0 for an unrelated one.
        relative_error: norm of the difference over the norm of the true one: 0 for the same.
    """

    cosine: float
    relative_error: float


def likeness(found: Float64Array, true: Float64Array) -> Likeness:
    """Compare a recovered record with the true one (not zero)."""
    length, true_length = float(np.linalg.norm(found)), float(np.linalg.norm(true))
    assert true_length > 0
    cosine = float(found @ true) / (length * true_length) if length else 0.0
    return Likeness(cosine, float(np.linalg.norm(found - true)) / true_length)
