"""The robust rules agree with byzfl, and with naive definitions, weights included."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

import boltz_mesh.aggregation as rules
from boltz_mesh.aggregation.robust import (
    CoordinateMedian,
    GeometricMedian,
    MixedTrimmedMean,
    MultiKrum,
    RobustRule,
    TrimmedMean,
    gram_of,
)
from boltz_mesh.aggregation.rows import ClientRows, FloatArray, Unprotected
from tests.support import byzfl_oracle as byzfl
from tests.unit.aggregation import naive

Float64Array = npt.NDArray[np.float64]

OPEN = Unprotected("open", "none")


def random(clients: int, parameters: int, seed: int = 5) -> Float64Array:
    return np.random.default_rng(seed).standard_normal((clients, parameters))


def outliers(clients: int, byzantine: int, parameters: int) -> Float64Array:
    updates = random(clients, parameters) + 0.3
    updates[:byzantine] *= -50
    return updates


def one_spike(clients: int, parameters: int) -> Float64Array:
    updates = np.zeros((clients, parameters))
    updates[clients // 2, parameters // 2] = 3.0
    return updates


# Clients at the least, in between, and many; f is the third number.
SIZES = [(3, 1, 0), (5, 7, 1), (7, 40, 2), (9, 33, 4), (12, 100, 4), (20, 3000, 4), (60, 500, 25)]
WITHOUT_TIES = [
    *((random(clients, parameters), f) for clients, parameters, f in SIZES),
    *((outliers(clients, f, parameters), f) for clients, parameters, f in SIZES),
    (random(20, 20_000) * 1e6, 4),
    (random(20, 300) * 1e-9, 4),
    # Long rows close to each other, as whole models are.
    (random(11, 300) + 1e6, 3),
]
WITH_TIES = [
    (np.full((7, 20), 0.7), 2),
    (np.zeros((7, 20)), 2),
    (np.eye(5), 1),
    (np.eye(8, 30), 2),
    (np.repeat(random(3, 40), 4, axis=0), 3),
    (one_spike(9, 11), 2),
    (np.round(random(9, 200)), 2),
]
EVERY = [*WITHOUT_TIES, *WITH_TIES]


def agree(result: Float64Array, expected: Float64Array, updates: Float64Array) -> None:
    assert result.dtype == np.float64
    scale = float(np.abs(updates).max()) or 1.0
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6 * min(scale, 1.0))


@pytest.mark.parametrize(("updates", "f"), EVERY)
def test_the_coordinate_median(updates: Float64Array, f: int) -> None:
    result = rules.coordinate_median(updates)
    agree(result, byzfl.median(updates), updates)
    agree(result, naive.median(updates), updates)


@pytest.mark.parametrize(("updates", "f"), EVERY)
def test_the_trimmed_mean(updates: Float64Array, f: int) -> None:
    for byzantine in {0, f, (len(updates) - 1) // 2}:
        result = rules.trimmed_mean(updates, byzantine)
        agree(result, byzfl.trimmed_mean(updates, byzantine), updates)
        agree(result, naive.trimmed_mean(updates, byzantine), updates)


@pytest.mark.parametrize(("updates", "f"), WITHOUT_TIES)
def test_mixing(updates: Float64Array, f: int) -> None:
    result = rules.nearest_neighbour_mixing(updates, f)
    assert result.shape == updates.shape
    agree(result, byzfl.mixing(updates, f), updates)


@pytest.mark.parametrize(("updates", "f"), [each for each in EVERY if each[0].size < 1e5])
def test_mixing_where_rows_are_equally_near(updates: Float64Array, f: int) -> None:
    agree(rules.nearest_neighbour_mixing(updates, f), naive.mixing(updates, f), updates)


@pytest.mark.parametrize("updates", [np.eye(5), np.eye(8)])
def test_byzfl_mixes_as_many_of_the_equally_near(updates: Float64Array) -> None:
    """It takes them in the order of numpy's partition, which may be any."""
    ours, theirs = rules.nearest_neighbour_mixing(updates, 2), byzfl.mixing(updates, 2)
    np.testing.assert_allclose(np.diagonal(ours), np.diagonal(theirs))
    np.testing.assert_allclose(np.sort(ours, axis=1), np.sort(theirs, axis=1))


