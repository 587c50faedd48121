"""A trainer for linear scikit-learn estimators that learn by `partial_fit`.

`SGDRegressor`, `SGDClassifier`, `Perceptron` and `PassiveAggressive*` keep their parameters in
`coef_` and `intercept_`; the federated model has two tensors, `coef` and `intercept`, of the same
shapes. Needs `boltz-mesh-client[scikit-learn]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from boltz_client.trainer import RoundContext, TrainResult
from boltz_protocol.errors import ConfigurationError, ShapeMismatch
from boltz_protocol.model_file import Vector


class LinearTrainer:
    """Sets an estimator's coefficients to the round's model and goes over the data.

    Args:
        estimator: has `partial_fit`; a fresh copy of it is trained in each round.
        features: (rows, columns).
        targets: (rows,).
        classes: all labels of the federation, for a classifier: one client may not have them all.
        epochs: passes over the data; the plan's hyper-parameter `epochs` takes precedence.

    Raises: ConfigurationError where scikit-learn is not installed or the estimator does not fit.
    """

    def __init__(
        self,
        estimator: Any,
        features: npt.NDArray[Any],
        targets: npt.NDArray[Any],
        *,
        classes: Sequence[Any] | None = None,
        epochs: int = 1,
    ) -> None:
        try:
            from sklearn.base import clone  # noqa: PLC0415 - a light client must not need it
        except ImportError as error:
            raise ConfigurationError(
                "scikit-learn is not installed; "
                "install it with: pip install 'boltz-mesh-client[scikit-learn]'"
            ) from error
        if not hasattr(estimator, "partial_fit"):
            raise ConfigurationError(f"{type(estimator).__name__} has no partial_fit")
        if len(features) != len(targets) or not len(features):
            raise ConfigurationError(f"{len(features)} rows of features, {len(targets)} of targets")
        self._clone = clone
        self._estimator = estimator
        self._features = features
        self._targets = targets
        self._first_call = {} if classes is None else {"classes": np.asarray(classes)}
        self._epochs = epochs

    def sample_count(self) -> int:
        """Rows of the data."""
        return len(self._features)

    def train(self, model: dict[str, Vector], round: RoundContext) -> TrainResult:
        """One round. Raises: ShapeMismatch when estimator and model do not fit together."""
        if model.keys() != {"coef", "intercept"}:
            raise ShapeMismatch(f"a model of coef and intercept is needed, not {sorted(model)}")
        estimator = self._clone(self._estimator)
        # One call makes the estimator's arrays; what it learnt is overwritten at once.
        estimator.partial_fit(self._features[:1], self._targets[:1], **self._first_call)
        for name in ("coef", "intercept"):
            own = getattr(estimator, f"{name}_")
            if own.shape != model[name].shape:
                raise ShapeMismatch(
                    f"{name} has shape {own.shape} in the estimator, "
                    f"{model[name].shape} in the model",
                    tensor=name,
                )
            setattr(estimator, f"{name}_", model[name].astype(np.float64))
        estimator.t_ = 1.0
        for _ in range(int(round.number("epochs", self._epochs))):
            if round.should_stop():
                break
            estimator.partial_fit(self._features, self._targets)
        return TrainResult(weights={"coef": estimator.coef_, "intercept": estimator.intercept_})
