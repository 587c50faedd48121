"""Directions, coins, scores and guesses of the canaries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_mesh.app.privacy_audit.bounds import Errors
from boltz_mesh.app.privacy_audit.canaries import Outcome, directions, scores, toss


@settings(deadline=None)
@given(st.integers(1, 31))
def test_directions_are_orthonormal_and_spread(count: int) -> None:
    rows = directions(count, 32)
    assert rows.shape == (count, 32)
    np.testing.assert_allclose(rows @ rows.T, np.eye(count), atol=1e-12)
    np.testing.assert_allclose(np.abs(rows), 32**-0.5)
    np.testing.assert_allclose(rows.sum(axis=1), 0, atol=1e-12)


@pytest.mark.parametrize(("count", "parameters"), [(0, 8), (8, 8), (3, 12)])
def test_impossible_directions_assert(count: int, parameters: int) -> None:
    with pytest.raises(AssertionError):
        directions(count, parameters)


def test_coins_are_fair_and_differ() -> None:
    tossed = np.array([toss(64) for _ in range(200)])
    assert tossed.shape == (200, 64)
    # Six standard deviations of 12800 coins.
    assert abs(tossed.mean() - 0.5) < 6 * 0.5 / 12800**0.5
    assert len({tuple(row) for row in tossed.tolist()}) == 200


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=15), st.floats(0.01, 100))
def test_a_sum_without_noise_tells_every_coin(coins: list[bool], clip_norm: float) -> None:
    rows = directions(len(coins), 16)
    published = clip_norm * (np.array(coins, dtype=np.float64) @ rows)
    np.testing.assert_allclose(scores(published, rows, clip_norm), coins, atol=1e-9)
    found = Outcome.of([(scores(published, rows, clip_norm), tuple(coins))])
    assert found.errors().right == found.pairs == len(coins)


def test_guesses_are_counted() -> None:
    found = Outcome.of(
        [
            (np.array([0.9, 0.1, 0.6]), (True, True, False)),
            (np.array([2.5, -3.0, 0.4]), (True, False, True)),
        ]
    )
    assert found.errors() == Errors(out=2, false_in=1, inside=4, missed=2)
    # The surest two are -3.0 (out) and 2.5 (in); then 0.9 and 0.1, of which one is wrong.
    assert found.surest_right(0) == 0
    assert found.surest_right(2) == 2
    assert found.surest_right(4) == 3
    assert found.surest_right(6) == 3
