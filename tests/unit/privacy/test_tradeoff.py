"""The grids around an answer: what stands in them, and where they end."""

from __future__ import annotations

import math

import pytest

from boltz_mesh.privacy.accountant import epsilon
from boltz_mesh.privacy.federation import Federation
from boltz_mesh.privacy.planning import MAX_PLANNED_ROUNDS, error_of_mean, outlook
from boltz_mesh.privacy.tradeoff import drawn_tradeoff, tradeoff
from boltz_protocol import limits

OPEN = Federation(clients=60, mode="open", clip_norm=0.5, parameters=7)


def test_the_answer_stands_in_both_grids() -> None:
    answer = outlook(OPEN, noise_multiplier=4.0, rounds=100)
    around = tradeoff(answer)
    assert around.noise_multipliers == (2.0, 2.8, 4.0, 6.0, 8.0)
    assert around.rounds == (10, 20, 50, 100, 200)
    assert around.cohorts == (15, 30, 60, 120, 240)
    assert around.epsilons[4.0][3] == answer.epsilon
    assert around.errors[4.0][2] == answer.error
    assert around.epsilons[8.0][0] == epsilon(8.0, 10)
    twice = error_of_mean(Federation(clients=120, mode="open", clip_norm=0.5, parameters=7), 4.0)
    assert around.errors[4.0][3].l2_expected == pytest.approx(twice.l2_expected, rel=1e-12)


def test_more_noise_costs_less_and_errs_more() -> None:
    around = drawn_tradeoff(outlook(Federation(clients=60), epsilon=2.0, rounds=30))
    for less, more in zip(around.noise_multipliers, around.noise_multipliers[1:], strict=False):
        for one, other in zip(around.epsilons[less], around.epsilons[more], strict=True):
            assert one > other
        for one_error, other_error in zip(around.errors[less], around.errors[more], strict=True):
            assert one_error.coordinate_std < other_error.coordinate_std


def test_lines_have_points_from_one_round_to_twice_the_answer() -> None:
    around = drawn_tradeoff(outlook(OPEN, noise_multiplier=4.0, rounds=300))
    assert around.rounds[0] == 1
    assert around.rounds[-1] == 600
    assert (around.cohorts[0], around.cohorts[-1]) == (20, 180)
    assert 40 < len(around.rounds) < 60


def test_the_grids_end_at_the_caps() -> None:
    largest = Federation(clients=limits.MAX_ROSTER, mode="open")
    answer = outlook(largest, noise_multiplier=1000.0, rounds=MAX_PLANNED_ROUNDS)
    around = tradeoff(answer)
    assert around.noise_multipliers == (500.0, 700.0, 1000.0)
    assert around.rounds[-1] == MAX_PLANNED_ROUNDS
    assert around.cohorts[-1] == limits.MAX_ROSTER


def test_the_smallest_answer_has_grids_too() -> None:
    around = tradeoff(outlook(Federation(clients=1, mode="open"), noise_multiplier=0.3, rounds=1))
    assert around.rounds == (1, 2)
    assert around.cohorts == (2, 4)
    # Half of that noise tells nothing any more.
    assert around.epsilons[around.noise_multipliers[0]][0] == math.inf


def test_supposed_sampling_is_not_in_the_figures() -> None:
    supposed = Federation(clients=60, mode="open", sampling_rate=0.5, supposed_sampling=True)
    answer = outlook(supposed, noise_multiplier=4.0, rounds=5)
    assert tradeoff(answer).epsilons[4.0][-2] == answer.epsilon_charged > answer.epsilon
