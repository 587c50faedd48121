from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_mesh.app.demo import linear
from boltz_mesh.app.demo.task import Market, Rows


def _rows(seed: int, count: int = 57) -> Rows:
    generator = np.random.Generator(np.random.PCG64(seed))
    inputs = generator.standard_normal((count, 11))
    return Rows(inputs, inputs @ generator.standard_normal(11) * 0.1 + 0.2)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), ridge=st.floats(0.1, 8.0))
def test_the_step_minimises_the_ridge_objective(seed: int, ridge: float) -> None:
    rows = _rows(seed)
    w = np.random.Generator(np.random.PCG64(seed + 1)).standard_normal(12) * 0.1
    delta = linear.local_step(rows, ridge).delta(w).astype(np.float64)
    design = linear.design_matrix(rows.inputs)
    error = design @ (w + delta) - rows.target
    weights = np.array([linear.BIAS_RIDGE] + [ridge] * 11)
    gradient = design.T @ error / len(error) + weights * delta
    assert np.abs(gradient).max() < 1e-5  # float32 on the wire


def test_the_delta_is_float32_of_twelve() -> None:
    delta = linear.local_step(_rows(1), 2.0).delta(np.zeros(12, dtype=np.float32))
    assert delta.dtype == np.float32
    assert delta.shape == (linear.PARAMETERS,) == (12,)
    assert sum(int(np.prod(shape)) for _, shape in linear.TENSORS) == 12


def test_a_strong_ridge_stays_at_the_start_and_a_weak_one_fits() -> None:
    rows, toward = _rows(2), np.linspace(-1, 1, 12)
    assert linear.fit(rows, toward, 1e9, 1e9) == pytest.approx(toward, abs=1e-6)
    exact = linear.fit(rows, toward, 1e-12, 1e-12)
    assert linear.predict(exact, rows.inputs) == pytest.approx(rows.target, abs=1e-6)


def test_the_simulation_is_clipped_federated_averaging() -> None:
    steps = [linear.local_step(_rows(seed), 2.0) for seed in range(5)]
    w = np.zeros(12)
    for found in linear.simulate(np.zeros(12), steps, rounds=3, clip_norm_l2=0.05):
        deltas = [step.offset - step.matrix @ w for step in steps]
        clipped = [d * min(1.0, 0.05 / float(np.linalg.norm(d))) for d in deltas]
        w = w + np.mean(clipped, axis=0)
        assert found == pytest.approx(w, abs=1e-14)
        assert np.linalg.norm(np.mean(clipped, axis=0)) <= 0.05


def test_noise_has_the_size_that_the_multiplier_says() -> None:
    steps = [linear.local_step(_rows(seed), 2.0) for seed in range(4)]
    clean = linear.simulate(np.zeros(12), steps, rounds=1, clip_norm_l2=0.05)[-1]
    generator = np.random.Generator(np.random.PCG64(7))
    noise = np.array(
        [
            linear.simulate(
                np.zeros(12),
                steps,
                rounds=1,
                clip_norm_l2=0.05,
                noise_multiplier=4.0,
                generator=generator,
            )[-1]
            - clean
            for _ in range(2000)
        ]
    )
    assert noise.std() == pytest.approx(4.0 * 0.05 / 4, rel=0.02)
    assert abs(noise.mean()) < 0.002


def test_every_origin_starts_from_public_knowledge(market: Market) -> None:
    origin = market.public.calendar.origins[-1]
    first = linear.start(market.public, origin)
    assert first.dtype == np.float32
    assert first[0] == np.float32(market.public.start_bias(origin))
    assert not first[1:].any()
