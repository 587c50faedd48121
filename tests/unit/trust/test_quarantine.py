"""Quarantine: what it takes, how long it lasts, who is kept out of it, and what groups reveal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_mesh.trust.outcome import Outcome, next_outcome
from boltz_mesh.trust.quarantine import (
    ALONE_BAD,
    ALONE_REASON,
    FIRST_ROUNDS,
    GROUP_LEAST,
    GROUP_REASON,
    Finding,
    History,
    judge,
    keep_minority,
    mean_and_error,
    quarantine_rounds,
)
from boltz_mesh.trust.reputation import MAX_QUARANTINE_ROUNDS, ROUNDS, EvidenceKind
from tests.unit.trust.readings import AGAINST, GOOD, OPPOSED, outcomes, readings_of


class TestAlone:
    def test_six_bad_rounds_of_eight(self) -> None:
        rounds = [OPPOSED, OPPOSED, GOOD, OPPOSED, OPPOSED, GOOD, OPPOSED, OPPOSED]
        assert judge(History(outcomes(*rounds[:-1]))) is None
        found = judge(History(outcomes(*rounds)))
        assert found is not None
        assert found.reason == ALONE_REASON
        assert "6 of its last 8 rounds" in found.words
        assert found.rounds == FIRST_ROUNDS

    def test_it_takes_six_rounds_at_least(self) -> None:
        assert judge(History(outcomes(*[OPPOSED] * (ALONE_BAD - 1)))) is None
        found = judge(History(outcomes(*[OPPOSED] * ALONE_BAD)))
        assert found is not None
        assert found.inputs == {"bad": 6, "of": 6}

    def test_being_odd_for_ever_is_not_enough(self) -> None:
        odd = {"distance_z_256": 9999, "direction_z_256": 9999, "norm_z_256": 9999}
        assert judge(History(outcomes(*[odd] * 40))) is None

    def test_pulling_back_from_nearby_is_not_enough(self) -> None:
        assert judge(History(outcomes(*[AGAINST] * 40))) is None

    def test_old_rounds_do_not_count(self) -> None:
        assert judge(History(outcomes(*[OPPOSED] * 5, *[GOOD] * 3, OPPOSED))) is None

    def test_nobody_without_rounds(self) -> None:
        assert judge(History(())) is None


def test_each_quarantine_is_twice_as_long() -> None:
    lengths = [quarantine_rounds(earlier) for earlier in range(7)]
    assert lengths == [8, 16, 32, 64, 128, 128, 128]
    assert quarantine_rounds(10_000) == MAX_QUARANTINE_ROUNDS


def test_a_finding_is_evidence_with_its_words() -> None:
    found = judge(History(outcomes(*[OPPOSED] * 8), quarantines=1))
    assert found is not None
    evidence = found.evidence()
    assert evidence.kind is EvidenceKind.QUARANTINE
    assert evidence.quarantine_rounds == evidence.inputs[ROUNDS] == 16
    assert evidence.inputs["words"] == found.words


class TestMinority:
    @given(bad=st.integers(0, 30), present=st.integers(1, 40), absent=st.integers(0, 40))
    def test_those_in_quarantine_stay_less_than_half(
        self, bad: int, present: int, absent: int
    ) -> None:
        findings = {f"{n:02}": _finding(n % 4) for n in range(min(bad, present))}
        imposed, told = keep_minority(findings, present=present, absent=absent)
        assert not imposed or 2 * (len(imposed) + absent) < present + absent
        assert {**imposed, **told} == findings
        if imposed and told:
            least = min(each.severity for each in imposed.values())
            assert least >= max(each.severity for each in told.values())

    def test_as_many_as_there_is_room_for(self) -> None:
        findings = {name: _finding(severity) for severity, name in enumerate("abc")}
        imposed, told = keep_minority(findings, present=5, absent=0)
        assert list(imposed) == ["c", "b"]
        assert list(told) == ["a"]


def _finding(severity: float) -> Finding:
    return Finding("r", "w", 8, severity, {})


class TestMeanAndError:
    @given(st.lists(st.integers(-1024, 1024), min_size=2, max_size=32))
    def test_is_the_textbook_s(self, values: list[int]) -> None:
        mean, error = mean_and_error(values)
        plain = np.array(values) / 256
        deviation = max(1 / 8, float(np.std(plain, ddof=1)))
        assert mean == pytest.approx(plain.mean(), abs=1e-12)
        assert error == pytest.approx(deviation / np.sqrt(len(values)))

    def test_one_wild_round_weighs_no_more_than_four(self) -> None:
        assert mean_and_error([256, -(1 << 30)]) == mean_and_error([256, -1024])


class TestRegrouping:
    """60 clients in 12 groups of 5, drawn anew in each round; rows are means of a group."""

    def test_one_liar_is_found_and_nobody_else(self) -> None:
        """A client whose sign is turned: in quarantine after 8 to 16 rounds (8 are the fewest)
        where honest clients' agreement spreads by a quarter of its mean; after 8 to 55, 20 in the
        middle, where it spreads by half."""
        close = [_rounds_until_found(seed, liars=1, spread=0.25) for seed in range(10)]
        assert min(close) == 8
        assert max(close) <= 16
        wide = [_rounds_until_found(seed, liars=1, spread=0.5) for seed in range(10)]
        assert 15 <= float(np.median(wide)) <= 25
        assert max(wide) <= 60

    def test_four_liars_are_found_and_nobody_else(self) -> None:
        """The last of four after 12 to 30 rounds: they make each other's groups look bad too."""
        found = [_rounds_until_found(seed, liars=4, spread=0.25) for seed in range(6)]
        assert max(found) <= 30

    def test_noise_hides_a_liar_as_it_hides_anybody(self) -> None:
        """The limit: with noise of three times a group's signal, nobody is found in 60 rounds."""
        for seed in range(5):
            assert _simulate(seed, liars=1, spread=0.5, noise=3.0, rounds=60) == {}

    @pytest.mark.parametrize("spread", [0.25, 1.0])
    def test_honest_clients_are_left_alone(self, spread: float) -> None:
        for seed in range(10):
            assert _simulate(seed, liars=0, spread=spread, rounds=48) == {}

    def test_a_client_at_a_right_angle_is_left_alone(self) -> None:
        for seed in range(10):
            found = _simulate(seed, liars=1, spread=0.5, rounds=48, lie=0.0)
            assert found == {}

    def test_few_rounds_prove_nothing(self) -> None:
        bad = {"members": 5, "agreement_256": 0}
        assert judge(History(outcomes(*[bad] * (GROUP_LEAST - 1), share_256=51))) is None
        found = judge(History(outcomes(*[bad] * GROUP_LEAST, share_256=51)))
        assert found is not None
        assert found.reason == GROUP_REASON
        assert "8 drawings of groups" in found.words

    def test_rounds_in_which_nobody_agrees_do_not_count(self) -> None:
        bad = {"members": 5, "agreement_256": 0, "typical_cosine_256": 10}
        assert judge(History(outcomes(*[bad] * 40, share_256=51))) is None


