"""What the owner of a table decides about DP-SGD on it, and the charge before a training.

Nothing here can be changed by a plan: a mesh that could lower the noise or raise the number of
steps would decide over the device's guarantee. Only learning rates come from hyper-parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from boltz_client.backoff import Clock
from boltz_client.owner import DEFAULT_DELTA
from boltz_client.record_ledger import RecordEvent, RecordLedger, check_table
from boltz_client.record_rdp import SampledGaussian
from boltz_client.trainer import Arrays, RoundContext
from boltz_protocol import limits
from boltz_protocol.errors import ConfigurationError, TrainingFailed

#: Metrics from trained weights alone. What else such a function looks at must not be the table:
#: a loss on its rows would leave the device without the noise that protects them.
WeightMetrics = Callable[[Arrays], Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPrivacy:
    """How one training protects single records, and how much all of them may spend.

    Attributes:
        noise_multiplier: standard deviation of the noise on a step's sum, over `clip_norm`.
        clip_norm: L2 norm to which the gradient of one record is shortened.
        sampling_rate: chance of each record in each step, in (0, 1].
        steps: of one training, from 1.
        epsilon_budget: most record-level epsilon of all trainings on the table together, whatever
            the model, at `delta`; finite.
        delta: from `limits.MIN_DELTA`, at most 1 over the rows of the table.

    Raises: ConfigurationError that names the setting and a value that would do.
    """

    noise_multiplier: float
    clip_norm: float
    sampling_rate: float
    steps: int
    epsilon_budget: float
    delta: float = DEFAULT_DELTA

    def __post_init__(self) -> None:
        _ = self.run  # its own checks
        # Each written so that a NaN fails.
        if not limits.MIN_CLIP_NORM <= self.clip_norm <= limits.MAX_CLIP_NORM:
            raise ConfigurationError(
                f"clip_norm is {self.clip_norm}; above 0, such as 1.0", setting="clip_norm"
            )
        if not 0 < self.epsilon_budget < math.inf:
            raise ConfigurationError(
                f"epsilon_budget is {self.epsilon_budget}; a number above 0, such as 3.0",
                setting="epsilon_budget",
            )
        if not limits.MIN_DELTA <= self.delta < 1:
            raise ConfigurationError(
                f"delta is {self.delta}; at least {limits.MIN_DELTA:g} and below 1 over the rows "
                f"of the table, such as {DEFAULT_DELTA:g}",
                setting="delta",
            )

    @property
    def run(self) -> SampledGaussian:
        """What one training costs."""
        return SampledGaussian(self.noise_multiplier, self.sampling_rate, self.steps)


@dataclass(frozen=True, slots=True)
class ProtectedTable:
    """A table, its rules, and the ledger that every training on it is charged to.

    Attributes:
        name: by which the ledger knows the table; tables that share rows must share the name.
        rows: from 1.

    Raises: ConfigurationError where the settings do not fit the table.
    """

    name: str
    rows: int
    privacy: RecordPrivacy
    ledger: RecordLedger
    clock: Clock

    def __post_init__(self) -> None:
        check_table(self.name)
        if self.rows < 1:
            raise ConfigurationError(f"the table {self.name!r} has no rows")
        # A delta of 1/n lets a mechanism publish one record in full (Dwork and Roth 2014, 2.3).
        if self.privacy.delta * self.rows > 1:
            raise ConfigurationError(
                f"delta is {self.privacy.delta:g}, above 1 over the {self.rows} rows of "
                f"{self.name!r}; {0.1 / self.rows:.1g} would do",
                setting="delta",
            )

    @property
    def divisor(self) -> float:
        """What a step's sum is divided by: the expected batch, from the power of two below `rows`.

        The check-in tells the mesh that power of two, so that nothing new shows in it.
        """
        return self.privacy.sampling_rate * (1 << (self.rows.bit_length() - 1))

    def charge(self, round: RoundContext, metrics: WeightMetrics | None) -> float:
        """Charge one training to the ledger, before the first row is looked at.

        Returns: the table's record-level epsilon with it.

        Raises:
            TrainingFailed: the round wants metrics, and there are none that keep the guarantee.
            BudgetExceeded: no room; the message says what would fit.
            ConfigurationError: the ledger is damaged or cannot be written.
        """
        if round.lanes and metrics is None:
            raise TrainingFailed(
                f"the round wants the metrics {', '.join(round.lanes)}; computed on the rows they "
                "would leave the device without record-level noise. Give the trainer `metrics`, a "
                "function of the trained weights, or take part in a plan without lanes"
            )
        privacy = self.privacy
        event = RecordEvent(
            table=self.name,
            model_id=round.model_id,
            round_id=round.round_id,
            attempt=round.attempt,
            noise_multiplier=privacy.noise_multiplier,
            sampling_rate=privacy.sampling_rate,
            steps=privacy.steps,
            sensitivity=privacy.clip_norm,
            delta=privacy.delta,
            at_ms=self.clock.now_ms(),
        )
        return self.ledger.charge(event, privacy.epsilon_budget)
