"""The closed-form inversion: a record comes back, until there is noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_mesh.app.privacy_audit.inversion import (
    FIELDS,
    TradingRecord,
    invert,
    likeness,
    record_of,
    update_of,
)


@settings(deadline=None)
@given(
    st.lists(st.floats(-100, 100), min_size=2, max_size=30).filter(lambda x: any(np.abs(x) > 1e-3)),
    st.floats(0.01, 100),
    st.floats(1e-3, 1e3),
)
def test_an_update_of_one_record_is_the_record(
    numbers: list[float], label: float, clipped_to: float
) -> None:
    record = TradingRecord(np.array(numbers), label)
    update = clipped_to * update_of(record).astype(np.float64)
    found = likeness(invert(update), record.quantities)
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert found.relative_error < 1e-6


def test_the_step_is_the_gradient_of_half_the_squared_error() -> None:
    record = record_of(0)
    x, y, tiny = record.quantities, record.label, 1e-6

    def loss(weights: np.ndarray, bias: float) -> float:
        return 0.5 * float(weights @ x + bias - y) ** 2

    zero = np.zeros(FIELDS)
    slope = np.array(
        [(loss(zero + tiny * unit, 0) - loss(zero - tiny * unit, 0)) / 2 for unit in np.eye(FIELDS)]
    )
    slope = np.append(slope, (loss(zero, tiny) - loss(zero, -tiny)) / 2) / tiny
    ratio = update_of(record) / -slope
    np.testing.assert_allclose(ratio, ratio[-1], rtol=1e-4)


def test_desks_have_days_of_their_own() -> None:
    days = [record_of(desk).quantities for desk in range(8)]
    assert all(day.shape == (FIELDS,) for day in days)
    for first in range(8):
        for second in range(first):
            assert abs(likeness(days[first], days[second]).cosine) < 0.7
    np.testing.assert_array_equal(days[0], record_of(0).quantities)


def test_noise_of_the_clip_norm_hides_it() -> None:
    rng = np.random.default_rng(20261124)
    update = update_of(record_of(0)).astype(np.float64)
    update /= np.linalg.norm(update)
    errors = [
        likeness(invert(update + rng.normal(size=FIELDS + 1)), record_of(0).quantities)
        for _ in range(100)
    ]
    assert np.median([error.relative_error for error in errors]) > 1
    assert np.median([abs(error.cosine) for error in errors]) < 0.3


def test_without_a_bias_the_direction_is_left() -> None:
    assert invert(np.array([3.0, 4.0, 0.0])).tolist() == [3.0, 4.0]


def test_nothing_is_like_nothing() -> None:
    assert likeness(np.zeros(3), np.ones(3)).cosine == 0
    assert likeness(np.zeros(3), np.ones(3)).relative_error == 1
