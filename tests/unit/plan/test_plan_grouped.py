"""Plans of grouped rounds: what is refused, for every roster a plan can have, and what it costs."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from boltz_mesh.rounds.plan import (
    GroupingPlan,
    plan_from_json,
    plan_from_toml,
    plan_to_json,
    plan_to_toml_table,
    validate_encoding,
)
from boltz_mesh.rounds.plan_sealed import group_colluders, least_roster, release_terms
from boltz_protocol import limits
from boltz_protocol.errors import InvalidPlan
from boltz_protocol.noise_share import share_variance
from boltz_protocol.secagg.groups import group_parameters
from tests.unit.plan.documents import private_sealed, sealed, small

GROUPED = 'mode = "grouped"'


def grouping(count: int, **values: object) -> str:
    rows = [f"{key} = {value}" for key, value in values.items()]
    return "\n".join(["[grouping]", f"count = {count}", *rows, ""])


def grouped(count: int = 4, *, extra: str = "", survivors: int = 5, **changes: object) -> str:
    """Without noise; groups of five at least."""
    values: dict[str, object] = {"min": 20, "max": 40} | changes
    tables = grouping(count, min_survivors=survivors) + extra
    return sealed(top=GROUPED, tables=tables, **values)


def private(count: int = 4, *, survivors: int = 5, noise: float = 4.0, **changes: object) -> str:
    values: dict[str, object] = {"min": 20, "max": 40} | changes
    text = private_sealed(noise, tables=grouping(count, min_survivors=survivors), **values)
    return text.replace('model = "m"', f'model = "m"\n{GROUPED}')


def test_a_grouped_plan_is_stored_with_its_defaults() -> None:
    plan = plan_from_toml(sealed(top=GROUPED, min=20, max=40, tables=grouping(4)))
    assert plan.grouping == GroupingPlan(count=4, min_survivors=5)
    assert plan.is_masked
    assert plan.sealing.dropout_fraction == 0.1
    assert b'"grouping":{"count":4,"min_survivors":5}' in plan_to_json(plan)
    assert plan_from_json(plan_to_json(plan)) == plan
    assert plan_to_toml_table(plan)["grouping"] == {"count": 4, "min_survivors": 5}
    assert least_roster(plan) == 20


def test_a_plan_may_release_with_fewer_survivors_than_fill_the_groups() -> None:
    plan = plan_from_toml(grouped(2, min=5, max=12))
    assert plan.cohort.min == 5
    assert least_roster(plan) == 10


@pytest.mark.parametrize(
    ("count", "least", "most", "survivors"),
    [(2, 10, 100, 6), (4, 20, 200, 11), (20, 300, 1000, 20)],
)
def test_the_defaults_do_for_groups_up_to_the_largest(
    count: int, least: int, most: int, survivors: int
) -> None:
    sizes: dict[str, Any] = {"min": least, "max": most}
    plan = plan_from_toml(grouped(count, survivors=survivors, **sizes))
    safe = group_parameters(50, group_colluders(plan, most), 0.1)
    pair = f"neighbours = {safe.neighbours}\nthreshold = {safe.threshold}"
    text = grouped(count, survivors=survivors, extra=f"[secure_aggregation]\n{pair}\n", **sizes)
    assert plan_from_toml(text).sealing.threshold == safe.threshold


#: (document, setting, a part of the message)
REFUSED = [
    (sealed(top=GROUPED), "grouping", 'mode = "grouped" needs one; count = 2 would do'),
    (sealed(top=GROUPED, max=300), "grouping", "count = 6 would do"),
    (sealed(tables=grouping(2)), "grouping", 'mode = "sealed" has none'),
    (small(tables=grouping(2)), "grouping", 'remove .grouping., or set mode = "grouped"'),
    (grouped(1), "grouping.count", "4 would do"),
    (grouped(survivors=2), "grouping.min_survivors", "5 would do"),
    (grouped(extra="min_survivor = 5"), "grouping.min_survivor", "did you mean `min_survivors`"),
    (
        sealed(top=GROUPED, min=20, max=40, tables="[grouping]\n"),
        "grouping.count",
        "is missing; 4 would do",
    ),
    (grouped(2, max=101, min=60), "grouping.count", "too few for cohort.max = 101; at least 3"),
    (grouped(9, max=40), "cohort.target", "at least 45 would do, or fewer groups"),
    (grouped(4, survivors=11, max=40), "cohort.target", "4 groups of at least 11; at least 44"),
    (grouped(4, survivors=8, min=7), "cohort.min", "at least 8 would do"),
    # Chance fills small groups with corrupt clients.
    (
        grouped(20, min=100, max=600),
        "cohort.min",
        "of whom 10 may collude by chance.*at least 260 would do",
    ),
    (
        grouped(4, extra="[secure_aggregation]\ncorrupt_fraction = 0.4\n"),
        "grouping.count",
        "fewer groups, a smaller corrupt_fraction or a smaller dropout_fraction would do",
    ),
    (
        grouped(4, min=5, max=200),
        "grouping.min_survivors",
        "of a group of 50 clients 10 may collude.* at least 11 would do",
    ),
    (
        grouped(4, extra="[secure_aggregation]\nthreshold = 6\n"),
        "secure_aggregation.threshold",
        "is not safe: .*groups of 10 clients.* 7 would do",
    ),
    (
        grouped(4, extra="[secure_aggregation]\nneighbours = 10\n"),
        "secure_aggregation.neighbours",
        "9 would do",
    ),
    (
        grouped(4, extra='[deadlines]\ncollecting = "12h"\n'),
        "deadlines.collecting",
        "would do",
    ),
]


@pytest.mark.parametrize(("text", "setting", "pattern"), REFUSED)
def test_refused_with_the_setting_and_what_would_do(text: str, setting: str, pattern: str) -> None:
    with pytest.raises(InvalidPlan, match=pattern) as error:
        plan_from_toml(text)
    assert error.value.metadata["setting"] == setting, error.value.message
    assert error.value.message.startswith(f"{setting}: ")


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(2, 12),
    least=st.integers(5, 120),
    more=st.integers(0, 120),
    survivors=st.integers(3, 20),
    corrupt=st.sampled_from([0.0, 0.02, 0.05, 0.1]),
)
def test_an_accepted_plan_has_safe_groups_for_every_roster(
    count: int, least: int, more: int, survivors: int, corrupt: float
) -> None:
    fractions = f"[secure_aggregation]\ncorrupt_fraction = {corrupt}\n"
    try:
        plan = plan_from_toml(
            grouped(count, survivors=survivors, min=least, max=least + more, extra=fractions)
        )
    except InvalidPlan:
        assume(False)
    for roster in range(least_roster(plan), plan.cohort.max + 1):
        colluding = group_colluders(plan, roster)
        assert colluding < survivors
        for size in {roster // count, math.ceil(roster / count)}:
            safe = group_parameters(size, colluding, 0.1)
            assert 2 * safe.threshold > size + colluding


@settings(max_examples=40, deadline=None)
@given(least=st.integers(20, 40), more=st.integers(0, 30), noise=st.floats(3, 20))
def test_a_release_costs_what_the_fewest_survivors_of_a_group_leave(
    least: int, more: int, noise: float
) -> None:
    plan = plan_from_toml(private(min=least, max=least + more, noise=noise))
    encoding = validate_encoding(plan)
    terms = release_terms(plan, encoding)
    assert (terms.sensitivity, terms.distributed) == (encoding.bound_l2, True)
    assert terms.noise_multiplier == pytest.approx(noise, rel=1e-9)
    assert plan.grouping is not None
    for roster in range(least, plan.cohort.max + 1):
        corrupt = group_colluders(plan, roster)
        share = share_variance(encoding, least_survivors=5, colluders=corrupt)
        # All shares of all groups stay within the encoding's room for noise.
        assert share * (5 - corrupt) == encoding.sigma_squared
        room = (1 << (limits.WIRE_BITS - 1)) - roster * encoding.bound_l2
        assert 64 * roster * share < room**2


def test_a_group_divides_its_noise_among_fewer() -> None:
    fractions = "[secure_aggregation]\ncorrupt_fraction = 0.0\n"
    text = private(200, survivors=50, noise=0.3, min=10_000, max=10_000) + fractions
    text = text.replace("epsilon = 6.0", "epsilon = 25.0")
    validate_encoding(plan_from_toml(text))
    # A sealed round of the same size divides the same noise among ten thousand.
    whole = text.replace(f"{GROUPED}\n", "").replace(grouping(200, min_survivors=50), "")
    with pytest.raises(InvalidPlan, match="noise_multiplier: "):
        validate_encoding(plan_from_toml(whole))
