from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_protocol.keystream import Keystream
from boltz_protocol.limits import CHUNK_PARAMETERS, MAX_COORDINATES
from boltz_protocol.packing import pack24_wrapped
from boltz_protocol.secagg.masks import MaskStream, UInt32Array, apply_masks, pair_sign
from tests.support.keys import load_vectors

VECTORS = load_vectors("secagg_masks")
KEY = bytes(range(32))
#: Sizes around the blocks that are worked on at once, and a whole chunk.
SIZES = (0, 1, 3, 4, 5, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, CHUNK_PARAMETERS)


def _mask(stream: MaskStream, chunk: int, size: int) -> UInt32Array:
    values = np.zeros(size, dtype=np.uint32)
    apply_masks(values, chunk, [stream])
    return values


@pytest.mark.parametrize("vector", VECTORS["masks"])
def test_vectors_of_words(vector: dict[str, Any]) -> None:
    key = bytes.fromhex(vector["key"])
    for place in vector["words"]:
        chunk, inside = divmod(place["coordinate"], CHUNK_PARAMETERS)
        assert _mask(MaskStream(key, 1), chunk, inside + 1)[inside] == place["word"]
        removed = _mask(MaskStream(key, -1), chunk, inside + 1)[inside]
        assert (int(removed) + place["word"]) % 2**32 == 0


@pytest.mark.parametrize("vector", VECTORS["masked_chunks"])
def test_vectors_of_masked_chunks(vector: dict[str, Any]) -> None:
    values = np.array(vector["values"], dtype=np.int32).view(np.uint32)
    streams = [MaskStream(bytes.fromhex(s["key"]), s["sign"]) for s in vector["streams"]]
    apply_masks(values, vector["chunk"], streams)
    assert pack24_wrapped(values).hex() == vector["packed"]


def test_chunks_are_cut_from_one_keystream() -> None:
    whole = Keystream(KEY).uint32(2 * CHUNK_PARAMETERS + 100)
    parts = [_mask(MaskStream(KEY, 1), chunk, CHUNK_PARAMETERS) for chunk in (0, 1)]
    parts.append(_mask(MaskStream(KEY, 1), 2, 100))
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("size", SIZES)
def test_every_coordinate_is_masked_once(size: int) -> None:
    values = np.arange(size, dtype=np.uint32)
    streams = [MaskStream(KEY, 1), MaskStream(bytes(32), -1)]
    apply_masks(values, 1, streams)
    added, subtracted = (_mask(MaskStream(key, 1), 1, size) for key in (KEY, bytes(32)))
    assert np.array_equal(values, np.arange(size, dtype=np.uint32) + added - subtracted)
    apply_masks(values, 1, [stream.removed() for stream in streams])
    assert np.array_equal(values, np.arange(size, dtype=np.uint32))
    apply_masks(values, 1, [])
    assert np.array_equal(values, np.arange(size, dtype=np.uint32))


@settings(max_examples=40)
@given(
    clients=st.lists(st.integers(0, 9999), unique=True, min_size=2, max_size=8),
    chunk=st.integers(0, MAX_COORDINATES // CHUNK_PARAMETERS - 1),
    size=st.integers(1, 300),
    random=st.randoms(use_true_random=False),
)
def test_masks_of_pairs_cancel_and_their_order_does_not_matter(
    clients: list[int], chunk: int, size: int, random: Any
) -> None:
    keys = {pair: random.randbytes(32) for pair in combinations(sorted(clients), 2)}
    masked = np.zeros(size, dtype=np.uint32)
    plain = np.zeros(size, dtype=np.uint32)
    for client in clients:
        streams = [
            MaskStream(keys[min(client, peer), max(client, peer)], pair_sign(client, peer))
            for peer in clients
            if peer != client
        ]
        values = np.frombuffer(random.randbytes(4 * size), dtype=np.uint32)
        shuffled, sent = values.copy(), values.copy()
        apply_masks(sent, chunk, streams)
        apply_masks(shuffled, chunk, random.sample(streams, len(streams)))
        assert np.array_equal(shuffled, sent)
        plain += values
        masked += sent
    assert np.array_equal(masked, plain)


def test_a_missing_client_leaves_its_pair_masks_until_they_are_removed() -> None:
    """What a server does for a client that dropped out after sharing: it holds the pair's key."""
    sent = np.zeros(1000, dtype=np.uint32)
    apply_masks(sent, 0, [MaskStream(KEY, pair_sign(4, 7))])
    assert np.count_nonzero(sent) > 990
    # Client 7 never sent; what it would have added cancels what client 4 added.
    apply_masks(sent, 0, [MaskStream(KEY, pair_sign(7, 4))])
    assert not sent.any()


def test_threads_share_streams() -> None:
    streams = [MaskStream(bytes([number] * 32), 1) for number in range(4)]

    def one(chunk: int) -> UInt32Array:
        values = np.zeros(CHUNK_PARAMETERS, dtype=np.uint32)
        apply_masks(values, chunk, streams)
        return values

    alone = [one(chunk) for chunk in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(one, range(4)))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_removing_twice_is_adding() -> None:
    stream = MaskStream(KEY, -1)
    assert stream.removed().sign == 1
    assert stream.removed().removed().sign == -1
    assert stream.removed().key == KEY


def test_signs_of_a_pair_are_opposite() -> None:
    assert pair_sign(0, 1) == 1
    assert pair_sign(1, 0) == -1
    with pytest.raises(AssertionError):
        pair_sign(3, 3)


def test_repr_hides_the_key() -> None:
    stream = MaskStream(b"\xa5" * 32, 1)
    assert "xa5" not in repr(stream)
    assert "a5a5" not in repr(stream)


def test_what_is_no_chunk_or_no_mask_asserts() -> None:
    values = np.zeros(4, dtype=np.uint32)
    sign: Any = 0
    broken: list[Any] = [
        lambda: MaskStream(bytes(31), 1),
        lambda: MaskStream(KEY, sign),
        lambda: apply_masks(values, -1, []),
        lambda: apply_masks(values, MAX_COORDINATES // CHUNK_PARAMETERS, []),
        lambda: apply_masks(values.reshape(2, 2), 0, []),
        lambda: apply_masks(np.zeros(4, dtype=np.int32), 0, []),
        lambda: apply_masks(np.zeros(CHUNK_PARAMETERS + 1, dtype=np.uint32), 0, []),
    ]
    for call in broken:
        with pytest.raises(AssertionError):
            call()
