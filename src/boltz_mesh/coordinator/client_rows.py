"""The deltas of single clients, in an open round that protects none of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np

from boltz_mesh.aggregation.rows import ClientRows, Unprotected
from boltz_mesh.coordinator.range_check import UInt32Array, signed
from boltz_mesh.coordinator.rows import Admitted, Float64Array, Int32Array, Int64Array
from boltz_mesh.coordinator.stored import StoredUpdate, chunk_room, read_chunk
from boltz_mesh.storage.blobs import BlobStore
from boltz_protocol import limits
from boltz_protocol.encoding import integer_bound_l2
from boltz_protocol.messages import RoundConfiguration
from boltz_protocol.packing import add_packed24, norm_squared_packed24, unpack24
from boltz_protocol.sealing import round_encoding
from boltz_protocol.update import chunk_slice

#: Coordinates of a block of rows: 32 MiB of float64 at MAX_ROBUST_ROWS.
_BLOCK: Final = 1 << 14


@dataclass(frozen=True, slots=True)
class ClientSource:
    """Rows that are clients' deltas.

    Attributes:
        members: in the order of the roster.
        witness: that the round allows it.
    """

    blobs: BlobStore
    configuration: RoundConfiguration
    members: tuple[StoredUpdate, ...]
    witness: Unprotected

    @property
    def names(self) -> tuple[str, ...]:
        """See `RowSource`."""
        return tuple(member.client_id for member in self.members)

    @property
    def weights(self) -> Int64Array:
        """See `RowSource`."""
        return np.array([member.weight for member in self.members], np.int64)

    def chunk(self, index: int) -> ClientChunk:
        """See `RowSource`."""
        configuration = self.configuration
        coordinates = configuration.coordinates
        part = chunk_slice(index, coordinates)
        return ClientChunk(
            packed=tuple(
                read_chunk(self.blobs, member, index, chunk_room(index, coordinates))
                for member in self.members
            ),
            units=configuration.max_weight / (configuration.scale * self.weights),
            witness=self.witness,
            size=part.stop - part.start,
        )

    def admit(self, squares: Sequence[int | None]) -> Admitted[Self]:
        """All of them, each clipped to its own share of the clip norm.

        An update that arrives is held to the bound of the largest weight alone; a client of little
        weight that used all of it would have a delta far beyond the clip norm. Whoever keeps to
        its share, rounding included, is left as it is.
        """
        encoding = round_encoding(self.configuration)
        factors = np.ones(len(self.members))
        for place, (member, square) in enumerate(zip(self.members, squares, strict=True)):
            assert square is not None, "an update is checked when it arrives"
            share = encoding.clip_units * member.weight / self.configuration.max_weight
            bound = integer_bound_l2(share, encoding.coordinates)
            if square > bound**2:
                factors[place] = bound / math.sqrt(square)
        return Admitted(self, tuple(range(len(self.members))), factors)


@dataclass(frozen=True, slots=True)
class ClientChunk:
    """One chunk of every client's update, packed as it came.

    Attributes:
        units: (n,) float64, what a unit of the ring is in each client's own delta.
        size: coordinates.
    """

    packed: tuple[memoryview, ...] = field(repr=False)
    units: Float64Array
    witness: Unprotected
    size: int

    def total(self) -> Int32Array:
        """See `ChunkRows`."""
        accumulator: UInt32Array = np.zeros(self.size, np.uint32)
        for each in self.packed:
            add_packed24(accumulator, each)
        return signed(accumulator)

    def squares(self) -> list[int | None]:
        """See `ChunkRows`."""
        return [norm_squared_packed24(each) for each in self.packed]

    def blocks(self) -> Iterator[tuple[slice, ClientRows]]:
        """See `ChunkRows`."""
        for start in range(0, self.size, _BLOCK):
            part = slice(start, min(start + _BLOCK, self.size))
            values = np.empty((len(self.packed), part.stop - part.start), np.float64)
            inside = slice(part.start * limits.WIRE_BYTES, part.stop * limits.WIRE_BYTES)
            for place, each in enumerate(self.packed):
                np.multiply(unpack24(each[inside]), self.units[place], out=values[place])
            yield part, ClientRows(values, self.witness)
