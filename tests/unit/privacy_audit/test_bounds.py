"""Lower bounds: against scipy, against a second implementation, and against known mechanisms."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from boltz_mesh.app.privacy_audit.bounds import (
    MAX_EPSILON,
    Errors,
    at_least,
    best_guesses,
    clopper_pearson_upper,
    expected_accuracy,
    gaussian_bound,
    mu_lower_bound,
    one_run_bound,
    one_run_p_value,
)
from boltz_mesh.app.privacy_audit.canaries import Outcome
from boltz_protocol.gaussian_dp import epsilon_of_mu, mu_of

DELTA = 1e-5
#: Printed, so that a failure can be seen again.
SEED = 20261124
#: Simulated audits; at an error of 5% more than 34 of 400 wrong ones are a chance of 0.2%.
RUNS = 400
MOST_WRONG = 34


def second_p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Theorem 5.2 once more, term by term."""
    law = stats.binom(guesses, 1 / (1 + math.exp(-epsilon)))
    base = law.sf(right - 1)
    worst = max(((law.sf(right - i - 1) - base) / i for i in range(1, right + 1)), default=0.0)
    return float(min(1.0, base + 2 * canaries * delta * worst))


@settings(deadline=None)
@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from((0.001, 0.025, 0.5)))
def test_clopper_pearson_is_scipys(trials: int, share: float, error: float) -> None:
    hits = round(share * trials)
    expected = 1.0 if hits == trials else stats.beta.ppf(1 - error, hits + 1, trials - hits)
    found = clopper_pearson_upper(hits, trials, error)
    assert found == pytest.approx(expected, abs=1e-9)
    # Rounded up: the bound never says less than it must.
    assert found >= expected - 1e-12


def test_clopper_pearson_without_trials_knows_nothing() -> None:
    assert clopper_pearson_upper(0, 0, 0.05) == 1


@settings(deadline=None)
@given(st.integers(1, 300), st.data())
def test_binomial_tails_are_scipys(trials: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, trials))
    rate = data.draw(st.sampled_from((0.0, 1e-9, 0.2, 0.5, 0.993, 1.0)))
    assert at_least(hits, trials, rate) == pytest.approx(
        float(stats.binom.sf(hits - 1, trials, rate)), abs=1e-10
    )


@settings(deadline=None)
@given(st.integers(1, 200), st.data())
def test_the_one_run_p_value_is_the_theorems(canaries: int, data: st.DataObject) -> None:
    guesses = data.draw(st.integers(0, canaries))
    right = data.draw(st.integers(0, guesses))
    epsilon = data.draw(st.floats(0, 10))
    delta = data.draw(st.sampled_from((0.0, 1e-5, 1e-2)))
    assert one_run_p_value(canaries, guesses, right, epsilon, delta) == pytest.approx(
        second_p_value(canaries, guesses, right, epsilon, delta), abs=1e-10
    )


def test_the_one_run_bound_is_where_the_p_value_crosses() -> None:
    bound = one_run_bound(1600, 120, 107, delta=DELTA, confidence=0.95)
    assert second_p_value(1600, 120, 107, bound - 1e-6, DELTA) < 0.05
    assert second_p_value(1600, 120, 107, bound + 1e-6, DELTA) > 0.05


def test_all_right_pure_guesses_have_a_closed_form() -> None:
    """q^n = 0.05 where all n are right and delta is 0."""
    accuracy = 0.05 ** (1 / 1000)
    expected = math.log(accuracy / (1 - accuracy))
    found = one_run_bound(1000, 1000, 1000, delta=0.0, confidence=0.95)
    assert found == pytest.approx(expected, rel=1e-9)


def test_luck_proves_nothing() -> None:
    assert one_run_bound(100, 100, 52, delta=DELTA, confidence=0.95) == 0
    assert one_run_bound(100, 0, 0, delta=DELTA, confidence=0.95) == 0
    assert mu_lower_bound(Errors(50, 25, 50, 25), 0.95) == 0
    assert gaussian_bound(Errors(0, 0, 0, 0), DELTA, 0.95) == 0


@settings(deadline=None)
@given(st.integers(2, 200), st.data())
def test_more_right_guesses_never_prove_less(guesses: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, guesses - 1))
    low, high = (
        one_run_bound(guesses, guesses, hits, delta=DELTA, confidence=0.95)
        for hits in (right, right + 1)
    )
    assert low <= high + 1e-9 <= MAX_EPSILON


@settings(deadline=None)
@given(st.integers(1, 100), st.data())
def test_fewer_errors_never_prove_less(out: int, data: st.DataObject) -> None:
    false_in = data.draw(st.integers(1, out))
    worse, better = (
        mu_lower_bound(Errors(out, errors, out, 0), 0.95) for errors in (false_in, false_in - 1)
    )
    assert 0 <= worse <= better + 1e-9


