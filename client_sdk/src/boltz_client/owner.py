"""What the owner of the data accepts: limits that the mesh cannot change."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from boltz_protocol import limits
from boltz_protocol.errors import (
    BudgetExceeded,
    ConfigurationError,
    MeshError,
    RoundRefused,
    WeightRefused,
)
from boltz_protocol.messages import RoundConfiguration, RoundMode
from boltz_protocol.secagg.floors import Floors

#: Every mode of the contract.
ALL_MODES: Final = frozenset(RoundMode)
#: What an owner who says nothing allows: the server never holds this client's update in the open.
DEFAULT_MODES: Final = frozenset({RoundMode.SEALED})
#: At which delta the client's own epsilon is told, where nobody says another.
DEFAULT_DELTA: Final = 1e-6

_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class OwnerLimits:
    """Rounds outside these are declined, and nothing is sent.

    The defaults allow sealed rounds only, since a server that may open rounds as it likes would
    make an empty promise of the sealed ones; they refuse nothing else.

    Attributes:
        modes: what the server may see of the delta.
        smallest_cohort: fewest survivors whose sum the mesh may learn: those of the round, or in a
            grouped round those of this client's group.
        least_noise_multiplier: standard deviation of the noise over the sensitivity; 0 accepts
            rounds without noise.
        largest_weight_share: this client's weight over the total of the roster (and, in a sealed
            round, of the survivors; in a grouped one, of those of its group), above 0, at most 1.
        largest_clip_norm: L2 bound of a delta; a larger one lets more of the data show.
        largest_attempt: attempts of one round that may release something about this client's data.
        epsilon_budget: most that may be spent on one model in the client's own ledger, at `delta`;
            infinity for no such limit.
        delta: of `epsilon_budget`; from `limits.MIN_DELTA`, below 1.
        known_peers: SHA-256 fingerprints (64 lower-case hex digits) of certificates of other
            clients, got from their holders and not from the mesh, whose authority could invent
            clients.
        least_known_peers: how many of them must be neighbours of this client and survive. Above 0
            no open rounds are taken: in those nobody is shown.
        models: patterns of model ids, such as "volatility-*" (`*`, `?`, `[...]`).

    Raises: ConfigurationError for limits that make no sense.
    """

    modes: frozenset[RoundMode] = DEFAULT_MODES
    smallest_cohort: int = 1
    least_noise_multiplier: float = 0.0
    largest_weight_share: float = 1.0
    largest_clip_norm: float = limits.MAX_CLIP_NORM
    largest_attempt: int = limits.MAX_ATTEMPTS
    epsilon_budget: float = math.inf
    delta: float = DEFAULT_DELTA
    known_peers: frozenset[str] = frozenset()
    least_known_peers: int = 0
    models: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if not self.modes:
            raise ConfigurationError("the owner's limits allow no mode at all")
        if not self.models:
            raise ConfigurationError("the owner's limits allow no model at all")
        # Each written so that a NaN fails.
        for name, value, least, most in (
            ("smallest_cohort", self.smallest_cohort, 1, limits.MAX_ROSTER),
            ("least_noise_multiplier", self.least_noise_multiplier, 0, math.inf),
            ("largest_attempt", self.largest_attempt, 1, limits.MAX_ATTEMPTS),
            ("least_known_peers", self.least_known_peers, 0, len(self.known_peers)),
        ):
            if not least <= value <= most:
                raise ConfigurationError(f"{name} is {value}, outside {least} to {most}")
        for name, value in (
            ("largest_clip_norm", self.largest_clip_norm),
            ("epsilon_budget", self.epsilon_budget),
        ):
            if not value > 0:
                raise ConfigurationError(f"{name} is {value}; it must be above 0")
        if not 0 < self.largest_weight_share <= 1:
            raise ConfigurationError(
                f"largest_weight_share is {self.largest_weight_share}; above 0, at most 1"
            )
        if not limits.MIN_DELTA <= self.delta < 1:
            raise ConfigurationError(
                f"delta is {self.delta}; at least {limits.MIN_DELTA:g}, below 1"
            )
        for fingerprint in self.known_peers:
            if _FINGERPRINT.fullmatch(fingerprint) is None:
                raise ConfigurationError(
                    f"known_peers holds {fingerprint[:70]!r}; 64 lower-case hex digits each"
                )

    @property
    def floors(self) -> Floors:
        """What is asked of the members and the survivors of a sealed round, or of a group."""
        return Floors(
            least_survivors=self.smallest_cohort,
            largest_weight_share=self.largest_weight_share,
            known_peers=self.known_peers,
            least_known_peers=self.least_known_peers,
        )

    def check(self, configuration: RoundConfiguration, own_weight: int) -> None:
        """Hold a verified configuration against the limits, all but the budget.

        Raises: RoundRefused with the name of the limit as `metadata["limit"]`.
        """
        if not any(fnmatchcase(configuration.model_id, pattern) for pattern in self.models):
            raise RoundRefused(
                f"the round trains {configuration.model_id}; the owner allows models of "
                f"{', '.join(self.models)[:200]}",
                limit="models",
            )
        self._check_mode(configuration.mode)
        if configuration.attempt > self.largest_attempt:
            raise RoundRefused(
                f"this is attempt {configuration.attempt} of the round; the owner allows "
                f"{self.largest_attempt}",
                limit="largest_attempt",
            )
        # In a grouped round a client is in the sum of its own group.
        grouping = configuration.grouping
        least = configuration.min_survivors if grouping is None else grouping.min_group_survivors
        if least < self.smallest_cohort:
            where = "" if grouping is None else "a group of "
            raise RoundRefused(
                f"{where}the round may end with {least} clients; "
                f"the owner wants at least {self.smallest_cohort}",
                limit="smallest_cohort",
            )
        # Written so that a NaN refuses.
        if not configuration.clip_norm <= self.largest_clip_norm:
            raise RoundRefused(
                f"the round's clip norm is {configuration.clip_norm:g}; "
                f"the owner allows {self.largest_clip_norm:g}",
                limit="largest_clip_norm",
            )
        if not configuration.noise_multiplier >= self.least_noise_multiplier:
            raise RoundRefused(
                f"the round's noise multiplier is {configuration.noise_multiplier:g}; "
                f"the owner wants at least {self.least_noise_multiplier:g}",
                limit="least_noise_multiplier",
            )
        share = own_weight / configuration.total_weight
        if share > self.largest_weight_share:
            raise RoundRefused(
                f"this client would have {share:.1%} of the weight; "
                f"the owner allows {self.largest_weight_share:.1%}",
                limit="largest_weight_share",
            )

    def check_epsilon(self, epsilon: float) -> None:
        """Hold what would have been spent after a round against the budget.

        Raises: BudgetExceeded.
        """
        # Written so that a NaN refuses.
        if not epsilon <= self.epsilon_budget:
            told = "no bound at all (too little noise)" if math.isinf(epsilon) else f"{epsilon:.4g}"
            raise BudgetExceeded(
                f"after this round the client's own ledger would stand at an epsilon of {told} at "
                f"delta {self.delta:g} (unit: client; relation: contribution-set-to-zero); "
                f"the owner allows {self.epsilon_budget:g}",
                limit="epsilon_budget",
            )

    def _check_mode(self, mode: RoundMode) -> None:
        if mode not in self.modes:
            allowed = ", ".join(sorted(mode.name.lower() for mode in self.modes))
            raise RoundRefused(
                f"the round's mode is {mode.name.lower()}; the owner allows {allowed}",
                limit="modes",
            )
        if self.least_known_peers > 0 and mode is RoundMode.OPEN:
            raise RoundRefused(
                f"a round of mode {mode.name.lower()} shows no peers; the owner wants to know "
                f"{self.least_known_peers} of them",
                limit="least_known_peers",
            )


def is_own_refusal(error: MeshError) -> bool:
    """Whether this client refused a round for its owner's sake, and not the mesh the client."""
    return (
        isinstance(error, RoundRefused | WeightRefused | BudgetExceeded)
        and "grpc_code" not in error.metadata
    )
