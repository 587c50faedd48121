from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from boltz_protocol.keystream import Keystream

KEY = bytes(range(32))


def _reference(size: int) -> bytes:
    aes = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()
    blocks = (aes.update(counter.to_bytes(16, "big")) for counter in range(size // 16 + 1))
    return b"".join(blocks)[:size]


@given(st.lists(st.integers(0, 70), max_size=10))
def test_bytes_do_not_depend_on_the_sizes_of_draws(sizes: list[int]) -> None:
    stream = Keystream(KEY)
    drawn = bytearray()
    for size in sizes:
        out = np.empty(size, dtype=np.uint8)
        stream.fill(out)
        drawn += out.tobytes()
    assert bytes(drawn) == _reference(sum(sizes))


def test_numbers_are_little_endian() -> None:
    stream = Keystream(KEY)
    raw = stream.uint16(3).astype("<u2").tobytes()
    raw += stream.uint32(2).astype("<u4").tobytes() + stream.uint64(2).astype("<u8").tobytes()
    assert raw == _reference(30)


def test_draws_beyond_the_block_of_zeros() -> None:
    out = np.empty((1 << 18) + 5, dtype=np.uint8)
    Keystream(KEY).fill(out)
    assert out.tobytes() == _reference(out.size)


def test_fresh_streams_differ_and_hide_their_key() -> None:
    assert Keystream.fresh().uint64(4).tolist() != Keystream.fresh().uint64(4).tolist()
    assert KEY.hex() not in repr(Keystream(KEY))
    with pytest.raises(AssertionError):
        Keystream(bytes(16))
