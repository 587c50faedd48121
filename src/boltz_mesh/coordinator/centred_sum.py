"""Centered clipping over stored updates: a pass for the lengths, then the sum chunk by chunk.

How far an update lies from the centre is known when all of its chunks were read, and the factor
that shortens it is needed for the first. So stored ciphertexts are read twice. Between the passes
there is kept one number for each update and chunk (of 2^18 coordinates) and nothing else; within
them there is one chunk of one update for each thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from boltz_mesh.aggregation.centered_step import (
    MAX_SQUARE,
    CenteredClipping,
    Shrinking,
    centre_units,
    shortened,
    shrinking,
)
from boltz_mesh.coordinator.centre import Centre
from boltz_mesh.coordinator.ordered import in_order
from boltz_mesh.coordinator.stored import FoldCancelled, StoredUpdate, chunk_room, read_chunk
from boltz_mesh.storage.blobs import BlobStore
from boltz_protocol.keystream import Keystream
from boltz_protocol.messages import RoundConfiguration
from boltz_protocol.packing import norm_squared24, unpack24
from boltz_protocol.update import chunk_count, chunk_slice

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class CentredUpdates:
    """The survivors' updates and what they are measured against.

    Attributes:
        members: in the order of their weights: those of one weight share their centre.
    """

    blobs: BlobStore
    configuration: RoundConfiguration
    centre: Centre
    members: tuple[StoredUpdate, ...]

    @classmethod
    def of(
        cls,
        blobs: BlobStore,
        configuration: RoundConfiguration,
        centre: Centre,
        updates: Sequence[StoredUpdate],
    ) -> Self:
        """Bring the updates into order."""
        members = tuple(sorted(updates, key=lambda update: update.weight))
        return cls(blobs, configuration, centre, members)

    def differences(self, index: int) -> Iterator[tuple[int, Int32Array, Int32Array]]:
        """Place of a member, x_i - c_i and c_i of one chunk, (k,) int32 each.

        Raises: NotFound, DecryptionFailed, MalformedMessage.
        """
        configuration = self.configuration
        room = chunk_room(index, configuration.coordinates)
        centre = self.centre.chunk(index)
        units = np.zeros(centre.size, np.int32)
        weight = 0
        for place, update in enumerate(self.members):
            if update.weight != weight:
                weight = update.weight
                units = centre_units(centre, configuration.scale, weight, configuration.max_weight)
            values = unpack24(read_chunk(self.blobs, update, index, room))
            values -= units
            yield place, values, units


@dataclass(frozen=True, slots=True)
class CentredSum:
    """Sums of terms, each no longer than its bound.

    Attributes:
        shrinkings: by place, of the members whose difference is too long.
        squares: (members, chunks) float64, squared lengths; exact below 2^53.
    """

    updates: CentredUpdates
    shrinkings: dict[int, Shrinking] = field(repr=False)
    squares: npt.NDArray[np.float64] = field(repr=False)

    @classmethod
    def measured(
        cls,
        updates: CentredUpdates,
        rule: CenteredClipping,
        executor: Executor,
        cancelled: threading.Event,
        *,
        ahead: int,
    ) -> Self:
        """The first pass. Blocks; call it from a thread that is not of `executor`.

        Raises: FoldCancelled; NotFound, DecryptionFailed, MalformedMessage.
        """
        configuration, members = updates.configuration, updates.members
        chunks = chunk_count(configuration.coordinates)
        squares = np.zeros((len(members), chunks), np.float64)
        totals = [0] * len(members)

        def one_chunk(index: int) -> list[int]:
            if cancelled.is_set():
                raise FoldCancelled
            return [norm_squared24(values) for _, values, _ in updates.differences(index)]

        with contextlib.closing(in_order(executor, one_chunk, chunks, ahead=ahead)) as measured:
            for index, found in enumerate(measured):
                for place, square in enumerate(found):
                    totals[place] += square
                    squares[place, index] = min(square, MAX_SQUARE)
        parts = [chunk_slice(index, configuration.coordinates) for index in range(chunks)]
        sizes = np.array([part.stop - part.start for part in parts], np.int64)
        bounds = [rule.term_bound(each.weight, configuration.max_weight) for each in members]
        return cls(
            updates,
            {
                place: shrinking(squares[place], sizes, bound)
                for place, (total, bound) in enumerate(zip(totals, bounds, strict=True))
                if total > bound**2
            },
            squares,
        )

    def chunk(self, index: int) -> tuple[Int32Array, Int32Array]:
        """The sum of the terms and that of their centres, (k,) int32 each; the latter is public.

        Neither overflows: a term is within the round's bound, and so is a centre, which is no
        longer than the clip norm; the encoding leaves room for as many of them as the roster has.

        Raises: NotFound, DecryptionFailed, MalformedMessage.
        """
        part = chunk_slice(index, self.updates.configuration.coordinates)
        total = np.zeros(part.stop - part.start, np.int32)
        centres = np.zeros_like(total)
        for place, values, units in self.updates.differences(index):
            shrinking = self.shrinkings.get(place)
            if shrinking is None:
                seen = norm_squared24(values)
                assert seen == self.squares[place, index], "stored updates do not change"
                total += values
            else:
                total += shortened(
                    values,
                    shrinking.factor,
                    int(shrinking.allowances[index]),
                    Keystream.fresh(),
                )
            centres += units
        return total, centres
