"""What a model owner implements: about ten lines.

::

    class Mean:
        def sample_count(self) -> int:
            return len(self.rows)

        def train(self, model, round):
            rate = round.number("rate", 0.1)
            step = rate * (self.rows.mean(axis=0) - model["w"])
            return TrainResult(delta={"w": step}, metrics={"loss": float(np.square(step).sum())})
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from boltz_protocol.errors import ConfigurationError, NotFinite, ShapeMismatch, TrainingFailed
from boltz_protocol.ids import ModelId, RoundId
from boltz_protocol.messages import HyperValue, Lane, TensorSpec
from boltz_protocol.model_file import Vector, check_finite, join_tensors
from boltz_protocol.update import LocalDelta

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class RoundContext:
    """What a trainer may want to know about the round.

    Attributes:
        tensors: the model's tensors in coordinate order.
        hyperparameters: what the plan hands to trainers, by name.
        lanes: names of the metrics that the round wants in `TrainResult.metrics`.
        deadline_ms: end of the collection, Unix time in milliseconds by the server's clock.
        clip_norm: L2 norm to which the delta will be clipped.
    """

    round_id: RoundId
    attempt: int
    model_id: ModelId
    base_version: int
    tensors: tuple[TensorSpec, ...]
    hyperparameters: Mapping[str, HyperValue]
    lanes: tuple[str, ...]
    clip_norm: float
    deadline_ms: int
    stopped: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def should_stop(self) -> bool:
        """True once the result can no longer be used; a long training looks now and then."""
        return self.stopped.is_set()

    def number(self, name: str, default: float) -> float:
        """A numeric hyper-parameter. Raises: ConfigurationError when it is not a number."""
        value = self.hyperparameters.get(name, default)
        if isinstance(value, bool | str):
            raise ConfigurationError(f"hyper-parameter {name} is {value!r}, not a number")
        return float(value)


@dataclass(frozen=True, slots=True, eq=False)
class TrainResult:
    """What came out of a training: exactly one of `weights` and `delta`.

    Attributes:
        weights: the new parameters, one array a tensor, float32 or float64.
        delta: new parameters minus old ones, one array a tensor; or a float32 vector of all
            coordinates in order.
        samples: rows trained on, where it differs from what `sample_count` said; the next
            check-in tells it (as a bucket), never this round's update.
        metrics: by name; those that the round has lanes for are sent along, clipped and noised
            with the delta.
    """

    weights: Arrays | None = field(default=None, repr=False)
    delta: Arrays | Vector | None = field(default=None, repr=False)
    samples: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if (self.weights is None) == (self.delta is None):
            raise TrainingFailed("a trainer returns either weights or a delta")
        if self.samples is not None and self.samples < 0:
            raise TrainingFailed(f"a trainer counted {self.samples} samples")


class Trainer(Protocol):
    """Trains on data that stays with its owner. Both methods run in a thread."""

    def sample_count(self) -> int:
        """Rows that the next training would use; sent as a power of two."""
        ...

    def train(self, model: dict[str, Vector], round: RoundContext) -> TrainResult:
        """Train from the round's base model.

        Args:
            model: one read-only float32 array a tensor; copy what is to be changed.
            round: what is known about the round.
        """
        ...


def local_delta(
    base: Vector, tensors: tuple[TensorSpec, ...], lanes: tuple[Lane, ...], result: TrainResult
) -> LocalDelta:
    """A trainer's result as a flat delta with its lanes scaled.

    Args:
        base: the base model's coordinates, float32 (parameters,).
        tensors: the model's tensors.
        lanes: metrics that the round wants.
        result: what the trainer returned.

    Raises:
        ShapeMismatch: other tensors or shapes than the model's.
        NotFinite: a NaN or an infinity; the message names the tensor or the metric.
        TrainingFailed: a metric that the round wants is missing.
    """
    if isinstance(result.delta, np.ndarray):
        values = result.delta
        if values.dtype != np.float32 or values.shape != base.shape:
            raise ShapeMismatch(
                f"the delta is {values.dtype} {values.shape}, not float32 {base.shape}"
            )
        values = np.ascontiguousarray(values)
    else:
        arrays = result.weights if result.weights is not None else result.delta
        assert arrays is not None
        values = np.empty(base.shape, dtype=np.float32)
        join_tensors(tensors, arrays, values)
        if result.weights is not None:
            np.subtract(values, base, out=values)
    check_finite(tensors, values)
    return LocalDelta(values, tuple(_lane(lane, result.metrics) for lane in lanes))


def _lane(lane: Lane, metrics: Mapping[str, float]) -> float:
    value = metrics.get(lane.name)
    if value is None:
        raise TrainingFailed(f"the round wants the metric {lane.name!r}; the trainer has none")
    scaled = float(value) * lane.scale
    if not np.isfinite(scaled):
        raise NotFinite(f"the metric {lane.name!r} is {value}", metric=lane.name)
    return scaled
