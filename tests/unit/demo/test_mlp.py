from __future__ import annotations

import numpy as np
import pytest

from boltz_mesh.app.demo import mlp, mlp_torch
from boltz_mesh.app.demo.data import FloatArray
from boltz_mesh.app.demo.task import Market, Rows


def _rows(seed: int, count: int = 490) -> Rows:
    generator = np.random.Generator(np.random.PCG64(seed))
    inputs = generator.standard_normal((count, 13))
    return Rows(inputs, 0.3 * np.tanh(inputs[:, 0]) + 0.1 * generator.standard_normal(count))


def _parameters(seed: int) -> FloatArray:
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(mlp.PARAMETERS) * 0.3


def test_the_network_has_241_parameters_in_the_order_of_its_tensors() -> None:
    assert mlp.PARAMETERS == 241 == sum(int(np.prod(shape)) for _, shape in mlp.TENSORS)
    assert [name for name, _ in mlp.TENSORS] == sorted(name for name, _ in mlp.TENSORS)
    flat = np.arange(241.0)
    weights = mlp.unflatten(flat)
    assert weights.hidden_weight.shape == (16, 13)
    assert weights.hidden_weight[0, 0] == 16
    assert weights.output_bias.tolist() == [224.0]
    assert np.array_equal(mlp.flatten(weights), flat)
    batched = np.stack([flat, flat + 1])
    assert np.array_equal(mlp.flatten(mlp.unflatten(batched)), batched)


def test_one_batch_follows_the_numerical_gradient() -> None:
    rows, w = _rows(1, count=20), _parameters(2)  # 20 rows are one batch
    moved = (mlp.descend(w, rows.inputs, rows.target, 1) - w) / -mlp.LEARNING_RATE

    def loss(parameters: FloatArray) -> float:
        return float(np.mean((mlp.predict(parameters, rows.inputs) - rows.target) ** 2))

    decay = np.zeros(241)
    decay[16:224] = decay[225:] = mlp.WEIGHT_DECAY
    for i in range(0, 241, 7):
        step = np.zeros(241)
        step[i] = 1e-6
        slope = (loss(w + step) - loss(w - step)) / 2e-6
        assert moved[i] == pytest.approx(slope + decay[i] * w[i], abs=1e-6)


def test_torch_takes_the_same_step() -> None:
    rows, w = _rows(3), _parameters(4)
    ours, theirs = mlp.local_delta(w, rows), mlp_torch.local_delta(w, rows)
    assert ours.dtype == theirs.dtype == np.float32
    assert theirs == pytest.approx(ours, abs=1e-6)
    names = {name: tuple(p.shape) for name, p in mlp_torch.network(w).state_dict().items()}
    assert names == dict(mlp.TENSORS)


def test_the_simulation_is_the_average_of_local_steps() -> None:
    desks = [_rows(seed, 64) for seed in range(3)]
    first = mlp.start_vector(0.1).astype(np.float64)
    w = first
    for _ in range(2):
        w = w + np.mean([mlp.local_delta(w, rows).astype(np.float64) for rows in desks], axis=0)
    inputs = np.array([[rows.inputs for rows in desks]])
    target = np.array([[rows.target for rows in desks]])
    found = mlp.simulate(first[None], inputs, target, 2)
    assert found[0] == pytest.approx(w, abs=1e-6)


def test_the_first_network_forecasts_the_public_bias(market: Market) -> None:
    origin = market.public.calendar.origins[-1]
    first = mlp.start(market.public, origin)
    assert first.dtype == np.float32
    forecast = mlp.predict(first, _rows(5).inputs)
    assert forecast == pytest.approx(market.public.start_bias(origin), abs=1e-6)
    assert np.array_equal(first, mlp.start(market.public, origin))


def test_training_lowers_the_error() -> None:
    rows = _rows(6)
    w = mlp.start_vector(0.0).astype(np.float64)
    before = np.mean((mlp.predict(w, rows.inputs) - rows.target) ** 2)
    after = np.mean((mlp.predict(w + mlp.local_delta(w, rows), rows.inputs) - rows.target) ** 2)
    assert after < 0.7 * before
