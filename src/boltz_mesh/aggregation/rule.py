"""What an aggregation rule must declare before noise may be calibrated to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class AggregationRule(Protocol):
    """A rule that turns bounded contributions into one released vector.

    With noise on, a round takes only rules that have a sensitivity, and adds noise in proportion
    to it. The proof stands in the docstring of the rule's `l2_sensitivity`.
    """

    @property
    def name(self) -> str:
        """The word for it in `plan.toml`."""
        ...

    def l2_sensitivity(self, n: int, f: int, clip: float, weights: Sequence[int]) -> float | None:
        """L2 bound on the change of the noised quantity when one contribution is set to zero.

        Args:
            n: survivors.
            f: how many of them may be hostile; of use to robust rules.
            clip: L2 bound of an unweighted contribution, in any unit; the result has the same.
            weights: of the survivors, public integers.

        Returns:
            None when no bound is proved; such a rule runs without noise only, and no epsilon is
            printed.
        """
        ...
