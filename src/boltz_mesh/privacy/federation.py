"""Who is planned for: the cohort, its clip norm, its mode, and what may be assumed of it.

**Sampling** counts as 1 unless the caller says that it is only supposed. A smaller rate lowers
epsilon only where each client takes part by a coin of its own that the adversary, the server
included, does not see (Poisson sampling). The mesh's clients choose themselves when they come, and
rosters are published, so that its ledger charges rate 1.

**Noise in shares** (sealed rounds): each client adds noise of variance sigma^2 / (least survivors -
colluders), so that a sum with more survivors than the fewest has more noise than it is charged
with. Epsilon is that of the fewest; the error is that of the full cohort.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, get_args

from boltz_mesh.privacy import accountant
from boltz_mesh.privacy.mechanisms import require_sampling_rate
from boltz_protocol import limits
from boltz_protocol.errors import InvalidPlan
from boltz_protocol.secagg.graph import colluders

#: Who adds the noise: the mesh in `open` rounds, the clients in shares in `sealed` ones.
NoiseMode = Literal["open", "sealed"]
#: A delta that does for every cohort.
USUAL_DELTA: Final = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """Who trains, and how; everything but epsilon, noise and rounds.

    Args:
        clients: n, contributions to one sum, of equal weight.
        delta: from `limits.MIN_DELTA`, at most 1 / n.
        mode: who adds the noise.
        clip_norm: C, L2 bound of one contribution, in the model's unit.
        parameters: d, coordinates of the model.
        least_survivors: sealed: fewest contributions of a sum, the plan's `cohort.min`; all by
            default.
        corrupt_fraction: sealed: share of a roster that may pool what it knows with the server.
        sampling_rate: 1 for the mesh's rounds.
        supposed_sampling: the caller knows that a sampling rate below 1 is a supposition.

    Raises:
        InvalidPlan: the message names the setting and a value that would do.
    """

    clients: int
    delta: float = USUAL_DELTA
    mode: NoiseMode = "sealed"
    clip_norm: float = 1.0
    parameters: int = 1
    least_survivors: int | None = None
    corrupt_fraction: float = 0.05
    sampling_rate: float = 1.0
    supposed_sampling: bool = False

    def __post_init__(self) -> None:
        """Refuse what no plan could have."""
        require(
            self.mode in get_args(NoiseMode),
            "mode",
            f"{self.mode!r} is not one of {', '.join(get_args(NoiseMode))}; 'sealed' would do",
        )
        least = limits.MIN_SEALED_COHORT if self.mode == "sealed" else 1
        require(
            least <= self.clients <= limits.MAX_ROSTER,
            "clients",
            f"{self.clients} must be from {least} to {limits.MAX_ROSTER} in {self.mode} rounds; "
            "50 would do",
        )
        require(
            limits.MIN_DELTA <= self.delta <= 1 / self.clients,
            "delta",
            f"{self.delta} must be at least {limits.MIN_DELTA:g} and at most one over the clients "
            f"({1 / self.clients:.3g}), since a mechanism that gives one of them away has that "
            f"much; {USUAL_DELTA:g} would do",
        )
        require(
            limits.MIN_CLIP_NORM <= self.clip_norm <= limits.MAX_CLIP_NORM,
            "clip_norm",
            f"{self.clip_norm} must be from 2^-30 to 2^30; 1.0 would do",
        )
        require(
            1 <= self.parameters <= limits.MAX_COORDINATES,
            "parameters",
            f"{self.parameters} must be from 1 to {limits.MAX_COORDINATES}; 1000 would do",
        )
        require_sampling_rate(self.sampling_rate)
        require(
            self.sampling_rate == 1 or self.supposed_sampling,
            "sampling_rate",
            f"{self.sampling_rate} is not what the ledger charges: selection that is not provably "
            "random, secret and uniform counts as 1, and clients of the mesh come when they like; "
            "1 would do, and supposed_sampling for a what-if",
        )
        self._check_shares()

    def _check_shares(self) -> None:
        if self.mode == "open":
            require(
                self.least_survivors is None,
                "least_survivors",
                f"{self.least_survivors} says nothing in open rounds, where the mesh adds all the "
                "noise; leaving it out would do",
            )
            return
        require(
            self.least_survivors is None
            or limits.MIN_SEALED_COHORT <= self.least_survivors <= self.clients,
            "least_survivors",
            f"{self.least_survivors} must be from {limits.MIN_SEALED_COHORT} to the {self.clients} "
            f"clients; {self.clients} would do",
        )
        require(
            self.honest >= 1,
            "corrupt_fraction",
            f"{self.corrupt_fraction} of {self.clients} clients may be all {self.survivors} "
            "survivors, so that nobody's noise protects anyone; 0.05 would do",
        )

    @property
    def survivors(self) -> int:
        """Fewest contributions of a sum."""
        return self.clients if self.least_survivors is None else self.least_survivors

    @property
    def honest(self) -> int:
        """Sealed: shares that carry the accounted noise. Raises: InvalidPlan."""
        return self.survivors - colluders(self.clients, self.corrupt_fraction)

    @property
    def noise_growth(self) -> float:
        """Standard deviation of the noise of a full cohort's sum over the accounted one."""
        return math.sqrt(self.clients / self.honest) if self.mode == "sealed" else 1.0

    def accounted(self, noise_multiplier: float) -> float:
        """The noise multiplier that epsilon is computed from. Raises: InvalidPlan."""
        if self.mode == "sealed":
            return accountant.least_effective(noise_multiplier)
        return noise_multiplier


def require(holds: bool, setting: str, words: str) -> None:
    """Refuse `setting` in those words unless it holds. Raises: InvalidPlan."""
    if not holds:
        raise InvalidPlan(f"{setting} {words}", setting=setting)
