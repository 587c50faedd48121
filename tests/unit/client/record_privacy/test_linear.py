"""DP-SGD on a linear model: it learns, charges first, and refuses what would break its promise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from boltz_client.adapters.record_privacy import RecordLedger, RecordPrivacy
from boltz_client.adapters.record_privacy.linear import LinearRecordTrainer, Loss
from boltz_client.backoff import Clock
from boltz_client.record_rdp import SampledGaussian, epsilon_of_steps
from boltz_client.trainer import Arrays, RoundContext, TrainResult
from boltz_protocol.errors import (
    BudgetExceeded,
    ConfigurationError,
    ShapeMismatch,
    TrainingFailed,
)
from boltz_protocol.messages import HyperValue
from boltz_protocol.model_file import Vector
from tests.support import samples

COEF = np.array([1.0, -2.0, 0.5])


class StoppedClock(Clock):
    def now_ms(self) -> int:
        return samples.NOW_MS


@pytest.fixture
def ledger(tmp_path: Path) -> RecordLedger:
    (tmp_path / "store").mkdir(mode=0o700)
    return RecordLedger(tmp_path / "store")


def privacy(**changes: Any) -> RecordPrivacy:
    settings: dict[str, Any] = {
        "noise_multiplier": 1.0,
        "clip_norm": 1.0,
        "sampling_rate": 0.05,
        "steps": 100,
        "epsilon_budget": 20.0,
    }
    return RecordPrivacy(**(settings | changes))


def context(lanes: tuple[str, ...] = (), **hyperparameters: HyperValue) -> RoundContext:
    return RoundContext(samples.ROUND, 1, samples.MODEL, 1, (), hyperparameters, lanes, 1.0, 2)


def data(rows: int = 4096) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    print("seed 7")
    features = np.random.default_rng(7).normal(size=(rows, 3))
    return features, features @ COEF + 0.25


def zeros(coef: tuple[int, ...] = (3,), intercept: tuple[int, ...] = (1,)) -> dict[str, Vector]:
    model = {"coef": np.zeros(coef, np.float32), "intercept": np.zeros(intercept, np.float32)}
    for values in model.values():
        values.flags.writeable = False
    return model


def weights_of(result: TrainResult) -> Arrays:
    assert result.weights is not None
    return result.weights


def make(ledger: RecordLedger, rows: int = 4096, **changes: Any) -> LinearRecordTrainer:
    features, targets = data(rows)
    arguments: dict[str, Any] = {
        "table": "orders",
        "privacy": privacy(),
        "ledger": ledger,
        "clock": StoppedClock(),
    }
    return LinearRecordTrainer(features, targets, **(arguments | changes))


def test_it_learns_and_charges_what_it_did(ledger: RecordLedger) -> None:
    trainer = make(ledger)
    assert trainer.sample_count() == 4096
    result = trainer.train(zeros(), context(rate=0.5))
    np.testing.assert_allclose(weights_of(result)["coef"], COEF, atol=0.3)
    np.testing.assert_allclose(weights_of(result)["intercept"], [0.25], atol=0.3)
    assert result.metrics == {}
    (event,) = ledger.events("orders")
    assert (event.model_id, event.round_id, event.attempt) == (samples.MODEL, samples.ROUND, 1)
    assert (event.sensitivity, event.delta, event.at_ms) == (1.0, 1e-6, samples.NOW_MS)
    assert event.run == SampledGaussian(1.0, 0.05, 100) == privacy().run


def test_it_goes_on_from_the_rounds_model_in_its_shapes(ledger: RecordLedger) -> None:
    model = zeros((1, 3), ())
    model["coef"] = model["coef"] + COEF.astype(np.float32)
    trained = weights_of(make(ledger).train(model, context()))
    assert (trained["coef"].shape, trained["intercept"].shape) == ((1, 3), ())
    np.testing.assert_allclose(trained["coef"][0], COEF, atol=0.3)


def test_a_classifier_learns_too(ledger: RecordLedger) -> None:
    features, targets = data()
    labels = (targets > 0).astype(int)
    trainer = LinearRecordTrainer(
        features,
        labels,
        table="orders",
        privacy=privacy(),
        ledger=ledger,
        loss="logistic",
        rate=2.0,
    )
    trained = weights_of(trainer.train(zeros(), context()))
    hits = (features @ trained["coef"] + trained["intercept"] > 0) == labels
    assert hits.mean() > 0.93


def test_it_is_noised_anew_each_time(ledger: RecordLedger) -> None:
    trainer = make(ledger, privacy=privacy(steps=1))
    first, second = (weights_of(trainer.train(zeros(), context()))["coef"] for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("columns", [1, 3, 17, 200])
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_a_gradient_depends_on_its_own_row_alone_to_the_last_bit(
    ledger: RecordLedger, columns: int, loss: Loss
) -> None:
    generator = np.random.default_rng(columns)
    features = generator.normal(size=(301, columns))
    trainer = LinearRecordTrainer(
        features,
        (features[:, 0] > 0).astype(float),
        table="orders",
        privacy=privacy(),
        ledger=ledger,
        loss=loss,
    )
    weights = generator.normal(size=columns + 1)
    together = trainer._gradients(weights, np.arange(301))
    for drawn in (*np.arange(301).reshape(-1, 1), np.arange(7, 290), np.arange(3, 6)):
        np.testing.assert_array_equal(trainer._gradients(weights, drawn), together[drawn])


def test_gradients_are_errors_times_features(ledger: RecordLedger) -> None:
    trainer = make(ledger, rows=300)
    weights = np.array([0.3, -0.7, 1.1, 0.2])
    found = trainer._gradients(weights, np.arange(300))
    features, targets = data(300)
    errors = features @ weights[:3] + 0.2 - targets
    np.testing.assert_allclose(found[:, :3], errors[:, np.newaxis] * features, rtol=1e-9)
    np.testing.assert_allclose(found[:, 3], errors, rtol=1e-9)


def test_a_row_that_overflows_stops_nothing(ledger: RecordLedger) -> None:
    features, targets = data()
    features[3] = 1e300
    trainer = LinearRecordTrainer(
        features, targets, table="orders", privacy=privacy(), ledger=ledger, rate=0.5
    )
    trained = weights_of(trainer.train(zeros(), context()))
    np.testing.assert_allclose(trained["coef"], COEF, atol=0.3)


def test_a_stop_is_heeded_and_stays_charged(ledger: RecordLedger) -> None:
    round = context()
    round.stopped.set()
    trained = weights_of(make(ledger).train(zeros(), round))
    np.testing.assert_array_equal(trained["coef"], [0, 0, 0])
    assert len(ledger.events()) == 1


def test_the_plan_sets_the_rate_and_nothing_else(ledger: RecordLedger) -> None:
    round = context(rate=0.0, steps=1, noise_multiplier=0.0, clip_norm=1e9, sampling_rate=1.0)
    trained = weights_of(make(ledger).train(zeros(), round))
    np.testing.assert_array_equal(trained["coef"], [0, 0, 0])
    assert ledger.events()[0].run == privacy().run


def test_the_step_is_divided_by_what_the_check_in_tells(ledger: RecordLedger) -> None:
    # 5000 and 4096 rows are the same power of two; the step must not tell them apart.
    assert make(ledger, 5000)._table.divisor == make(ledger, 4096)._table.divisor == 4096 * 0.05


# --- the budget ---------------------------------------------------------------------------------


def test_what_would_overdraw_is_refused_before_anything_is_trained(ledger: RecordLedger) -> None:
    once = epsilon_of_steps([privacy().run], 1e-6)
    trainer = make(ledger, privacy=privacy(epsilon_budget=1.05 * once))
    trainer.train(zeros(), context())
    seen: list[int] = []
    trainer._gradients = lambda *_: seen.append(1)  # type: ignore[method-assign,assignment]
    with pytest.raises(BudgetExceeded, match=r"record-level.*What would fit: \d+ steps"):
        trainer.train(zeros(), context())
    assert (seen, len(ledger.events())) == ([], 1)


def test_a_round_that_wants_metrics_is_refused_unless_they_are_safe(ledger: RecordLedger) -> None:
    with pytest.raises(TrainingFailed, match=r"loss.*without record-level noise"):
        make(ledger).train(zeros(), context(lanes=("loss",)))
    assert ledger.events() == ()

    def metrics(weights: Arrays) -> dict[str, float]:
        return {"loss": float(weights["coef"].sum())}

    result = make(ledger, metrics=metrics).train(zeros(), context(lanes=("loss",)))
    assert result.metrics["loss"] == weights_of(result)["coef"].sum()


def test_a_misfit_costs_nothing(ledger: RecordLedger) -> None:
    trainer = make(ledger)
    for model in (zeros((4,)), zeros((3,), (2,)), {"w": np.zeros(3, np.float32)}):
        with pytest.raises(ShapeMismatch):
            trainer.train(model, context())
    with pytest.raises(ConfigurationError, match="rate"):
        trainer.train(zeros(), context(rate="fast"))
    assert ledger.events() == ()


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("noise_multiplier", value) for value in (0.0, -1.0, math.nan, math.inf)),
        *(("clip_norm", value) for value in (0.0, -1.0, math.nan, math.inf)),
        *(("sampling_rate", value) for value in (0.0, 1.5, math.nan)),
        *(("steps", value) for value in (0, -5)),
        *(("epsilon_budget", value) for value in (0.0, -1.0, math.nan, math.inf)),
        *(("delta", value) for value in (0.0, -1e-6, 1.0, math.nan)),
    ],
)
def test_a_wrong_setting_is_named_with_a_value_that_would_do(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{name} is .*such as") as caught:
        privacy(**{name: value})
    assert caught.value.metadata["setting"] == name


def test_a_delta_above_one_over_the_rows_is_refused(ledger: RecordLedger) -> None:
    with pytest.raises(ConfigurationError, match=r"^delta is 0.001.*4096 rows.*2e-05 would do"):
        make(ledger, privacy=privacy(delta=1e-3))
    make(ledger, privacy=privacy(delta=2e-5))


def test_a_table_that_cannot_be_trained_on_is_refused(ledger: RecordLedger) -> None:
    features, targets = data(10)
    arguments: dict[str, Any] = {"table": "orders", "privacy": privacy(), "ledger": ledger}
    holed = features.copy()
    holed[2, 1] = math.nan
    for bad, words in (
        ((features[:, 0], targets), "not (rows, columns)"),
        ((features, targets[:9]), "not (rows, columns)"),
        ((features[:0], targets[:0]), "no rows"),
        ((holed, targets), "NaN"),
    ):
        with pytest.raises(ConfigurationError) as caught:
            LinearRecordTrainer(*bad, **arguments)
        assert words in caught.value.message
    with pytest.raises(ConfigurationError, match="0 and 1"):
        LinearRecordTrainer(features, targets, **arguments, loss="logistic")
    with pytest.raises(ConfigurationError, match="one of squared, logistic"):
        LinearRecordTrainer(features, targets, **(arguments | {"loss": "absolute"}))
    with pytest.raises(ConfigurationError, match="table"):
        LinearRecordTrainer(features, targets, **(arguments | {"table": ""}))