def test_errors_count_what_is_right() -> None:
    errors = Errors(out=10, false_in=3, inside=20, missed=4)
    assert (errors.right, errors.total) == (23, 30)


# --- mechanisms of known epsilon ------------------------------------------------------------------


def simulated(rng: np.random.Generator, pairs: int, mu: float) -> Outcome:
    """Scores of a Gaussian mechanism with parameter `mu`: 1 in, 0 out, deviation 1 / mu."""
    coins = rng.integers(0, 2, size=(pairs // 8, 8)).astype(np.bool_)
    return Outcome(coins + rng.normal(scale=1 / mu, size=coins.shape), coins)


def accusations(guesses: int, right: list[int], delta: float) -> int:
    """Audits, all coins guessed, whose bound is above 1."""
    bounds = {
        v: one_run_bound(guesses, guesses, v, delta=delta, confidence=0.95) for v in set(right)
    }
    return sum(bounds[v] > 1.0 for v in right)


def test_a_gaussian_mechanism_is_rarely_accused() -> None:
    """Of exactly epsilon 5: the bounds exceed it in fewer than 5% of audits, and reach 25%."""
    rng = np.random.default_rng(SEED)
    mu, pairs = mu_of(5.0, DELTA), 1600
    guesses = best_guesses(pairs, mu, delta=DELTA, confidence=0.95)
    gaussian, one_run = [], []
    for _ in range(RUNS // 2):
        found = simulated(rng, pairs, mu)
        gaussian.append(gaussian_bound(found.errors(), DELTA, 0.95))
        right = found.surest_right(guesses)
        one_run.append(one_run_bound(pairs, guesses, right, delta=DELTA, confidence=0.95))
    assert sum(bound > 5 for bound in gaussian) <= 0.05 * len(gaussian), SEED
    assert max(one_run) < 5
    # An audit that is right but proves nothing would be no audit.
    assert min(gaussian) > 0.5 * 5
    assert float(np.mean(np.array(one_run) > 0.25 * 5)) > 0.95


def test_noise_of_half_the_size_is_seen() -> None:
    rng = np.random.default_rng(SEED + 1)
    mu = mu_of(5.0, DELTA)
    bounds = [gaussian_bound(simulated(rng, 1600, 2 * mu).errors(), DELTA, 0.95) for _ in range(50)]
    assert min(bounds) > 5, SEED


def test_randomised_response_is_rarely_accused() -> None:
    """The theorem is tight for it: each coin is told truly with e^1 / (1 + e^1)."""
    rng = np.random.default_rng(SEED + 2)
    right = rng.binomial(500, 1 / (1 + math.exp(-1.0)), size=RUNS)
    wrong = accusations(500, right.tolist(), 0.0)
    # As often as the confidence says, within what 400 runs can tell: the bound is tight, too.
    assert 4 <= wrong <= MOST_WRONG, SEED


@pytest.mark.parametrize("delta", [0.01, 0.001])
def test_a_mechanism_that_tells_all_with_probability_delta(delta: float) -> None:
    """Randomised response of epsilon 1 that publishes every coin at once with probability delta."""
    rng = np.random.default_rng(SEED + 3)
    right = rng.binomial(200, 1 / (1 + math.exp(-1.0)), size=RUNS)
    right[rng.random(RUNS) < delta] = 200
    assert accusations(200, right.tolist(), delta) <= MOST_WRONG, SEED


# --- how many guesses ---------------------------------------------------------------------------


def test_the_number_of_guesses_is_near_the_best() -> None:
    mu = mu_of(5.0, DELTA)
    chosen = best_guesses(1600, mu, delta=DELTA, confidence=0.95)

    def expected(guesses: int) -> float:
        right = math.floor(guesses * expected_accuracy(guesses / 1600, mu))
        return one_run_bound(1600, guesses, right, delta=DELTA, confidence=0.95)

    assert chosen % 2 == 0
    assert expected(chosen) > max(expected(1600), expected(800), expected(8))
    assert expected(chosen) > 0.25 * epsilon_of_mu(mu, DELTA)


def test_without_noise_every_coin_is_guessed() -> None:
    assert best_guesses(1600, math.inf, delta=DELTA, confidence=0.95) == 1600


def test_few_canaries_leave_few_guesses() -> None:
    assert best_guesses(3, 1.0, delta=DELTA, confidence=0.95) == 2


@pytest.mark.parametrize("mu", [0.5, 1.1, 3.0])
def test_the_surest_guesses_are_as_accurate_as_expected(mu: float) -> None:
    rng = np.random.default_rng(SEED + 5)
    found = simulated(rng, 80_000, mu)
    for share in (0.05, 0.5, 1.0):
        guesses = round(80_000 * share)
        accuracy = found.surest_right(guesses) / guesses
        assert accuracy == pytest.approx(expected_accuracy(share, mu), abs=0.02), SEED
    assert expected_accuracy(1.0, mu) == pytest.approx(NormalDist().cdf(mu / 2))