@pytest.mark.parametrize(("updates", "f"), [e for e in EVERY if len(e[0]) >= 2 * e[1] + 3])
def test_krum(updates: Float64Array, f: int) -> None:
    agree(rules.multi_krum(updates, f, 1), byzfl.krum(updates, f), updates)
    for select in (1, 2, len(updates) - f):
        result = rules.multi_krum(updates, f, select)
        agree(result, naive.multi_krum(updates, f, select), updates)


@pytest.mark.parametrize(("updates", "f"), [e for e in WITHOUT_TIES if len(e[0]) >= 2 * e[1] + 3])
def test_multi_krum(updates: Float64Array, f: int) -> None:
    result = rules.multi_krum(updates, f, len(updates) - f - 1)
    agree(result, byzfl.multi_krum(updates, f), updates)


def test_byzfl_departs_from_the_paper_for_krum() -> None:
    """It sums the distances to n - f - 1 others and not to n - f - 2, which may select another."""
    updates = np.array([[0.0], [1.0], [1.5], [7.0], [8.2]])
    scores = naive.krum_scores(updates, 1)
    assert int(np.argmin(scores)) == 1
    as_in_the_paper = rules.multi_krum(updates, 1, 1)
    assert as_in_the_paper == pytest.approx([1.0])
    assert byzfl.krum(updates, 1) == pytest.approx(as_in_the_paper)
    assert byzfl.krum(updates, 0) != pytest.approx(as_in_the_paper)


@pytest.mark.parametrize(("updates", "f"), EVERY)
def test_the_geometric_median(updates: Float64Array, f: int) -> None:
    result = rules.geometric_median(updates)
    expected = byzfl.geometric_median(updates)
    least = naive.sum_of_distances(expected, updates)
    assert naive.sum_of_distances(result, updates) <= least * (1 + 1e-9) + 1e-12
    agree(result, expected, updates)


@pytest.mark.parametrize("radius", [0.01, 3.0, 1e9])
@pytest.mark.parametrize(("updates", "f"), EVERY)
def test_centered_clipping(updates: Float64Array, f: int, radius: float) -> None:
    for rounds in (1, 4):
        result = rules.centered_clipping(updates, radius, rounds)
        agree(result, byzfl.centered_clipping(updates, radius, rounds), updates)
        agree(result, naive.centered_clipping(updates, radius, rounds), updates)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_rule_computes_in_float64_whatever_it_is_given(
    dtype: type[np.float32] | type[np.float64],
) -> None:
    updates: FloatArray = random(9, 50).astype(dtype)
    wide = updates.astype(np.float64)
    every: tuple[Callable[[FloatArray], Float64Array], ...] = (
        rules.coordinate_median,
        lambda rows: rules.trimmed_mean(rows, 2),
        lambda rows: rules.multi_krum(rows, 2, 3),
        rules.geometric_median,
        lambda rows: rules.centered_clipping(rows, 2.0, 3),
        lambda rows: rules.nearest_neighbour_mixing(rows, 2),
    )
    for each in every:
        assert each(updates).tobytes() == each(wide).tobytes()


# --- weights -------------------------------------------------------------------------------------


def aggregate(
    rule: RobustRule, updates: Float64Array, weights: npt.ArrayLike, chunk: int = 64
) -> Float64Array:
    """In blocks, as the fold does it."""
    starts = range(0, updates.shape[1], chunk)
    blocks = [ClientRows(updates[:, start : start + chunk], OPEN) for start in starts]
    gram = sum(gram_of(block) for block in blocks) if rule.measures else None
    state = rule.init(
        np.asarray(weights, np.int64), None if gram is None else np.asarray(gram, np.float64)
    )
    return np.concatenate([rule.apply(state, block) for block in blocks])


RULES: list[RobustRule] = [
    CoordinateMedian(),
    TrimmedMean(2),
    MixedTrimmedMean(2),
    MultiKrum(2, 3),
    GeometricMedian(),
]


@pytest.mark.parametrize("rule", RULES)
def test_equal_weights_are_none(rule: RobustRule) -> None:
    updates = random(9, 300)
    expected = {
        "coordinate-median": lambda: byzfl.median(updates),
        "trimmed-mean": lambda: byzfl.trimmed_mean(updates, 2),
        "mixed-trimmed-mean": lambda: byzfl.trimmed_mean(byzfl.mixing(updates, 2), 2),
        "multi-krum": lambda: naive.multi_krum(updates, 2, 3),
        "geometric-median": lambda: byzfl.geometric_median(updates),
    }[rule.name]()
    for weight in (1, 37, 255):
        agree(aggregate(rule, updates, [weight] * 9), expected, updates)


