"""Conditional stochastic rounding: from reals to integers no longer than the round's bound.

Each coordinate becomes `rint(x * scale * 2^f)`; f random bits are added and shifted out, which
rounds up with a probability equal to the fraction, so that the mean is right. The whole vector is
drawn again while its exact integer norm is above `Encoding.bound_l2` (Kairouz et al. 2021,
section 4.1). The random bits are 16 a coordinate in order, little-endian, of which the upper f
count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from boltz_protocol.encoding import Encoding
from boltz_protocol.errors import NormExceeded
from boltz_protocol.keystream import Keystream
from boltz_protocol.limits import MAX_ROUNDING_DRAWS
from boltz_protocol.packing import norm_squared24
from boltz_protocol.squares import BLOCK, sum_of_squares

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]

# Room for rounding errors above 2^30 squared, and still every coordinate fits an int32.
_FIXED_NORM_SQUARED_MAX: Final = 2.0**61


def encode_vector(
    values: Float32Array,
    lanes: Sequence[float],
    factor: float,
    encoding: Encoding,
    stream: Keystream,
    *,
    out: Int32Array | None = None,
) -> Int32Array:
    """Round `factor * (values, lanes)` to ring units.

    Args:
        values: float32, shape (d,); left as it is.
        lanes: scaled lanes, l of them; d + l is `encoding.coordinates`.
        factor: clip factor times weight share; the product's norm is at most the clip norm.
        encoding: scale and bound.
        stream: `Keystream.fresh()` outside tests.
        out: memory for the result, int32, shape (d + l,), contiguous; fresh memory if None.

    Returns: int32, shape (d + l,), with an L2 norm of at most `encoding.bound_l2`.

    Raises: NormExceeded when no draw came out short enough, which happens to a vector within the
        clip norm with probability below exp(-32), and to one beyond it almost surely.
    """
    assert values.size + len(lanes) == encoding.coordinates, "the plan counts the lanes"
    if out is None:
        out = np.empty(encoding.coordinates, dtype=np.int32)
    assert out.shape == (encoding.coordinates,), "one integer for each coordinate"
    tail = np.asarray(lanes, dtype=np.float64)
    bits = encoding.fraction_bits
    multiplier = factor * 2.0 ** (encoding.scale_log2 + bits)
    norm_squared = 0
    for _ in range(MAX_ROUNDING_DRAWS):
        norm_squared = _round_into(out[: values.size], values, multiplier, bits, stream)
        norm_squared += _round_into(out[values.size :], tail, multiplier, bits, stream)
        if norm_squared <= encoding.bound_l2**2:
            return out
    raise NormExceeded(
        f"no rounding of the update came within the bound of {encoding.bound_l2}",
        bound_l2=encoding.bound_l2,
    )


def _round_into(
    out: Int32Array,
    reals: Float32Array | npt.NDArray[np.float64],
    multiplier: float,
    bits: int,
    stream: Keystream,
) -> int:
    """One draw; returns the exact squared norm. Block by block, so that all stays in the cache."""
    scratch = np.empty(min(BLOCK, out.size), dtype=np.float64)
    norm_squared = 0
    for start in range(0, out.size, BLOCK):
        block = out[start : start + BLOCK]
        scaled = scratch[: block.size]
        np.copyto(scaled, reals[start : start + BLOCK])
        scaled *= multiplier
        np.rint(scaled, out=scaled)
        # A clipped vector has a norm of at most 2^30 here; one beyond it must not wrap round to
        # something short.
        if sum_of_squares(scaled) > _FIXED_NORM_SQUARED_MAX:
            raise NormExceeded("the update is longer than the clip norm it was clipped to")
        np.copyto(block, scaled, casting="unsafe")
        block += stream.uint16(block.size) >> np.uint16(16 - bits)
        block >>= bits
        norm_squared += norm_squared24(block)
    return norm_squared
