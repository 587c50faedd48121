"""The wire form of a sealed round: encoded integers, this client's noise share and its masks.

`EncodedDelta -> MaskedUpdate`, the counterpart of `update.OpenUpdate`. A chunk is made when it is
drawn, in memory of one chunk's size; the encoded values are never written to. Drawing one again
would put fresh noise under the same mask, and the difference of the two would show it, so a chunk
can be drawn once and in order only: whoever may have to send it again keeps its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from boltz_protocol.keystream import Keystream
from boltz_protocol.limits import CHUNK_PARAMETERS, WIRE_BYTES
from boltz_protocol.noise import DiscreteGaussian
from boltz_protocol.packing import pack24_wrapped
from boltz_protocol.secagg.masks import MaskStream, apply_masks
from boltz_protocol.update import EncodedDelta, chunk_count, chunk_slice


class MaskedUpdate:
    """A source of masked 24-bit chunks, each drawn once and in order; see `masked_update`.

    Used by one thread. Masks are forgotten with the last chunk.
    """

    __slots__ = ("_encoded", "_next", "_noise", "_noise_stream", "_scratch", "_streams")

    def __init__(
        self,
        encoded: EncodedDelta,
        streams: Sequence[MaskStream],
        noise: DiscreteGaussian | None,
        noise_stream: Callable[[], Keystream],
    ) -> None:
        self._encoded = encoded
        self._streams = tuple(streams)
        self._noise = noise
        self._noise_stream = noise_stream
        self._next = 0
        self._scratch = np.empty(min(CHUNK_PARAMETERS, encoded.values.size), dtype=np.int32)

    def __repr__(self) -> str:
        return f"MaskedUpdate(next chunk {self._next} of {self.chunks}, hidden)"

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return chunk_count(self._encoded.values.size)

    @property
    def size_bytes(self) -> int:
        """Packed bytes of all chunks together."""
        return self._encoded.values.size * WIRE_BYTES

    def chunk(self, index: int) -> memoryview:
        """The packed bytes of the next chunk; `index` says which one the caller means.

        Any other index than the next one is a broken invariant and asserts.
        """
        assert index == self._next, "each chunk is drawn once, in order"
        part = chunk_slice(index, self._encoded.values.size)
        # Counted before anything can fail: half a draw is not repeated either.
        self._next += 1
        values = self._encoded.values[part]
        masked = self._scratch[: values.size]
        if self._noise is None:
            np.copyto(masked, values)
        else:
            self._noise.sample_into(masked, self._noise_stream())
            np.add(masked, values, out=masked)
        ring = masked.view(np.uint32)
        apply_masks(ring, index, self._streams)
        if self._next == self.chunks:
            self._streams = ()
        return pack24_wrapped(ring)

    def __iter__(self) -> Iterator[memoryview]:
        """The chunks that were not drawn yet, in order."""
        return (self.chunk(index) for index in range(self._next, self.chunks))


def masked_update(
    encoded: EncodedDelta,
    streams: Sequence[MaskStream],
    noise: DiscreteGaussian | None,
    *,
    noise_stream: Callable[[], Keystream] = Keystream.fresh,
) -> MaskedUpdate:
    """The wire form for a round whose server may see nothing but the noised sum.

    Args:
        encoded: the integers; they must not change before the last chunk is drawn.
        streams: this client's self mask and pair masks, for this update and no other.
        noise: sampler of this client's noise share, or None in a round without noise.
        noise_stream: makes the keystream of each chunk's noise; known ones are for tests only.
    """
    return MaskedUpdate(encoded, streams, noise, noise_stream)
