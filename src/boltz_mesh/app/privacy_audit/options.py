"""What `boltz-mesh privacy audit` was asked for, checked before anything starts. Pure."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import Final, Literal

from boltz_mesh.app.privacy_audit.bounds import Errors, best_guesses, gaussian_bound
from boltz_mesh.privacy import accountant
from boltz_protocol.errors import ConfigurationError
from boltz_protocol.gaussian_dp import mu_of

AuditMode = Literal["open", "sealed"]

#: At most one over a cohort, as a plan wants it.
DELTA: Final = 1e-5
#: Each bound holds with this probability.
CONFIDENCE: Final = 0.95
DEFAULT_EPSILON: Final = 5.0
DEFAULT_CANARIES: Final = 8
DEFAULT_TRIALS: Final = 200
#: Below it a lower bound proves nothing within minutes; above it the control run cannot exceed it.
EPSILON_RANGE: Final = (0.5, 12.0)
#: Three are the least that a sealed round takes; each client costs a key, a connection and masks.
CANARY_RANGE: Final = (3, 32)
#: A trial is two rounds and two models of a throw-away mesh.
MAX_TRIALS: Final = 5000
#: What the control run must be able to prove, in units of the epsilon under audit: coins that do
#: not fall evenly take some of it.
CONTROL_MARGIN: Final = 1.5
#: The issue of an audit: a lower bound below this share of the ledger's figure says little.
TELLING_SHARE: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOptions:
    """The command line.

    Attributes:
        epsilon: that the ledger is to show for one trial, at `DELTA`; sets the noise.
        canaries: clients; all of them are in every round, each in or out by its coin.
        trials: rounds with noise, and as many without.

    Raises: ConfigurationError, naming the option and a value that would do.
    """

    mode: AuditMode = "sealed"
    epsilon: float = DEFAULT_EPSILON
    canaries: int = DEFAULT_CANARIES
    trials: int = DEFAULT_TRIALS

    def __post_init__(self) -> None:
        least, most = EPSILON_RANGE
        if not (math.isfinite(self.epsilon) and least <= self.epsilon <= most):
            raise ConfigurationError(
                f"--epsilon {self.epsilon:g}: give a number from {least:g} to {most:g}; "
                f"{DEFAULT_EPSILON:g} would do",
                setting="--epsilon",
            )
        fewest, highest = CANARY_RANGE
        if not fewest <= self.canaries <= highest:
            raise ConfigurationError(
                f"--canaries {self.canaries}: give {fewest} to {highest}; {DEFAULT_CANARIES} would "
                "do",
                setting="--canaries",
            )
        if not 1 <= self.trials <= MAX_TRIALS:
            raise ConfigurationError(
                f"--trials {self.trials}: give 1 to {MAX_TRIALS}; {DEFAULT_TRIALS} would do",
                setting="--trials",
            )
        if not self._can_see(self.trials):
            enough = next(n for n in range(self.trials, MAX_TRIALS + 1) if self._can_see(n))
            raise ConfigurationError(
                f"--trials {self.trials}: {self.trials * self.canaries} coins could not prove more "
                f"than epsilon {self.epsilon:g} (at delta {DELTA:g}; unit: one client; relation: "
                "its contribution set to zero) even where every guess is right, so that the audit "
                f"would say nothing; {max(enough, DEFAULT_TRIALS)} would do, at least {enough}",
                setting="--trials",
            )

    def _can_see(self, trials: int) -> bool:
        half = trials * self.canaries // 2
        proof = gaussian_bound(Errors(half, 0, half, 0), DELTA, CONFIDENCE)
        return proof > CONTROL_MARGIN * self.epsilon

    @property
    def pairs(self) -> int:
        """Coins of each kind of round."""
        return self.trials * self.canaries

    @property
    def noise_multiplier(self) -> float:
        """The least noise with which one round stays within `epsilon`."""
        return accountant.noise_multiplier_for(
            self.epsilon, 1, DELTA, distributed=self.mode == "sealed"
        )

    def guesses(self) -> int:
        """How many surest guesses the assumption-free bound takes, fixed before any coin falls."""
        mu = mu_of(self.epsilon, DELTA)
        return best_guesses(self.pairs, mu, delta=DELTA, confidence=CONFIDENCE)

    def command(self) -> str:
        """The command that asks for the same."""
        plain = AuditOptions()
        words = ["boltz-mesh", "privacy", "audit"]
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if value != getattr(plain, name):
                words += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
        return shlex.join(words)
