"""Reputation: exact arithmetic, the cautious quantile, and the bounds that are documented."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta  # type: ignore[import-untyped]

from boltz_mesh.trust.reputation import (
    FORGOTTEN_AFTER_ROUNDS,
    GAIN_256,
    KEPT,
    LARGE_LOSS_256,
    MAX_QUARANTINE_ROUNDS,
    NEGATIVE_MOST_256,
    NEWCOMER,
    ONE,
    OUT_OF,
    POSITIVE_MOST_256,
    PRIOR_256,
    ROUNDS,
    SMALL_LOSS_256,
    Evidence,
    EvidenceKind,
    TrustState,
    apply,
    forget,
)

STATES = st.builds(
    TrustState,
    st.integers(0, POSITIVE_MOST_256),
    st.integers(0, NEGATIVE_MOST_256),
    st.integers(0, MAX_QUARANTINE_ROUNDS),
)
AMOUNTS = st.integers(0, NEGATIVE_MOST_256)
GOOD = Evidence(EvidenceKind.CONDUCT, "counted", GAIN_256)
MISSED = Evidence(EvidenceKind.CONDUCT, "late", 0, SMALL_LOSS_256)
STRIKE = Evidence(EvidenceKind.OUTCOME, "poison", 0, LARGE_LOSS_256)
#: The most trusted client there can be.
FULL = TrustState(POSITIVE_MOST_256)


def after(rounds: int, evidence: Evidence, state: TrustState = NEWCOMER) -> TrustState:
    for _ in range(rounds):
        state = apply(state, 1, evidence)
    return state


def quantile_of(state: TrustState) -> float:
    """How much of the posterior lies below the trust."""
    a = (state.positive_256 + PRIOR_256) / ONE
    b = (state.negative_256 + PRIOR_256) / ONE
    return float(beta.cdf(state.trust_256 / ONE, a, b))


# --- mean and quantile --------------------------------------------------------------------------


def test_a_newcomer() -> None:
    assert NEWCOMER.mean_256 == 128
    # 0.5 - sqrt(1/12), in 1/256ths.
    assert NEWCOMER.trust_256 == 54 == math.floor(256 * (0.5 - math.sqrt(1 / 12)))


@given(STATES)
def test_mean_and_deviation_are_those_of_the_beta_distribution(state: TrustState) -> None:
    a, b = state.positive_256 / ONE + 1, state.negative_256 / ONE + 1
    assert state.mean_256 == pytest.approx(ONE * beta.mean(a, b), abs=1)
    exact = ONE * (beta.mean(a, b) - beta.std(a, b))
    assert 1 <= state.trust_256 <= 256
    # Rounded down, never up, but for the least there is.
    assert state.trust_256 == max(1, state.trust_256)
    assert exact - 1.01 <= state.trust_256 <= max(1.0, exact + 1e-9)


@given(STATES)
def test_the_arithmetic_is_exact(state: TrustState) -> None:
    """The least integer root above the deviation, as in exact rationals."""
    alpha, beta_ = state.positive_256 + PRIOR_256, state.negative_256 + PRIOR_256
    total = alpha + beta_
    # trust < t + 1  <=>  256 alpha - root < (t + 1) total, with root^2 >= squared.
    squared = Fraction(ONE**3 * alpha * beta_, total + ONE)
    root = math.isqrt(math.ceil(squared))
    root += root * root < squared
    assert state.trust_256 == max(1, (ONE * alpha - root) // total)


def test_at_most_22_percent_of_the_posterior_lie_below_the_trust() -> None:
    """Over a grid of everything that can be reached; the newcomer is the boldest estimate."""
    positives = np.unique(np.linspace(0, POSITIVE_MOST_256, 129).astype(int))
    negatives = np.unique(np.linspace(0, NEGATIVE_MOST_256, 193).astype(int))
    worst = max(quantile_of(TrustState(int(p), int(n))) for p in positives for n in negatives)
    assert worst == quantile_of(NEWCOMER)
    assert worst < 0.22


@given(STATES, st.integers(0, 500))
def test_more_good_experience_never_lowers_trust(state: TrustState, more: int) -> None:
    better = TrustState(min(POSITIVE_MOST_256, state.positive_256 + more), state.negative_256)
    assert better.trust_256 >= state.trust_256
    assert better.mean_256 >= state.mean_256


@given(STATES, st.integers(0, 500))
def test_more_bad_experience_never_raises_the_mean(state: TrustState, more: int) -> None:
    worse = TrustState(state.positive_256, min(NEGATIVE_MOST_256, state.negative_256 + more))
    assert worse.mean_256 <= state.mean_256


# --- what can be known --------------------------------------------------------------------------


@given(STATES, st.integers(0, 400), AMOUNTS, AMOUNTS)
def test_every_state_stays_in_its_range(
    state: TrustState, rounds: int, gain: int, loss: int
) -> None:
    after_it = apply(state, rounds, Evidence(EvidenceKind.OUTCOME, "x", gain, loss))
    assert 0 <= after_it.positive_256 <= POSITIVE_MOST_256
    assert 0 <= after_it.negative_256 <= NEGATIVE_MOST_256


@given(STATES, st.integers(0, 200), st.integers(0, 200))
def test_forgetting_is_a_matter_of_rounds_alone(state: TrustState, first: int, then: int) -> None:
    assert forget(forget(state, first), then) == forget(state, first + then)
    assert forget(state, 0) == state


@given(STATES)
def test_absence_brings_everybody_back_to_the_newcomer(state: TrustState) -> None:
    assert forget(state, FORGOTTEN_AFTER_ROUNDS) == forget(state, 10**9) == NEWCOMER
    assert FORGOTTEN_AFTER_ROUNDS >= MAX_QUARANTINE_ROUNDS


def test_forgetting_one_round() -> None:
    assert forget(TrustState(3200, 640), 1) == TrustState(3100, 620)
    assert (KEPT, OUT_OF) == (31, 32)
    half = next(n for n in count() if forget(FULL, n).positive_256 <= POSITIVE_MOST_256 // 2)
    assert half == 22


@given(STATES)
def test_a_loss_takes_more_than_a_gain_gives(state: TrustState) -> None:
    """Even the smallest one: a round well done and a round missed are not nothing together."""
    both = apply(apply(state, 0, GOOD), 0, MISSED)
    assert both.positive_256 <= state.positive_256
    assert both.negative_256 > state.negative_256 or state.negative_256 > NEGATIVE_MOST_256 - 192


def test_evidence_of_one_round_is_not_forgotten_between_its_rows() -> None:
    assert apply(apply(NEWCOMER, 1, GOOD), 0, GOOD) == TrustState(2 * GAIN_256)


# --- documented bounds --------------------------------------------------------------------------


def test_how_long_a_newcomer_needs() -> None:
    """Rounds of good conduct to a share of the most trust there is, 228: docs/operator.md."""
    assert FULL.trust_256 == 228
    needed = {
        share: next(n for n in count() if after(n, GOOD).trust_256 >= share * FULL.trust_256)
        for share in (0.5, 0.75, 0.9, 0.95)
    }
    assert needed == {0.5: 3, 0.75: 8, 0.9: 21, 0.95: 35}
    assert after(10_000, GOOD).trust_256 == FULL.trust_256


def test_two_strikes_bring_the_most_trusted_below_a_newcomer() -> None:
    """And all the strikes of an on-off client weigh less together than 1.5 rounds at its best.

    It behaves well in everything but its updates, so that its conduct goes on gaining.
    """
    state, weights = FULL, []
    for _ in range(50):
        weights.append(state.trust_256)
        state = apply(apply(state, 1, STRIKE), 0, GOOD)
    assert weights[:3] == [228, 98, 5]
    below = next(n for n, weight in enumerate(weights) if weight < NEWCOMER.trust_256)
    assert below == 2
    # 1 is the least weight there is; what is beyond it is bounded.
    assert sum(weight - 1 for weight in weights) <= 1.5 * FULL.trust_256


def test_an_on_off_client_earns_for_long_what_it_spends_at_once() -> None:
    """After two strikes: 11 good rounds to a newcomer's trust, 81 to nine tenths of the most."""
    state = apply(apply(FULL, 1, STRIKE), 1, STRIKE)
    back = [after(n, GOOD, state).trust_256 for n in range(200)]
    assert next(n for n, trust in enumerate(back) if trust >= NEWCOMER.trust_256) == 11
    assert next(n for n, trust in enumerate(back) if trust >= 0.9 * FULL.trust_256) == 81


