"""DP-SGD on a torch module: gradients of single records through opacus, noise from us."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from boltz_client.adapters.record_privacy import RecordLedger, RecordPrivacy
from boltz_client.adapters.record_privacy.torch import TorchRecordTrainer
from boltz_client.adapters.torch import initial_model
from boltz_client.record_rdp import SampledGaussian
from boltz_client.trainer import Arrays, RoundContext
from boltz_protocol.errors import (
    BudgetExceeded,
    ConfigurationError,
    ShapeMismatch,
    TrainingFailed,
)
from boltz_protocol.model_file import Vector
from tests.support import samples

PRIVACY = RecordPrivacy(
    noise_multiplier=1.0, clip_norm=1.0, sampling_rate=0.05, steps=60, epsilon_budget=20.0
)


@pytest.fixture
def ledger(tmp_path: Path) -> RecordLedger:
    (tmp_path / "store").mkdir(mode=0o700)
    return RecordLedger(tmp_path / "store")


def context(lanes: tuple[str, ...] = (), **hyperparameters: float) -> RoundContext:
    return RoundContext(samples.ROUND, 1, samples.MODEL, 1, (), hyperparameters, lanes, 1.0, 2)


def data(rows: int = 2048) -> tuple[torch.Tensor, torch.Tensor]:
    print("seed 5")
    features = torch.randn(rows, 3, generator=torch.Generator().manual_seed(5))
    return features, features @ torch.tensor([1.0, -2.0, 0.5]) + 0.25


def squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs[:, 0] - targets) ** 2 / 2


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def make(ledger: RecordLedger, module: torch.nn.Module | None = None, **changes: Any) -> Any:
    features, targets = data()
    arguments: dict[str, Any] = {
        "loss": squared,
        "features": features,
        "targets": targets,
        "table": "orders",
        "privacy": PRIVACY,
        "ledger": ledger,
    }
    return TorchRecordTrainer(module or network(), **(arguments | changes))


def start(module: torch.nn.Module) -> dict[str, Vector]:
    model = {name: values.copy() for name, values in initial_model(module).items()}
    for values in model.values():
        values.flags.writeable = False
    return model


def test_it_learns_and_charges_what_it_did(ledger: RecordLedger) -> None:
    module = torch.nn.Linear(3, 1)
    trainer = make(ledger, module)
    assert trainer.sample_count() == 2048
    model = {"weight": np.zeros((1, 3), np.float32), "bias": np.zeros(1, np.float32)}
    result = trainer.train(model, context(rate=0.5))
    np.testing.assert_allclose(result.weights["weight"], [[1.0, -2.0, 0.5]], atol=0.4)
    np.testing.assert_allclose(result.weights["bias"], [0.25], atol=0.4)
    assert result.metrics == {}
    (event,) = ledger.events("orders")
    assert event.run == SampledGaussian(1.0, 0.05, 60)
    # Nothing that a single record gave is left in the module.
    for parameter in module.parameters():
        assert parameter.grad is None
        assert vars(parameter)["grad_sample"] is None


def test_a_network_and_an_optimizer_of_ones_own(ledger: RecordLedger) -> None:
    module = network()
    features, targets = data()
    before = squared(module(features), targets).mean().item()
    trainer = make(ledger, module, optimizer=lambda p, rate: torch.optim.Adam(p, lr=rate))
    trainer.train(start(module), context(rate=0.05))
    after = squared(module(features), targets).mean().item()
    assert after < 0.6 * before


def test_gradients_are_those_of_single_records(ledger: RecordLedger) -> None:
    module = network()
    trainer = make(ledger, module)
    features, targets = data()
    drawn = np.array([4, 0, 99])
    found = trainer._gradients(drawn)
    for row, gradient in zip(drawn, found, strict=True):
        plain = network()
        loss = squared(plain(features[row : row + 1]), targets[row : row + 1]).sum()
        torch.autograd.backward(loss)
        wanted = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None])
        np.testing.assert_allclose(gradient, wanted.numpy(), rtol=1e-4, atol=1e-6)


def test_what_is_not_trained_stays_and_what_is_not_used_has_no_gradient(
    ledger: RecordLedger,
) -> None:
    class Partly(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Linear(3, 1)
            self.frozen = torch.nn.Linear(3, 1)
            self.unused = torch.nn.Linear(3, 1)
            self.called = torch.nn.Linear(3, 1)
            self.frozen.requires_grad_(False)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            self.called(features)
            total: torch.Tensor = self.body(features) + self.frozen(features)
            return total

    module = Partly()
    trainer = make(ledger, module)
    model = start(module)
    result = trainer.train(model, context(rate=0.5))
    np.testing.assert_array_equal(result.weights["frozen.weight"], model["frozen.weight"])
    total = result.weights["body.weight"] + result.weights["frozen.weight"]
    np.testing.assert_allclose(total, [[1.0, -2.0, 0.5]], atol=0.5)
    # It has no gradient, and noise all the same: whether it has one must not show.
    assert not np.array_equal(result.weights["unused.weight"], model["unused.weight"])


class Symbols(torch.nn.Module):
    """Integers in, and a constant that is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(5, 4)
        self.scale = torch.nn.Identity()
        self.scale.register_buffer("unit", torch.ones(1))
        self.out = torch.nn.Linear(4, 1)

    def forward(self, symbols: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.out(self.table(symbols) * self.scale.unit)
        return outputs


def test_integers_may_go_in_and_constants_stay(ledger: RecordLedger) -> None:
    torch.manual_seed(4)
    module = Symbols()
    symbols = torch.arange(2000) % 5
    trainer = make(ledger, module, features=symbols, targets=symbols.float() / 4)
    result = trainer.train(start(module), context(rate=0.5))
    np.testing.assert_array_equal(result.weights["scale.unit"], [1])
    with torch.no_grad():
        assert squared(module(symbols), symbols.float() / 4).mean() < 0.05


def test_the_noise_is_not_torchs(ledger: RecordLedger) -> None:
    module = network()
    trainer = make(
        ledger,
        module,
        privacy=RecordPrivacy(
            noise_multiplier=1.0, clip_norm=1.0, sampling_rate=1.0, steps=1, epsilon_budget=20.0
        ),
    )
    model = start(module)
    found = []
    for _ in range(2):
        torch.manual_seed(1)
        found.append(trainer.train(model, context()).weights["0.weight"])
    assert not np.array_equal(*found)


def test_a_stop_is_heeded_and_stays_charged(ledger: RecordLedger) -> None:
    module = network()
    round = context()
    round.stopped.set()
    model = start(module)
    result = make(ledger, module).train(model, round)
    np.testing.assert_array_equal(result.weights["0.weight"], model["0.weight"])
    assert len(ledger.events()) == 1


def test_the_budget_is_asked_before_anything_is_trained(ledger: RecordLedger) -> None:
    module = network()
    trainer = make(
        ledger,
        module,
        privacy=RecordPrivacy(
            noise_multiplier=1.0, clip_norm=1.0, sampling_rate=0.05, steps=60, epsilon_budget=1.0
        ),
    )
    model = start(module)
    with pytest.raises(BudgetExceeded, match=r"record-level.*What would fit"):
        trainer.train(model, context())
    np.testing.assert_array_equal(start(module)["0.weight"], model["0.weight"])
    assert ledger.events() == ()


def test_metrics_come_from_the_weights(ledger: RecordLedger) -> None:
    module = network()
    with pytest.raises(TrainingFailed, match="loss"):
        make(ledger, module).train(start(module), context(lanes=("loss",)))
    assert ledger.events() == ()

    def metrics(weights: Arrays) -> dict[str, float]:
        return {"loss": float(weights["2.bias"][0])}

    module = network()
    result = make(ledger, module, metrics=metrics).train(start(module), context(("loss",)))
    assert result.metrics["loss"] == result.weights["2.bias"][0]


def test_a_misfit_costs_nothing(ledger: RecordLedger) -> None:
    trainer = make(ledger)
    with pytest.raises(ShapeMismatch):
        trainer.train({"other": np.zeros(1, np.float32)}, context())
    assert ledger.events() == ()


def test_a_loss_that_mixes_records_is_refused_and_leaves_the_trainer_whole(
    ledger: RecordLedger,
) -> None:
    module = network()
    mistaken = [True]

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        each = squared(outputs, targets)
        return each.mean() if mistaken else each

    trainer = make(ledger, module, loss=loss)
    model = start(module)
    with pytest.raises(TrainingFailed, match=r"one\s+number for each"):
        trainer.train(model, context())
    mistaken.clear()
    features, targets = data()
    trainer.train(model, context(rate=0.3))
    assert squared(module(features), targets).mean() < 1.5


# --- modules ------------------------------------------------------------------------------------


def with_layer(layer: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), layer, torch.nn.Linear(4, 1))


