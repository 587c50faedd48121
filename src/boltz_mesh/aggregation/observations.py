"""What an aggregation tells about each of its rows, measured while it is applied.

Only `Rows` are observed: deltas of clients that nobody asked to protect, or means of groups with
their noise in them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np

from boltz_mesh.aggregation.rows import Float64Array, Rows
from boltz_mesh.aggregation.trimming import blocks_of


@dataclass(frozen=True, slots=True)
class Observations:
    """Each row against the result, n rows in the order of the roster or of the groups.

    Attributes:
        rows: client ids, or numbers of groups as text.
        weights: of the rows.
        norms: (n,) float64, lengths of the rows, in the delta's unit.
        distances: (n,) float64, from the row to the result, in the delta's unit.
        cosines: (n,) float64, of the row and the result; 0 where either is 0.
        closeness: (n, n) float64, cosines of what two rows are beside the result: rows minus the
            result. Liars who act alike have a high one. 0 where either is the result itself.
        gains: (n,) float64, agreement: <row, result> / |result|^2, 1 for a row that goes exactly as
            far along the result as the result does; 0 where the result is 0.
        slopes: (n,) float64, <row, direction>, where there was a direction, such as the gradient of
            a validation loss; None otherwise.
    """

    rows: tuple[str, ...]
    weights: tuple[int, ...]
    norms: Float64Array = field(repr=False)
    distances: Float64Array = field(repr=False)
    cosines: Float64Array = field(repr=False)
    closeness: Float64Array = field(repr=False)
    gains: Float64Array = field(repr=False)
    slopes: Float64Array | None = field(default=None, repr=False)


@dataclass(slots=True)
class Observer:
    """Adds up, block by block, what `Observations` are computed from: n x n + 3n + 1 numbers.

    All in float64 and in the order of the blocks, so that the same blocks give the same bits.

    Attributes:
        rows, weights: as in `Observations`.
        squares: (n,), squared lengths of the rows so far.
        inner: (n,), inner products of the rows and the result.
        residuals: (n, n), inner products of the rows minus the result.
        result_square: squared length of the result.
        slopes: (n,), inner products of the rows and the direction; None until there is one.
    """

    rows: tuple[str, ...]
    weights: tuple[int, ...]
    squares: Float64Array = field(repr=False)
    inner: Float64Array = field(repr=False)
    residuals: Float64Array = field(repr=False)
    result_square: float = field(repr=False)
    slopes: Float64Array | None = field(default=None, repr=False)

    @classmethod
    def init(cls, rows: tuple[str, ...], weights: tuple[int, ...]) -> Self:
        """An observer of rows by these names and weights, with nothing added yet."""
        n = len(rows)
        assert n == len(weights) == len(set(rows))
        return cls(rows, weights, np.zeros(n), np.zeros(n), np.zeros((n, n)), 0.0)

    def add(self, rows: Rows, result: Float64Array, direction: Float64Array | None = None) -> None:
        """Add one block.

        Args:
            rows: (n, k), the block's rows.
            result: (k,) float64, what the rule made of them.
            direction: (k,) float64, the block of a vector along which rows are measured; with every
                block or with none.
        """
        assert rows.values.shape == (len(self.rows), len(result))
        if direction is not None:
            assert direction.shape == result.shape
            slopes = np.zeros(len(self.rows)) if self.slopes is None else self.slopes
            for place, block in blocks_of(rows.values):
                slopes += block @ direction[place]
            self.slopes = slopes
        for place, block in blocks_of(rows.values):
            part = result[place]
            self.squares += np.einsum("ij,ij->i", block, block)
            self.inner += block @ part
            self.result_square += float(part @ part)
            # From the difference itself: of a row close to the result, inner products with the
            # result would leave nothing but rounding.
            beside = block - part
            self.residuals += beside @ beside.T

    def include(self, other: Observer) -> None:
        """Add what another observer of the same rows has seen."""
        assert (other.rows, other.weights) == (self.rows, self.weights)
        self.squares += other.squares
        self.inner += other.inner
        self.residuals += other.residuals
        self.result_square += other.result_square
        if other.slopes is not None:
            self.slopes = other.slopes + (0.0 if self.slopes is None else self.slopes)

    def finish(self) -> Observations:
        """The observations of all blocks that were added."""
        norms = np.sqrt(self.squares)
        distances = np.sqrt(np.diagonal(self.residuals))
        return Observations(
            rows=self.rows,
            weights=self.weights,
            norms=norms,
            distances=distances,
            cosines=_cosines(self.inner, norms * np.sqrt(self.result_square)),
            closeness=_cosines(self.residuals, distances[:, None] * distances[None, :]),
            gains=_ratios(self.inner, np.full_like(self.inner, self.result_square)),
            slopes=self.slopes,
        )


def _ratios(above: Float64Array, below: Float64Array) -> Float64Array:
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _cosines(products: Float64Array, lengths: Float64Array) -> Float64Array:
    return np.clip(_ratios(products, lengths), -1.0, 1.0)
