"""Robust rules in a plan: where they may run, how many rows they need, what the default is."""

from __future__ import annotations

from typing import get_args

import pytest

from boltz_mesh.aggregation.robust import MultiKrum
from boltz_mesh.aggregation.weighted_mean import WEIGHTED_MEAN
from boltz_mesh.rounds.plan import (
    plan_from_json,
    plan_from_toml,
    plan_to_json,
    plan_to_toml_table,
    validate_encoding,
)
from boltz_mesh.rounds.plan_robust import RobustChoice, defence, fewest_groups, robust_choice
from boltz_mesh.rounds.plan_rule import calibration_of, sum_rule_of
from boltz_mesh.rounds.plan_sealed import release_terms
from boltz_mesh.rounds.plan_types import RobustRuleName
from boltz_protocol.errors import InvalidPlan, TooFewClients
from tests.unit.plan.documents import private_sealed, sealed, small
from tests.unit.plan.test_plan_grouped import GROUPED, grouped, grouping

ROBUST = get_args(RobustRuleName)
COUNTING = ("mixed-trimmed-mean", "trimmed-mean", "multi-krum")
BUDGET = "[budget]\nepsilon = 6.0\ndelta = 1e-6\n"


def opened(top: str, *, least: int = 5, most: int = 8) -> str:
    text = small(top=top).replace("min = 2", f"min = {least}")
    return text.replace("target = 4", f"target = {least}").replace("max = 8", f"max = {most}")


def noised(top: str) -> str:
    text = small(top=f"noise_multiplier = 4.0\n{top}", tables=BUDGET)
    text = text.replace('"none"', '"client-dp"').replace("min = 2", "min = 10")
    return text.replace("target = 4", "target = 10").replace("max = 8", "max = 10")


def private_groups(top: str, count: int = 4) -> str:
    text = private_sealed(min=20, max=40, tables=grouping(count))
    return text.replace('model = "m"', f'model = "m"\n{GROUPED}\n{top}')


def in_groups(top: str, count: int = 4) -> str:
    text = grouped(count, min=20, max=40) if count < 9 else grouped(count, min=5 * count, max=400)
    return text.replace('model = "m"', f'model = "m"\n{top}')


# --- defaults -----------------------------------------------------------------------------------


def test_a_plan_that_says_nothing_is_as_it_was() -> None:
    for text in (small(), sealed(), grouped(), noised("")):
        plan = plan_from_toml(text)
        assert (plan.rule, plan.byzantine, fewest_groups(plan)) == ("weighted-mean", 0, 0)
        assert robust_choice(plan) is None


@pytest.mark.parametrize(
    "text", [opened("byzantine = 2"), in_groups("byzantine = 1"), private_groups("byzantine = 1")]
)
def test_who_names_liars_and_no_rule_gets_mixing_and_trimming(text: str) -> None:
    plan = plan_from_toml(text)
    assert plan.rule == "mixed-trimmed-mean"
    # It is stored by name, so that no later default changes it.
    assert plan_to_toml_table(plan)["rule"] == "mixed-trimmed-mean"
    assert plan_from_json(plan_to_json(plan)) == plan


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("make", [opened, in_groups, private_groups])
def test_a_rule_that_is_named_is_taken(make: object, rule: str) -> None:
    assert callable(make)
    text = make(f'rule = "{rule}"\nbyzantine = 1')
    if rule == "multi-krum":
        text = text.replace("count = 4", "count = 5").replace("min = 20", "min = 25")
    plan = plan_from_toml(text)
    assert plan.rule == rule
    choice = robust_choice(plan)
    assert choice is not None
    fewest = 5 if rule == "multi-krum" else 3
    assert choice.fewest_rows == fewest
    assert fewest_groups(plan) == (fewest if plan.mode == "grouped" else 0)
    made = choice.of(7)
    assert made.name == rule
    assert made.minimum_clients <= 7
    with pytest.raises(TooFewClients) as error:
        choice.of(fewest - 1)
    assert error.value.metadata == {"setting": "byzantine", "rule": rule, "minimum": str(fewest)}


def test_krum_averages_as_many_as_may_be_honest() -> None:
    rule = RobustChoice("multi-krum", 2).of(9)
    assert isinstance(rule, MultiKrum)
    assert rule.select == 7


@pytest.mark.parametrize("rule", ["coordinate-median", "geometric-median"])
def test_a_median_needs_no_number_of_liars(rule: str) -> None:
    plan = plan_from_toml(opened(f'rule = "{rule}"', least=1, most=2))
    choice = robust_choice(plan)
    assert choice is not None
    assert (choice.name, choice.byzantine, choice.fewest_rows) == (rule, 0, 1)
    assert choice.of(1).minimum_clients == 1


# --- noise and sums -----------------------------------------------------------------------------


def test_clients_of_groups_calibrate_to_their_sum_whatever_is_done_with_it() -> None:
    plan = plan_from_toml(private_groups("byzantine = 1"))
    encoding = validate_encoding(plan)
    assert sum_rule_of(plan, encoding) is WEIGHTED_MEAN
    assert calibration_of(plan, encoding).sensitivity == encoding.bound_l2
    plain = plan_from_toml(private_groups(""))
    assert release_terms(plan, encoding) == release_terms(plain, encoding)


def test_a_robust_open_round_promises_nothing() -> None:
    plan = plan_from_toml(opened("byzantine = 2"))
    calibration = calibration_of(plan, validate_encoding(plan))
    assert calibration.noise_multiplier == calibration.sigma_squared == 0


