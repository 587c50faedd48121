"""What an aggregation tells of its rows, against the same figures computed at once."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest

from boltz_mesh.aggregation.observations import Observations, Observer
from boltz_mesh.aggregation.robust import MixedTrimmedMean, gram_of
from boltz_mesh.aggregation.rows import ClientRows, Unprotected

Float64Array = npt.NDArray[np.float64]

OPEN = Unprotected("open", "none")
NAMES = ("ann", "ben", "cem", "dov", "eva", "fay", "gil")
WEIGHTS = (255, 1, 30, 30, 7, 100, 12)


def observe(rows: Float64Array, result: Float64Array, chunk: int) -> Observations:
    observer = Observer.init(NAMES[: len(rows)], WEIGHTS[: len(rows)])
    direction = np.linspace(-1, 1, rows.shape[1])
    for start in range(0, rows.shape[1], chunk):
        place = slice(start, start + chunk)
        observer.add(ClientRows(rows[:, place], OPEN), result[place], direction[place])
    return observer.finish()


def cosine(one: Float64Array, other: Float64Array) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


@pytest.fixture
def rows() -> Float64Array:
    rows = np.random.default_rng(8).standard_normal((7, 5000)) + 0.2
    rows[5:] = -3 * rows[:1] + 0.01 * rows[5:]  # two who act alike
    return rows


def test_each_figure_by_its_definition(rows: Float64Array) -> None:
    rule, block = MixedTrimmedMean(2), ClientRows(rows, OPEN)
    result = rule.apply(rule.init(np.array(WEIGHTS, np.int64), gram_of(block)), block)
    found = observe(rows, result, 1000)
    assert found.rows == NAMES
    assert found.slopes is not None
    np.testing.assert_allclose(found.slopes, rows @ np.linspace(-1, 1, rows.shape[1]))
    assert list(found.weights) == list(WEIGHTS)
    for place, row in enumerate(rows):
        assert found.norms[place] == pytest.approx(np.linalg.norm(row))
        assert found.distances[place] == pytest.approx(np.linalg.norm(row - result))
        assert found.cosines[place] == pytest.approx(cosine(row, result))
        assert found.gains[place] == pytest.approx(row @ result / (result @ result))
        for other, another in enumerate(rows):
            expected = cosine(row - result, another - result)
            assert found.closeness[place, other] == pytest.approx(expected)
    alike: Float64Array = found.closeness - np.eye(7)
    assert divmod(int(alike.argmax()), 7) == (5, 6)
    assert found.gains[5] < 0 < found.gains[1]


def test_blocks_add_up_and_a_replay_has_the_same_bits(rows: Float64Array) -> None:
    result = rows.mean(axis=0)
    first, again = observe(rows, result, 777), observe(rows.copy(), result, 777)
    whole = observe(rows, result, 5000)
    for field in dataclasses.fields(Observations)[2:]:
        bits = getattr(first, field.name)
        assert bits.dtype == np.float64
        assert bits.tobytes() == getattr(again, field.name).tobytes()
        np.testing.assert_allclose(bits, getattr(whole, field.name), rtol=1e-9, atol=1e-12)


def test_rows_and_results_of_zero_have_no_direction() -> None:
    rows = np.zeros((3, 4))
    rows[0] = 1.0
    found = observe(rows, np.zeros(4), 4)
    assert found.gains.tolist() == found.cosines.tolist() == [0.0, 0.0, 0.0]
    assert found.distances.tolist() == found.norms.tolist() == [2.0, 0.0, 0.0]
    assert found.closeness.tolist() == [[1.0, 0, 0], [0, 0, 0], [0, 0, 0]]
    at_the_result = observe(rows, rows[0], 4)
    assert at_the_result.distances[0] == 0.0
    assert at_the_result.closeness[0].tolist() == [0.0, 0.0, 0.0]
    assert at_the_result.gains.tolist() == at_the_result.cosines.tolist() == [1.0, 0.0, 0.0]


def test_rows_close_to_the_result_keep_their_distance() -> None:
    """Inner products alone would leave no digit of it."""
    rows = 1e6 + np.random.default_rng(2).standard_normal((5, 1000)) * 1e-3
    result = rows.mean(axis=0)
    found = observe(rows, result, 300)
    np.testing.assert_allclose(found.distances, np.linalg.norm(rows - result, axis=1), rtol=1e-6)


def test_other_rows_than_were_named_crash() -> None:
    observer = Observer.init(NAMES, WEIGHTS)
    with pytest.raises(AssertionError):
        observer.add(ClientRows(np.zeros((6, 4)), OPEN), np.zeros(4))
    with pytest.raises(AssertionError):
        observer.add(ClientRows(np.zeros((7, 4)), OPEN), np.zeros(5))
    with pytest.raises(AssertionError):
        Observer.init(("ann", "ann"), (1, 1))
