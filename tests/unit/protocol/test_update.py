from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from boltz_protocol.encoding import Encoding, plan_encoding
from boltz_protocol.errors import (
    ChunkOutOfOrder,
    MalformedMessage,
    NotFinite,
    ShapeMismatch,
    WeightRefused,
)
from boltz_protocol.keystream import Keystream
from boltz_protocol.limits import CHUNK_PARAMETERS
from boltz_protocol.packing import norm_squared24, unpack24
from boltz_protocol.update import (
    EncodedDelta,
    LocalDelta,
    check_chunk_size,
    chunk_count,
    chunk_slice,
    clip,
    encode,
    open_update,
    weigh,
)

KEY = bytes(range(32))


def _delta(size: int, lanes: tuple[float, ...] = (0.5,), seed: int = 1) -> LocalDelta:
    values = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    return LocalDelta(values, lanes)


def _encoding(coordinates: int, clip_norm: float = 1.0) -> Encoding:
    return plan_encoding(
        clip_norm_l2=clip_norm, noise_multiplier=0.5, cohort_max=10, coordinates=coordinates
    )


def test_all_the_way() -> None:
    delta = _delta(1000, (0.25, -4.0))
    before = delta.values.copy()
    clipped = clip(delta, clip_norm_l2=2.0, lane_scale=0.5)
    assert clipped.lanes == (0.125, -2.0)
    assert clipped.norm_l2 == pytest.approx(
        math.sqrt(float((before.astype(np.float64) ** 2).sum()) + 0.125**2 + 4)
    )
    encoding = _encoding(1002, 2.0)
    encoded = encode(weigh(clipped, weight=64, max_weight=128), encoding)
    assert norm_squared24(encoded.values) <= encoding.bound_l2**2
    exact = np.array([*before, 0.125, -2.0]) * clipped.factor * 0.5 * 2.0**encoding.scale_log2
    assert np.all(np.abs(encoded.values - exact) < 1.01)
    assert np.array_equal(delta.values, before)
    update = open_update(encoded)
    assert update.size_bytes == 3006
    assert np.array_equal(unpack24(b"".join(update)), encoded.values)


def test_same_stream_same_integers_other_stream_others() -> None:
    weighted = weigh(clip(_delta(500, ()), clip_norm_l2=1.0), weight=1, max_weight=1)
    encoding = _encoding(500)
    one = encode(weighted, encoding, stream=Keystream(KEY)).values
    assert np.array_equal(one, encode(weighted, encoding, stream=Keystream(KEY)).values)
    assert not np.array_equal(one, encode(weighted, encoding).values)


def test_encoding_into_kept_memory() -> None:
    weighted = weigh(clip(_delta(500, ()), clip_norm_l2=1.0), weight=1, max_weight=1)
    encoding = _encoding(500)
    kept = np.full(500, 77, dtype=np.int32)
    encoded = encode(weighted, encoding, stream=Keystream(KEY), out=kept)
    assert encoded.values is kept
    assert np.array_equal(kept, encode(weighted, encoding, stream=Keystream(KEY)).values)
    with pytest.raises(AssertionError):
        encode(weighted, encoding, out=np.empty(501, dtype=np.int32))


@pytest.mark.parametrize("extra", [-1, 0, 1, 3])
def test_chunks_cover_the_vector_once(extra: int) -> None:
    size = 2 * CHUNK_PARAMETERS + extra
    values = np.arange(size, dtype=np.int32) % 1000 - 500
    update = open_update(EncodedDelta(values=values, lanes=1, encoding=_encoding(size)))
    assert update.chunks == chunk_count(size) == (3 if extra > 0 else 2)
    chunks = list(update)
    assert b"".join(chunks) == b"".join(update.chunk(index) for index in range(update.chunks))
    assert sum(len(chunk) for chunk in chunks) == update.size_bytes == 3 * size
    assert np.array_equal(unpack24(b"".join(chunks)), values)
    for index, chunk in enumerate(chunks):
        check_chunk_size(index, len(chunk), size)
        with pytest.raises(MalformedMessage):
            check_chunk_size(index, len(chunk) - 3, size)
    for index in (-1, update.chunks):
        with pytest.raises(ChunkOutOfOrder):
            update.chunk(index)
        with pytest.raises(ChunkOutOfOrder):
            check_chunk_size(index, 3, size)
        with pytest.raises(ChunkOutOfOrder):
            chunk_slice(index, size)


def test_from_tensors_keeps_order_and_precision() -> None:
    tensors: list[np.ndarray[Any, np.dtype[np.floating[Any]]]] = [
        np.arange(6, dtype=np.float64).reshape(2, 3).T,
        np.array(7.5, dtype=np.float32),
        np.zeros((0, 4), dtype=np.float32),
        np.array([8, 9], dtype=np.float16),
    ]
    delta = LocalDelta.from_tensors(tensors, [0.5])
    assert delta.values.tolist() == [0, 3, 1, 4, 2, 5, 7.5, 8, 9]
    assert delta.values.dtype == np.float32
    assert delta.lanes == (0.5,)


def test_from_tensors_overflow_is_found_when_clipped() -> None:
    delta = LocalDelta.from_tensors([np.array([0.0, 1e300])])
    with pytest.raises(NotFinite) as refusal:
        clip(delta, clip_norm_l2=1.0)
    assert refusal.value.metadata["offset"] == "1"


def test_from_tensors_refuses_integers() -> None:
    with pytest.raises(ShapeMismatch, match="tensor 1"):
        LocalDelta.from_tensors([np.ones(2), np.ones(2, dtype=np.int64)])


@pytest.mark.parametrize(
    "values",
    [
        np.ones(3),
        np.ones((2, 2), dtype=np.float32),
        np.ones(8, dtype=np.float32)[::2],
        np.ones(0, dtype=np.float32),
    ],
)
def test_other_shapes_and_dtypes_are_refused(values: Any) -> None:
    with pytest.raises(ShapeMismatch):
        LocalDelta(values)


def test_too_many_lanes_are_refused() -> None:
    with pytest.raises(ShapeMismatch):
        _delta(3, (0.0,) * 17)


@pytest.mark.parametrize(("weight", "max_weight"), [(0, 5), (6, 5), (1, 256), (-1, 5)])
def test_weights_out_of_range_are_refused(weight: int, max_weight: int) -> None:
    with pytest.raises(WeightRefused):
        weigh(clip(_delta(3), clip_norm_l2=1.0), weight=weight, max_weight=max_weight)


def test_encoding_for_another_model_is_refused() -> None:
    weighted = weigh(clip(_delta(3), clip_norm_l2=1.0), weight=1, max_weight=1)
    with pytest.raises(ShapeMismatch):
        encode(weighted, _encoding(5))
    with pytest.raises(AssertionError):
        encode(weighted, _encoding(4, clip_norm=2.0))


def test_nothing_private_shows_in_a_repr() -> None:
    delta = LocalDelta(np.full(3, 0.125, dtype=np.float32), (0.625,))
    clipped = clip(delta, clip_norm_l2=1.0)
    weighted = weigh(clipped, weight=1, max_weight=1)
    encoded = encode(weighted, _encoding(4))
    for stage in (delta, clipped, weighted, encoded, open_update(encoded)):
        text = repr(stage)
        assert "0.125" not in text
        assert "0.625" not in text
        assert "array" not in text
        assert "norm_l2=0" not in text
