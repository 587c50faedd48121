"""What one simulation runs: mode, rule, clients, and the numbers that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final, get_args

from boltz_mesh.aggregation.calibration import Calibration, calibrate
from boltz_mesh.aggregation.centered_step import CenteredClipping
from boltz_mesh.aggregation.weighted_mean import WEIGHTED_MEAN, WeightedMean
from boltz_mesh.app.demo.desks import tensors_of
from boltz_mesh.app.demo.plans import SEALING
from boltz_mesh.app.demo.settings import DeskLayout, ModelKind, Preset
from boltz_mesh.rounds.plan_robust import RobustChoice
from boltz_mesh.rounds.plan_rule import DEFAULT_RADIUS
from boltz_mesh.rounds.plan_types import Mode, RobustRuleName, Rule
from boltz_protocol import limits
from boltz_protocol.encoding import Encoding, plan_encoding
from boltz_protocol.noise_share import share_variance
from boltz_protocol.secagg.graph import colluders
from boltz_protocol.secagg.groups import colluders_of_group

#: The default first.
ROBUST: Final[tuple[RobustRuleName, ...]] = get_args(RobustRuleName)


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way of running the demo's federation.

    Attributes:
        mode, rule: of the plan. Where there is no noise, `open` is with privacy "none".
        layout, preset: desks and training, as in the demo; noise multiplier 0 for none.
        clients: n.
        groups: of a grouped round; 0 in other modes.
        attackers: f, at least 1. The rule is set to withstand so many, and no more.
        sample_bucket_cap: of the plan: sample counts beyond 2^cap add no weight.
    """

    mode: Mode
    rule: Rule
    kind: ModelKind
    layout: DeskLayout
    preset: Preset
    clients: int
    groups: int
    attackers: int
    sample_bucket_cap: int

    @property
    def fewest(self) -> int:
        """Clients that a round needs at least: those of its rule, or of the groups of its rule."""
        choice = self.robust
        rows = limits.MIN_SEALED_COHORT if choice is None else choice.fewest_rows
        return limits.MIN_GROUP * rows if self.mode == "grouped" else rows

    @property
    def robust(self) -> RobustChoice | None:
        """The rule where it is a robust one."""
        return RobustChoice(self.rule, self.attackers) if self.rule in ROBUST else None

    @property
    def rows(self) -> int:
        """What the rule compares: clients, or groups."""
        return self.groups if self.mode == "grouped" else self.clients

    def groups_for(self, clients: int) -> int:
        """Groups of a round with so many clients, not fewer than `fewest`: the plan's, or as many
        as there are clients for, as an operator would set it after quarantines.
        """
        return min(self.groups, clients // limits.MIN_GROUP)

    @property
    def rounds(self) -> int:
        """Of one training run."""
        return self.preset.rounds

    @property
    def noised(self) -> bool:
        """Whether the mesh promises anything."""
        return self.preset.noise_multiplier > 0

    @property
    def coordinates(self) -> int:
        """d."""
        size = 0
        for _, shape in tensors_of(self.kind):
            tensor = 1
            for side in shape:
                tensor *= side
            size += tensor
        return size

    def encoding(self) -> Encoding:
        """The agreement about numbers, by the product's planner. Raises: InvalidPlan."""
        return plan_encoding(
            clip_norm_l2=self.preset.clip_norm_l2,
            noise_multiplier=self.preset.noise_multiplier,
            cohort_max=self.clients,
            coordinates=self.coordinates,
        )

    def sum_rule(self) -> WeightedMean | CenteredClipping:
        """The rule whose sensitivity an open round's noise is calibrated to."""
        if self.rule == "centered-clipping":
            return CenteredClipping.of(self.encoding(), DEFAULT_RADIUS)
        return WEIGHTED_MEAN

    def calibration(self) -> Calibration:
        """Of the sum of an open round. Raises: InvalidPlan."""
        return calibrate(
            self.sum_rule(),
            noise_multiplier=self.preset.noise_multiplier,
            clip=self.encoding().bound_l2,
            weights=(limits.MAX_WEIGHT,) * self.clients,
        )

    def share(self) -> Fraction:
        """Variance parameter of one client's share of a masked sum's noise.

        As in the demo's plan, a twentieth may collude with the server; all clients of a sum are to
        survive, which asks for the least noise. 0 without noise.

        Raises: InvalidPlan where a share is too small, or all of a group may collude.
        """
        if not self.noised:
            return Fraction(0)
        corrupt = SEALING.corrupt_fraction
        if self.mode == "sealed":
            return share_variance(
                self.encoding(),
                least_survivors=self.clients,
                colluders=colluders(self.clients, corrupt),
            )
        return share_variance(
            self.encoding(),
            least_survivors=self.clients // self.groups,
            colluders=colluders_of_group(self.clients, self.groups, corrupt),
        )
