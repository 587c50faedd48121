"""What one client can change is never more than the noise is calibrated to, for each rule.

The check takes a rule as it is meant to be and finds nothing; given a variant that lets something
out of the clip, or a bound that is wishful thinking, it finds a round that proves it wrong. All of
it is in the integers that the noise is added to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, find, given, settings

from boltz_mesh.aggregation.calibration import calibrate
from boltz_mesh.aggregation.centered_step import CenteredClipping
from boltz_mesh.aggregation.rule import ProvenRule
from boltz_mesh.aggregation.weighted_mean import WEIGHTED_MEAN
from boltz_protocol import limits
from tests.unit.aggregation.sums import Round, rounds, term_of

#: Each client's part of the noised sum, one row a survivor.
Parts = Callable[[Round], npt.NDArray[np.int64]]
SEARCH = settings(max_examples=2000, deadline=None, database=None, derandomize=True)
RADII = (1.0, 0.5, 0.07)


def squared(vector: npt.NDArray[np.int64]) -> int:
    return sum(int(value) ** 2 for value in vector)


def calibrated_to(rule: ProvenRule, round: Round) -> int:
    """What the noise of this round covers, over z: declared before anyone has survived."""
    calibration = calibrate(
        rule,
        noise_multiplier=round.encoding.noise_multiplier,
        clip=round.encoding.bound_l2,
        weights=(limits.MAX_WEIGHT,) * round.encoding.cohort_max,
    )
    calibration.check_covers(rule, clip=round.encoding.bound_l2, weights=round.survivors)
    z = Fraction(round.encoding.noise_multiplier)
    assert calibration.sigma_squared == (z * calibration.sensitivity) ** 2
    return calibration.sensitivity


def largest_change(round: Round, parts: Parts) -> int:
    """Squared length of the most that the sum moves when one client's part is set to zero."""
    rows = parts(round)
    total = rows.sum(axis=0)
    return max(
        squared(total - np.delete(rows, place, axis=0).sum(axis=0)) for place in range(len(rows))
    )


def contributions(round: Round) -> npt.NDArray[np.int64]:
    return np.array(round.contributions, np.int64)


def terms(round: Round, radius: float) -> npt.NDArray[np.int64]:
    rule = CenteredClipping.of(round.encoding, radius)
    return np.array(
        [term_of(round, place, rule)[0] for place in range(len(round.contributions))], np.int64
    )


def half(round: Round) -> npt.NDArray[np.int64]:
    return terms(round, 0.5)


def covered(round: Round, rule: ProvenRule, parts: Parts) -> bool:
    return largest_change(round, parts) <= calibrated_to(rule, round) ** 2


# --- the rules as they are ----------------------------------------------------------------------


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rounds())
def test_the_weighted_mean_is_covered(round: Round) -> None:
    assert calibrated_to(WEIGHTED_MEAN, round) == round.encoding.bound_l2
    assert covered(round, WEIGHTED_MEAN, contributions)


@pytest.mark.parametrize("radius", RADII)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(round=rounds())
def test_centered_clipping_is_covered(radius: float, round: Round) -> None:
    rule = CenteredClipping.of(round.encoding, radius)
    assert calibrated_to(rule, round) == rule.terms.bound_l2 <= round.encoding.bound_l2
    assert covered(round, rule, lambda each: terms(each, radius))


def test_both_bounds_are_met() -> None:
    """The noise is not larger than it must be: some client moves the sum by nearly all of it."""

    def nearly(moved: int, bound: int) -> bool:
        return moved >= (0.99 * bound) ** 2

    def mean_met(round: Round) -> bool:
        return nearly(largest_change(round, contributions), calibrated_to(WEIGHTED_MEAN, round))

    def clipping_met(round: Round) -> bool:
        rule = CenteredClipping.of(round.encoding, 0.5)
        return nearly(largest_change(round, half), calibrated_to(rule, round))

    find(rounds(), mean_met, settings=SEARCH)
    find(rounds(), clipping_met, settings=SEARCH)


