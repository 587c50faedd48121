"""From a rule's declared sensitivity to the noise of an open round: the only way to it.

The noise on a sum is a discrete Gaussian of parameter sigma = z * sensitivity, z being the plan's
noise multiplier (Canonne, Kamath and Steinke 2020, "The Discrete Gaussian for Differential
Privacy", theorem 7: rho = 1 / (2 z^2), whatever the number of coordinates). The ledger's event is
written from the same object that the noise is drawn from, so the two cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from boltz_mesh.aggregation.rule import ProvenRule
from boltz_protocol import limits
from boltz_protocol.errors import InvalidPlan


@dataclass(frozen=True, slots=True)
class Calibration:
    """Noise that covers one client's whole influence on a sum.

    Attributes:
        noise_multiplier: z, at least 0; 0 means no noise.
        sensitivity: of the sum, in units of the ring, as the rule declares it. A round without
            noise under a rule that declares none is `Calibration(0.0, clip)`: an entry of the
            ledger that promises nothing names some figure.
    """

    noise_multiplier: float
    sensitivity: int

    @property
    def sigma_squared(self) -> Fraction:
        """Variance parameter of a coordinate's noise, in squared ring units, exact."""
        return (Fraction(self.noise_multiplier) * self.sensitivity) ** 2

    def check_covers(
        self, rule: ProvenRule, *, clip: int, weights: Sequence[int], hostile: int = 0
    ) -> None:
        """Assert that the rule's bound for the survivors of a sum is no more than this.

        Args:
            clip, weights: as in `calibrate`, of the survivors.
        """
        if self.noise_multiplier > 0:
            declared = rule.l2_sensitivity(len(weights), hostile, clip, weights)
            assert declared <= self.sensitivity, "a rule's bound does not grow with fewer survivors"


def calibrate(
    rule: ProvenRule,
    *,
    noise_multiplier: float,
    clip: int,
    weights: Sequence[int],
    hostile: int = 0,
) -> Calibration:
    """The noise of a rule's sum.

    Args:
        noise_multiplier: z.
        clip: L2 bound of an encoded contribution, in units of the ring.
        weights: of the clients, as many as there may be.
        hostile: how many of them the rule is to withstand.

    Raises: InvalidPlan when the noise is too small or too large to be drawn;
        `metadata["setting"]` names what to change.
    """
    declared = rule.l2_sensitivity(len(weights), hostile, clip, weights)
    assert declared >= 1, "a bound of a contribution that may be something"
    sigma = noise_multiplier * declared
    if noise_multiplier > 0 and not limits.MIN_SIGMA <= sigma <= limits.MAX_SIGMA:
        would_do = min(max(sigma, limits.MIN_SIGMA), limits.MAX_SIGMA) / declared
        raise InvalidPlan(
            f"noise_multiplier: {noise_multiplier:g} is noise of {sigma:g} ring units for a "
            f"sensitivity of {declared}, outside {limits.MIN_SIGMA} to {limits.MAX_SIGMA}; "
            f"{would_do:.6g} would do",
            setting="noise_multiplier",
        )
    return Calibration(noise_multiplier, declared)
