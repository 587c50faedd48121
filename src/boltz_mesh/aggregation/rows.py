"""The rows that a robust rule may look at: clients' own only without noise, groups' sums always.

A robust rule looks at each row by itself, which is what privacy by noise forbids for a client's. So
rows are typed by what allows them, and the rules take no others:

* `ClientRows` needs an `Unprotected`, which exists for mode "open" and privacy "none" only.
* `GroupRows` is made of `NoisedGroupSum`s. The noise is in them already, so that whatever is
  computed from them is post-processing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Self, final

import numpy as np
from numpy.typing import NDArray

from boltz_mesh.aggregation.weighted_mean import block_mean
from boltz_protocol.errors import NotFinite, ShapeMismatch

FloatArray = NDArray[np.float32 | np.float64]
Float64Array = NDArray[np.float64]
Int32Array = NDArray[np.int32]


def check_rows(values: FloatArray) -> None:
    """Check one block of rows: (n, k) float32 or float64, n >= 1, all of it finite.

    Raises: ShapeMismatch, NotFinite.
    """
    if values.ndim != 2 or values.shape[0] < 1 or values.dtype not in (np.float32, np.float64):
        raise ShapeMismatch(
            "updates are of shape (clients, parameters) and float32 or float64, not "
            f"{values.shape} and {values.dtype}"
        )
    if not np.isfinite(values).all():
        raise NotFinite("an update holds NaN or infinity")


@final
@dataclass(frozen=True, slots=True)
class Unprotected:
    """The witness that a round keeps no client's delta from its server, by its plan."""

    mode: Literal["open"]
    privacy: Literal["none"]

    def __post_init__(self) -> None:
        assert self.mode == "open", "only there the server may see a client's own delta"
        assert self.privacy == "none", "only then it may use one without noise"

    @classmethod
    def of(cls, mode: str, privacy: str) -> Self:
        """The witness of a round whose settings are known as text: asserts both."""
        assert (mode, privacy) == ("open", "none"), "only there and only then"
        return cls("open", "none")


@final
@dataclass(frozen=True, slots=True)
class ClientRows:
    """One block of the deltas of single clients, one a row, in the order of the roster.

    Attributes:
        values: (n, k) float32 or float64, in the delta's unit, each client's own: its weight is
            taken out again.
        witness: that the round allows it.

    Raises: ShapeMismatch, NotFinite.
    """

    values: FloatArray = field(repr=False)
    witness: Unprotected

    def __post_init__(self) -> None:
        check_rows(self.values)


@final
@dataclass(frozen=True, slots=True)
class NoisedGroupSum:
    """One block of one group's sum, unmasked, with all of its noise, after the range check.

    Attributes:
        group: its place in the round's configuration.
        values: (k,) int32, the sum of its survivors' encoded contributions and of the noise.
        scale: of the encoding, units of the ring in 1.0.
        max_weight: the largest weight of the roster.
        weight: the sum of its survivors' weights.
    """

    group: int
    values: Int32Array = field(repr=False)
    scale: float
    max_weight: int
    weight: int


@final
@dataclass(frozen=True, slots=True)
class GroupRows:
    """One block of the means of groups, one a row, in the order of the groups.

    Attributes:
        sums: the sums that the rows are made of, of the same coordinates, in increasing order of
            their groups.
        values: (n, k) float32, in the delta's unit.
    """

    sums: tuple[NoisedGroupSum, ...] = field(repr=False)
    values: FloatArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        groups = [each.group for each in self.sums]
        assert groups, "a round without a group has no result"
        assert groups == sorted(set(groups)), "one row a group, in order"
        means = [
            block_mean(each.values, each.scale, each.max_weight, each.weight) for each in self.sums
        ]
        object.__setattr__(self, "values", np.stack(means))


#: What the robust rules take.
Rows = ClientRows | GroupRows
