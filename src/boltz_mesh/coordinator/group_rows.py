"""The sums of a round's groups: without their masks, with their noise, and within their range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from boltz_mesh.aggregation.rows import GroupRows, NoisedGroupSum
from boltz_mesh.coordinator.range_check import AggregateOutOfRange, SumRange, UInt32Array, signed
from boltz_mesh.coordinator.rows import Admitted, Int32Array, Int64Array
from boltz_mesh.coordinator.stored import StoredUpdate, chunk_room, read_chunk
from boltz_mesh.storage.blobs import BlobStore
from boltz_protocol.messages import RoundConfiguration
from boltz_protocol.packing import add_packed24, norm_squared24
from boltz_protocol.secagg.masks import MaskStream, apply_masks
from boltz_protocol.update import chunk_slice

#: Group -> what takes the masks off its sum.
Masks = Mapping[int, Sequence[MaskStream]]
#: Coordinates of a block of rows: 16 MiB of float32 at MAX_ROBUST_ROWS.
_BLOCK: Final = 1 << 14


def by_group(updates: Sequence[StoredUpdate]) -> dict[int, tuple[StoredUpdate, ...]]:
    """The updates of each sum, by place of the group; one sum in open and sealed rounds."""
    groups: dict[int, list[StoredUpdate]] = {}
    for update in updates:
        groups.setdefault(update.group, []).append(update)
    return {group: tuple(groups[group]) for group in sorted(groups)}


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums of a round, without their masks.

    Attributes:
        groups: by place, in order; those that have survivors.
    """

    blobs: BlobStore
    configuration: RoundConfiguration
    groups: dict[int, tuple[StoredUpdate, ...]]
    masks: Masks = field(repr=False)

    def chunk(self, index: int) -> Iterator[UInt32Array]:
        """One chunk of each group's sum, (k,) uint32, right modulo 2^24.

        Raises: NotFound, DecryptionFailed, MalformedMessage.
        """
        coordinates = self.configuration.coordinates
        part = chunk_slice(index, coordinates)
        room = chunk_room(index, coordinates)
        for group, members in self.groups.items():
            accumulator: UInt32Array = np.zeros(part.stop - part.start, np.uint32)
            for update in members:
                add_packed24(accumulator, read_chunk(self.blobs, update, index, room))
            apply_masks(accumulator, index, self.masks.get(group, ()))
            yield accumulator


@dataclass(frozen=True, slots=True)
class GroupSource:
    """Rows that are groups' means."""

    sums: Sums
    in_range: SumRange

    @property
    def names(self) -> tuple[str, ...]:
        """See `RowSource`."""
        return tuple(str(group) for group in self.sums.groups)

    @property
    def weights(self) -> Int64Array:
        """See `RowSource`."""
        members = self.sums.groups.values()
        return np.array([sum(each.weight for each in group) for group in members], np.int64)

    def chunk(self, index: int) -> GroupChunk:
        """See `RowSource`."""
        configuration = self.sums.configuration
        members = self.sums.groups
        sums: list[NoisedGroupSum] = []
        failed: dict[int, AggregateOutOfRange] = {}
        for (group, updates), weight, accumulator in zip(
            members.items(), self.weights.tolist(), self.sums.chunk(index), strict=True
        ):
            try:
                values = signed(accumulator)
                self.in_range.check_coordinates(values, len(updates))
            except AggregateOutOfRange as error:
                failed[group] = error
                values = np.zeros(accumulator.size, np.int32)
            scale, max_weight = configuration.scale, configuration.max_weight
            sums.append(NoisedGroupSum(group, values, scale, max_weight, weight))
        return GroupChunk(tuple(sums), failed)

    def admit(self, squares: Sequence[int | None]) -> Admitted[GroupSource]:
        """The groups whose sums their clients can have made.

        The others are left out: one client that floods the sum of its group must not end the round.
        """
        groups = self.sums.groups
        places = tuple(
            place
            for place, (square, members) in enumerate(zip(squares, groups.values(), strict=True))
            if square is not None and self._can_have(square, len(members))
        )
        names = list(groups)
        kept = {names[place]: groups[names[place]] for place in places}
        source = GroupSource(replace(self.sums, groups=kept), self.in_range)
        return Admitted(source, places, np.ones(len(places)))

    def _can_have(self, square: int, survivors: int) -> bool:
        try:
            self.in_range.check_norm(square, survivors)
        except AggregateOutOfRange:
            return False
        return True


@dataclass(frozen=True, slots=True)
class GroupChunk:
    """One chunk of every group's sum.

    Attributes:
        failed: by group, why its chunk is out of range; it is zero here.
    """

    sums: tuple[NoisedGroupSum, ...] = field(repr=False)
    failed: dict[int, AggregateOutOfRange]

    def total(self) -> Int32Array:
        """See `ChunkRows`. A group out of range rejects all."""
        for error in self.failed.values():
            raise error
        total = self.sums[0].values.copy()
        # MAX_ROBUST_ROWS numbers of 24 bits at most.
        for each in self.sums[1:]:
            np.add(total, each.values, out=total)
        return total

    def squares(self) -> list[int | None]:
        """See `ChunkRows`."""
        return [
            None if each.group in self.failed else norm_squared24(each.values) for each in self.sums
        ]

    def blocks(self) -> Iterator[tuple[slice, GroupRows]]:
        """See `ChunkRows`."""
        size = self.sums[0].values.size
        for start in range(0, size, _BLOCK):
            part = slice(start, min(start + _BLOCK, size))
            block = tuple(replace(each, values=each.values[part]) for each in self.sums)
            yield part, GroupRows(block)