def _rounds_until_found(seed: int, *, liars: int, spread: float) -> int:
    """Rounds until the last liar is found; honest clients must not be."""
    found = _simulate(seed, liars=liars, spread=spread, rounds=60)
    assert set(found) == set(range(liars))
    return max(found.values())


def _simulate(
    seed: int,
    *,
    liars: int,
    spread: float,
    rounds: int,
    noise: float = 0.0,
    lie: float = -1.0,
) -> dict[int, int]:
    """By client, the round in which `judge` first finds it.

    An honest client sends the common direction (of length 1) and a vector of its own of length
    `spread`, new in each round; a liar, `lie` times such a vector's common part. Each group's mean
    has noise of length `noise`.
    """
    rng = np.random.default_rng(seed)
    coordinates = 100
    common = np.full(coordinates, 1 / np.sqrt(coordinates))
    past: list[list[Outcome]] = [[] for _ in range(60)]
    found: dict[int, int] = {}
    for number in range(1, rounds + 1):
        own = rng.normal(size=(60, 1)) * common + rng.normal(size=(60, coordinates)) / 10
        sent = common + spread * own
        sent[:liars] += (lie - 1) * common
        groups = rng.permutation(60).reshape(12, 5)
        means = sent[groups].mean(axis=1) + noise * rng.normal(size=(12, coordinates)) / 10
        read = readings_of(means, np.median(means, axis=0), members=5)
        for row, members in zip(read, groups.tolist(), strict=True):
            for client in members:
                past[client].append(next_outcome(past[client], row, 51))
                if client not in found and judge(History(tuple(past[client]))) is not None:
                    found[client] = number
    return found
