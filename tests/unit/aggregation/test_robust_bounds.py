"""What liars can do to each rule is bounded as its docstring says, whatever they send and weigh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import boltz_mesh.aggregation as rules
from boltz_mesh.aggregation.robust import (
    CoordinateMedian,
    GeometricMedian,
    MixedTrimmedMean,
    MultiKrum,
    RobustRule,
    TrimmedMean,
    gram_of,
)
from boltz_mesh.aggregation.rows import ClientRows, Unprotected

Float64Array = npt.NDArray[np.float64]

OPEN = Unprotected("open", "none")
HUGE = 1e100
MANY = settings(max_examples=200, deadline=None)


@dataclass(frozen=True)
class Cohort:
    """Rows of which the first f are liars'.

    Attributes:
        rows: (n, d).
        weights: (n,).
        byzantine: f.
    """

    rows: Float64Array
    weights: npt.NDArray[np.int64]
    byzantine: int

    @property
    def honest(self) -> Float64Array:
        return self.rows[self.byzantine :]

    @property
    def diameter(self) -> float:
        differences = self.honest[:, None, :] - self.honest[None, :, :]
        return float(np.linalg.norm(differences, axis=2).max())

    def aggregate(self, rule: RobustRule) -> Float64Array:
        block = ClientRows(self.rows, OPEN)
        gram = gram_of(block) if rule.measures else None
        return rule.apply(rule.init(self.weights, gram), block)

    def distances(self, result: Float64Array) -> Float64Array:
        """Of the result to each honest row."""
        return np.asarray(np.linalg.norm(self.honest - result, axis=1), np.float64)


def values(least: float) -> st.SearchStrategy[float]:
    return st.floats(-least, least, allow_nan=False, width=64)


@st.composite
def cohorts(draw: st.DrawFn, *, spare: int = 1) -> Cohort:
    """n >= 2f + spare clients; liars near the honest, among them, or as far off as can be."""
    byzantine = draw(st.integers(0, 4))
    clients = 2 * byzantine + spare + draw(st.integers(0, 5))
    coordinates = draw(st.integers(1, 4))

    def matrix(count: int, elements: st.SearchStrategy[float]) -> Float64Array:
        flat = draw(st.lists(elements, min_size=count * coordinates, max_size=count * coordinates))
        return np.array(flat, np.float64).reshape(count, coordinates)

    hostile = st.one_of(values(2.0), values(30.0), values(HUGE), st.sampled_from([HUGE, -HUGE]))
    liars = matrix(byzantine, hostile)
    honest = matrix(clients - byzantine, values(1.0).map(lambda value: round(value, 6)))
    weights = draw(st.lists(st.integers(1, 255), min_size=clients, max_size=clients))
    if draw(st.booleans()):
        weights[:byzantine] = [255] * byzantine
    return Cohort(np.concatenate([liars, honest]), np.array(weights, np.int64), byzantine)


@MANY
@given(cohorts())
def test_trimmed_mean_and_median_stay_among_the_honest_values(cohort: Cohort) -> None:
    for rule in (TrimmedMean(cohort.byzantine), CoordinateMedian()):
        result = cohort.aggregate(rule)
        assert (result >= cohort.honest.min(axis=0)).all()
        assert (result <= cohort.honest.max(axis=0)).all()


def heaviest_part(cohort: Cohort) -> float:
    """W / (W + V) of the docstring."""
    clients, f = len(cohort.rows), cohort.byzantine
    ordered = np.sort(cohort.weights)
    heavy = ordered[clients - f :].sum()
    return float(heavy / (heavy + ordered[: max(clients - 3 * f, 0)].sum())) if f else 0.0


@MANY
@given(cohorts())
def test_liars_who_are_kept_count_for_no_more_than_their_weight(cohort: Cohort) -> None:
    """Seen on marked rows: honest ones 0, and liars where they stay among the kept."""
    f, clients = cohort.byzantine, len(cohort.rows)
    # Liars at 0 in between honest values of either sign: none of them is dropped, if any may stay.
    positions = np.linspace(-1, 1, clients - f)
    for place in range(f):
        positions = np.insert(positions, 0, 1e-9 * (place + 1))
    marked = Cohort(positions[:, None], cohort.weights, f)
    kept = np.argsort(positions)[f : clients - f]
    liars = cohort.weights[kept[kept < f]].sum()
    part = float(liars / cohort.weights[kept].sum())
    assert part <= heaviest_part(cohort) + 1e-12
    others = kept[kept >= f]
    without = float(positions[others] @ cohort.weights[others]) / float(cohort.weights[kept].sum())
    assert marked.aggregate(TrimmedMean(f))[0] == pytest.approx(without, abs=1e-8)


@MANY
@given(cohorts(), st.data())
def test_one_row_moves_a_coordinate_by_its_share_at_most(
    cohort: Cohort, data: st.DataObject
) -> None:
    """Whatever its owner sends and weighs: of all others' values, the f-th lowest to highest.

    One value more than those that stay whatever it is counts for `share` of the weight at most.
    """
    f, clients = cohort.byzantine, len(cohort.rows)
    if f == 0:
        return
    place = data.draw(st.integers(0, clients - 1))
    honest_like = np.clip(cohort.rows, -30, 30)
    results = []
    for _ in range(2):
        rows = honest_like.copy()
        rows[place] = data.draw(st.one_of(values(1.0), values(HUGE)))
        moved = Cohort(rows, cohort.weights, f)
        results.append(moved.aggregate(TrimmedMean(f)))
    others = np.sort(np.delete(honest_like, place, axis=0), axis=0)
    spread = others[clients - 1 - f] - others[f - 1]
    stays = np.sort(np.delete(cohort.weights, place))[: clients - 1 - 2 * f].sum()
    share = float(cohort.weights.max() / (cohort.weights.max() + stays))
    assert (np.abs(results[0] - results[1]) <= share * spread + 1e-9).all()


@MANY
@given(cohorts())
def test_mixing_keeps_the_result_near_every_honest_row(cohort: Cohort) -> None:
    f = cohort.byzantine
    farthest = cohort.distances(cohort.aggregate(MixedTrimmedMean(f))).max()
    assert farthest <= 2 * cohort.diameter * np.sqrt(len(cohort.honest)) + 1e-4


@MANY
@given(cohorts(spare=3))
def test_multi_krum_keeps_the_result_near_every_honest_row(cohort: Cohort) -> None:
    f, clients = cohort.byzantine, len(cohort.rows)
    reach = np.sqrt((clients - f - 2) / (clients - 2 * f - 1))
    for select in (1, 2, clients - f):
        farthest = cohort.distances(cohort.aggregate(MultiKrum(f, select))).max()
        assert farthest <= cohort.diameter * (1 + reach) + 1e-4


@MANY
@given(cohorts())
def test_the_geometric_median_withstands_less_than_half_of_the_weight(cohort: Cohort) -> None:
    total = int(cohort.weights.sum())
    lied = int(cohort.weights[: cohort.byzantine].sum())
    if 2 * lied >= 0.9 * total:
        return
    share = lied / total
    result = cohort.aggregate(GeometricMedian())
    for point in cohort.honest:
        honest = cohort.weights[cohort.byzantine :] / (total - lied)
        mean_distance = float(honest @ np.linalg.norm(cohort.honest - point, axis=1))
        bound = 2 * (1 - share) / (1 - 2 * share) * mean_distance
        assert np.linalg.norm(result - point) <= bound * (1 + 1e-4) + 1e-4


def test_half_of_the_weight_decides_the_geometric_median() -> None:
    rows = np.concatenate([np.full((1, 3), HUGE), np.zeros((9, 3))])
    weights = np.array([254, *([28] * 9)])
    assert Cohort(rows, weights, 1).aggregate(GeometricMedian()).max() > HUGE / 2
    assert (
        Cohort(rows, weights - 30 * (weights == 254), 1).aggregate(GeometricMedian()).max() < 1e-3
    )


@MANY
@given(cohorts(), st.floats(0.01, 10.0))
def test_a_step_of_clipping_moves_by_the_liars_part_of_its_radius(
    cohort: Cohort, radius: float
) -> None:
    f, clients = cohort.byzantine, len(cohort.rows)
    without = cohort.rows.copy()
    without[:f] = 0  # at the centre: these do not move it
    moved = rules.centered_clipping(cohort.rows, radius, 1) - rules.centered_clipping(
        without, radius, 1
    )
    assert np.linalg.norm(moved) <= f / clients * radius * (1 + 1e-9)


@pytest.mark.parametrize(
    "rule", [CoordinateMedian(), TrimmedMean(4), MixedTrimmedMean(4), MultiKrum(4, 12)]
)
def test_liars_of_full_weight_among_light_clients(rule: RobustRule) -> None:
    """Four of twenty with nearly all of the weight: a plain mean would be theirs."""
    generator = np.random.default_rng(11)
    honest = generator.standard_normal((16, 500)) * 0.1 + 1
    for lie in (HUGE, -30.0, 1.5):
        rows = np.concatenate([np.full((4, 500), lie), honest])
        cohort = Cohort(rows, np.array([255] * 4 + [1] * 16), 4)
        result = cohort.aggregate(rule)
        assert cohort.distances(result).max() <= 2 * cohort.diameter
        assert float(np.abs(result - honest.mean(axis=0)).mean()) < 0.2
