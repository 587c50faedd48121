"""What the owner of the data accepts: limits that the mesh cannot change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from boltz_protocol.errors import ConfigurationError, RoundRefused
from boltz_protocol.messages import RoundConfiguration, RoundMode

#: Every mode of the contract.
ALL_MODES: Final = frozenset(RoundMode)


@dataclass(frozen=True, slots=True)
class OwnerLimits:
    """Rounds outside these are declined, and nothing is sent. The defaults refuse nothing.

    Attributes:
        modes: what the server may see of the delta.
        smallest_cohort: fewest survivors with which the round may go on.
        least_noise_multiplier: standard deviation of the noise over the sensitivity; 0 accepts
            rounds without noise.
        largest_weight_share: this client's weight over the total of the roster, above 0, at most 1.
    """

    modes: frozenset[RoundMode] = ALL_MODES
    smallest_cohort: int = 1
    least_noise_multiplier: float = 0.0
    largest_weight_share: float = 1.0

    def __post_init__(self) -> None:
        if not self.modes:
            raise ConfigurationError("the owner's limits allow no mode at all")
        if self.smallest_cohort < 1:
            raise ConfigurationError(f"smallest_cohort is {self.smallest_cohort}, below 1")
        if not self.least_noise_multiplier >= 0:
            raise ConfigurationError(
                f"least_noise_multiplier is {self.least_noise_multiplier}, below 0"
            )
        if not 0 < self.largest_weight_share <= 1:
            raise ConfigurationError(
                f"largest_weight_share is {self.largest_weight_share}; above 0, at most 1"
            )

    def check(self, configuration: RoundConfiguration, own_weight: int) -> None:
        """Hold a verified configuration against the limits. Raises: RoundRefused."""
        if configuration.mode not in self.modes:
            allowed = ", ".join(sorted(mode.name.lower() for mode in self.modes))
            raise RoundRefused(
                f"the round's mode is {configuration.mode.name.lower()}; the owner allows {allowed}"
            )
        if configuration.min_survivors < self.smallest_cohort:
            raise RoundRefused(
                f"the round may end with {configuration.min_survivors} clients; "
                f"the owner wants at least {self.smallest_cohort}"
            )
        # Written so that a NaN refuses.
        if not configuration.noise_multiplier >= self.least_noise_multiplier:
            raise RoundRefused(
                f"the round's noise multiplier is {configuration.noise_multiplier:g}; "
                f"the owner wants at least {self.least_noise_multiplier:g}"
            )
        share = own_weight / configuration.total_weight
        if share > self.largest_weight_share:
            raise RoundRefused(
                f"this client would have {share:.1%} of the weight; "
                f"the owner allows {self.largest_weight_share:.1%}"
            )
