from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import count

import numpy as np
import numpy.typing as npt
import pytest

from boltz_protocol.encoding import Encoding, plan_encoding
from boltz_protocol.errors import ChunkOutOfOrder
from boltz_protocol.keystream import Keystream
from boltz_protocol.limits import CHUNK_PARAMETERS
from boltz_protocol.masked_update import MaskedUpdate, masked_update
from boltz_protocol.noise import discrete_gaussian
from boltz_protocol.packing import add_packed24, decode_sum, pack24, pack24_wrapped, unpack24
from boltz_protocol.secagg.masks import MaskStream, apply_masks, pair_sign
from boltz_protocol.update import EncodedDelta, chunk_slice, open_update

Int32Array = npt.NDArray[np.int32]
NOISE = discrete_gaussian(Fraction(50) ** 2)
#: Three chunks, the last with five coordinates.
SIZE = 2 * CHUNK_PARAMETERS + 5


def _encoding(size: int) -> Encoding:
    return plan_encoding(clip_norm_l2=1.0, noise_multiplier=0.01, cohort_max=10, coordinates=size)


def _encoded(size: int, seed: int = 1) -> EncodedDelta:
    values = np.random.default_rng(seed).integers(-9000, 9000, size, dtype=np.int32)
    return EncodedDelta(values=values, lanes=0, encoding=_encoding(size))


def _known_noise() -> Callable[[], Keystream]:
    numbers = count()
    return lambda: Keystream(bytes([next(numbers)] * 32))


def _streams(client: int, clients: int) -> list[MaskStream]:
    """A complete graph: the key of a pair is made of its indexes."""
    own = MaskStream(bytes([200 + client] * 32), 1)
    pairs = [
        MaskStream(bytes([*sorted((client, peer)), *[0] * 30]), pair_sign(client, peer))
        for peer in range(clients)
        if peer != client
    ]
    return [own, *pairs]


def test_values_noise_and_masks_are_what_is_sent() -> None:
    encoded, streams = _encoded(SIZE), _streams(1, 4)
    before = encoded.values.copy()
    update = masked_update(encoded, streams, NOISE, noise_stream=_known_noise())
    assert (update.chunks, update.size_bytes) == (3, 3 * SIZE)
    sent = list(update)
    assert np.array_equal(encoded.values, before)
    for index, packed in enumerate(sent):
        values = encoded.values[chunk_slice(index, SIZE)].copy()
        NOISE.add_into(values, Keystream(bytes([index] * 32)))
        ring = values.view(np.uint32)
        apply_masks(ring, index, streams)
        assert (
            packed == (ring & 0xFFFFFF).astype("<u4").view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
        )


def test_without_masks_and_noise_it_is_the_open_form() -> None:
    encoded = _encoded(SIZE)
    assert b"".join(masked_update(encoded, [], None)) == b"".join(open_update(encoded))


def test_the_sum_of_all_is_the_sum_of_values_and_noise() -> None:
    """Pair masks cancel; the server removes the self masks, whose seeds it was given."""
    clients = 4
    deltas = [_encoded(SIZE, seed) for seed in range(clients)]
    expected = np.zeros(SIZE, dtype=np.int32)
    total = np.zeros(SIZE, dtype=np.uint32)
    for client, encoded in enumerate(deltas):
        expected += encoded.values
        known = _known_noise()
        noise_streams = [known() for _ in range(3)]
        for index in range(3):
            NOISE.add_into(expected[chunk_slice(index, SIZE)], noise_streams[index])
        update = masked_update(
            encoded, _streams(client, clients), NOISE, noise_stream=_known_noise()
        )
        for index in range(update.chunks):
            add_packed24(total[chunk_slice(index, SIZE)], update.chunk(index))
    with_self_masks = total.copy()
    for index in range(3):
        removed = [_streams(client, clients)[0].removed() for client in range(clients)]
        apply_masks(total[chunk_slice(index, SIZE)], index, removed)
    assert np.array_equal(decode_sum(total, (1 << 23) - 1), expected)
    assert not np.array_equal(decode_sum(with_self_masks, (1 << 23) - 1), expected)


def test_a_masked_chunk_shows_nothing_of_its_values() -> None:
    """Bytes of an all-zero vector under one mask are spread evenly (chi-square, 255 degrees)."""
    size = CHUNK_PARAMETERS
    zeros = EncodedDelta(values=np.zeros(size, dtype=np.int32), lanes=0, encoding=_encoding(size))
    packed = masked_update(zeros, _streams(0, 2), None).chunk(0)
    counts = np.bincount(np.frombuffer(packed, dtype=np.uint8), minlength=256)
    mean = 3 * size / 256
    assert float(((counts - mean) ** 2 / mean).sum()) < 400


def test_noise_is_fresh_in_every_chunk_and_update() -> None:
    size = CHUNK_PARAMETERS + 4096
    zeros = EncodedDelta(values=np.zeros(size, dtype=np.int32), lanes=0, encoding=_encoding(size))
    drawn: list[Int32Array] = []
    for _ in range(2):
        first, second = masked_update(zeros, [], NOISE)
        drawn += [unpack24(first)[:4096], unpack24(second)]
    for position, sample in enumerate(drawn):
        assert abs(float(sample.std()) / 50 - 1) < 0.1
        assert all(not np.array_equal(sample, other) for other in drawn[:position])


def _update(encoded: EncodedDelta) -> MaskedUpdate:
    return masked_update(encoded, _streams(0, 3), NOISE)


def test_a_chunk_is_drawn_once_and_in_order() -> None:
    update = _update(_encoded(SIZE))
    with pytest.raises(AssertionError):
        update.chunk(1)
    update.chunk(0)
    for index in (0, 2, -1):
        with pytest.raises(AssertionError):
            update.chunk(index)
    assert [len(chunk) for chunk in update] == [3 * CHUNK_PARAMETERS, 15]
    assert list(update) == []
    for index in (0, 2):
        with pytest.raises(AssertionError):
            update.chunk(index)
    with pytest.raises(ChunkOutOfOrder):
        update.chunk(3)


def test_a_draw_that_failed_is_not_repeated() -> None:
    class Broken(Exception):
        pass

    def broken() -> Keystream:
        raise Broken

    update = masked_update(_encoded(100), _streams(0, 2), NOISE, noise_stream=broken)
    with pytest.raises(Broken):
        update.chunk(0)
    with pytest.raises(AssertionError):
        update.chunk(0)


def test_nothing_private_shows_in_a_repr() -> None:
    update = _update(_encoded(100))
    assert repr(update) == "MaskedUpdate(next chunk 0 of 1, hidden)"


def test_packing_keeps_the_low_24_bits() -> None:
    words = np.array([0, 1, 0xFFFFFF, 0x1000000, 0xFFFFFFFF, 0x12345678], dtype=np.uint32)
    assert pack24_wrapped(words).hex(" ", 3) == "000000 010000 ffffff 000000 ffffff 785634"
    assert pack24_wrapped(words[::2]).hex(" ", 3) == "000000 ffffff ffffff"
    assert len(pack24_wrapped(words[:0])) == 0
    signed = np.array([-1, 5, -(1 << 23), (1 << 23) - 1], dtype=np.int32)
    assert pack24_wrapped(signed.view(np.uint32)) == pack24(signed)
    for wrong in (signed, words.reshape(2, 3)):
        with pytest.raises(AssertionError):
            pack24_wrapped(wrong)  # type: ignore[arg-type]
