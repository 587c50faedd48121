"""Robust scores, verdicts on rows, sets of rows that are too much alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boltz_mesh.trust.outliers import (
    MIN_ROWS,
    ODD_256,
    ONE,
    Verdict,
    close_sets,
    read_rows,
    robust_z,
)
from tests.unit.trust.readings import AGAINST, OPPOSED, reading, readings_of

floats = st.floats(-1e6, 1e6, allow_subnormal=False)


def test_a_score_is_a_number_of_standard_deviations() -> None:
    values = np.random.default_rng(5).normal(3.0, 2.0, 20_000)
    assert robust_z(values, floor=0.01) == pytest.approx((values - 3.0) / 2.0, abs=0.15)


@pytest.mark.parametrize("count", [5, 6, 7, 8, 9, 10, 12])
def test_small_samples_do_not_make_outliers(count: int) -> None:
    """Of normal data at most 1 in 25 values is odd, in a handful of rows as well."""
    drawn = np.random.default_rng(count).normal(size=(2000, count))
    odd = [np.abs(robust_z(row, floor=1e-9)) > ODD_256 / ONE for row in drawn]
    assert np.mean(odd) < 1 / 25


def test_half_of_the_values_may_lie() -> None:
    honest = [1.0, 1.1, 0.9, 1.05, 0.95]
    scores = robust_z(np.array([*honest, 1e12, -1e12, 1e9, 1e9]), floor=0.05)
    assert np.all(np.abs(scores[:5]) < 3.5)
    assert np.all(np.abs(scores[5:]) > 1e6)


def test_the_floor_keeps_small_differences_small() -> None:
    scores = robust_z(np.array([1.0] * 9 + [1.1]), floor=0.05)
    assert scores[-1] == pytest.approx(2.0)


def test_values_beside_zeros_are_odd_beyond_measure() -> None:
    scores = robust_z(np.array([0.0, 0.0, 0.0, 0.0, 1e-9, -1e-9]), floor=0.0)
    assert list(scores[:4]) == [0, 0, 0, 0]
    assert scores[4] > 1e6
    assert scores[5] < -1e6


@given(st.lists(floats, min_size=5, max_size=30), floats, st.floats(0.01, 100))
def test_scores_do_not_depend_on_place_or_unit(
    values: list[float], shift: float, unit: float
) -> None:
    array = np.array(values)
    moved = robust_z(array * unit + shift, floor=unit)
    assert moved == pytest.approx(robust_z(array, floor=1.0), rel=1e-3, abs=1e-3)


def test_few_rows_have_no_others() -> None:
    four = np.ones(4)
    found = read_rows(
        list("abcd"),
        [1] * 4,
        [1] * 4,
        norms=four,
        distances=four,
        cosines=four,
        agreements=four,
    )
    assert found == ()
    assert close_sets(np.ones((4, 4))) == ()


def test_ranks_go_from_the_nearest_to_the_farthest() -> None:
    distances = np.array([4.0, 1.0, 2.0, 2.0, 8.0])
    ones = np.ones(5)
    found = read_rows(
        list("abcde"),
        [1] * 5,
        [3] * 5,
        norms=ones,
        distances=distances,
        cosines=ones,
        agreements=ones,
        influences=[0.5, -0.5, 0, 0, 0],
    )
    assert [each.rank_256 for each in found] == [192, 0, 64, 64, 256]
    assert [each.influence for each in found] == [0.5, -0.5, 0, 0, 0]
    assert found[0].rows == MIN_ROWS
    assert found[0].weight == 3


class TestVerdict:
    def test_ordinary(self) -> None:
        assert reading().verdict is Verdict.ORDINARY

    def test_nothing_sent(self) -> None:
        assert reading(silent=True, **OPPOSED).verdict is Verdict.SILENT

    def test_pulling_no_way(self) -> None:
        assert reading(agreement_256=0).verdict is Verdict.IDLE
        assert reading(influence=-1.0).verdict is Verdict.IDLE
        assert reading(agreement_256=0, influence=1.0).verdict is Verdict.ORDINARY

    @pytest.mark.parametrize("score", ["norm_z_256", "distance_z_256", "direction_z_256"])
    def test_odd_alone_is_not_bad(self, score: str) -> None:
        assert reading(**{score: 100 * ONE}).verdict is Verdict.UNUSUAL
        assert reading(**{score: ODD_256}).verdict is Verdict.ORDINARY

    def test_a_short_row_is_odd_and_a_near_one_is_not(self) -> None:
        assert reading(norm_z_256=-1000).verdict is Verdict.UNUSUAL
        assert reading(distance_z_256=-1000, direction_z_256=-1000).verdict is Verdict.ORDINARY

    def test_against_the_others(self) -> None:
        assert reading(**OPPOSED).verdict is Verdict.OPPOSED
        assert reading(**AGAINST).verdict is Verdict.AGAINST

    @pytest.mark.parametrize(
        "changed",
        [
            {"direction_z_256": ODD_256},  # the others differ as much
            {"cosine_256": -100},  # at a right angle, nearly
            {"agreement_256": -128},  # pulls too little
            {"typical_cosine_256": 80},  # the rows have nothing in common
            {"typical_256": 0},
            {"influence": 0.25},  # and yet it helps
        ],
    )
    def test_each_condition_is_needed(self, changed: dict[str, float]) -> None:
        verdict = reading(**{**OPPOSED, **changed}).verdict
        assert verdict in (Verdict.UNUSUAL, Verdict.IDLE)

    def test_a_group_is_held_against_its_members_where_one_could_explain_it(self) -> None:
        low = {"members": 5, "agreement_z_256": 1000, "agreement_256": 256 * 6 // 10}
        assert reading(**low).verdict is Verdict.AGAINST  # one of five has its sign turned
        assert reading(**low, distance_z_256=1000).verdict is Verdict.OPPOSED
        # One of five sends nothing, or something at a right angle.
        assert reading(**{**low, "agreement_256": 256 * 8 // 10}).verdict is Verdict.ORDINARY
        assert reading(**{**low, "agreement_z_256": ODD_256}).verdict is Verdict.ORDINARY


def test_what_a_row_implies_of_a_member() -> None:
    assert reading().implied_256(ONE) == ONE
    assert reading(agreement_256=-256).implied_256(ONE) == -ONE
    # Of a share of one quarter, three typical ones beside it.
    assert reading(agreement_256=192).implied_256(64) == 0
    assert reading(agreement_256=128).implied_256(64) == -ONE
    assert reading(typical_cosine_256=0).implied_256(ONE) is None


def test_liars_among_rows_that_agree() -> None:
    rng = np.random.default_rng(3)
    common = rng.normal(size=200)
    updates = common + rng.normal(size=(20, 200))
    updates[16:] *= -1
    unusual = rng.normal(size=200)
    updates[0] = 3 * unusual - common * (unusual @ common) / (common @ common)
    found = readings_of(updates, np.median(updates, axis=0))
    verdicts = [each.verdict for each in found]
    assert verdicts[16:] == [Verdict.OPPOSED] * 4
    assert verdicts[0] is Verdict.UNUSUAL
    assert set(verdicts[1:16]) <= {Verdict.ORDINARY, Verdict.UNUSUAL}
    # Longer lies change nothing.
    updates[16:] *= 1000
    again = readings_of(updates, np.median(updates, axis=0))
    assert [each.verdict for each in again[16:]] == [Verdict.OPPOSED] * 4


def test_rows_that_agree_on_nothing_accuse_nobody() -> None:
    """As at the end of training, or under noise that covers everything."""
    rng = np.random.default_rng(8)
    for _ in range(50):
        updates = rng.normal(size=(20, 30))
        updates[0] *= 5
        found = readings_of(updates, updates[1:].mean(axis=0))
        assert not any(each.verdict in (Verdict.AGAINST, Verdict.OPPOSED) for each in found)


class TestCloseSets:
    def test_copies_among_independent_rows(self) -> None:
        rng = np.random.default_rng(2)
        rows = rng.normal(size=(20, 100))
        rows[7] = rows[3] + 0.01 * rng.normal(size=100)
        rows[12] = rows[3]
        rows[19] = rows[1]
        assert close_sets(_cosines(rows)) == ((1, 19), (3, 7, 12))

    def test_rows_with_something_in_common_are_not_close(self) -> None:
        rng = np.random.default_rng(4)
        rows = rng.normal(size=(20, 100))
        rows[:5] += 2 * rng.normal(size=100)
        assert close_sets(_cosines(rows)) == ()

    def test_where_everybody_is_close_to_somebody_nobody_is_told(self) -> None:
        signs = np.sign(np.random.default_rng(1).normal(size=(20, 1)))
        assert close_sets(_cosines(signs)) == ()


def _cosines(rows: np.ndarray) -> np.ndarray:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(unit @ unit.T)


@given(
    st.lists(st.tuples(floats, floats, floats, floats), min_size=5, max_size=12),
)
def test_any_finite_numbers_give_bounded_readings(
    numbers: list[tuple[float, float, float, float]],
) -> None:
    norms, distances, cosines, agreements = (
        np.array(column) for column in zip(*numbers, strict=True)
    )
    count = len(numbers)
    found = read_rows(
        [str(n) for n in range(count)],
        [1 + n % 3 for n in range(count)],
        [1] * count,
        norms=np.abs(norms),
        distances=np.abs(distances),
        cosines=np.clip(cosines, -1, 1),
        agreements=agreements,
    )
    for each in found:
        assert isinstance(each.verdict, Verdict)
        assert abs(each.distance_z_256) <= 1 << 30
        assert abs(each.implied_256(1) or 0) <= 1 << 30
        # Nothing but the score for distance tells the two bad verdicts apart.
        near = replace(each, distance_z_256=0).verdict
        assert (each.verdict in (Verdict.AGAINST, Verdict.OPPOSED)) == (near is Verdict.AGAINST)