@pytest.mark.parametrize(
    "layer",
    [
        torch.nn.BatchNorm1d(4),
        torch.nn.BatchNorm1d(4, affine=False),
        torch.nn.BatchNorm1d(4, affine=False, track_running_stats=False),
        torch.nn.LSTM(4, 4),
    ],
    ids=str,
)
def test_layers_that_mix_records_are_refused(ledger: RecordLedger, layer: torch.nn.Module) -> None:
    with pytest.raises(ConfigurationError, match="mixes the records"):
        make(ledger, with_layer(layer))


class Gathering(torch.nn.Module):
    """Keeps the mean of what it has seen."""

    seen: torch.Tensor

    def __init__(self, *, trained: bool) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))
        if trained:
            self.scale = torch.nn.Parameter(torch.ones(4))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.seen += values.detach().mean(dim=0)
        return values


def test_layers_that_gather_from_records_are_refused(ledger: RecordLedger) -> None:
    with pytest.raises(ConfigurationError, match="opacus cannot"):
        make(ledger, with_layer(Gathering(trained=True)))
    module = with_layer(Gathering(trained=False))
    with pytest.raises(TrainingFailed, match=r"buffer '1\.seen'"):
        make(ledger, module).train(start(module), context())


def test_other_misfits_are_named(ledger: RecordLedger) -> None:
    features, targets = data()
    with pytest.raises(ConfigurationError, match="rows"):
        make(ledger, targets=targets[:5])
    with pytest.raises(ConfigurationError, match="no parameters"):
        make(ledger, network().requires_grad_(False))
    with pytest.raises(ConfigurationError, match="delta"):
        make(ledger, features=features.repeat(1000, 1), targets=targets.repeat(1000))


@pytest.mark.parametrize("package", ["torch", "opacus"])
def test_a_missing_package_is_said_to_be(
    ledger: RecordLedger, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    module = network()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError, match=r"pip install 'boltz-mesh-client\[dp\]'"):
        TorchRecordTrainer(module, squared, *data(), table="orders", privacy=PRIVACY, ledger=ledger)