def test_no_rhythm_of_strikes_pays() -> None:
    """The weight of the strikes of an on-off client, for each round of its rhythm, in the long run:
    under 5 of 228, less than a tenth of a newcomer's.
    """
    best = max(_struck(period) for period in range(1, 121))
    assert 4 < best < 5 < NEWCOMER.trust_256 / 10


def _struck(period: int) -> float:
    """Of a client that strikes each `period`-th round and is good in between."""
    state, weights = FULL, []
    for _ in range(24):
        state = after(period - 1, GOOD, state)
        weights.append(state.trust_256)
        state = apply(apply(state, 1, STRIKE), 0, GOOD)
    return sum(weights[12:]) / 12 / period


def test_the_way_back_from_the_worst() -> None:
    """It is there for everybody: 24 good rounds to a newcomer's trust, or absence."""
    worst = TrustState(0, NEGATIVE_MOST_256)
    good = [after(n, GOOD, worst).trust_256 for n in range(60)]
    assert next(n for n, trust in enumerate(good) if trust >= NEWCOMER.trust_256) == 24
    assert forget(worst, FORGOTTEN_AFTER_ROUNDS) == NEWCOMER


@pytest.mark.parametrize("sybils", [1, 10, 100])
@pytest.mark.parametrize("trusted", [1, 10, 100])
def test_newcomers_weigh_less_than_a_quarter_of_the_trusted(sybils: int, trusted: int) -> None:
    """So k new identities among n trusted clients have less than k / (k + 4 n) of the weight."""
    weight = sybils * NEWCOMER.trust_256
    share = Fraction(weight, weight + trusted * FULL.trust_256)
    assert share < Fraction(sybils, sybils + 4 * trusted)


