"""What a fold may look at of a round row by row, chunk by chunk.

In an `open` round without noise the rows are the clients' deltas (`client_rows`), and in a
`grouped` round the means of the groups, with all of their noise (`group_rows`). No other round has
a source of rows. A chunk of every row is in memory at once, and is handed out in blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from boltz_mesh.aggregation.rows import Rows

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


class ChunkRows(Protocol):
    """One chunk of every row."""

    def total(self) -> Int32Array:
        """The sum of what the rows are made of, (k,) int32 in units of the ring.

        Raises: AggregateOutOfRange.
        """
        ...

    def squares(self) -> list[int | None]:
        """By row its squared length in units of the ring; None where it is out of range."""
        ...

    def blocks(self) -> Iterator[tuple[slice, Rows]]:
        """The rows in the delta's unit, and where in the chunk each block of them lies.

        A row that is out of range is zero.
        """
        ...


class RowSource(Protocol):
    """Rows in a fixed order. Any thread may ask."""

    @property
    def names(self) -> tuple[str, ...]:
        """Client ids, or places of groups."""
        ...

    @property
    def weights(self) -> Int64Array:
        """(n,) int64, public: of a client, or of the survivors of a group together."""
        ...

    def chunk(self, index: int) -> ChunkRows:
        """Raises: NotFound, DecryptionFailed, MalformedMessage."""
        ...

    def admit(self, squares: Sequence[int | None]) -> Admitted[RowSource]:
        """Which of the rows a robust rule gets, and how long.

        Args:
            squares: squared lengths of whole rows, as in `ChunkRows.squares`.
        """
        ...


S_co = TypeVar("S_co", bound=RowSource, covariant=True)


@dataclass(frozen=True, slots=True)
class Admitted(Generic[S_co]):
    """The rows that a robust rule gets.

    Attributes:
        source: of these rows alone.
        places: where they were among all rows.
        factors: (m,), what each of them is multiplied by first; at most 1.
    """

    source: S_co
    places: tuple[int, ...]
    factors: Float64Array
