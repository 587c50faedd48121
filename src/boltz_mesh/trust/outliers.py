"""How odd each row of an aggregation is beside the others: robust z-scores and a verdict.

A row is one client's delta (open rounds without noise) or one group's noised mean. What is known of
it are its norm, its distance to the robust result, its direction (cosine to the result), and its
agreement with it (the coefficient of its projection on the result: 1 for a row that equals it).

Scores are modified z-scores (Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993): the
distance to the median in units of the median absolute deviation (MAD), which half of the rows
may spoil without end before it breaks. Their factor 0.6745 makes the MAD a standard deviation for
large samples only and is far too narrow for the handful of groups of a round. So the MAD is
multiplied by the small-sample factors of Croux and Rousseeuw ("Time-efficient algorithms for two
highly robust estimators of scale", 1992) as well. It has a floor, since more than half of all norms
may be equal: clipped deltas have the clip norm.

Being odd is not being bad: a client with unusual data is far from all others, every time. A row is
held against somebody only where it is odd and pulls against what the others agree on by more than
half as much as a typical row pulls with it. All scores become integers in 1/256ths before anything
is decided, so that a verdict can be recomputed from what is written down, on every machine.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

#: Fewer rows have no "others" to be compared with: of 4, two liars are half.
MIN_ROWS: Final = 5
#: Unit of all recorded scores.
ONE: Final = 256
#: Beyond 3.5 a modified z-score marks an outlier (Iglewicz and Hoaglin 1993).
ODD_256: Final = 7 * ONE // 2
#: Scores and ratios beyond this are cut: 2^30 fits every language's integers.
_MOST_256: Final = 1 << 30
#: A MAD as a standard deviation of normal data, 1 / 0.6745.
_MAD_TO_SIGMA: Final = 1.4826
#: Factors of the MAD for 2 to 9 values (Croux and Rousseeuw 1992); from 10 on n / (n - 0.8).
_SMALL: Final = (1.196, 1.495, 1.363, 1.206, 1.200, 1.140, 1.129, 1.107)
#: Least scale of norms and distances, as a share of their median, and of cosines and agreements:
#: differences of a few percent are never odd, however alike the others are.
_SCALE_FLOOR: Final = 0.05
#: A row shorter than this share of the median says nothing.
_SILENT_SHARE: Final = 1 / 64
#: Residuals closer than this, and as odd as twice ODD_256 beside all pairs, hint at collusion.
CLOSE: Final = 0.95
#: Where so many of all pairs are as close (a share), closeness tells nothing: a minority of rows is
#: less than a quarter of the pairs.
_CLOSE_SHARE: Final = 0.25


class Verdict(enum.StrEnum):
    """What a round says about a row, as a reason of evidence."""

    #: Within what the others do.
    ORDINARY = "goes-with-the-others"
    #: Within what the others do, though it does not pull their way.
    IDLE = "pulls-no-way"
    #: Next to nothing was sent.
    SILENT = "next-to-nothing"
    #: Odd, but not harmful: unusual data looks so.
    UNUSUAL = "unusual"
    #: Pulls against the others, from within their distances.
    AGAINST = "against-the-others"
    #: Pulls against the others from far away.
    OPPOSED = "far-and-against-the-others"


@dataclass(frozen=True, slots=True)
class Reading:
    """What is recorded about one row, in 1/256ths where it says so.

    Attributes:
        row: client id, or the number of a group.
        rows: how many rows there were.
        members: how many clients it is the mean of: 1 in open rounds.
        weight: of the row.
        rank_256: place by distance to the result, 0 for the nearest, 256 for the farthest.
        norm_z_256: longer (above 0) or shorter than the others.
        distance_z_256: farther (above 0) or nearer.
        direction_z_256: cosine lower (above 0) or higher.
        agreement_z_256: agreement lower (above 0) or higher.
        cosine_256: to the result; `typical_cosine_256` is the rows' median.
        agreement_256: with the result; `typical_256` is the rows' median.
        silent: shorter than 1/64 of the median norm.
        influence: fall of the validation loss that it brings (`trust.contribution`), where known.
    """

    row: str
    rows: int
    members: int
    weight: int
    rank_256: int
    norm_z_256: int
    distance_z_256: int
    direction_z_256: int
    agreement_z_256: int
    cosine_256: int
    typical_cosine_256: int
    agreement_256: int
    typical_256: int
    silent: bool
    influence: float | None = None

    @property
    def agreed(self) -> bool:
        """Whether the rows have a direction in common that one of them can pull against.

        n rows that have nothing in common have cosines of about 1 / sqrt(n) to their mean, since
        each is a part of it. Then the model is where it should be, or noise covers the rows, and
        which way a row points says nothing. So the median has to be 1.5 times that.
        """
        cosine_256 = self.typical_cosine_256
        clear = 4 * self.rows * cosine_256 * cosine_256 > 9 * ONE * ONE
        return clear and cosine_256 > 0 and self.typical_256 > 0

    def implied_256(self, share_256: int) -> int | None:
        """The agreement of one member as a multiple of a typical row's, were all others typical.

        A row is the mean of its members by weight, and agreement is linear. So a member with the
        share s of the row's weight that is as unlike the others as the row shows has
        1 + (agreement / typical - 1) / s: 1 for a typical member, 0 for one that sends nothing or
        something orthogonal, -1 for one whose sign is turned.

        Args:
            share_256: the member's share of the row's weight, 1 to 256.

        None where the rows agree on nothing (`agreed`).
        """
        assert 1 <= share_256 <= ONE
        if not self.agreed:
            return None
        ratio_256 = ONE * self.agreement_256 // self.typical_256
        return _cut(ONE + ONE * (ratio_256 - ONE) // share_256)

    @property
    def verdict(self) -> Verdict:
        """What it comes to. Integers only; the inputs are the attributes."""
        if self.silent:
            return Verdict.SILENT
        if self._pulls_against and not (self.influence is not None and self.influence > 0):
            return Verdict.OPPOSED if self.distance_z_256 > ODD_256 else Verdict.AGAINST
        odd = (abs(self.norm_z_256), self.distance_z_256, self.direction_z_256)
        if max(odd) > ODD_256:
            return Verdict.UNUSUAL
        helps = self.agreement_256 > 0 if self.influence is None else self.influence > 0
        return Verdict.ORDINARY if helps else Verdict.IDLE

    @property
    def _pulls_against(self) -> bool:
        """Odd in direction, and by more than half a typical row against the result.

        One member of a group cannot turn the group's direction, only shorten its agreement: there
        what a member of equal share would have sent is asked about, and the agreement is what is to
        be odd. A single client's direction must be as clearly against the result as its pull: a
        long row at a right angle has a large agreement of either sign by chance.
        """
        implied = self.implied_256(max(1, ONE // self.members))
        if implied is None or 2 * implied >= -ONE:
            return False
        if self.members > 1:
            return self.agreement_z_256 > ODD_256
        turned = 2 * self.cosine_256 < -self.typical_cosine_256
        return turned and self.direction_z_256 > ODD_256


def robust_z(values: Float64Array, *, floor: float) -> Float64Array:
    """Modified z-scores, float64, of n values (n >= 2), finite; 0 is the median.

    Args:
        values: (n,) float64, finite.
        floor: the least scale, above 0 or with all values equal to 0.
    """
    assert values.ndim == 1
    assert len(values) >= 2
    count = len(values)
    away = values - np.median(values)
    factor = _SMALL[count - 2] if count <= len(_SMALL) + 1 else count / (count - 0.8)
    scale = max(float(np.median(np.abs(away))) * _MAD_TO_SIGMA * factor, floor)
    if scale == 0:
        # The median is 0, and so is the scale of what spreads by a share of it: any other value is
        # odd beyond measure.
        return np.where(away == 0, 0.0, np.copysign(_MOST_256 / ONE, away))
    with np.errstate(over="ignore"):
        return away / scale


def read_rows(
    rows: Sequence[str],
    members: Sequence[int],
    weights: Sequence[int],
    *,
    norms: Float64Array,
    distances: Float64Array,
    cosines: Float64Array,
    agreements: Float64Array,
    influences: Sequence[float] | None = None,
) -> tuple[Reading, ...]:
    """Readings of n rows, in order; none where there are fewer than MIN_ROWS.

    Args:
        rows, members, weights: n of each; see Reading.
        norms, distances: (n,) float64, not negative, finite.
        cosines, agreements: (n,) float64, finite.
        influences: n, where the operator has a validation set.
    """
    count = len(rows)
    if count < MIN_ROWS:
        return ()
    assert len(members) == len(weights) == len(norms) == len(distances) == count
    norm_z = robust_z(norms, floor=_SCALE_FLOOR * float(np.median(norms)))
    distance_z = robust_z(distances, floor=_SCALE_FLOOR * float(np.median(distances)))
    direction_z = -robust_z(cosines, floor=_SCALE_FLOOR)
    agreement_z = -robust_z(agreements, floor=_SCALE_FLOOR)
    # A row's rank is how many are nearer, so that equal rows have equal ranks.
    nearer = (distances[:, None] > distances[None, :]).sum(axis=1)
    shortest = _SILENT_SHARE * float(np.median(norms))
    typical_cosine, typical = _in_256(np.median(cosines)), _in_256(np.median(agreements))
    return tuple(
        Reading(
            row=rows[index],
            rows=count,
            members=members[index],
            weight=weights[index],
            rank_256=ONE * int(nearer[index]) // (count - 1),
            norm_z_256=_in_256(norm_z[index]),
            distance_z_256=_in_256(distance_z[index]),
            direction_z_256=_in_256(direction_z[index]),
            agreement_z_256=_in_256(agreement_z[index]),
            cosine_256=_in_256(cosines[index]),
            typical_cosine_256=typical_cosine,
            agreement_256=_in_256(agreements[index]),
            typical_256=typical,
            silent=bool(norms[index] <= shortest),
            influence=None if influences is None else float(influences[index]),
        )
        for index in range(count)
    )


def close_sets(closeness: Float64Array) -> tuple[tuple[int, ...], ...]:
    """Sets of rows whose residuals are far closer to each other than the cohort's.

    A hint of collusion or of one party behind several clients, never a proof: two honest desks with
    the same data look so. Rows that are linked by a chain of close pairs are one set.

    Args:
        closeness: (n, n) float64, symmetric: cosines between the rows less the result.

    Returns sets of at least two indices in order; none with fewer than MIN_ROWS rows, or where a
    quarter of all pairs or more are as close (in few dimensions everybody is close to somebody).
    """
    count = len(closeness)
    if count < MIN_ROWS:
        return ()
    first, second = np.triu_indices(count, k=1)
    pairs = closeness[first, second]
    odd = robust_z(pairs, floor=_SCALE_FLOOR) > 2 * ODD_256 / ONE
    close = odd & (pairs >= CLOSE)
    if not close.any() or close.sum() >= _CLOSE_SHARE * len(pairs):
        return ()
    chains: dict[int, set[int]] = {}
    for one, other in zip(first[close].tolist(), second[close].tolist(), strict=True):
        joined = chains.get(one, {one}) | chains.get(other, {other})
        chains.update(dict.fromkeys(joined, joined))
    return tuple(sorted({tuple(sorted(chain)) for chain in chains.values()}))


def _in_256(value: float) -> int:
    # An infinity, from a scale next to 0, is cut like any large number.
    return round(max(-_MOST_256, min(_MOST_256, float(value) * ONE)))


def _cut(value_256: int) -> int:
    return max(-_MOST_256, min(_MOST_256, value_256))
