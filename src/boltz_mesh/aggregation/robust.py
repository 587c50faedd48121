"""Rules that some liars cannot bend, over blocks of coordinates.

A rule is an `init` on public weights and, where the rule `measures`, on the inner products of all
rows, and an `apply` on any block of coordinates: memory does not grow with clients x parameters.
All of them are one shape: rows are replaced by combinations of rows, and those are averaged
without the lowest and highest values of each coordinate. Weights are trust x sample count x data
quality, as committed before the round; what is dropped is counted in rows, whatever they weigh, so
that a heavy liar is dropped like a light one.

None of these proves a bound on what one contribution changes, so none has an `l2_sensitivity`, and
noise cannot be calibrated to them (`rule`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from boltz_mesh.aggregation.coefficients import krum, mixing, weiszfeld
from boltz_mesh.aggregation.rows import Float64Array, FloatArray, Rows
from boltz_mesh.aggregation.trimming import blocks_of, trimmed_mean_of
from boltz_protocol import limits
from boltz_protocol.errors import InvalidPlan, LimitExceeded, NotFinite, TooFewClients

#: The heaviest row there can be: a group of all clients, which weighs what its members do.
_MAX_ROW_WEIGHT: Final = limits.MAX_ROSTER * limits.MAX_WEIGHT


@dataclass(frozen=True, slots=True)
class RuleState:
    """What a rule has decided on before it looks at single coordinates.

    Attributes:
        mixing: (u, n) float64, the different combinations of the n rows; None where rows stay as
            they are.
        places: (m,) int64, which of those the m rows that are averaged are. Rows with the same
            neighbours have one mix, computed once: its copies are equal bit by bit, and no rounding
            decides which of them is dropped.
        weights: (m,) float64, positive, of what is averaged, adding up to 1.
        trimmed: how many of the m values are dropped at either end of each coordinate.
    """

    mixing: Float64Array | None = field(repr=False)
    places: NDArray[np.int64] = field(repr=False)
    weights: Float64Array = field(repr=False)
    trimmed: int


class RobustRule(Protocol):
    """A rule that looks at each row, and so needs `Rows`."""

    @property
    def name(self) -> str:
        """The word for it in `plan.toml`."""
        ...

    @property
    def minimum_clients(self) -> int:
        """Rows that it takes at least."""
        ...

    @property
    def measures(self) -> bool:
        """Whether `init` needs the inner products of the rows (`gram_of`)."""
        ...

    def init(self, weights: NDArray[np.int64], gram: Float64Array | None) -> RuleState:
        """Decide on what does not depend on single coordinates.

        Args:
            weights: (n,) int64, positive, in the order of the rows.
            gram: (n, n) float64, `gram_of` added up over all blocks; None unless `measures`.

        Raises: TooFewClients; LimitExceeded for more than MAX_ROBUST_ROWS rows; NotFinite for rows
            whose inner products leave float64.
        """
        ...

    def apply(self, state: RuleState, rows: Rows) -> Float64Array:
        """The aggregate of one block of coordinates: (k,) float64. Same bits for the same block."""
        ...


def gram_of(rows: Rows) -> Float64Array:
    """Inner products of one block's rows: (n, n) float64. Those of a whole vector are the sum."""
    return gram_of_values(rows.values)


def gram_of_values(values: FloatArray) -> Float64Array:
    """`gram_of` on an array: (n, k) float32 or float64 to (n, n) float64."""
    gram = np.zeros((len(values), len(values)))
    for _, block in blocks_of(values):
        gram += block @ block.T
    return gram


def apply_values(state: RuleState, values: FloatArray) -> Float64Array:
    """`RobustRule.apply` on an array: (n, k) to (k,) float64."""
    rows = len(state.places) if state.mixing is None else state.mixing.shape[1]
    assert len(values) == rows, "the state is of other rows"
    result = np.empty(values.shape[1], np.float64)
    for place, block in blocks_of(values):
        averaged = block if state.mixing is None else (state.mixing @ block)[state.places]
        result[place] = trimmed_mean_of(averaged, state.weights, state.trimmed)
    return result


