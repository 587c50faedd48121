"""Noise, rounds and epsilon: each from the other two, the error, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from boltz_mesh.app.budget_plan.words import plan_toml
from boltz_mesh.privacy.accountant import epsilon, epsilon_replace_one
from boltz_mesh.privacy.budget import rounds_that_fit
from boltz_mesh.privacy.federation import Federation, NoiseMode
from boltz_mesh.privacy.planning import (
    MAX_PLANNED_ROUNDS,
    chi_mean,
    epsilon_for,
    error_of_mean,
    noise_for,
    outlook,
    rounds_for,
)
from boltz_mesh.rounds.plan import plan_from_toml
from boltz_mesh.rounds.plan_checks import validate_encoding
from boltz_mesh.rounds.plan_sealed import release_terms
from boltz_protocol.errors import InvalidPlan

OPEN = Federation(clients=60, mode="open")
SEALED = Federation(clients=60)


# --- one from the other two ---------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    allowed=st.floats(0.1, 20.0),
    rounds=st.integers(1, 300),
    mode=st.sampled_from(["open", "sealed"]),
)
def test_the_three_questions_agree(allowed: float, rounds: int, mode: NoiseMode) -> None:
    federation = Federation(clients=60, mode=mode)
    answer = outlook(federation, epsilon=allowed, rounds=rounds)
    assert answer.epsilon <= allowed == answer.asked_epsilon
    # Four digits, rounded up, and no more than that.
    least = noise_for(federation, allowed, rounds)
    assert least <= answer.noise_multiplier <= least * 1.001
    back = outlook(federation, noise_multiplier=answer.noise_multiplier, rounds=rounds)
    assert (back.epsilon, back.asked_epsilon) == (answer.epsilon, None)
    again = outlook(federation, epsilon=allowed, noise_multiplier=answer.noise_multiplier)
    assert again.rounds >= rounds
    assert again.epsilon <= allowed
    more = epsilon_for(federation, answer.noise_multiplier, again.rounds + 1)
    assert more > allowed


def test_an_answer_has_every_figure() -> None:
    answer = outlook(OPEN, noise_multiplier=4.0, rounds=20)
    assert answer.epsilon == answer.epsilon_charged == epsilon(4.0, 20)
    assert answer.epsilon_replace_one == epsilon_replace_one(4.0, 20)
    assert answer.error == error_of_mean(OPEN, 4.0)
    sealed = outlook(SEALED, noise_multiplier=4.0, rounds=20)
    assert answer.epsilon < sealed.epsilon == pytest.approx(answer.epsilon, rel=1e-6)


def test_hundred_rounds_at_one_are_the_known_epsilon() -> None:
    assert outlook(OPEN, noise_multiplier=1.0, rounds=100).epsilon == pytest.approx(
        96.7173, abs=1e-4
    )
    assert outlook(OPEN, epsilon=97.0, rounds=100).noise_multiplier <= 1.0


def test_more_rounds_than_anyone_plans_end_there() -> None:
    assert rounds_for(OPEN, 1e6, 1000.0) == MAX_PLANNED_ROUNDS


@pytest.mark.parametrize("mode", ["open", "sealed"])
@pytest.mark.parametrize(("allowed", "rounds"), [(2.0, 25), (6.0, 9)])
def test_the_answer_typed_into_a_plan_allows_those_rounds(
    mode: NoiseMode, allowed: float, rounds: int
) -> None:
    federation = Federation(clients=60, mode=mode, delta=1e-5, clip_norm=0.08, parameters=12)
    answer = outlook(federation, epsilon=allowed, rounds=rounds)
    text = f'model = "m"\n{plan_toml(answer)}[[tensors]]\nname = "w"\nshape = [12]\n'
    plan = plan_from_toml(text)
    assert plan.budget is not None
    terms = release_terms(plan, validate_encoding(plan))
    event = terms.event(model="m", round="r", attempt=1, client="a")
    assert rounds_that_fit(plan.budget, [], event) >= rounds


# --- supposed sampling --------------------------------------------------------------------------


def test_supposed_sampling_is_answered_and_what_would_be_charged_stands_beside() -> None:
    federation = Federation(
        clients=60, mode="open", sampling_rate=0.1, supposed_sampling=True, delta=1e-5
    )
    answer = outlook(federation, epsilon=1.0, rounds=10)
    assert 0.99 < answer.epsilon <= 1.0
    assert answer.epsilon == epsilon(answer.noise_multiplier, 10, 0.1, 1e-5)
    assert answer.epsilon_charged == epsilon(answer.noise_multiplier, 10, 1.0, 1e-5) > 7
    assert answer.epsilon_replace_one > answer.epsilon
    assert answer.noise_multiplier < noise_for(Federation(clients=60, delta=1e-5), 1.0, 10) / 2
    assert rounds_for(federation, 1.0, answer.noise_multiplier) >= 10


# --- error --------------------------------------------------------------------------------------


def test_the_error_is_that_of_drawn_noise() -> None:
    federation = Federation(clients=50, mode="open", clip_norm=0.3, parameters=40)
    error = error_of_mean(federation, 4.0)
    drawn = np.random.default_rng(7).normal(0, 4.0 * 0.3, size=(20_000, 40)) / 50
    assert drawn.std() == pytest.approx(error.coordinate_std, rel=0.01)
    assert np.linalg.norm(drawn, axis=1).mean() == pytest.approx(error.l2_expected, rel=0.01)
    assert error.l2_over_clip == pytest.approx(error.l2_expected / 0.3, rel=1e-12)


def test_shares_of_a_full_cohort_add_to_the_error() -> None:
    sealed = Federation(clients=60, least_survivors=40)
    ratio = error_of_mean(sealed, 4.0).coordinate_std / error_of_mean(OPEN, 4.0).coordinate_std
    assert ratio == pytest.approx(math.sqrt(60 / 37), rel=1e-12)


def test_the_mean_length_of_normal_vectors() -> None:
    assert chi_mean(1) == pytest.approx(math.sqrt(2 / math.pi), rel=1e-12)
    assert chi_mean(2) == pytest.approx(math.sqrt(math.pi / 2), rel=1e-12)
    # Where the series takes over, both agree; and it is never the root of d itself.
    for dimensions in (999, 1000, 1001):
        half = dimensions / 2
        exact = math.sqrt(2) * math.exp(math.lgamma(half + 0.5) - math.lgamma(half))
        assert chi_mean(dimensions) == pytest.approx(exact, rel=1e-9)
    assert chi_mean(1 << 30) < math.sqrt(1 << 30)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_values", "setting"),
    [
        ({}, "epsilon, rounds, noise_multiplier"),
        ({"epsilon": 2.0}, "epsilon, rounds, noise_multiplier"),
        (
            {"epsilon": 2.0, "rounds": 10, "noise_multiplier": 4.0},
            "epsilon, rounds, noise_multiplier",
        ),
        ({"epsilon": 0.0, "rounds": 10}, "epsilon"),
        ({"epsilon": -2.0, "rounds": 10}, "epsilon"),
        ({"epsilon": math.nan, "rounds": 10}, "epsilon"),
        ({"epsilon": math.inf, "noise_multiplier": 1.0}, "epsilon"),
        ({"epsilon": 2.0, "rounds": 0}, "rounds"),
        ({"epsilon": 2.0, "rounds": -1}, "rounds"),
        ({"noise_multiplier": 4.0, "rounds": MAX_PLANNED_ROUNDS + 1}, "rounds"),
        ({"noise_multiplier": 0.0, "rounds": 10}, "noise_multiplier"),
        ({"noise_multiplier": -1.0, "rounds": 10}, "noise_multiplier"),
        ({"noise_multiplier": math.nan, "rounds": 10}, "noise_multiplier"),
        ({"noise_multiplier": 1001.0, "epsilon": 2.0}, "noise_multiplier"),
        ({"noise_multiplier": 0.1, "rounds": 1}, "noise_multiplier"),
    ],
)
def test_values_that_cannot_be_planned_for(
    given_values: dict[str, float | int], setting: str
) -> None:
    with pytest.raises(InvalidPlan, match="would do") as error:
        outlook(SEALED, **given_values)  # type: ignore[arg-type]
    assert error.value.metadata["setting"] == setting


def value_that_would_do(message: str) -> float:
    words = message.removesuffix(" would do").split()
    return next(float(word) for word in reversed(words) if word.replace(".", "").isdigit())


def test_not_even_one_round_says_how_much_noise_would_do() -> None:
    with pytest.raises(InvalidPlan, match=r"one round costs epsilon 4\.887") as error:
        rounds_for(OPEN, 0.5, 1.0)
    assert rounds_for(OPEN, 0.5, value_that_would_do(error.value.message)) >= 1
    with pytest.raises(InvalidPlan, match="more epsilon than can be told"):
        rounds_for(OPEN, 0.5, 0.1)


def test_more_noise_than_a_plan_has_says_how_many_rounds_would_do() -> None:
    with pytest.raises(InvalidPlan, match="at most 1000") as error:
        noise_for(OPEN, 0.05, 100_000)
    fewer = int(value_that_would_do(error.value.message))
    assert noise_for(OPEN, 0.05, fewer) <= 1000
    with pytest.raises(InvalidPlan, match="at most 1000"):
        noise_for(OPEN, 0.05, fewer + 1)
    with pytest.raises(InvalidPlan, match=r"an epsilon of 0\.00\d+ for one round would do"):
        noise_for(OPEN, 0.001, 1)
