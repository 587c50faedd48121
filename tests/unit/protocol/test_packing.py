from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_protocol import packing
from boltz_protocol.errors import MalformedMessage, NormExceeded, ShapeMismatch
from boltz_protocol.packing import (
    WIRE_MAX,
    WIRE_MIN,
    add_packed24,
    decode_sum,
    norm_squared24,
    norm_squared_packed24,
    pack24,
    unpack24,
)
from boltz_protocol.squares import BLOCK
from tests.support.keys import load_vectors

COORDINATES = st.lists(st.integers(WIRE_MIN, WIRE_MAX), min_size=1, max_size=60)
# Around the block size, where the last word and the next block's first byte meet.
SIZES = [1, 2, 3, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 5]


def _random(size: int, largest: int = WIRE_MAX) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.random.default_rng(size).integers(-largest, largest, size, dtype=np.int32)


@given(COORDINATES)
def test_pack_is_little_endian_twos_complement(values: list[int]) -> None:
    packed = bytes(pack24(np.array(values, dtype=np.int32)))
    assert packed == b"".join(value.to_bytes(3, "little", signed=True) for value in values)
    assert unpack24(packed).tolist() == values


@pytest.mark.parametrize("size", SIZES)
def test_both_ways_to_pack_agree(size: int) -> None:
    values = _random(size)
    shifted = np.zeros(3 * size + 1, dtype=np.uint8)
    strided = np.zeros_like(shifted)
    packing._pack_by_shifts(values, shifted)
    packing._pack_by_strides(values, strided)
    assert shifted[:-1].tobytes() == strided[:-1].tobytes() == bytes(pack24(values))
    assert np.array_equal(unpack24(pack24(values)), values)


def test_self_test_chose_the_fast_way_here() -> None:
    assert packing._strides_work()
    assert packing._pack_into is packing._pack_by_strides


def test_pack_of_a_slice_and_of_nothing() -> None:
    values = _random(100)
    assert bytes(pack24(values[::3])) == bytes(pack24(values[::3].copy()))
    assert bytes(pack24(values[:0])) == b""
    assert unpack24(b"").shape == (0,)
    assert norm_squared_packed24(b"") == 0
    add_packed24(np.zeros(0, dtype=np.uint32), b"")


@pytest.mark.parametrize("value", [WIRE_MIN - 1, WIRE_MAX + 1])
def test_pack_crashes_on_what_does_not_fit(value: int) -> None:
    with pytest.raises(AssertionError):
        pack24(np.array([0, value], dtype=np.int32))


@pytest.mark.parametrize("size", [1, 2, 4, 3 * BLOCK + 1])
def test_partial_coordinates_are_refused(size: int) -> None:
    with pytest.raises(MalformedMessage):
        unpack24(bytes(size))
    with pytest.raises(MalformedMessage):
        norm_squared_packed24(bytes(size))
    with pytest.raises(MalformedMessage):
        add_packed24(np.zeros(size, dtype=np.uint32), bytes(size))


def test_add_refuses_another_length_or_dtype() -> None:
    with pytest.raises(ShapeMismatch):
        add_packed24(np.zeros(3, dtype=np.uint32), bytes(6))
    with pytest.raises(ShapeMismatch):
        add_packed24(np.zeros(2, dtype=np.int32), bytes(6))


@given(st.lists(st.lists(st.integers(-9000, 9000), min_size=7, max_size=7), min_size=1))
def test_sum_is_exact_whatever_the_order(vectors: list[list[int]]) -> None:
    arrays = [np.array(vector, dtype=np.int32) for vector in vectors]
    forward = np.zeros(7, dtype=np.uint32)
    backward = np.zeros(7, dtype=np.uint32)
    for array in arrays:
        add_packed24(forward, pack24(array))
    for array in reversed(arrays):
        add_packed24(backward, bytes(pack24(array)))
    wanted = [sum(column) for column in zip(*vectors, strict=True)]
    limit = max(1, *(abs(value) for value in wanted))
    assert decode_sum(forward, limit).tolist() == wanted
    assert decode_sum(backward, limit).tolist() == wanted


@pytest.mark.parametrize("size", SIZES)
def test_sum_across_blocks(size: int) -> None:
    values = _random(size, 1 << 20)
    accumulator = np.zeros(size, dtype=np.uint32)
    for _ in range(7):
        add_packed24(accumulator, pack24(values))
    decoded = decode_sum(accumulator, WIRE_MAX)
    assert np.array_equal(decoded, 7 * values)
    assert np.shares_memory(decoded, accumulator)


@pytest.mark.parametrize("value", [-11, 11, WIRE_MIN])
def test_decode_refuses_what_clip_and_noise_do_not_allow(value: int) -> None:
    accumulator = np.array([0, 10, value], dtype=np.int32).view(np.uint32)
    with pytest.raises(NormExceeded) as refusal:
        decode_sum(accumulator, 10)
    assert refusal.value.metadata["largest"] == str(abs(value))


@given(COORDINATES)
def test_norm_is_exact(values: list[int]) -> None:
    array = np.array(values, dtype=np.int32)
    wanted = sum(value * value for value in values)
    assert norm_squared24(array) == wanted
    assert norm_squared_packed24(pack24(array)) == wanted


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("largest", [3, 1 << 19, WIRE_MAX])
def test_norm_is_exact_across_blocks(size: int, largest: int) -> None:
    values = _random(size, largest)
    wanted = sum(value * value for value in values.tolist())
    assert norm_squared24(values) == wanted
    assert norm_squared_packed24(bytes(pack24(values))) == wanted


@pytest.mark.parametrize("value", [WIRE_MIN, WIRE_MAX, -(1 << 31), (1 << 31) - 1, 0x5555_5555])
def test_norm_is_exact_at_the_extremes(value: int) -> None:
    # A full block of the largest values is where float64 and careless int64 sums go wrong.
    values = np.full(BLOCK, value, dtype=np.int32)
    assert norm_squared24(values) == BLOCK * value * value
    if WIRE_MIN <= value <= WIRE_MAX:
        assert norm_squared_packed24(pack24(values)) == BLOCK * value * value


def test_vectors() -> None:
    vectors = load_vectors("numerics_packing")
    for case in vectors["vectors"]:
        values = np.array(case["values"], dtype=np.int32)
        packed = bytes.fromhex(case["packed"])
        assert bytes(pack24(values)) == packed
        assert unpack24(packed).tolist() == case["values"]
        assert norm_squared_packed24(packed) == int(case["norm_squared"])
    total = vectors["sum"]
    accumulator = np.zeros(len(total["values"]), dtype=np.uint32)
    for packed_hex in total["packed"]:
        add_packed24(accumulator, bytes.fromhex(packed_hex))
    assert decode_sum(accumulator, WIRE_MAX).tolist() == total["values"]
