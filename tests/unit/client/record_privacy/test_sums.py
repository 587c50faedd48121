"""Integer sums: one record never moves them further than the noise was made for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from boltz_client.adapters.record_privacy.sums import (
    SIGMA_UNITS,
    RecordSum,
    block_rows,
    clip_to_units,
    drop_long,
    sample_rows,
)
from boltz_protocol.keystream import Keystream

GRADIENTS = hnp.arrays(
    np.float64,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6),
    elements=st.floats(allow_nan=True, allow_infinity=True, width=64),
)


def fixed(byte: int = 7) -> Keystream:
    return Keystream(bytes([byte]) * 32)


@settings(max_examples=200, deadline=None)
@given(gradients=GRADIENTS, noise=st.floats(0.1, 1000), clip=st.floats(2.0**-30, 2.0**30))
def test_no_record_is_longer_than_the_bound_exactly(
    gradients: npt.NDArray[Any], noise: float, clip: float
) -> None:
    total = RecordSum(gradients.shape[1], clip, noise)
    # The noise is at least what is accounted for.
    assert noise * total.bound_units <= SIGMA_UNITS
    clip_to_units(gradients, clip, total.bound_units)
    for row in gradients.tolist():
        whole = [int(number) for number in row]
        assert whole == row
        assert sum(number * number for number in whole) <= total.bound_units**2


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 40),
    seed=st.integers(0, 9),
    scale=st.floats(0, 9),
)
def test_what_a_record_gives_does_not_depend_on_the_others(
    rows: int, columns: int, seed: int, scale: float
) -> None:
    gradients = np.random.default_rng(seed).normal(scale=scale, size=(rows, columns))
    together = gradients.copy()
    clip_to_units(together, 1.0, 400_000)
    for row in range(rows):
        alone = gradients[row : row + 1].copy()
        clip_to_units(alone, 1.0, 400_000)
        np.testing.assert_array_equal(alone[0], together[row])


def test_short_gradients_are_kept_and_long_ones_shortened() -> None:
    bound = RecordSum(2, 2.0, 1.0).bound_units
    clipped = np.array([[0.3, -0.4], [30.0, -40.0], [0.0, 0.0]])
    clip_to_units(clipped, 2.0, bound)
    clipped *= 2.0 / bound
    wanted = np.array([[0.3, -0.4], [1.2, -1.6], [0.0, 0.0]])
    np.testing.assert_allclose(clipped, wanted, atol=2.0 / bound)
    # Towards zero, so that nothing grows.
    assert (np.abs(clipped) <= np.abs(wanted) + 1e-15).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
def test_a_gradient_without_a_norm_counts_as_zero(bad: float) -> None:
    gradients = np.array([[bad, 1.0], [0.5, 0.0]])
    clip_to_units(gradients, 1.0, 1000)
    assert gradients.tolist() == [[0, 0], [500, 0]]


def test_what_rounding_makes_too_long_is_dropped() -> None:
    units = np.array([[3.0, 4.0], [3.0, 5.0], [-5.0, 0.0], [-5.0, -1.0]])
    drop_long(units, np.empty_like(units), 5)
    assert units.tolist() == [[3, 4], [0, 0], [-5, 0], [0, 0]]


def test_the_noise_has_the_deviation_that_is_accounted() -> None:
    coordinates, clip, noise = 20_000, 0.5, 2.0
    total = RecordSum(coordinates, clip, noise)
    total.add(np.full((3, coordinates), 1e-3))
    released = total.release(fixed())
    # 3 records, each shortened to the clip norm.
    centre = 3 * clip / math.sqrt(coordinates)
    error = clip * noise / math.sqrt(coordinates)
    assert released.mean() == pytest.approx(centre, abs=5 * error)
    assert released.std() == pytest.approx(noise * clip, rel=0.03)
    # The sum has begun anew.
    again = total.release(fixed(8))
    assert again.mean() == pytest.approx(0, abs=5 * error)
    assert not np.array_equal(again, released)


def test_a_release_is_a_whole_number_of_units() -> None:
    total = RecordSum(50, 1.0, 1.0)
    total.add(np.random.default_rng(3).normal(size=(10, 50)))
    units = total.release(fixed()) * total.bound_units
    np.testing.assert_allclose(units, np.round(units), atol=1e-6)


def test_rows_are_drawn_each_for_itself() -> None:
    stream = fixed()
    counts = np.zeros(500)
    for _ in range(400):
        counts[sample_rows(500, 0.1, stream)] += 1
    # 400 draws at 0.1: 40 on average, deviation 6 a row and 0.27 of the mean.
    assert counts.mean() == pytest.approx(40, abs=1.5)
    assert counts.std() == pytest.approx(6, rel=0.2)
    np.testing.assert_array_equal(sample_rows(4, 1.0, stream), [0, 1, 2, 3])
    assert sample_rows(1000, 2.0**-60, stream).size == 0


def test_drawing_follows_the_stream_and_a_fresh_one_is_never_the_same() -> None:
    np.testing.assert_array_equal(sample_rows(100, 0.5, fixed()), sample_rows(100, 0.5, fixed()))
    first, second = (sample_rows(200, 0.5, Keystream.fresh()) for _ in range(2))
    assert not np.array_equal(first, second)


def test_blocks_stay_small_and_hold_at_least_one_record() -> None:
    assert block_rows(1) == 1 << 22
    assert block_rows(1000) == 4194
    assert block_rows(1 << 24) == 1
