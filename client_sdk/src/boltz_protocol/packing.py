"""The 24-bit wire form: coordinates as little-endian two's complement, three bytes each.

All functions take and return whole coordinates and work on blocks that stay in a core's cache.
A sum of packed vectors is formed in uint32 without unpacking: a four-byte read at a three-byte
stride holds the coordinate in its low 24 bits and a neighbour's byte above; the upper byte only
disturbs the upper byte of the sum, so the sum is right modulo 2^24 and `decode_sum` extends the
sign once. `encoding.plan_encoding` keeps every true sum below 2^23 in size.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from boltz_protocol.errors import MalformedMessage, NormExceeded, ShapeMismatch
from boltz_protocol.limits import WIRE_BITS, WIRE_BYTES
from boltz_protocol.squares import BLOCK, sum_of_squares

Int32Array = npt.NDArray[np.int32]
UInt32Array = npt.NDArray[np.uint32]
ByteArray = npt.NDArray[np.uint8]
#: What `bytes`, `bytearray`, `memoryview` and numpy byte arrays have in common here.
PackedBytes = bytes | bytearray | memoryview | ByteArray

_HALF: Final = 1 << (WIRE_BITS - 1)
#: Smallest and largest coordinate that fits the wire.
WIRE_MIN: Final = -_HALF
WIRE_MAX: Final = _HALF - 1
# See `sum_of_squares`: a sum of squared integers that ends below this was exact throughout.
_EXACT_FLOAT64: Final = float(1 << 53)


def _pack_by_shifts(values: Int32Array, out: ByteArray) -> None:
    words = values.view(np.uint32)
    for byte in range(WIRE_BYTES):
        out[byte : WIRE_BYTES * values.size : WIRE_BYTES] = (words >> np.uint32(8 * byte)) & 0xFF


def _pack_by_strides(values: Int32Array, out: ByteArray) -> None:
    # Each four-byte store spills its top byte into the next coordinate's first byte, which the next
    # store then overwrites: right only if stores go upwards, hence the self-test below.
    target = np.ndarray((values.size,), dtype="<u4", buffer=out.data, strides=(WIRE_BYTES,))
    target[...] = values.view(np.uint32)


def _strides_work() -> bool:
    values = np.arange(-1021, 1024, 2, dtype=np.int32) * np.int32(8191)
    slow = np.zeros(WIRE_BYTES * values.size + 1, dtype=np.uint8)
    fast = np.zeros_like(slow)
    _pack_by_shifts(values, slow)
    _pack_by_strides(values, fast)
    return slow[:-1].tobytes() == fast[:-1].tobytes()


_pack_into: Final = _pack_by_strides if _strides_work() else _pack_by_shifts


def pack24(values: Int32Array) -> memoryview:
    """Pack coordinates, shape (n,), int32 within [-2^23, 2^23), into 3n bytes.

    Values outside are a broken invariant (the norm was checked before) and assert.
    """
    assert values.dtype == np.int32, "coordinates are int32"
    assert values.ndim == 1, "coordinates are a vector"
    if values.size == 0:
        return memoryview(b"")
    assert int(values.min()) >= WIRE_MIN, "below 24 bits"
    assert int(values.max()) <= WIRE_MAX, "beyond 24 bits"
    out = np.empty(WIRE_BYTES * values.size + 1, dtype=np.uint8)
    _pack_into(np.ascontiguousarray(values), out)
    return out.data[: WIRE_BYTES * values.size]


def pack24_wrapped(values: UInt32Array) -> memoryview:
    """Pack the low 24 bits of masked coordinates, shape (n,), uint32, into 3n bytes.

    A masked coordinate is uniform, so there is no range to check: the upper byte is of no meaning.
    """
    assert values.dtype == np.uint32, "masked coordinates are uint32"
    assert values.ndim == 1, "coordinates are a vector"
    out = np.empty(WIRE_BYTES * values.size + 1, dtype=np.uint8)
    _pack_into(np.ascontiguousarray(values).view(np.int32), out)
    return out.data[: WIRE_BYTES * values.size]


def _byte_view(packed: PackedBytes) -> ByteArray:
    raw = np.frombuffer(packed, dtype=np.uint8)
    if raw.size % WIRE_BYTES:
        raise MalformedMessage(
            f"{raw.size} bytes are not a whole number of {WIRE_BYTES}-byte coordinates",
            size_bytes=raw.size,
        )
    return raw


def _last_word(raw: ByteArray) -> int:
    """The last coordinate as an unsigned 24-bit number: no fourth byte follows it to be read."""
    return int.from_bytes(raw[-WIRE_BYTES:].tobytes(), "little")


def _words(raw: ByteArray, start: int, stop: int) -> UInt32Array:
    """Four-byte reads at a three-byte stride; the byte after coordinate `stop - 1` must exist."""
    return np.ndarray(
        (stop - start,),
        dtype="<u4",
        buffer=raw.data,
        offset=WIRE_BYTES * start,
        strides=(WIRE_BYTES,),
    )


def _unpack_high(raw: ByteArray, start: int, stop: int, out: UInt32Array) -> None:
    """Coordinates times 2^8 into `out` (n,), so that the sign bit is in place."""
    inner = stop if WIRE_BYTES * stop < raw.size else stop - 1
    np.left_shift(_words(raw, start, inner), np.uint32(8), out=out[: inner - start])
    if inner < stop:
        out[inner - start] = _last_word(raw) << 8


def unpack24(packed: PackedBytes) -> Int32Array:
    """Coordinates of 3n bytes, shape (n,), int32. Raises: MalformedMessage on a partial one."""
    raw = _byte_view(packed)
    count = raw.size // WIRE_BYTES
    out = np.empty(count, dtype=np.uint32)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        _unpack_high(raw, start, stop, out[start:stop])
    signed = out.view(np.int32)
    return np.right_shift(signed, 8, out=signed)


def add_packed24(accumulator: UInt32Array, packed: PackedBytes) -> None:
    """Add 3n packed bytes to a uint32 accumulator, shape (n,), in place.

    Only the low 24 bits of the accumulator mean anything until `decode_sum`. Addition modulo 2^24
    commutes, so the result does not depend on the order of arrival.

    Raises:
        MalformedMessage: not a whole number of coordinates.
        ShapeMismatch: another number of coordinates than the accumulator has.
    """
    raw = _byte_view(packed)
    count = raw.size // WIRE_BYTES
    if accumulator.shape != (count,) or accumulator.dtype != np.uint32:
        raise ShapeMismatch(
            f"{count} packed coordinates do not fit an accumulator of {accumulator.shape}",
            coordinates=count,
        )
    if count == 0:
        return
    # No blocks: numpy brings the reads into place a few thousand at a time by itself.
    accumulator[:-1] += _words(raw, 0, count - 1)
    accumulator[-1:] += np.uint32(_last_word(raw))


def norm_squared24(values: Int32Array) -> int:
    """The exact sum of squares of int32 coordinates, shape (n,), each within 2^31."""
    return _norm_squared(values, 0)


def _norm_squared(values: Int32Array, shifted_bits: int) -> int:
    """Sum of squares of `values / 2^shifted_bits`; every value is a multiple of 2^shifted_bits.

    The common factor only moves the exponent, so exactness depends on the quotients alone.
    """
    scratch = np.empty(min(BLOCK, values.size), dtype=np.float64)
    total = 0
    for start in range(0, values.size, BLOCK):
        block = values[start : start + BLOCK]
        reals = scratch[: block.size]
        np.copyto(reals, block)
        square = sum_of_squares(reals) * 4.0**-shifted_bits
        if square < _EXACT_FLOAT64:
            total += int(square)
        else:
            total += _large_norm_squared(block >> shifted_bits)
    return total


def _large_norm_squared(block: Int32Array) -> int:
    # Only hostile or very large coordinates come here. Halves of 16 bits keep every product and
    # every sum of 2^15 of them below 2^63.
    low = (block & 0xFFFF).astype(np.int64)
    high = (block >> 16).astype(np.int64)
    cross = int(np.dot(low, high))
    return (int(np.dot(high, high)) << 32) + (cross << 17) + int(np.dot(low, low))


def norm_squared_packed24(packed: PackedBytes) -> int:
    """The exact sum of squares of packed coordinates; streams add up over their chunks.

    Raises: MalformedMessage on a partial coordinate.
    """
    raw = _byte_view(packed)
    count = raw.size // WIRE_BYTES
    scratch = np.empty(min(BLOCK, count), dtype=np.uint32)
    total = 0
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        block = scratch[: stop - start]
        _unpack_high(raw, start, stop, block)
        total += _norm_squared(block.view(np.int32), 8)
    return total


def decode_sum(accumulator: UInt32Array, limit: int) -> Int32Array:
    """Turn an accumulator, shape (n,), into signed sums, in place; the same memory is returned.

    Args:
        accumulator: uint32, right modulo 2^24.
        limit: the largest size that clip and noise allow for one coordinate
            (`Encoding.sum_limit`).

    Raises: NormExceeded when a coordinate is beyond `limit`: the sum was poisoned, or its true
        value did not fit the ring.
    """
    assert 0 <= limit <= WIRE_MAX, "the plan keeps sums within the ring"
    signed = accumulator.view(np.int32)
    for start in range(0, signed.size, BLOCK):
        block = signed[start : start + BLOCK]
        np.left_shift(block, 8, out=block)
        np.right_shift(block, 8, out=block)
        largest = max(int(block.max()), -int(block.min()))
        if largest > limit:
            raise NormExceeded(
                f"a coordinate of the sum is {largest} in size, and clip and noise allow {limit}",
                largest=largest,
                limit=limit,
            )
    return signed
