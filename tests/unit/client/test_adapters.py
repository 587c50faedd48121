"""Adapters: torch and scikit-learn train from the round's model and give back its tensors."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import linear_model as linear

from boltz_client.adapters.scikit_learn import LinearTrainer
from boltz_client.adapters.torch import TorchTrainer, initial_model, tensor_specs
from boltz_client.trainer import RoundContext, TrainResult
from boltz_protocol.errors import ConfigurationError, ShapeMismatch
from boltz_protocol.messages import HyperValue, TensorSpec
from boltz_protocol.model_file import Vector
from tests.support import samples


def context(**hyperparameters: HyperValue) -> RoundContext:
    return RoundContext(
        samples.ROUND, 1, samples.MODEL, 1, (TensorSpec("w", ()),), hyperparameters, (), 1.0, 2
    )


def read_only(values: Any) -> Vector:
    array = np.array(values, dtype=np.float32)
    array.flags.writeable = False
    return array


def weights_of(result: TrainResult) -> Mapping[str, Any]:
    assert result.weights is not None
    return result.weights


class TestScikitLearn:
    @staticmethod
    def data() -> tuple[Any, Any]:
        print("seed 7")
        generator = np.random.default_rng(7)
        features = generator.normal(size=(200, 3))
        return features, features @ np.array([1.0, -2.0, 0.5]) + 0.25

    def test_a_regressor_moves_towards_the_data(self) -> None:
        features, targets = self.data()
        trainer = LinearTrainer(linear.SGDRegressor(random_state=0), features, targets)
        assert trainer.sample_count() == 200
        model = {"coef": read_only([0, 0, 0]), "intercept": read_only([0])}
        result = weights_of(trainer.train(model, context(epochs=30)))
        np.testing.assert_allclose(result["coef"], [1, -2, 0.5], atol=0.05)
        # From a good model it stays there: training starts from what it was given.
        again = weights_of(
            trainer.train({k: read_only(v) for k, v in result.items()}, context(epochs=1))
        )
        np.testing.assert_allclose(again["coef"], result["coef"], atol=0.05)

    def test_a_classifier_knows_the_federations_classes(self) -> None:
        features, targets = self.data()
        labels = (targets > 0).astype(int)
        trainer = LinearTrainer(
            linear.SGDClassifier(random_state=0), features, labels, classes=[0, 1], epochs=5
        )
        model = {"coef": read_only([[0, 0, 0]]), "intercept": read_only([0])}
        result = weights_of(trainer.train(model, context()))
        hits = ((features @ result["coef"][0] + result["intercept"]) > 0) == labels
        assert hits.mean() > 0.95

    def test_a_stop_is_heeded_and_misfits_are_named(self) -> None:
        features, targets = self.data()
        trainer = LinearTrainer(linear.SGDRegressor(), features, targets)
        round = context()
        round.stopped.set()
        model = {"coef": read_only([3, 3, 3]), "intercept": read_only([1])}
        result = weights_of(trainer.train(model, round))
        np.testing.assert_array_equal(result["coef"], [3, 3, 3])
        with pytest.raises(ShapeMismatch):
            trainer.train({"coef": read_only([1]), "intercept": read_only([1])}, round)
        with pytest.raises(ShapeMismatch):
            trainer.train({"w": read_only([1])}, round)
        with pytest.raises(ConfigurationError, match="partial_fit"):
            LinearTrainer(linear.LinearRegression(), features, targets)
        with pytest.raises(ConfigurationError, match="rows"):
            LinearTrainer(linear.SGDRegressor(), features[:0], targets[:0])


class TestTorch:
    def test_a_module_is_loaded_trained_and_read(self) -> None:
        torch.manual_seed(3)
        module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        names = {spec.name: spec.shape for spec in tensor_specs(module)}
        assert names["0.weight"] == (2, 3)
        assert "1.num_batches_tracked" not in names
        model = {name: read_only(v * 0 + 0.5) for name, v in initial_model(module).items()}
        seen: list[float] = []

        def fit(module: Any, round: RoundContext) -> dict[str, float]:
            seen.append(module[0].weight[0, 0].item())
            with torch.no_grad():
                module[0].weight += round.number("step", 0.0)
            return {"loss": 1.5}

        trainer = TorchTrainer(module, fit, 12)
        assert trainer.sample_count() == 12
        first = trainer.train(model, context(step=0.25))
        kept = weights_of(first)["0.weight"].copy()
        trainer.train(model, context(step=9.0))
        assert seen == [0.5, 0.5]
        np.testing.assert_array_equal(kept, np.full((2, 3), 0.75, dtype=np.float32))
        # The next round must not write into the last one's result.
        np.testing.assert_array_equal(weights_of(first)["0.weight"], kept)
        assert first.metrics == {"loss": 1.5}
        assert set(weights_of(first)) == set(model)

    def test_misfits_are_named(self) -> None:
        trainer = TorchTrainer(torch.nn.Linear(3, 2), lambda module, round: None, 1)
        with pytest.raises(ShapeMismatch, match="other"):
            trainer.train({"other": read_only([1])}, context())
        with pytest.raises(ShapeMismatch, match="weight"):
            trainer.train({"weight": read_only([1])}, context())


@pytest.mark.parametrize(
    ("module", "package", "make"),
    [
        ("torch", "torch", lambda m: m.TorchTrainer(None, None, 1)),
        ("scikit_learn", "sklearn.base", lambda m: m.LinearTrainer(None, [], [])),
    ],
)
def test_a_missing_package_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str, make: Any
) -> None:
    adapter = importlib.import_module(f"boltz_client.adapters.{module}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError, match="pip install 'boltz-mesh-client"):
        make(adapter)