class _Applied:
    """The `apply` that all rules share."""

    __slots__ = ()

    def apply(self, state: RuleState, rows: Rows) -> Float64Array:
        """See `RobustRule.apply`."""
        return apply_values(state, rows.values)


@dataclass(frozen=True, slots=True)
class CoordinateMedian(_Applied):
    """The median of each coordinate (Yin et al. 2018, definition 1).

    By count: weights matter between the two middle values of an even number of rows, and nowhere
    else. So of n rows, up to (n - 1) // 2 liars of whatever weight leave each coordinate between
    the lowest and the highest value of the honest rows.
    """

    name: ClassVar[str] = "coordinate-median"
    measures: ClassVar[bool] = False

    @property
    def minimum_clients(self) -> int:
        """One row is its own median."""
        return 1

    def init(self, weights: NDArray[np.int64], gram: Float64Array | None) -> RuleState:
        """See `RobustRule.init`."""
        shares = _checked(self, weights, gram)
        return _rows_themselves(shares, (len(shares) - 1) // 2)


@dataclass(frozen=True, slots=True)
class TrimmedMean(_Applied):
    """The weighted mean of each coordinate without its f lowest and f highest (`trimming`).

    What f liars can do, whatever they weigh. Each coordinate of the result lies between the lowest
    and the highest value of the honest rows: below a kept value lie f dropped ones, so that not all
    of f + 1 values at most as high are the liars'. Within that range, liars who stay among the kept
    count for at most W / (W + V) of the mean, W being the weight of the f heaviest rows and V that
    of the n - 3f lightest others (all of it where n <= 3f); with equal weights, f / (n - 2f).

    Attributes:
        byzantine: f, at least 0; n >= 2f + 1.
    """

    byzantine: int

    name: ClassVar[str] = "trimmed-mean"
    measures: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_byzantine(self.byzantine)

    @property
    def minimum_clients(self) -> int:
        """2f + 1."""
        return 2 * self.byzantine + 1

    def init(self, weights: NDArray[np.int64], gram: Float64Array | None) -> RuleState:
        """See `RobustRule.init`."""
        return _rows_themselves(_checked(self, weights, gram), self.byzantine)


@dataclass(frozen=True, slots=True)
class MixedTrimmedMean(_Applied):
    """Nearest-neighbour mixing, then the trimmed mean: the default without noise.

    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot and Stephan 2023, "Fixing by Mixing: A Recipe for
    Optimal Byzantine ML under Heterogeneity". Each row becomes the weighted mean of the n - f rows
    nearest to it (itself among them) and keeps its own weight; then f values are dropped at either
    end of each coordinate.

    What f liars can do, whatever they weigh. Let D be the largest distance of two honest rows. An
    honest row has n - f honest rows within D (itself among them), so all that it is mixed of lies
    within D, and so does its mix. By the trimmed mean's argument each coordinate lies between the
    lowest and the highest value of honest mixes, which makes the result lie no further than
    2 D sqrt(n - f) from any honest row.

    Attributes:
        byzantine: f, at least 0; n >= 2f + 1.
    """

    byzantine: int

    name: ClassVar[str] = "mixed-trimmed-mean"
    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_byzantine(self.byzantine)

    @property
    def minimum_clients(self) -> int:
        """2f + 1."""
        return 2 * self.byzantine + 1

    def init(self, weights: NDArray[np.int64], gram: Float64Array | None) -> RuleState:
        """See `RobustRule.init`."""
        shares = _checked(self, weights, gram)
        assert gram is not None
        mixes, places = np.unique(mixing(gram, shares, self.byzantine), axis=0, return_inverse=True)
        return RuleState(mixes, places.astype(np.int64), shares, self.byzantine)


@dataclass(frozen=True, slots=True)
class MultiKrum(_Applied):
    """The weighted mean of the rows with the nearest neighbours.

    Blanchard, El Mhamdi, Guerraoui and Stainer 2017, "Machine Learning with Adversaries: Byzantine
    Tolerant Gradient Descent", section 4. A row's score is the sum of the squared distances
    to the n - f - 2 other rows nearest to it; the `select` rows of lowest score are averaged.

    What f liars can do, whatever they weigh. Weights do not enter a score, so that a heavy liar is
    selected no sooner than a light one. A selected liar has, beside the other f - 1 at most,
    n - 2f - 1 honest rows among its n - f - 2 neighbours, and a score no higher than that of some
    honest row, which is at most (n - f - 2) D^2 (D as in `MixedTrimmedMean`): so it lies within
    D sqrt((n - f - 2) / (n - 2f - 1)) of the nearest of them, and the result within D more of any
    honest row. Within that, f selected liars count for their share of the selected weight.

    Attributes:
        byzantine: f, at least 0; n >= 2f + 3.
        select: rows that are averaged, 1 to n - f.
    """

    byzantine: int
    select: int

    name: ClassVar[str] = "multi-krum"
    measures: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_byzantine(self.byzantine)
        if self.select < 1:
            raise InvalidPlan(
                f"select: {self.select} rows have no mean; 1 would do", setting="select"
            )

    @property
    def minimum_clients(self) -> int:
        """2f + 3, and f more than are selected."""
        return max(2 * self.byzantine + 3, self.byzantine + self.select)

    def init(self, weights: NDArray[np.int64], gram: Float64Array | None) -> RuleState:
        """See `RobustRule.init`."""
        shares = _checked(self, weights, gram)
        assert gram is not None
        return _combination(krum(gram, shares, self.byzantine, self.select))


@dataclass(frozen=True, slots=True)
class GeometricMedian(_Applied):
    """The point with the least weighted sum of distances to the rows (`coefficients.weiszfeld`).

    What liars can do here depends on their weight and not on their number. With a share a < 1/2 of
    the weight, they move the result no further than 2 (1 - a) / (1 - 2a) times the honest rows'
    weighted mean distance from any point, measured from that point, and by the smoothing. From half
    of the weight on they decide alone.
    """

    name: ClassVar[str] = "geometric-median"
    measures: ClassVar[bool] = True

    @property
    def minimum_clients(self) -> int:
        """One row is its own median."""
        return 1

    def init(self, weights: NDArray[np.int64], gram: Float64Array | None) -> RuleState:
        """See `RobustRule.init`."""
        shares = _checked(self, weights, gram)
        assert gram is not None
        return _combination(weiszfeld(gram, shares))


def _rows_themselves(shares: Float64Array, trimmed: int) -> RuleState:
    return RuleState(None, np.arange(len(shares)), shares, trimmed)


def _combination(coefficients: Float64Array) -> RuleState:
    return RuleState(coefficients[None, :], np.zeros(1, np.int64), np.ones(1), 0)


def _check_byzantine(byzantine: int) -> None:
    if byzantine < 0:
        raise InvalidPlan(
            f"byzantine: {byzantine} liars cannot be; 0 would do", setting="byzantine"
        )


def _checked(
    rule: RobustRule, weights: NDArray[np.int64], gram: Float64Array | None
) -> Float64Array:
    """Check the arguments of `init`; each row's share of the weight: (n,) float64."""
    assert weights.ndim == 1
    assert weights.dtype == np.int64
    assert ((weights > 0) & (weights <= _MAX_ROW_WEIGHT)).all(), "they are public and committed"
    n = len(weights)
    if n < rule.minimum_clients:
        raise TooFewClients(
            f'rule: "{rule.name}" takes at least {rule.minimum_clients} clients or groups for the '
            f"liars it is to tolerate, and there are {n}",
            setting="rule",
            rule=rule.name,
            minimum=rule.minimum_clients,
        )
    if n > limits.MAX_ROBUST_ROWS:
        raise LimitExceeded(f"{n} rows of one rule; at most {limits.MAX_ROBUST_ROWS}")
    assert (gram is not None) == rule.measures
    if gram is not None:
        assert gram.shape == (n, n)
        if not np.isfinite(gram).all():
            raise NotFinite("an update is too long: its squared length leaves float64")
    return np.asarray(weights / weights.sum(), np.float64)
