"""The server's way of an update: packed chunks fold into a sum, the sum gets noise and is released.

`OpenUpdate chunks -> Accumulator -> Sum -> NoisedAggregate`. One array of 4 bytes a coordinate is
all that grows with the model, and nothing grows with the number of clients: the accumulator's
memory becomes the sum's and then the aggregate's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from boltz_protocol.encoding import Encoding
from boltz_protocol.keystream import Keystream
from boltz_protocol.noise import discrete_gaussian
from boltz_protocol.packing import PackedBytes, add_packed24, decode_sum
from boltz_protocol.update import chunk_count, chunk_slice

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]
UInt32Array = npt.NDArray[np.uint32]
#: `map`, or the `map` of a thread pool: runs a function over chunk indexes.
BlockMap = Callable[[Callable[[int], None], Iterable[int]], Iterable[None]]


class Accumulator:
    """A running sum modulo 2^24, shape (d + l,), uint32: the only array that grows with the model.

    Different threads may fold different chunks at the same time; two folds of one chunk index
    must not run at once.

    Args:
        coordinates: d + l.
        memory: int32 or uint32 of shape (d + l,) to work in, overwritten with zeros. A server that
            keeps it between rounds saves touching fresh memory; the aggregate of the round before,
            which lives there, is void then.
    """

    __slots__ = ("_values",)

    def __init__(self, coordinates: int, memory: UInt32Array | Int32Array | None = None) -> None:
        if memory is None:
            memory = np.zeros(coordinates, dtype=np.uint32)
        else:
            assert memory.shape == (coordinates,), "one number for each coordinate"
            memory.fill(0)
        self._values: UInt32Array | None = memory.view(np.uint32)

    def _open(self) -> UInt32Array:
        assert self._values is not None, "a finished accumulator takes nothing more"
        return self._values

    def fold(self, index: int, packed: PackedBytes) -> None:
        """Add one client's packed chunk.

        Raises: ChunkOutOfOrder for an index beyond the vector; MalformedMessage and ShapeMismatch
            for bytes that do not have the chunk's size.
        """
        values = self._open()
        add_packed24(values[chunk_slice(index, values.size)], packed)

    def merge(self, other: Accumulator) -> None:
        """Add another accumulator of the same size: another thread's, or another machine's."""
        values, more = self._open(), other._open()
        assert values.shape == more.shape, "accumulators of one round have one size"
        values += more

    def finish(
        self,
        *,
        encoding: Encoding,
        lanes: int,
        contributors: int,
        weight_total: int,
        max_weight: int,
        noised: bool = False,
    ) -> Sum:
        """Extend the signs in place and check the range; the accumulator is used up.

        Args:
            encoding: the round's.
            lanes: l.
            contributors: clients folded in.
            weight_total: the sum of their committed weights.
            max_weight: the largest weight of the round.
            noised: whether clients added noise themselves.

        Raises: NormExceeded when a coordinate is beyond what clip and noise allow.
        """
        values = self._open()
        assert values.size == encoding.coordinates, "one accumulator, one encoding"
        assert contributors <= weight_total <= contributors * max_weight, "weights of 1 to max"
        self._values = None
        return Sum(
            values=decode_sum(values, encoding.sum_limit(contributors, noised=noised)),
            lanes=lanes,
            encoding=encoding,
            contributors=contributors,
            weight_total=weight_total,
            max_weight=max_weight,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """The exact integer sum of a round's contributions. In `open` mode it is private.

    Attributes:
        values: int32, shape (d + l,).
        lanes: l.
        encoding: the round's.
        contributors, weight_total, max_weight: see `Accumulator.finish`.
    """

    values: Int32Array = field(repr=False)
    lanes: int
    encoding: Encoding
    contributors: int
    weight_total: int
    max_weight: int


@dataclass(frozen=True, slots=True, eq=False)
class NoisedAggregate:
    """The weighted mean with its noise: what may be stored, shown and published.

    Attributes:
        values: float32, shape (d,): the mean delta.
        lanes: l mean metrics in their own units.
        encoding: tells the noise: standard deviation `noise_multiplier * bound_l2` ring units.
        contributors: clients in the mean.
        weight_total: the sum of their weights.
    """

    values: Float32Array = field(repr=False)
    lanes: tuple[float, ...]
    encoding: Encoding
    contributors: int
    weight_total: int


def release(
    total: Sum,
    *,
    lane_scale: float = 1.0,
    central_noise: bool = True,
    streams: Callable[[int], Keystream] = lambda _chunk: Keystream.fresh(),
    run: BlockMap = map,
) -> NoisedAggregate:
    """Add central noise to a sum and divide by its weight, in place: `total` is used up.

    Args:
        total: the sum; its memory becomes the aggregate's.
        lane_scale: what lanes were multiplied with before clipping.
        central_noise: False when clients already added the noise. Without noise in the plan
            (multiplier 0) nothing is added either way.
        streams: a keystream for each chunk; a test may hand in known ones.
        run: maps a function over chunk indexes; the `map` of a thread pool uses more cores.
    """
    encoding = total.encoding
    variance = encoding.sigma_squared if central_noise else 0
    sampler = discrete_gaussian(variance) if variance else None
    # Exact powers of two and one rounding: the same float on every replica.
    unit = total.max_weight / total.weight_total * math.ldexp(1.0, -encoding.scale_log2)
    reals = total.values.view(np.float32)
    coordinates = total.values.size
    lane_units = np.zeros(total.lanes, dtype=np.float64)

    def one_chunk(index: int) -> None:
        part = chunk_slice(index, coordinates)
        if sampler is not None:
            sampler.add_into(total.values[part], streams(index))
        mean = total.values[part] * unit
        # Lanes keep float64: they are few, and reports show them.
        lanes_from = max(part.start, coordinates - total.lanes)
        if lanes_from < part.stop:
            where = lanes_from - (coordinates - total.lanes)
            here = mean[lanes_from - part.start :]
            lane_units[where : where + here.size] = here / lane_scale
        reals[part] = mean

    for _ in run(one_chunk, range(chunk_count(coordinates))):
        pass
    return NoisedAggregate(
        values=reals[: coordinates - total.lanes],
        lanes=tuple(lane_units.tolist()),
        encoding=encoding,
        contributors=total.contributors,
        weight_total=total.weight_total,
    )
