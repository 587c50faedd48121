"""Games against a hostile server that colludes with a corrupt client.

A failure names its seed; `python -m tests.simulation.protocol game SEED` plays that game again.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.protocol.game import Game
from tests.simulation.protocol.lies import ANOTHER_CONTEXT, Kind, Lie
from tests.simulation.protocol.settings import Misdeed, Setting

#: Played in every run of the tests.
SEEDS = range(110)
LIES = st.lists(
    st.builds(Lie, st.sampled_from(list(Kind)), st.integers(0, 50), st.integers(0, 50)), max_size=5
)


def setting_of(sparse: bool) -> Setting:
    return Setting(
        clients=8 if sparse else 7,
        min_clients=3 if sparse else 4,
        sparse=sparse,
        misdeeds={0: Misdeed.COLLUDES},
    )


def play(seed: int) -> Game:
    game = Game.of(seed)
    try:
        game.play()
    except AssertionError as error:
        raise AssertionError(f"game {seed}: {error}") from error
    return game


def test_likely_games_give_sums_or_nothing() -> None:
    learnt: Counter[bool] = Counter()
    for seed in SEEDS:
        game = play(seed)
        learnt[bool(game.learnt)] += 1
    assert min(learnt[True], learnt[False]) > len(SEEDS) // 5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), LIES)
def test_whatever_a_server_says(seed: int, sparse: bool, lies: list[Lie]) -> None:
    Game(seed, setting_of(sparse), lies).play()


@pytest.mark.parametrize("sparse", [False, True])
def test_without_lies_the_sum_is_learnt(sparse: bool) -> None:
    """Were nothing ever learnt, nothing here would be shown."""
    learnt = []
    for seed in range(5):
        game = Game(seed, setting_of(sparse), ())
        game.play()
        learnt += game.learnt
    assert len(learnt) >= 3
    assert all(len(found) >= 4 for found in learnt)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", list(Kind))
def test_each_lie_alone(kind: Kind, sparse: bool) -> None:
    for seed in range(3):
        game = Game(seed, setting_of(sparse), [Lie(kind, seed, seed)])
        game.play()
        if kind in ANOTHER_CONTEXT and (sparse or kind is not Kind.OTHER_GRAPH):
            victim = game.victim(kind)
            assert victim is not None
            assert all(victim not in found for found in game.learnt)


@pytest.mark.parametrize(
    "kind", [Kind.OTHER_WEIGHTS, Kind.OTHER_KEYS, Kind.MISSING_PEER, Kind.SHARES_TWICE, Kind.TWICE]
)
def test_some_lies_end_their_victims_part(kind: Kind) -> None:
    game = Game(1, setting_of(False), [Lie(kind, 2, 1)])
    game.play()
    victim = game.victim(kind)
    assert victim is not None
    assert game.parts[victim].secagg is None
    assert victim not in game.eye.released
