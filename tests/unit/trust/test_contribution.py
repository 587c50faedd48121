"""Influence on a validation set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_mesh.trust.contribution import ValidationSet, influences
from boltz_protocol.errors import NotFinite, ShapeMismatch


def _set(seed: int, rows: int = 40, parameters: int = 6) -> ValidationSet:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(rows, parameters)).astype(np.float32)
    return ValidationSet(inputs, rng.normal(size=rows).astype(np.float32))


def test_the_gradient_is_that_of_the_loss() -> None:
    known, at = _set(1), np.random.default_rng(2).normal(size=6)
    gradient = known.gradient(at)
    for place in range(6):
        step = np.zeros(6)
        step[place] = 1e-5
        slope = (known.loss(at + step) - known.loss(at - step)) / 2e-5
        assert gradient[place] == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_a_gradient_is_zero_at_the_least_squares_solution() -> None:
    known = _set(3)
    best, *_ = np.linalg.lstsq(known.inputs.astype(float), known.targets.astype(float), rcond=None)
    assert known.gradient(best) == pytest.approx(np.zeros(6), abs=1e-6)


@given(seed=st.integers(0, 1000), rate=st.floats(0.1, 2))
def test_influences_add_up_to_the_effect_of_a_small_mean_step(seed: int, rate: float) -> None:
    known, rng = _set(seed), np.random.default_rng(seed)
    at, deltas = rng.normal(size=6), 1e-5 * rng.normal(size=(5, 6))
    weights = rng.integers(1, 255, 5).tolist()
    found = influences(deltas @ known.gradient(at), weights, learning_rate=rate)
    mean = np.average(deltas, axis=0, weights=weights)
    fall = known.loss(at) - known.loss(at + rate * mean)
    assert sum(found) == pytest.approx(fall, rel=1e-2, abs=1e-9)


def test_who_helps_is_above_zero() -> None:
    known = _set(4)
    at = np.ones(6)
    downhill = -known.gradient(at)
    helps, harms, nothing = influences(
        np.array([downhill, -downhill, 0 * downhill]) @ known.gradient(at),
        [2, 1, 1],
        learning_rate=1.0,
    )
    assert helps > 0 > harms
    assert helps == pytest.approx(-2 * harms)
    assert nothing == 0


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (np.ones((3, 2)), np.ones(3, np.float32)),
        (np.ones((3, 2), np.float32), np.ones(3)),
        (np.ones(3, np.float32), np.ones(3, np.float32)),
        (np.ones((3, 2), np.float32), np.ones(2, np.float32)),
        (np.ones((3, 2), np.float32), np.ones((3, 1), np.float32)),
        (np.ones((0, 2), np.float32), np.ones(0, np.float32)),
    ],
)
def test_other_arrays_are_refused(inputs: np.ndarray, targets: np.ndarray) -> None:
    with pytest.raises(ShapeMismatch, match="a validation set has"):
        ValidationSet(inputs, targets)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    good = np.ones((3, 2), np.float32)
    bad = good.copy()
    bad[1, 1] = value
    with pytest.raises(NotFinite):
        ValidationSet(bad, good[:, 0])
    with pytest.raises(NotFinite):
        ValidationSet(good, bad[:, 1])


def test_a_model_of_another_size_is_refused() -> None:
    with pytest.raises(ShapeMismatch, match="for 6 parameters, the model has 7"):
        _set(1).gradient(np.ones(7))


def test_rows_do_not_show_in_a_repr() -> None:
    assert repr(_set(1)) == "ValidationSet()"