# --- the check sees what is wrong ---------------------------------------------------------------


def weight_outside_the_clip(round: Round) -> npt.NDArray[np.int64]:
    """Clip first, weigh afterwards relative to the mean weight, as FedAvg is often written."""
    mean = sum(round.roster) / len(round.roster)
    rows = [
        np.rint(values * (weight / mean))
        for values, weight in zip(round.contributions, round.survivors, strict=True)
    ]
    return np.array(rows, np.int64)


def term_weighed_outside_the_clip(round: Round) -> npt.NDArray[np.int64]:
    rows = half(round)
    mean = sum(round.roster) / len(round.roster)
    return np.rint(rows * (np.array(round.survivors) / mean)[:, None]).astype(np.int64)


def rounded_without_a_look(round: Round) -> npt.NDArray[np.int64]:
    """Terms clipped in reals and then rounded up in size, whatever becomes of their length."""
    tau = float(CenteredClipping.of(round.encoding, 0.5).terms.bound_l2)
    rows = []
    for values in round.contributions:
        norm = math.sqrt(squared(values.astype(np.int64)))
        reals = values * min(1.0, tau / norm) if norm else values.astype(float)
        rows.append(np.copysign(np.ceil(np.abs(reals)), reals))
    return np.array(rows, np.int64)


def unclipped_centre(round: Round) -> npt.NDArray[np.int64]:
    """The difference is taken, and only the update was ever clipped."""
    rule = CenteredClipping.of(round.encoding, 1.0)
    rows = [
        round.contributions[place] - term_of(round, place, rule)[1]
        for place in range(len(round.contributions))
    ]
    return np.array(rows, np.int64)


@pytest.mark.parametrize(
    ("radius", "parts"),
    [
        (None, weight_outside_the_clip),
        (0.5, term_weighed_outside_the_clip),
        (0.5, rounded_without_a_look),
        (1.0, unclipped_centre),
    ],
)
def test_what_leaves_the_clip_is_found(radius: float | None, parts: Parts) -> None:
    def wrong(round: Round) -> bool:
        rule = WEIGHTED_MEAN if radius is None else CenteredClipping.of(round.encoding, radius)
        return not covered(round, rule, parts)

    found = find(rounds(), wrong, settings=SEARCH)
    assert found.contributions


# --- a rule without a proof ---------------------------------------------------------------------


def trimmed_mean(rows: npt.NDArray[np.int64], trimmed: int) -> npt.NDArray[np.float64]:
    """Coordinate-wise, without the smallest and largest (Yin et al. 2018, definition 2)."""
    kept: npt.NDArray[np.float64] = np.sort(rows, axis=0)[trimmed : len(rows) - trimmed] / 1.0
    return np.asarray(kept.mean(axis=0), np.float64)


def moved_by_one(round: Round, aggregate: Callable[..., npt.NDArray[np.float64]]) -> float:
    rows = contributions(round)
    moves = []
    for place in range(len(rows)):
        without = rows.copy()
        without[place] = 0
        moves.append(float(np.linalg.norm(aggregate(rows) - aggregate(without))))
    return max(moves)


def test_a_trimmed_mean_is_not_covered_by_the_bound_of_the_mean() -> None:
    """The mean of n clients moves by C / n at most; a trimmed one may move by more."""

    def mean(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.asarray(rows.mean(axis=0), np.float64)

    def exceeds(round: Round, aggregate: Callable[..., npt.NDArray[np.float64]]) -> bool:
        bound = round.encoding.bound_l2 / len(round.contributions)
        return moved_by_one(round, aggregate) > bound * (1 + 1e-9)

    found = find(
        rounds(),
        lambda each: (
            len(each.contributions) >= 3 and exceeds(each, lambda rows: trimmed_mean(rows, 1))
        ),
        settings=SEARCH,
    )
    assert not exceeds(found, mean)
