"""The robust rules refuse too few clients by name, values that are none, senseless settings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

import boltz_mesh.aggregation as rules
from boltz_mesh.aggregation.robust import (
    CoordinateMedian,
    GeometricMedian,
    MixedTrimmedMean,
    MultiKrum,
    RobustRule,
    TrimmedMean,
)
from boltz_mesh.aggregation.rows import FloatArray
from boltz_protocol import limits
from boltz_protocol.errors import (
    InvalidPlan,
    LimitExceeded,
    NotFinite,
    ShapeMismatch,
    TooFewClients,
)

Float64Array = npt.NDArray[np.float64]
Rule = Callable[[FloatArray], Float64Array]

ARRAY_RULES: list[Rule] = [
    rules.coordinate_median,
    rules.geometric_median,
    lambda updates: rules.trimmed_mean(updates, 1),
    lambda updates: rules.multi_krum(updates, 1, 2),
    lambda updates: rules.centered_clipping(updates, 1.0, 3),
    lambda updates: rules.nearest_neighbour_mixing(updates, 1),
]


@pytest.mark.parametrize(
    ("rule", "name", "minimum"),
    [
        (lambda rows: rules.trimmed_mean(rows, 2), "trimmed-mean", 5),
        (lambda rows: rules.trimmed_mean(rows, 4), "trimmed-mean", 9),
        (lambda rows: rules.multi_krum(rows, 2, 1), "multi-krum", 7),
        (lambda rows: rules.multi_krum(rows, 2, 6), "multi-krum", 8),
        (lambda rows: rules.nearest_neighbour_mixing(rows, 3), "mixed-trimmed-mean", 7),
    ],
)
def test_too_few_clients_are_refused_by_name(rule: Rule, name: str, minimum: int) -> None:
    rows = np.random.default_rng(1).standard_normal((minimum, 4))
    rule(rows)
    message = f'"{name}" takes at least {minimum} clients or groups .* there are {minimum - 1}'
    with pytest.raises(TooFewClients, match=message) as refused:
        rule(rows[1:])
    assert refused.value.metadata == {"setting": "rule", "rule": name, "minimum": str(minimum)}
    assert refused.value.status == "FAILED_PRECONDITION"


def test_a_rule_knows_its_minimum_beforehand() -> None:
    minima: list[tuple[RobustRule, int]] = [
        (CoordinateMedian(), 1),
        (GeometricMedian(), 1),
        (TrimmedMean(0), 1),
        (TrimmedMean(4), 9),
        (MixedTrimmedMean(4), 9),
        (MultiKrum(4, 5), 11),
    ]
    for rule, minimum in minima:
        assert rule.minimum_clients == minimum


@pytest.mark.parametrize("rule", ARRAY_RULES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused(rule: Rule, value: float) -> None:
    updates = np.zeros((7, 30))
    updates[3, 17] = value
    with pytest.raises(NotFinite):
        rule(updates)
    with pytest.raises(NotFinite):
        rule(updates.astype(np.float32))


@pytest.mark.parametrize("rule", ARRAY_RULES)
@pytest.mark.parametrize(
    "updates",
    [
        np.zeros(7),
        np.zeros((7, 2, 2)),
        np.zeros((0, 3)),
        np.zeros((7, 3), np.int64),
        np.zeros((7, 3), np.float16),
        np.zeros((7, 3), np.complex128),
    ],
)
def test_other_shapes_and_types_are_refused(rule: Rule, updates: Float64Array) -> None:
    with pytest.raises(ShapeMismatch, match=r"\(clients, parameters\)"):
        rule(updates)


def test_no_parameters_have_no_aggregate_but_an_empty_one() -> None:
    for rule in ARRAY_RULES:
        assert rule(np.zeros((7, 0))).size == 0


@pytest.mark.parametrize(
    ("rule", "setting"),
    [
        (lambda rows: rules.trimmed_mean(rows, -1), "byzantine"),
        (lambda rows: rules.multi_krum(rows, -1, 1), "byzantine"),
        (lambda rows: rules.nearest_neighbour_mixing(rows, -1), "byzantine"),
        (lambda rows: rules.multi_krum(rows, 1, 0), "select"),
        (lambda rows: rules.centered_clipping(rows, 0.0, 1), "radius"),
        (lambda rows: rules.centered_clipping(rows, np.inf, 1), "radius"),
        (lambda rows: rules.centered_clipping(rows, np.nan, 1), "radius"),
        (lambda rows: rules.centered_clipping(rows, 1.0, 0), "rounds"),
        (lambda rows: rules.geometric_median(rows, [1, 1, 1, 1, 1, 1, 0]), "weights"),
        (lambda rows: rules.geometric_median(rows, [1, 1, 1, 1, 1, 1, 256]), "weights"),
    ],
)
def test_senseless_settings_are_refused_by_name(rule: Rule, setting: str) -> None:
    with pytest.raises(InvalidPlan, match=setting) as refused:
        rule(np.zeros((7, 3)))
    assert refused.value.metadata["setting"] == setting


def test_weights_of_other_clients_are_refused() -> None:
    with pytest.raises(ShapeMismatch, match="6 weights of 7"):
        rules.geometric_median(np.zeros((7, 3)), [1] * 6)


@pytest.mark.parametrize("rule", ARRAY_RULES[1:2] + ARRAY_RULES[3:])
def test_updates_too_long_to_be_measured_are_refused(rule: Rule) -> None:
    updates = np.zeros((7, 3))
    updates[1] = 1e200
    with pytest.raises(NotFinite, match="squared length"):
        rule(updates)


def test_those_that_do_not_measure_take_them() -> None:
    updates = np.zeros((7, 3))
    updates[1], updates[2] = 1e308, -1e308
    assert not rules.coordinate_median(updates).any()
    assert not rules.trimmed_mean(updates, 1).any()


def test_inner_products_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(NotFinite, match="squared length"):
        MixedTrimmedMean(1).init(np.ones(3, np.int64), np.full((3, 3), np.inf))


def test_too_many_rows_are_refused() -> None:
    weights = np.ones(limits.MAX_ROBUST_ROWS + 1, np.int64)
    with pytest.raises(LimitExceeded, match=str(limits.MAX_ROBUST_ROWS)):
        TrimmedMean(1).init(weights, None)


def test_what_the_mesh_must_not_do_crashes() -> None:
    three = np.ones(3, np.int64)
    cases: list[tuple[RobustRule, npt.NDArray[np.int64], Float64Array | None]] = [
        (MixedTrimmedMean(1), three, None),
        (TrimmedMean(1), three, np.eye(3)),
        (MixedTrimmedMean(1), three, np.eye(4)),
        (TrimmedMean(1), np.array([1, 0, 1]), None),
        (TrimmedMean(1), np.ones((3, 3), np.int64), None),
    ]
    for rule, weights, gram in cases:
        with pytest.raises(AssertionError):
            rule.init(weights, gram)
