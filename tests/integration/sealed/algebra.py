"""Modules over the ring of integers modulo 2^bits: spans, membership, kernels.

The ring of masked vectors is Z_2^24, which is no field: an even number has no inverse. So nothing
here divides but by units. Rows are brought into an echelon form with Howell's property (Howell
1986, "Spans in the module (Z_m)^s"): whatever the module holds that begins with zeros in the first
j columns is spanned by the rows that begin there. Membership and kernels follow from it.

The elimination: of all rows the one whose entry has the fewest factors of two becomes the column's
pivot, since it divides the others. A pivot 2^v with v > 0 leaves something behind, the pivot's row
times 2^(bits - v), which is zero in that column and takes part in the columns after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from boltz_protocol.limits import WIRE_BITS

Row = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Module:
    """A submodule of (Z_2^bits)^width, as rows in echelon form.

    Attributes:
        pivots: column and row, by ascending column; the row's entry there is a power of two, and
            everything before it is zero.
    """

    width: int
    bits: int
    pivots: tuple[tuple[int, Row], ...]

    @classmethod
    def spanned(cls, rows: Iterable[Sequence[int] | Row], width: int, bits: int) -> Module:
        """What these rows span."""
        assert bits <= 31, "products stay within 62 bits"
        ring = 1 << bits
        active = [np.array(row, np.int64) % ring for row in rows]
        assert all(row.shape == (width,) for row in active), "rows of the module's width"
        pivots = []
        for column in range(width):
            entries = [
                (_twos(int(row[column])), at) for at, row in enumerate(active) if row[column]
            ]
            if not entries:
                continue
            twos, place = min(entries)
            pivot = active.pop(place)
            pivot = pivot * pow(int(pivot[column]) >> twos, -1, ring) % ring
            active = [
                (row - (row[column] >> twos) * pivot) % ring if row[column] else row
                for row in active
            ]
            if twos:
                active.append((pivot << (bits - twos)) % ring)
            pivots.append((column, pivot))
        return cls(width, bits, tuple(pivots))

    @property
    def generators(self) -> list[Row]:
        """The rows."""
        return [row for _, row in self.pivots]

    def __contains__(self, vector: Sequence[int] | Row) -> bool:
        ring = 1 << self.bits
        rest = np.array(vector, np.int64) % ring
        for column, row in self.pivots:
            if rest[column] % row[column]:
                return False
            rest = (rest - (rest[column] // row[column]) * row) % ring
        return not rest.any()

    def same_as(self, other: Module) -> bool:
        """Whether both hold the same vectors."""
        assert (self.width, self.bits) == (other.width, other.bits), "of the same space"
        return all(row in other for row in self.generators) and all(
            row in self for row in other.generators
        )


def kernel(matrix: Sequence[Sequence[int]] | npt.NDArray[np.int64], bits: int) -> Module:
    """All c with c @ matrix = 0 modulo 2^bits.

    Args:
        matrix: (rows, columns).
    """
    height = len(matrix)
    left = np.array(matrix, np.int64).reshape(height, -1)
    width = left.shape[1]
    # What is spanned is (c @ matrix, c) for all c; by Howell's property those with zeros in front
    # are spanned by the pivots behind the matrix.
    both = Module.spanned(np.hstack([left, np.eye(height, dtype=np.int64)]), width + height, bits)
    return Module(
        height,
        bits,
        tuple((column - width, row[width:]) for column, row in both.pivots if column >= width),
    )


def centred(values: Row, bits: int = WIRE_BITS) -> Row:
    """Representatives from -2^(bits - 1) to 2^(bits - 1) - 1."""
    half = 1 << (bits - 1)
    return (values + half) % (1 << bits) - half


def _twos(value: int) -> int:
    """How often 2 divides a number above zero."""
    return (value & -value).bit_length() - 1
