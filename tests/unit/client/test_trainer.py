"""From a trainer's result to a flat delta."""

from __future__ import annotations

import numpy as np
import pytest

from boltz_client.adapters.numpy import FunctionTrainer
from boltz_client.trainer import RoundContext, TrainResult, local_delta
from boltz_protocol.errors import ConfigurationError, NotFinite, ShapeMismatch, TrainingFailed
from boltz_protocol.messages import HyperValue, Lane, TensorSpec
from tests.support import samples

TENSORS = (TensorSpec("w", (2, 2)), TensorSpec("b", ()))
BASE = np.arange(5, dtype=np.float32)


def context(hyperparameters: dict[str, HyperValue] | None = None) -> RoundContext:
    return RoundContext(
        samples.ROUND, 1, samples.MODEL, 1, TENSORS, hyperparameters or {}, ("loss",), 1.0, 2
    )


def test_weights_become_a_delta() -> None:
    result = TrainResult(weights={"w": np.ones((2, 2)), "b": np.array(7.0)})
    np.testing.assert_array_equal(local_delta(BASE, TENSORS, (), result).values, [1, 0, -1, -2, 3])


def test_a_delta_by_name_and_a_flat_one_are_the_same() -> None:
    by_name = TrainResult(delta={"w": np.full((2, 2), 0.5), "b": np.array(0.25)})
    flat = TrainResult(delta=np.array([0.5, 0.5, 0.5, 0.5, 0.25], dtype=np.float32))
    expected = local_delta(BASE, TENSORS, (), by_name).values
    np.testing.assert_array_equal(local_delta(BASE, TENSORS, (), flat).values, expected)


def test_lanes_are_scaled_metrics_in_the_rounds_order() -> None:
    lanes = (Lane("loss", 0.5), Lane("hits", 2.0))
    result = TrainResult(delta=np.zeros(5, dtype=np.float32), metrics={"hits": 3, "loss": 4.0})
    assert local_delta(BASE, TENSORS, lanes, result).lanes == (2.0, 6.0)


def test_what_the_round_cannot_use_is_refused() -> None:
    zero = np.zeros(5, dtype=np.float32)
    with pytest.raises(TrainingFailed, match="loss"):
        local_delta(BASE, TENSORS, (Lane("loss", 1.0),), TrainResult(delta=zero))
    metrics = {"loss": float("nan")}
    with pytest.raises(NotFinite, match="loss"):
        local_delta(BASE, TENSORS, (Lane("loss", 1.0),), TrainResult(delta=zero, metrics=metrics))
    with pytest.raises(ShapeMismatch):
        local_delta(BASE, TENSORS, (), TrainResult(delta=zero[:4]))
    with pytest.raises(ShapeMismatch):
        local_delta(BASE, TENSORS, (), TrainResult(delta=np.zeros(5)))  # type: ignore[arg-type]
    bad = zero.copy()
    bad[4] = np.inf
    with pytest.raises(NotFinite, match="'b'"):
        local_delta(BASE, TENSORS, (), TrainResult(delta=bad))
    # Finite in float64, not in float32.
    weights = {"w": np.full((2, 2), 1e300), "b": np.array(0.0)}
    with pytest.raises(NotFinite):
        local_delta(BASE, TENSORS, (), TrainResult(weights=weights))


def test_a_result_is_weights_or_delta() -> None:
    with pytest.raises(TrainingFailed):
        TrainResult()
    with pytest.raises(TrainingFailed):
        TrainResult(weights={}, delta={})
    with pytest.raises(TrainingFailed):
        TrainResult(delta={}, samples=-1)


def test_hyperparameters_by_name() -> None:
    round = context({"rate": 3, "kind": "sgd", "flag": True})
    assert round.number("rate", 1.0) == 3.0
    assert round.number("other", 0.5) == 0.5
    for name in ("kind", "flag"):
        with pytest.raises(ConfigurationError, match=name):
            round.number(name, 1.0)
    assert not round.should_stop()
    round.stopped.set()
    assert round.should_stop()


def test_a_function_is_a_trainer() -> None:
    weights = {"w": np.zeros((2, 2)), "b": np.zeros(())}
    assert FunctionTrainer(lambda model, round: weights, 5).sample_count() == 5
    trainer = FunctionTrainer(lambda model, round: weights, lambda: 6)
    assert trainer.sample_count() == 6
    assert trainer.train({}, context()).weights is weights
    result = TrainResult(delta=weights)
    assert FunctionTrainer(lambda model, round: result, 1).train({}, context()) is result
