"""The client's way of an update: a frozen type for each stage, one function from each to the next.

`LocalDelta -> ClippedDelta -> WeightedDelta -> EncodedDelta -> OpenUpdate`, or `MaskedUpdate` in
place of the last (`masked_update`). Clipping and weighting only decide a factor; the product is
formed while rounding, so that a client holds its delta (4 bytes a parameter, never written to), the
encoded integers (4 more) and blocks of scratch.

A vector on the wire is the d parameters followed by the l lanes; chunk i holds coordinates
`i * CHUNK_PARAMETERS` up to the next multiple or the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from boltz_protocol.clip import clip_factor, joint_norm_l2, scaled_lanes
from boltz_protocol.clip_indicator import indicator, inner_clip_norm
from boltz_protocol.encoding import Encoding
from boltz_protocol.errors import ChunkOutOfOrder, MalformedMessage, ShapeMismatch, WeightRefused
from boltz_protocol.fixed_point import encode_vector
from boltz_protocol.keystream import Keystream
from boltz_protocol.limits import (
    CHUNK_PARAMETERS,
    MAX_COORDINATES,
    MAX_LANES,
    MAX_WEIGHT,
    WIRE_BYTES,
)
from boltz_protocol.packing import pack24_wrapped

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]

# What keeps a lane's unit comparable with the delta's; a metric's usual size over the delta's.
_LANE_SCALE_MAX: Final = 2.0**30


def chunk_count(coordinates: int) -> int:
    """Chunks of a vector of so many coordinates (parameters and lanes)."""
    return -(-coordinates // CHUNK_PARAMETERS)


def chunk_slice(index: int, coordinates: int) -> slice:
    """The coordinates of one chunk. Raises: ChunkOutOfOrder when there is no such chunk."""
    if not 0 <= index < chunk_count(coordinates):
        raise ChunkOutOfOrder(
            f"chunk {index} of a vector with {chunk_count(coordinates)} chunks", chunk=index
        )
    start = index * CHUNK_PARAMETERS
    return slice(start, min(start + CHUNK_PARAMETERS, coordinates))


def check_chunk_size(index: int, size_bytes: int, coordinates: int) -> None:
    """Refuse a chunk whose packed size is not the one its index asks for.

    Raises: ChunkOutOfOrder for an index beyond the vector; MalformedMessage for the size.
    """
    part = chunk_slice(index, coordinates)
    wanted = (part.stop - part.start) * WIRE_BYTES
    if size_bytes != wanted:
        raise MalformedMessage(
            f"chunk {index} has {size_bytes} bytes instead of {wanted}", chunk=index
        )


@dataclass(frozen=True, slots=True, eq=False)
class LocalDelta:
    """What training changed: new parameters minus old ones, and metrics that travel with it.

    Attributes:
        values: float32, shape (d,), contiguous; never written to.
        lanes: l metrics such as the sample-weighted loss, in their own units.

    Raises: ShapeMismatch on another dtype or shape, too many coordinates or lanes.
    """

    values: Float32Array = field(repr=False)
    lanes: tuple[float, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        values = self.values
        if values.dtype != np.float32 or values.ndim != 1 or not values.flags.c_contiguous:
            raise ShapeMismatch(
                f"a delta is a contiguous float32 vector, not {values.dtype} {values.shape}"
            )
        if len(self.lanes) > MAX_LANES:
            raise ShapeMismatch(f"{len(self.lanes)} lanes; at most {MAX_LANES} travel")
        if not 1 <= values.size <= MAX_COORDINATES - MAX_LANES:
            raise ShapeMismatch(f"a delta of {values.size} parameters")

    @classmethod
    def from_tensors(
        cls, tensors: Sequence[npt.NDArray[np.floating]], lanes: Sequence[float] = ()
    ) -> LocalDelta:
        """Concatenate tensors, each in C order, in the order of the model's manifest.

        Raises: ShapeMismatch on a dtype that is not a real floating-point type.
        """
        for index, tensor in enumerate(tensors):
            if tensor.dtype.kind != "f":
                raise ShapeMismatch(f"tensor {index} has dtype {tensor.dtype}, not a real type")
        size = sum(tensor.size for tensor in tensors)
        values = np.empty(size, dtype=np.float32)
        start = 0
        for tensor in tensors:
            # An overflow to infinity is refused, with its offset, when the norm is taken.
            with np.errstate(over="ignore"):
                np.copyto(
                    values[start : start + tensor.size].reshape(tensor.shape),
                    tensor,
                    casting="same_kind",
                )
            start += tensor.size
        return cls(values, tuple(lanes))


@dataclass(frozen=True, slots=True, eq=False)
class ClippedDelta:
    """`factor * (values, lanes)`, whose L2 norm is at most `clip_norm_l2`; not formed yet.

    Attributes:
        values: float32, shape (d,), as in the `LocalDelta`.
        lanes: l lanes in the delta's unit; the clip indicator's, where there is one, is the last.
        factor: in (0, 1].
        clip_norm_l2: C.
        norm_l2: joint norm before clipping, without the indicator; private to the client.
    """

    values: Float32Array = field(repr=False)
    lanes: tuple[float, ...] = field(repr=False)
    factor: float = field(repr=False)
    clip_norm_l2: float
    norm_l2: float = field(repr=False)


def clip(
    delta: LocalDelta, *, clip_norm_l2: float, lane_scale: float = 1.0, indicator_scale: float = 0.0
) -> ClippedDelta:
    """Bound `|| (delta, lane_scale * lanes) ||` by C; with a clip indicator, append its lane, and
    bound what goes before it by C' (`clip_indicator`), so that the whole is within C again.

    Args:
        indicator_scale: of the indicator's lane, at most C; 0 for no such lane.

    Raises: NotFinite naming the first offset or lane that is not finite.
    """
    assert 0 < lane_scale <= _LANE_SCALE_MAX, "the plan's lane scale was checked on arrival"
    lanes = scaled_lanes(delta.lanes, lane_scale)
    norm = joint_norm_l2(delta.values, lanes)
    bound = clip_norm_l2 if indicator_scale == 0 else inner_clip_norm(clip_norm_l2, indicator_scale)
    factor = clip_factor(norm, bound)
    if indicator_scale:
        # The factor is not for the indicator: what is divided here is multiplied while rounding.
        lanes = (*lanes, indicator_scale * indicator(factor) / factor)
    return ClippedDelta(
        values=delta.values,
        lanes=lanes,
        factor=factor,
        clip_norm_l2=clip_norm_l2,
        norm_l2=norm,
    )


@dataclass(frozen=True, slots=True, eq=False)
class WeightedDelta:
    """`(weight / max_weight) * clipped`, the client's contribution in reals.

    Attributes:
        clipped: the bounded delta.
        weight: the client's committed weight, 1 to `max_weight`.
        max_weight: the largest weight of the round, at most 255.
    """

    clipped: ClippedDelta
    weight: int
    max_weight: int


def weigh(clipped: ClippedDelta, *, weight: int, max_weight: int) -> WeightedDelta:
    """Attach the committed weight. Raises: WeightRefused when it is not 1 to `max_weight`."""
    if not 1 <= weight <= max_weight <= MAX_WEIGHT:
        raise WeightRefused(
            f"weight {weight} of at most {max_weight}; weights are 1 to {MAX_WEIGHT}",
            weight=weight,
        )
    return WeightedDelta(clipped=clipped, weight=weight, max_weight=max_weight)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedDelta:
    """Integers of the ring, no longer than the round's bound.

    Attributes:
        values: int32, shape (d + l,): parameters, then lanes.
        lanes: l.
        encoding: the numbers' agreement.
    """

    values: Int32Array = field(repr=False)
    lanes: int
    encoding: Encoding


def encode(
    weighted: WeightedDelta,
    encoding: Encoding,
    *,
    stream: Keystream | None = None,
    out: Int32Array | None = None,
) -> EncodedDelta:
    """Round stochastically, with a fresh keystream unless a test hands one in.

    Args:
        weighted: the contribution in reals.
        encoding: of the round.
        stream: known bits, in tests only.
        out: int32 memory of shape (d + l,) to write into. A client that takes part in round after
            round keeps it: touching fresh memory costs more than all of the arithmetic. The
            `EncodedDelta` of the round before is void then.

    Raises:
        ShapeMismatch: parameters and lanes are not as many as the encoding says.
        NormExceeded: see `fixed_point.encode_vector`.
    """
    clipped = weighted.clipped
    coordinates = clipped.values.size + len(clipped.lanes)
    if coordinates != encoding.coordinates:
        raise ShapeMismatch(
            f"{clipped.values.size} parameters and {len(clipped.lanes)} lanes; the round has "
            f"{encoding.coordinates} coordinates"
        )
    assert clipped.clip_norm_l2 == encoding.clip_norm_l2, "clipped to the encoding's norm"
    values = encode_vector(
        clipped.values,
        clipped.lanes,
        clipped.factor * (weighted.weight / weighted.max_weight),
        encoding,
        Keystream.fresh() if stream is None else stream,
        out=out,
    )
    return EncodedDelta(values=values, lanes=len(clipped.lanes), encoding=encoding)


@dataclass(frozen=True, slots=True, eq=False)
class OpenUpdate:
    """The unmasked wire form of an `open` round: a source of 24-bit chunks, packed on demand."""

    encoded: EncodedDelta

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return chunk_count(self.encoded.values.size)

    @property
    def size_bytes(self) -> int:
        """Packed bytes of all chunks together."""
        return self.encoded.values.size * WIRE_BYTES

    def chunk(self, index: int) -> memoryview:
        """The packed bytes of one chunk. Raises: ChunkOutOfOrder when there is no such chunk."""
        values = self.encoded.values[chunk_slice(index, self.encoded.values.size)]
        # No range to check: no coordinate is larger than the norm, and `encode` has checked that
        # against the encoding's bound, which is below 2^23.
        return pack24_wrapped(values.view(np.uint32))

    def __iter__(self) -> Iterator[memoryview]:
        """All chunks in order."""
        return (self.chunk(index) for index in range(self.chunks))


def open_update(encoded: EncodedDelta) -> OpenUpdate:
    """The wire form for a round whose server may see each update."""
    return OpenUpdate(encoded)
