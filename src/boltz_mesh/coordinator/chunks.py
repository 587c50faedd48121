"""One chunk of an aggregate: from the stored updates, under whatever rule the round has."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boltz_mesh.aggregation.observations import Observer
from boltz_mesh.aggregation.rows import Unprotected
from boltz_mesh.coordinator.centred_sum import CentredSum
from boltz_mesh.coordinator.client_rows import ClientSource
from boltz_mesh.coordinator.group_rows import GroupSource, Sums
from boltz_mesh.coordinator.range_check import SumRange, signed
from boltz_mesh.coordinator.robust_sum import RobustSum
from boltz_mesh.coordinator.rows import ChunkRows, Float64Array, Int32Array, RowSource
from boltz_mesh.coordinator.stored import FoldCancelled, StoredUpdate
from boltz_mesh.trust.outliers import MIN_ROWS
from boltz_protocol import limits
from boltz_protocol.keystream import Keystream
from boltz_protocol.messages import PRIVACY_NONE, RoundConfiguration, RoundMode
from boltz_protocol.noise import DiscreteGaussian
from boltz_protocol.packing import norm_squared24
from boltz_protocol.update import chunk_slice


@dataclass(frozen=True, slots=True)
class Made:
    """One chunk of the aggregate.

    Attributes:
        values: (k,) int32.
        square: its squared length, of what is held to a range; 0 under a robust rule, where every
            row was.
        seen: of the rows, where there are any to see.
    """

    values: Int32Array
    square: int
    seen: Observer | None = None


@dataclass(frozen=True, slots=True)
class Chunks:
    """How the chunks of one aggregate are made, by any thread and in any order.

    Attributes:
        noise: that the mesh adds.
        unit: of the aggregate, in the delta's unit.
        source: rows that may be looked at; None where there are none.
        centred, robust: first passes; None under other rules.
        slope: see `Summing`.
    """

    sums: Sums
    noise: DiscreteGaussian | None
    in_range: SumRange
    survivors: int
    unit: float
    source: RowSource | None
    centred: CentredSum | None
    robust: RobustSum | None
    slope: Float64Array | None
    cancelled: threading.Event

    def observer(self) -> Observer | None:
        """With nothing added yet; None where nothing would come of it."""
        if self.source is None or len(self.source.names) < MIN_ROWS:
            return None
        return Observer.init(self.source.names, tuple(self.source.weights.tolist()))

    def make(self, index: int) -> Made:
        """One chunk. Raises: as `Folder.fold`."""
        if self.cancelled.is_set():
            raise FoldCancelled
        rows = None if self.source is None else self.source.chunk(index)
        values, square = self._made(index, rows)
        seen = self.observer()
        if seen is not None and rows is not None:
            slope = self._slope(index, len(values))
            for part, block in rows.blocks():
                result = values[part].astype(np.float64) * self.unit
                seen.add(block, result, None if slope is None else slope[part])
        return Made(values, square, seen)

    def _slope(self, index: int, size: int) -> Float64Array | None:
        """What rows are measured along in a chunk, (size,): 0 for lanes, which no model has."""
        if self.slope is None:
            return None
        values = np.zeros(size)
        part = chunk_slice(index, self.sums.configuration.coordinates)
        found = self.slope[part]
        values[: len(found)] = found
        return values

    def _made(self, index: int, rows: ChunkRows | None) -> tuple[Int32Array, int]:
        """The chunk and the squared length of what is held to a range."""
        if self.robust is not None:
            assert rows is not None
            part = chunk_slice(index, self.sums.configuration.coordinates)
            return self.robust.chunk(rows, part.stop - part.start, self.unit), 0
        if self.centred is not None:
            terms, centres = self.centred.chunk(index)
            self._add_noise(terms)
            self.in_range.check_coordinates(terms, self.survivors)
            square = norm_squared24(terms)
            return np.add(terms, centres, out=terms), square
        if rows is None:
            total = self._added_up(index)
        else:
            total = rows.total()
            self.in_range.check_coordinates(total, self.survivors)
        return total, norm_squared24(total)

    def _added_up(self, index: int) -> Int32Array:
        """The sum, with its noise."""
        total: Int32Array | None = None
        counted = 0
        groups = self.sums.groups.values()
        for members, accumulator in zip(groups, self.sums.chunk(index), strict=True):
            chunk = signed(accumulator)
            self._add_noise(chunk)
            self.in_range.check_coordinates(chunk, len(members))
            counted += len(members)
            if total is None:
                total = chunk
                continue
            # Two numbers of 24 bits. The encoding leaves room for the sum and the noise of the
            # whole roster, so that the total, too, stays within them.
            np.add(total, chunk, out=total)
            self.in_range.check_coordinates(total, counted)
        assert total is not None, "an aggregate has survivors"
        return total

    def _add_noise(self, values: Int32Array) -> None:
        """Central noise, where the round has any, in place."""
        if self.noise is not None:
            self.noise.add_into(values, Keystream.fresh())


def row_source(updates: Sequence[StoredUpdate], sums: Sums, in_range: SumRange) -> RowSource | None:
    """The rows that may be looked at; None where there are none, or more than can be compared."""
    configuration = sums.configuration
    if configuration.mode is RoundMode.GROUPED:
        return GroupSource(sums, in_range) if len(sums.groups) <= limits.MAX_ROBUST_ROWS else None
    if (
        configuration.mode is not RoundMode.OPEN
        or configuration.privacy != PRIVACY_NONE
        or len(updates) > limits.MAX_ROBUST_ROWS
    ):
        return None
    witness = Unprotected.of("open", configuration.privacy)
    return ClientSource(sums.blobs, configuration, tuple(updates), witness)


def unit_of(configuration: RoundConfiguration, total_weight: int) -> float:
    """What a unit of a sum over so much weight is in its mean."""
    return configuration.max_weight / (configuration.scale * total_weight)
