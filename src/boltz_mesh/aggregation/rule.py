"""Which rules may have noise calibrated to them: those with a proven sensitivity, by type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class ProvenRule(Protocol):
    """A rule of sums whose sensitivity is proved, in the docstring of its `l2_sensitivity`.

    `calibration` takes nothing else, so that a rule without the method (every one of
    `boltz_mesh.aggregation.robust`) cannot be handed to it: a type checker refuses it.
    """

    @property
    def name(self) -> str:
        """The word for it in `plan.toml`."""
        ...

    def l2_sensitivity(self, n: int, f: int, clip: int, weights: Sequence[int]) -> int:
        """L2 bound on the change of the noised quantity when one contribution is set to zero.

        Args:
            n: survivors.
            f: how many of them may be hostile.
            clip: L2 bound of an encoded contribution (`Encoding.bound_l2`), in units of the ring.
            weights: of the survivors, public integers.

        Returns:
            A bound in units of the ring, for whatever data the clients have. It does not grow when
            survivors are left out: it is declared for a plan's largest cohort, and neither the
            noise nor the ledger may depend on who survived.
        """
        ...
