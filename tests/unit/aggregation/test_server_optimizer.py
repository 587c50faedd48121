"""Each optimizer against its formula written out coordinate by coordinate in plain floats."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from boltz_mesh.aggregation.server_optimizer import (
    Block,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    ServerOptimizer,
)
from boltz_protocol.errors import NotFinite

ALL: list[ServerOptimizer] = [
    FedAvg(learning_rate=0.7),
    FedAvgM(learning_rate=0.5, momentum=0.8),
    FedAdam(learning_rate=0.1, beta1=0.8, beta2=0.95, tau=1e-2),
    FedYogi(learning_rate=0.1, beta1=0.8, beta2=0.95, tau=1e-2),
]


def naive(optimizer: ServerOptimizer, start: list[float], deltas: list[list[float]]) -> list[float]:
    """Reddi et al. 2021, algorithm 2, one coordinate after the other."""
    result = []
    for position, first in enumerate(start):
        x, m, v = first, 0.0, getattr(optimizer, "tau", 0.0) ** 2
        for delta in (row[position] for row in deltas):
            match optimizer:
                case FedAvg(eta):
                    x += eta * delta
                case FedAvgM(eta, beta):
                    m = beta * m + delta
                    x += eta * m
                case FedAdam(eta, b1, b2, tau):
                    m = b1 * m + (1 - b1) * delta
                    v = b2 * v + (1 - b2) * delta**2
                    x += eta * m / (math.sqrt(v) + tau)
                case FedYogi(eta, b1, b2, tau):
                    m = b1 * m + (1 - b1) * delta
                    sign = (v > delta**2) - (v < delta**2)
                    v = v - (1 - b2) * delta**2 * sign
                    x += eta * m / (math.sqrt(v) + tau)
                case _:
                    raise AssertionError
        result.append(x)
    return result


def run(optimizer: ServerOptimizer, start: Block, deltas: list[Block]) -> Block:
    moments = optimizer.init(start.size)
    for delta in deltas:
        start, moments = optimizer.apply(start, delta, moments)
    return start


@pytest.mark.parametrize("optimizer", ALL, ids=lambda o: o.name)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rounds=st.integers(1, 6))
def test_it_is_the_papers_formula(optimizer: ServerOptimizer, seed: int, rounds: int) -> None:
    generator = np.random.default_rng(seed)
    start = generator.normal(size=9).astype(np.float32)
    deltas = [generator.normal(0, 0.1, 9).astype(np.float32) for _ in range(rounds)]
    expected = naive(
        optimizer, [float(x) for x in start], [[float(x) for x in delta] for delta in deltas]
    )
    np.testing.assert_allclose(run(optimizer, start, deltas), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("optimizer", ALL, ids=lambda o: o.name)
def test_any_split_into_blocks_gives_the_same_bits(optimizer: ServerOptimizer) -> None:
    generator = np.random.default_rng(3)
    start = generator.normal(size=100).astype(np.float32)
    deltas = [generator.normal(0, 0.1, 100).astype(np.float32) for _ in range(3)]
    whole = run(optimizer, start, deltas)
    parts = [
        run(optimizer, start[i : i + 13], [delta[i : i + 13] for delta in deltas])
        for i in range(0, 100, 13)
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


@pytest.mark.parametrize("optimizer", ALL, ids=lambda o: o.name)
def test_moments_are_tensors_that_can_be_stored(optimizer: ServerOptimizer, tmp_path: Path) -> None:
    moments = optimizer.init(5)
    assert tuple(moments) == optimizer.moment_names
    if moments:
        save_file(moments, tmp_path / "state.safetensors")
        moments = load_file(tmp_path / "state.safetensors")
    following, after = optimizer.apply(np.zeros(5, np.float32), np.ones(5, np.float32), moments)
    assert tuple(after) == optimizer.moment_names
    assert all(block.dtype == np.float32 and block.shape == (5,) for block in after.values())
    assert (following > 0).all()


@pytest.mark.parametrize("optimizer", ALL, ids=lambda o: o.name)
def test_inputs_are_left_alone(optimizer: ServerOptimizer) -> None:
    parameters, delta = np.ones(4, np.float32), np.full(4, 0.5, np.float32)
    moments = optimizer.init(4)
    before = {name: block.copy() for name, block in moments.items()}
    optimizer.apply(parameters, delta, moments)
    np.testing.assert_array_equal(parameters, 1)
    np.testing.assert_array_equal(delta, 0.5)
    for name, block in before.items():
        np.testing.assert_array_equal(moments[name], block)


def test_defaults_are_the_papers() -> None:
    assert FedAvg() == FedAvg(learning_rate=1.0)
    assert FedAvgM().momentum == 0.9
    assert (FedAdam().beta1, FedAdam().beta2, FedAdam().tau) == (0.9, 0.99, 1e-3)
    assert (FedYogi().beta1, FedYogi().beta2, FedYogi().tau) == (0.9, 0.99, 1e-3)


@pytest.mark.parametrize("optimizer", ALL, ids=lambda o: o.name)
def test_leaving_float32_is_an_error(optimizer: ServerOptimizer) -> None:
    huge = np.full(2, 3e38, np.float32)
    with pytest.raises(NotFinite, match="learning rate"):
        run(optimizer, huge, [huge] * 3)


@pytest.mark.parametrize(
    "broken",
    [
        lambda o: o.apply(np.zeros(2, np.float32), np.zeros(3, np.float32), o.init(2)),
        lambda o: o.apply(np.zeros(2), np.zeros(2, np.float32), o.init(2)),
        lambda o: o.apply(np.zeros(2, np.float32), np.zeros(2, np.float32), {}),
        lambda o: o.apply(np.zeros(2, np.float32), np.zeros(2, np.float32), o.init(3)),
    ],
)
def test_blocks_that_do_not_belong_together_crash(
    broken: Callable[[ServerOptimizer], object],
) -> None:
    with pytest.raises(AssertionError):
        broken(FedAvgM())
