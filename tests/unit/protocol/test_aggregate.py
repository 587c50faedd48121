from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest

from boltz_protocol.aggregate import Accumulator, Sum, release
from boltz_protocol.encoding import Encoding, plan_encoding
from boltz_protocol.errors import ChunkOutOfOrder, MalformedMessage, NormExceeded, ShapeMismatch
from boltz_protocol.keystream import Keystream
from boltz_protocol.limits import CHUNK_PARAMETERS
from boltz_protocol.packing import pack24
from boltz_protocol.update import LocalDelta, OpenUpdate, clip, encode, open_update, weigh

LANE_SCALE = 0.25


def _encoding(coordinates: int, noise: float = 0.0) -> Encoding:
    return plan_encoding(
        clip_norm_l2=1.0, noise_multiplier=noise, cohort_max=8, coordinates=coordinates
    )


def _update(delta: LocalDelta, weight: int, encoding: Encoding) -> OpenUpdate:
    clipped = clip(delta, clip_norm_l2=1.0, lane_scale=LANE_SCALE)
    return open_update(encode(weigh(clipped, weight=weight, max_weight=200), encoding))


def _summed(updates: list[OpenUpdate], encoding: Encoding, *, lanes: int, weight_total: int) -> Sum:
    accumulator = Accumulator(encoding.coordinates)
    for update in updates:
        for index, chunk in enumerate(update):
            accumulator.fold(index, chunk)
    return accumulator.finish(
        encoding=encoding,
        lanes=lanes,
        contributors=len(updates),
        weight_total=weight_total,
        max_weight=200,
    )


def _deltas(size: int, lanes: int, count: int = 4) -> list[LocalDelta]:
    rng = np.random.default_rng(size)
    return [
        LocalDelta(
            (rng.standard_normal(size) * 0.5 / math.sqrt(size)).astype(np.float32),
            tuple(rng.standard_normal(lanes).tolist()),
        )
        for _ in range(count)
    ]


# The second size puts the border of two chunks among the lanes.
@pytest.mark.parametrize("size", [1000, CHUNK_PARAMETERS - 1, 2 * CHUNK_PARAMETERS])
def test_the_mean_is_the_weighted_mean(size: int) -> None:
    lanes = 3
    encoding = _encoding(size + lanes)
    deltas, weights = _deltas(size, lanes), [200, 50, 1, 149]
    updates = [_update(d, w, encoding) for d, w in zip(deltas, weights, strict=True)]
    aggregate = release(
        _summed(updates, encoding, lanes=lanes, weight_total=400), lane_scale=LANE_SCALE
    )
    factors = [clip(d, clip_norm_l2=1.0, lane_scale=LANE_SCALE).factor for d in deltas]
    share = [f * w / 400 for f, w in zip(factors, weights, strict=True)]
    mean = sum(d.values.astype(np.float64) * s for d, s in zip(deltas, share, strict=True))
    assert aggregate.values.shape == (size,)
    assert aggregate.values.dtype == np.float32
    unit = 4 * 200 / 400 * 2.0**-encoding.scale_log2
    assert np.abs(aggregate.values - mean).max() < unit
    wanted = [sum(d.lanes[k] * s for d, s in zip(deltas, share, strict=True)) for k in range(lanes)]
    assert aggregate.lanes == pytest.approx(wanted, abs=unit / LANE_SCALE)
    assert aggregate.contributors == 4
    assert aggregate.weight_total == 400


def test_order_threads_and_merging_do_not_matter() -> None:
    size = 2 * CHUNK_PARAMETERS + 13
    encoding = _encoding(size + 3, 1.0)
    updates = [_update(d, 100, encoding) for d in _deltas(size, 3)]
    plain = _summed(updates, encoding, lanes=3, weight_total=400)
    left, right = Accumulator(size + 3), Accumulator(size + 3)
    with ThreadPoolExecutor(2) as pool:
        for update in reversed(updates[:1]):
            list(pool.map(left.fold, range(update.chunks), update))
        for update in reversed(updates[1:]):
            list(pool.map(right.fold, range(update.chunks), update))
        left.merge(right)
        merged = left.finish(
            encoding=encoding, lanes=3, contributors=4, weight_total=400, max_weight=200
        )
        assert np.array_equal(merged.values, plain.values)

        def streams(chunk: int) -> Keystream:
            return Keystream(bytes([chunk]) * 32)

        one = release(merged, streams=streams, run=pool.map)
    two = release(plain, streams=streams)
    assert np.array_equal(one.values, two.values)
    assert one.lanes == two.lanes


def _zero_sum(encoding: Encoding) -> Sum:
    return Sum(
        values=np.zeros(encoding.coordinates, dtype=np.int32),
        lanes=1,
        encoding=encoding,
        contributors=2,
        weight_total=10,
        max_weight=10,
    )


