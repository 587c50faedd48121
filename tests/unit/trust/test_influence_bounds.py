"""What on-off attackers, newcomers and honest clients with unusual data come to, in open rounds.

An attacker's influence is the sum of its trust (of 1.0) over the rounds in which it strikes, which
is what its weight is multiplied by. A client that is always honest has 0.89 a round in the end, so
that a round of its influence is 0.89. The attacker here is the strongest that this mesh can tell
from others: whenever it does not strike it is the client nearest to the result, and its conduct is
perfect. Bounds:

- Striking now and then, in whatever pattern of up to 9 rounds, gains less than 0.26 a round, that
  is less than a third of what one honest client has.
- All strikes in one go, after however many good rounds, gain less than 5 in all, that is less than
  six rounds of one honest client. Then it is in quarantine.
- A newcomer gains at most 0.22 in its first round, and less than 1.3 in its first 14; k newcomers,
  k times that.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from boltz_mesh.aggregation import nearest_neighbour_mixing, trimmed_mean
from boltz_mesh.trust.outcome import Outcome, evidence_of, next_outcome
from boltz_mesh.trust.outliers import Float64Array
from boltz_mesh.trust.quarantine import HISTORY, History, judge
from boltz_mesh.trust.reputation import (
    GAIN_256,
    NEWCOMER,
    Evidence,
    EvidenceKind,
    TrustState,
    apply,
    forget,
)
from tests.unit.trust.readings import OPPOSED, reading, readings_of

CONDUCT = Evidence(EvidenceKind.CONDUCT, "counted", GAIN_256)
GOOD, BAD = reading(), reading(**OPPOSED)


class Client:
    """One client's way through rounds, as the mesh would record it."""

    def __init__(self) -> None:
        self.state: TrustState = NEWCOMER
        self.outcomes: list[Outcome] = []
        self.quarantines = 0

    @property
    def weight(self) -> float:
        """Its trust, of 1.0; 0 in quarantine."""
        return 0.0 if self.state.quarantine_rounds else self.state.trust_256 / 256

    def show(self, outcome: Outcome) -> None:
        """A round that it took part in."""
        self.outcomes = [*self.outcomes[-HISTORY + 1 :], outcome]
        self.state = apply(apply(self.state, 1, evidence_of(outcome)), 0, CONDUCT)
        found = judge(History(tuple(self.outcomes), self.quarantines))
        if found is not None:
            self.state = apply(self.state, 0, found.evidence())
            self.quarantines += 1
            self.outcomes = []

    def stay_away(self) -> None:
        """A round of a quarantine."""
        self.state = forget(self.state, 1)


def influence(strikes: Sequence[bool]) -> float:
    """The sum of an attacker's trust over the rounds in which it strikes."""
    client, total = Client(), 0.0
    for strike in strikes:
        if client.weight == 0:
            client.stay_away()
            continue
        total += client.weight if strike else 0
        client.show(next_outcome(client.outcomes, BAD if strike else GOOD))
    return total


def test_an_honest_client_s_influence() -> None:
    client = Client()
    for _ in range(64):
        client.show(next_outcome(client.outcomes, GOOD))
    assert client.weight == pytest.approx(0.89, abs=0.005)


@pytest.mark.parametrize("period", range(1, 10))
def test_striking_now_and_then(period: int) -> None:
    rounds = 96
    worst = 0.0
    for pattern in itertools.product((False, True), repeat=period):
        strikes = (pattern * (rounds // period + 1))[:rounds]
        worst = max(worst, influence(strikes) / rounds)
    assert worst < 0.26


@pytest.mark.parametrize("good", [0, 1, 8, 32, 64, 128])
def test_all_strikes_in_one_go(good: int) -> None:
    assert influence([False] * good + [True] * 14) < 5


def test_newcomers() -> None:
    assert influence([True]) < 0.22
    assert influence([True] * 14) < 1.3


def test_a_quarantine_follows_and_ends_with_a_newcomer_s_trust_or_less() -> None:
    client = Client()
    for _ in range(64):
        client.show(next_outcome(client.outcomes, GOOD))
    for _ in range(6):
        assert client.weight > 0
        client.show(next_outcome(client.outcomes, BAD))
    for _ in range(8):
        assert client.weight == 0
        client.stay_away()
    assert 0 < client.weight <= NEWCOMER.trust_256 / 256
    # The way back: from good conduct and outcome, in 32 rounds.
    for _ in range(32):
        client.show(next_outcome(client.outcomes, GOOD))
    assert client.weight > NEWCOMER.trust_256 / 256


class TestUnusualData:
    """Training with 20 clients, of which one has data of another kind (another sector): the optimum
    of its data lies elsewhere, half again as far from the start as the others' and nearly at a
    right angle to theirs. While the others' progress leads away from its own optimum it does pull
    against them. Its trust stays above the floor of 16/256, ends above 160/256 (three newcomers'),
    and it is never in quarantine."""

    FLOOR_256 = 16

    @pytest.mark.parametrize("seed", range(12))
    def test_is_no_attack(self, seed: int) -> None:
        weights, unusual = _train(seed)
        assert min(weights) >= self.FLOOR_256
        assert weights[-1] > 160
        # It is odd in nearly every round, so that the above is not for lack of looking.
        assert unusual > 0.8

    @pytest.mark.parametrize("seed", range(4))
    def test_nor_with_four_liars_about(self, seed: int) -> None:
        weights, _ = _train(seed, liars=4)
        assert min(weights) >= self.FLOOR_256
        assert weights[-1] > 190


def _train(seed: int, liars: int = 0, rounds: int = 30) -> tuple[list[int], float]:
    """Trust of client 0, in 1/256ths, after each round; the share of rounds that find it odd."""
    rng = np.random.default_rng(seed)
    count, coordinates = 20, 50
    common = _direction(rng, coordinates)
    own = rng.normal(size=(count, coordinates)) / np.sqrt(coordinates)
    optimum = 4 * common + own
    optimum[0] = 1.2 * common + 6 * _direction(rng, coordinates)
    model, client = np.zeros(coordinates), Client()
    weights, odd = [], 0
    for _ in range(rounds):
        noise = rng.normal(size=(count, coordinates)) / np.sqrt(coordinates)
        deltas = (optimum - model) / 2 + noise
        if liars:
            deltas[-liars:] = -10 * deltas[1:-liars].mean(axis=0)
        deltas *= np.minimum(1, 3 / np.linalg.norm(deltas, axis=1))[:, None]
        result = trimmed_mean(nearest_neighbour_mixing(deltas, 4), 4)
        first = readings_of(deltas, result)[0]
        odd += first.verdict.value == "unusual"
        assert client.weight > 0, "in quarantine"
        client.show(next_outcome(client.outcomes, first))
        weights.append(client.state.trust_256)
        model = model + result / 2
    return weights, odd / rounds


def _direction(rng: np.random.Generator, coordinates: int) -> Float64Array:
    drawn = rng.normal(size=coordinates)
    return np.asarray(drawn / np.linalg.norm(drawn))