# --- refusals -----------------------------------------------------------------------------------

#: (document, setting, a part of the message that says what would do)
REFUSED = [
    # The number of liars where nobody is left out.
    (sealed(top="byzantine = 1"), "byzantine", '0 would do, or mode = "grouped"'),
    (noised("byzantine = 1"), "byzantine", '0 would do, or privacy = "none"'),
    (
        noised('byzantine = 1\nrule = "centered-clipping"'),
        "byzantine",
        '0 would do, or privacy = "none"',
    ),
    (
        opened('byzantine = 1\nrule = "weighted-mean"'),
        "byzantine",
        '0 would do, or rule = "mixed-trimmed-mean"',
    ),
    (
        opened('byzantine = 1\nrule = "centered-clipping"'),
        "byzantine",
        '0 would do, or rule = "mixed-trimmed-mean"',
    ),
    (
        in_groups('byzantine = 1\nrule = "weighted-mean"'),
        "byzantine",
        '0 would do, or rule = "mixed-trimmed-mean"',
    ),
    (opened("byzantine = -1"), "byzantine", "1 would do"),
    (opened("byzantine = 128"), "byzantine", "1 would do"),
    (opened("byzantine = true"), "byzantine", "1 would do"),
    (opened('byzantine = "few"'), "byzantine", "1 would do"),
    # The rule where it may not run.
    *(
        (sealed(top=f'rule = "{rule}"\nbyzantine = 1'), "rule", '"weighted-mean" would do')
        for rule in ROBUST
    ),
    *(
        (
            noised(f'rule = "{rule}"\nbyzantine = 1'),
            "rule",
            '"weighted-mean" or "centered-clipping" would do, or privacy = "none"',
        )
        for rule in ROBUST
    ),
    (
        opened("byzantine = 2") + "[adaptive_clipping]\n",
        "rule",
        '"weighted-mean" would do, or no [adaptive_clipping]',
    ),
    (
        in_groups("byzantine = 1") + "[adaptive_clipping]\n",
        "rule",
        '"weighted-mean" would do, or no [adaptive_clipping]',
    ),
    (opened('byzantine = 1\nrule = "median"'), "rule", '"weighted-mean" would do'),
    (opened("byzantine = 1\ncentered_radius = 0.5"), "centered_radius", "remove it"),
    # Too few rows, or too many.
    *((opened(f'rule = "{rule}"'), "byzantine", "1 would do") for rule in COUNTING),
    (opened("byzantine = 3"), "cohort.min", "at least 7 would do"),
    (opened('byzantine = 2\nrule = "coordinate-median"', least=4), "cohort.min", "at least 5"),
    (opened('byzantine = 2\nrule = "multi-krum"', least=6), "cohort.min", "at least 7 would do"),
    (in_groups("byzantine = 2"), "grouping.count", "at least 5 would do"),
    (in_groups('byzantine = 1\nrule = "multi-krum"'), "grouping.count", "at least 5 would do"),
    (opened("byzantine = 2", most=257), "cohort.max", "at most 256 would do"),
]


@pytest.mark.parametrize(("text", "setting", "would_do"), REFUSED)
def test_what_does_not_go_together_is_refused_by_name(
    text: str, setting: str, would_do: str
) -> None:
    with pytest.raises(InvalidPlan) as error:
        plan_from_toml(text)
    assert error.value.metadata["setting"] == setting
    assert error.value.message.startswith(f"{setting}: ")
    assert would_do in error.value.message


def test_what_would_do_does() -> None:
    plan_from_toml(opened("byzantine = 3", least=7))
    plan_from_toml(opened('byzantine = 2\nrule = "multi-krum"', least=7))
    plan_from_toml(opened("byzantine = 2", most=256))
    plan_from_toml(in_groups("byzantine = 2", count=5).replace("min = 20", "min = 25"))


def test_more_groups_than_can_be_compared_are_refused() -> None:
    nobody = "[secure_aggregation]\ncorrupt_fraction = 0.0\ndropout_fraction = 0.0\n"
    text = grouped(257, min=1285, max=1300, extra=nobody)
    text = text.replace('"m"', '"m"\nbyzantine = 1', 1)
    with pytest.raises(InvalidPlan, match="at most 256 would do") as error:
        plan_from_toml(text)
    assert error.value.metadata["setting"] == "grouping.count"


def test_a_sealed_plan_is_told_all_that_it_has() -> None:
    for top in ("byzantine = 1", 'rule = "trimmed-mean"\nbyzantine = 1'):
        with pytest.raises(InvalidPlan) as error:
            plan_from_toml(sealed(top=top))
        for part in ("one sum", "clip in each client", "integer bound", "range check of the sum"):
            assert part in error.value.message


# --- what an operator is told, and what a round is fixed to -------------------------------------


def test_what_stands_against_liars_is_said_plainly() -> None:
    assert defence("sealed", "weighted-mean") == (
        "in sealed rounds the server sees one sum: the clip in each client, the integer bound and "
        "the range check of the sum are all that stands against a client that lies"
    )
    assert "range check of each group's sum are all" in defence("grouped", "weighted-mean")
    assert "compares the groups' sums" in defence("grouped", "mixed-trimmed-mean")
    assert "compares the clients' updates" in defence("open", "trimmed-mean")
    for rule in ("weighted-mean", "centered-clipping"):
        assert "keeps its weight" in defence("open", rule)