@pytest.mark.parametrize("seed", range(5))
def test_rules_by_weight(seed: int) -> None:
    generator = np.random.default_rng(seed)
    clients = int(generator.integers(7, 25))
    updates = random(clients, 150, seed)
    weights = generator.integers(1, 256, clients)
    f = int(generator.integers(1, (clients - 1) // 3 + 1))
    agree(
        aggregate(TrimmedMean(f), updates, weights),
        naive.trimmed_mean(updates, f, weights),
        updates,
    )
    agree(
        aggregate(MixedTrimmedMean(f), updates, weights),
        naive.trimmed_mean(naive.mixing(updates, f, weights), f, weights),
        updates,
    )
    agree(
        aggregate(MultiKrum(f, 3), updates, weights),
        naive.multi_krum(updates, f, 3, weights),
        updates,
    )


def test_the_median_by_weight_is_by_count() -> None:
    updates = random(8, 50)
    weights = [1, 255, 3, 9, 27, 81, 200, 5]
    expected = naive.trimmed_mean(updates, 3, weights)
    agree(aggregate(CoordinateMedian(), updates, weights), expected, updates)
    assert aggregate(CoordinateMedian(), updates[:7], weights[:7]) == pytest.approx(
        np.median(updates[:7], axis=0)
    )


def test_the_geometric_median_by_weight_is_that_of_repeated_rows() -> None:
    updates = random(7, 40)
    weights = [3, 1, 4, 1, 5, 2, 6]
    expected = byzfl.geometric_median(np.repeat(updates, weights, axis=0))
    agree(rules.geometric_median(updates, weights), expected, updates)
    agree(aggregate(GeometricMedian(), updates, weights), expected, updates)


def test_values_that_are_equal_are_dropped_by_the_same_fraction() -> None:
    """As if any of them were dropped as likely as any other."""
    updates = np.array([[0.0, 2.0], [0.0, 2.0], [0.0, 1.0], [1.0, 1.0], [3.0, 2.0]])
    weights = np.array([9.0, 1.0, 3.0, 5.0, 2.0])
    sums, masses = np.zeros(2), np.zeros(2)
    for order in itertools.permutations(range(5)):
        for column in range(2):
            ordered = sorted(order, key=lambda place: updates[place, column])[1:-1]
            sums[column] += weights[ordered] @ updates[ordered, column]
            masses[column] += weights[ordered].sum()
    result = aggregate(TrimmedMean(1), updates, weights)
    np.testing.assert_allclose(result, sums / masses, rtol=1e-12)


# --- blocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_blocks_give_the_same_as_the_whole(rule: RobustRule) -> None:
    updates, weights = random(9, 5000), list(range(1, 10))
    whole = aggregate(rule, updates, weights, chunk=5000)
    for chunk in (1, 7, 1024, 4999):
        if chunk == 1 and rule.measures:
            continue
        in_blocks = aggregate(rule, updates, weights, chunk=chunk)
        np.testing.assert_allclose(in_blocks, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_a_replay_of_the_same_blocks_gives_the_same_bits(rule: RobustRule) -> None:
    updates = random(11, 40_000).astype(np.float32)
    weights = np.random.default_rng(3).integers(1, 256, 11)
    first = aggregate(rule, updates.astype(np.float64), weights, chunk=1 << 14)
    again = aggregate(rule, updates.astype(np.float64).copy(), weights, chunk=1 << 14)
    assert first.tobytes() == again.tobytes()


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_the_rows_does_not_matter(rule: RobustRule) -> None:
    updates = random(9, 200)
    weights = np.random.default_rng(4).integers(1, 256, 9)
    expected = aggregate(rule, updates, weights)
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(9)
        permuted = aggregate(rule, updates[order], weights[order])
        np.testing.assert_allclose(permuted, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rule", [CoordinateMedian(), TrimmedMean(2)])
def test_nor_where_values_are_equal(rule: RobustRule) -> None:
    updates = np.round(random(9, 400))
    weights = np.random.default_rng(4).integers(1, 256, 9)
    expected = aggregate(rule, updates, weights)
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(9)
        permuted = aggregate(rule, updates[order], weights[order])
        np.testing.assert_allclose(permuted, expected, rtol=1e-12, atol=1e-12)