@pytest.mark.parametrize(("missed_in_10", "least", "most"), [(1, 165, 185), (3, 54, 90)])
def test_clients_that_miss_rounds(missed_in_10: int, least: int, most: int) -> None:
    """Where a client settles that misses some of its rounds, evenly spread."""
    state, seen = NEWCOMER, []
    for n in range(1000):
        missed = n * missed_in_10 % 10 < missed_in_10
        state = apply(state, 1, MISSED if missed else GOOD)
        seen.append(state.trust_256)
    assert least <= sum(seen[500:]) / 500 <= most


# --- quarantine ---------------------------------------------------------------------------------


@given(STATES, st.integers(1, MAX_QUARANTINE_ROUNDS))
def test_who_comes_back_from_quarantine_is_at_most_a_newcomer(
    state: TrustState, rounds: int
) -> None:
    locked = apply(state, 0, Evidence(EvidenceKind.QUARANTINE, "far-off", inputs={ROUNDS: rounds}))
    assert locked.quarantine_rounds == max(rounds, state.quarantine_rounds)
    for passed in range(locked.quarantine_rounds):
        assert forget(locked, passed).quarantine_rounds == locked.quarantine_rounds - passed
    back = forget(locked, locked.quarantine_rounds)
    assert back.quarantine_rounds == 0
    assert back.trust_256 <= NEWCOMER.trust_256


@given(STATES, st.integers(0, 5))
def test_a_release_is_a_new_beginning(state: TrustState, rounds: int) -> None:
    assert apply(state, rounds, Evidence(EvidenceKind.RELEASE, "released")) == NEWCOMER


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (EvidenceKind.CONDUCT, {"gain_256": -1}),
        (EvidenceKind.OUTCOME, {"loss_256": -1}),
        (EvidenceKind.OUTCOME, {"loss_256": NEGATIVE_MOST_256 + 1}),
        (EvidenceKind.QUARANTINE, {"inputs": {ROUNDS: 0}}),
        (EvidenceKind.QUARANTINE, {"inputs": {ROUNDS: MAX_QUARANTINE_ROUNDS + 1}}),
        (EvidenceKind.QUARANTINE, {"inputs": {ROUNDS: 1}, "loss_256": 1}),
        (EvidenceKind.RELEASE, {"gain_256": 1}),
    ],
)
def test_evidence_that_cannot_be_is_a_defect(kind: EvidenceKind, values: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        Evidence(kind, "x", **values)  # type: ignore[arg-type]  # the case's own


@pytest.mark.parametrize("state", [(-1, 0, 0), (0, NEGATIVE_MOST_256 + 1, 0), (0, 0, 129)])
def test_a_state_that_cannot_be_is_a_defect(state: tuple[int, int, int]) -> None:
    with pytest.raises(AssertionError):
        TrustState(*state)
    with pytest.raises(AssertionError):
        forget(NEWCOMER, -1)