def test_central_noise_has_the_planned_size() -> None:
    encoding = _encoding(200_001, 1.5)
    noised = release(_zero_sum(encoding))
    sigma = math.sqrt(encoding.sigma_squared) * 2.0**-encoding.scale_log2
    assert noised.values.std() == pytest.approx(sigma, rel=0.02)
    assert noised.lanes[0] != 0
    again = release(_zero_sum(encoding))
    assert not np.array_equal(noised.values, again.values)


@pytest.mark.parametrize(("noise", "central"), [(0.0, True), (1.5, False)])
def test_no_noise_where_none_is_due(noise: float, central: bool) -> None:
    aggregate = release(_zero_sum(_encoding(1001, noise)), central_noise=central)
    assert not aggregate.values.any()
    assert aggregate.lanes == (0.0,)


def test_the_sum_and_the_aggregate_share_memory() -> None:
    total = _zero_sum(_encoding(1001, 1.0))
    memory: npt.NDArray[np.int32] = total.values
    assert np.shares_memory(release(total).values, memory)


def test_an_accumulator_in_kept_memory_starts_at_zero() -> None:
    encoding = _encoding(5)
    kept = np.full(5, 77, dtype=np.int32)
    accumulator = Accumulator(5, kept)
    accumulator.fold(0, pack24(np.arange(5, dtype=np.int32)))
    total = accumulator.finish(
        encoding=encoding, lanes=0, contributors=1, weight_total=1, max_weight=1
    )
    assert total.values.tolist() == [0, 1, 2, 3, 4]
    assert np.shares_memory(total.values, kept)
    with pytest.raises(AssertionError):
        Accumulator(6, kept)


def test_a_poisoned_sum_is_refused() -> None:
    encoding = _encoding(4)
    accumulator = Accumulator(4)
    beyond = 2 * encoding.bound_l2 + 1
    half = np.array([0, beyond // 2, 0, 0], dtype=np.int32)
    accumulator.fold(0, pack24(half))
    accumulator.fold(0, pack24(half + np.array([0, 1, 0, 0], dtype=np.int32)))
    with pytest.raises(NormExceeded):
        accumulator.finish(encoding=encoding, lanes=0, contributors=2, weight_total=2, max_weight=1)


def test_sums_with_noise_inside_have_more_room() -> None:
    encoding = _encoding(4, 1.0)
    room = encoding.sum_limit(2, noised=True) - encoding.sum_limit(2, noised=False)
    assert room >= 8 * math.sqrt(encoding.sigma_squared)
    accumulator = Accumulator(4)
    values = np.array([0, -encoding.sum_limit(2, noised=True), 0, 0], dtype=np.int32)
    accumulator.fold(0, pack24(values))
    total = accumulator.finish(
        encoding=encoding, lanes=0, contributors=2, weight_total=2, max_weight=1, noised=True
    )
    assert total.values.tolist() == values.tolist()


def test_wrong_chunks_leave_the_sum_alone() -> None:
    encoding = _encoding(5)
    accumulator = Accumulator(5)
    with pytest.raises(ChunkOutOfOrder):
        accumulator.fold(1, bytes(15))
    with pytest.raises(ShapeMismatch):
        accumulator.fold(0, b"\x01" * 12)
    with pytest.raises(MalformedMessage):
        accumulator.fold(0, b"\x01" * 14)
    total = accumulator.finish(
        encoding=encoding, lanes=0, contributors=1, weight_total=1, max_weight=1
    )
    assert not total.values.any()


def test_a_finished_accumulator_takes_nothing_more() -> None:
    encoding = _encoding(5)
    accumulator = Accumulator(5)
    accumulator.finish(encoding=encoding, lanes=0, contributors=1, weight_total=1, max_weight=1)
    with pytest.raises(AssertionError):
        accumulator.fold(0, bytes(15))
    with pytest.raises(AssertionError):
        Accumulator(5).merge(accumulator)
    with pytest.raises(AssertionError):
        Accumulator(6).merge(Accumulator(5))


@pytest.mark.parametrize(("contributors", "weight_total"), [(2, 1), (2, 11), (9, 20)])
def test_impossible_counts_crash(contributors: int, weight_total: int) -> None:
    with pytest.raises(AssertionError):
        Accumulator(5).finish(
            encoding=_encoding(5),
            lanes=0,
            contributors=contributors,
            weight_total=weight_total,
            max_weight=5,
        )


def test_the_sum_is_hidden_and_the_noise_is_stated() -> None:
    encoding = _encoding(1001, 1.0)
    total = _zero_sum(encoding)
    assert "array" not in repr(total)
    aggregate = release(total)
    assert aggregate.encoding.sigma_squared == Fraction(encoding.bound_l2) ** 2
