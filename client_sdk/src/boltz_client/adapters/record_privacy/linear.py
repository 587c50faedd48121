"""DP-SGD for a linear model in numpy: least squares or logistic regression.

The federated model has two tensors, `coef` with one number a column and `intercept` with one, of
any shape: those of `boltz_client.adapters.scikit_learn`.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from boltz_client.adapters.record_privacy.settings import (
    ProtectedTable,
    RecordPrivacy,
    WeightMetrics,
)
from boltz_client.adapters.record_privacy.sums import Reals, RecordSum, block_rows, sample_rows
from boltz_client.backoff import Clock, system_clock
from boltz_client.record_ledger import RecordLedger
from boltz_client.trainer import RoundContext, TrainResult
from boltz_protocol.errors import ConfigurationError, ShapeMismatch
from boltz_protocol.keystream import Keystream
from boltz_protocol.model_file import Vector

Loss = Literal["squared", "logistic"]
_LOSSES: Final = ("squared", "logistic")


class LinearRecordTrainer:
    """Trains a linear model so that no single row shows in it (record-level privacy).

    Args:
        features: (rows, columns), finite; kept as float64. Bring columns to about unit scale: the
            clip norm bounds error times features.
        targets: (rows,), finite; 0 and 1 for the logistic loss.
        table: the owner's name for these rows in the ledger.
        privacy: the owner's settings and the budget of the table.
        ledger: of this client's key store.
        loss: half the squared error, or the logistic loss.
        rate: learning rate; the plan's hyper-parameter `rate` takes precedence. The step divides by
            the expected batch of the power of two below `rows`, so it may act up to twofold.
        metrics: from the trained weights, for rounds with lanes.

    Raises: ConfigurationError that names what does not fit.
    """

    def __init__(
        self,
        features: npt.NDArray[Any],
        targets: npt.NDArray[Any],
        *,
        table: str,
        privacy: RecordPrivacy,
        ledger: RecordLedger,
        loss: Loss = "squared",
        rate: float = 0.1,
        metrics: WeightMetrics | None = None,
        clock: Clock = system_clock,
    ) -> None:
        if loss not in _LOSSES:
            raise ConfigurationError(f"loss is {loss!r}; one of {', '.join(_LOSSES)}")
        self._features: Reals = np.array(features, dtype=np.float64, order="C")
        self._targets: Reals = np.array(targets, dtype=np.float64)
        if self._features.ndim != 2 or self._targets.shape != self._features.shape[:1]:
            raise ConfigurationError(
                f"features of shape {self._features.shape} and targets of shape "
                f"{self._targets.shape}, not (rows, columns) and (rows,)"
            )
        if not (np.isfinite(self._features).all() and np.isfinite(self._targets).all()):
            raise ConfigurationError("features or targets hold a NaN or an infinity")
        if loss == "logistic" and not np.isin(self._targets, (0, 1)).all():
            raise ConfigurationError("targets of the logistic loss are 0 and 1")
        self._table = ProtectedTable(table, len(self._features), privacy, ledger, clock)
        self._loss = loss
        self._rate = rate
        self._metrics = metrics

    def sample_count(self) -> int:
        """Rows of the table; the mesh is told floor(log2) of it, which no epsilon here covers."""
        return self._table.rows

    def train(self, model: dict[str, Vector], round: RoundContext) -> TrainResult:
        """One training, charged before it begins.

        Raises:
            ShapeMismatch: not a linear model with this many columns.
            BudgetExceeded, TrainingFailed, ConfigurationError: as `ProtectedTable.charge`.
        """
        columns = self._features.shape[1]
        if {name: values.size for name, values in model.items()} != {
            "coef": columns,
            "intercept": 1,
        }:
            found = {name: values.shape for name, values in model.items()}
            raise ShapeMismatch(
                f"a model of coef ({columns} numbers) and intercept (1) is needed, not {found}"
            )
        rate = round.number("rate", self._rate)
        self._table.charge(round, self._metrics)
        weights = np.concatenate([model["coef"].ravel(), model["intercept"].ravel()]).astype(
            np.float64
        )
        self._descend(weights, rate, round)
        trained = {
            "coef": weights[:-1].reshape(model["coef"].shape),
            "intercept": weights[-1:].reshape(model["intercept"].shape),
        }
        metrics = self._metrics(trained) if self._metrics is not None else {}
        return TrainResult(weights=trained, metrics=metrics)

    def _descend(self, weights: Reals, rate: float, round: RoundContext) -> None:
        """Take the steps, in place."""
        privacy = self._table.privacy
        total = RecordSum(weights.size, privacy.clip_norm, privacy.noise_multiplier)
        block = block_rows(weights.size)
        stream = Keystream.fresh()
        for _ in range(privacy.steps):
            if round.should_stop():
                break
            drawn = sample_rows(self._table.rows, privacy.sampling_rate, stream)
            for start in range(0, drawn.size, block):
                total.add(self._gradients(weights, drawn[start : start + block]))
            weights -= rate / self._table.divisor * total.release(stream)

    def _gradients(self, weights: Reals, drawn: npt.NDArray[np.intp]) -> Reals:
        """One record's gradient a row, shape (drawn, columns + 1)."""
        gradients = np.ones((drawn.size, weights.size))
        gradients[:, :-1] = self._features[drawn]
        # A row that overflows has no norm, and counts as zero.
        with np.errstate(over="ignore", invalid="ignore"):
            # Row by row, and not by a matrix product, whose rounding depends on the number of rows.
            outputs = (gradients * weights).sum(axis=1)
            if self._loss == "logistic":
                # Beyond 500 the float64 is 0 or 1 anyway, and exp would overflow.
                outputs = 1 / (1 + np.exp(-np.clip(outputs, -500, 500)))
            gradients *= (outputs - self._targets[drawn])[:, np.newaxis]
        return gradients
