from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_protocol.errors import MalformedMessage
from boltz_protocol.limits import MAX_BITMAP_BYTES, MAX_ROSTER
from boltz_protocol.secagg.bitmap import bitmap, indexes
from tests.support.keys import load_vectors


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_there_and_back(case: tuple[int, set[int]]) -> None:
    size, positions = case
    encoded = bitmap(positions, size)
    assert len(encoded) == (size + 7) // 8
    assert indexes(encoded, size) == tuple(sorted(positions))


@given(st.binary(min_size=1, max_size=4), st.integers(1, 32))
def test_what_decodes_encodes_alike(encoded: bytes, size: int) -> None:
    fits = len(encoded) == (size + 7) // 8 and int.from_bytes(encoded, "little") < 1 << size
    if fits:
        assert bitmap(indexes(encoded, size), size) == encoded
    else:
        with pytest.raises(MalformedMessage) as refusal:
            indexes(encoded, size)
        assert refusal.value.metadata["field"] == "bitmap"


def test_the_least_significant_bit_comes_first() -> None:
    assert bitmap([0], 9) == b"\x01\x00"
    assert bitmap([8, 7], 9) == b"\x80\x01"
    assert len(bitmap([], MAX_ROSTER)) == MAX_BITMAP_BYTES


@pytest.mark.parametrize("position", [-1, 8])
def test_own_positions_are_inside_the_roster(position: int) -> None:
    with pytest.raises(AssertionError):
        bitmap([position], 8)


@pytest.mark.parametrize("size", [0, MAX_ROSTER + 1])
def test_no_roster_has_such_a_size(size: int) -> None:
    with pytest.raises(AssertionError):
        bitmap([], size)
    with pytest.raises(AssertionError):
        indexes(b"", size)


def test_vectors() -> None:
    for case in load_vectors("secagg_graph")["bitmaps"]:
        encoded = bytes.fromhex(case["bitmap"])
        assert bitmap(case["positions"], case["size"]) == encoded
        assert indexes(encoded, case["size"]) == tuple(case["positions"])
