"""What an aggregation rule must declare before noise may be calibrated to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class AggregationRule(Protocol):
    """A rule that turns bounded contributions into one released vector.

    With noise on, a round takes only rules that have a sensitivity, and adds noise in proportion
    to it (`calibration`). The proof stands in the docstring of the rule's `l2_sensitivity`.
    """

    @property
    def name(self) -> str:
        """The word for it in `plan.toml`."""
        ...

    def l2_sensitivity(self, n: int, f: int, clip: int, weights: Sequence[int]) -> int | None:
        """L2 bound on the change of the noised quantity when one contribution is set to zero.

        Args:
            n: survivors.
            f: how many of them may be hostile; of use to robust rules.
            clip: L2 bound of an encoded contribution (`Encoding.bound_l2`), in units of the ring.
            weights: of the survivors, public integers.

        Returns:
            A bound in units of the ring, for whatever data the clients have. It does not grow when
            survivors are left out: it is declared for a plan's largest cohort, and neither the
            noise nor the ledger may depend on who survived. None when no bound is proved; such a
            rule runs without noise only, and no epsilon is printed.
        """
        ...
