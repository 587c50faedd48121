"""A plan's budget and a mesh's policy: every wrong setting is named, with a value that would do."""

from __future__ import annotations

import math
import re
from datetime import date
from typing import Any

import pytest
import tomli_w

from boltz_mesh.privacy.budget import Budget
from boltz_mesh.rounds.plan import (
    Plan,
    example_plan,
    plan_from_json,
    plan_from_toml,
    plan_to_json,
    plan_to_toml_table,
    validate_encoding,
)
from boltz_mesh.rounds.plan_policy import (
    PrivacyPolicy,
    check_not_past,
    check_policy,
    privacy_policy,
)
from boltz_mesh.rounds.plan_sealed import release_terms
from boltz_protocol.errors import ConfigurationError, InvalidPlan
from tests.unit.plan.documents import private_sealed, small

PERIOD = 'unit = "client-period"\nstart = 2026-10-01\nend = 2027-01-01\n'


def with_budget(text: str, *, noise: float = 4.0, epsilon: str = "6.0", delta: str = "1e-6") -> str:
    budget = f"[budget]\nepsilon = {epsilon}\ndelta = {delta}\n{text}"
    plan = small(top=f"noise_multiplier = {noise!r}", tables=budget)
    return plan.replace('privacy = "none"', 'privacy = "client-dp"')


def test_a_budget_of_a_period_is_kept_and_shown() -> None:
    plan = plan_from_toml(with_budget(PERIOD))
    budget = Budget(6.0, 1e-6, "client-period", date(2026, 10, 1), date(2027, 1, 1))
    assert plan.budget == budget
    assert plan_from_json(plan_to_json(plan)) == plan
    assert plan_from_toml(tomli_w.dumps(plan_to_toml_table(plan))) == plan
    terms = release_terms(plan, validate_encoding(plan))
    event = terms.event(model="m", round="r", attempt=1, client="c")
    assert (event.unit, event.period) == ("client-period", "2026-10-01/2027-01-01")


def test_a_plan_from_before_there_were_periods_is_for_whole_clients() -> None:
    stored = plan_to_json(plan_from_toml(example_plan()))
    old = re.sub(rb',"end":null|,"start":null|,"unit":"client"', b"", stored)
    assert old != stored
    assert plan_from_json(old) == plan_from_json(stored)


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        (with_budget("", epsilon="0.0"), "budget.epsilon"),
        (with_budget("", epsilon="-2.0"), "budget.epsilon"),
        (with_budget("", epsilon="nan"), "budget.epsilon"),
        (with_budget("", epsilon="inf"), "budget.epsilon"),
        (with_budget("", epsilon='"two"'), "budget.epsilon"),
        (with_budget("", delta="0.0"), "budget.delta"),
        (with_budget("", delta="-1e-6"), "budget.delta"),
        (with_budget("", delta="nan"), "budget.delta"),
        (with_budget("", delta="0.2"), "budget.delta"),  # above one over eight clients
        (with_budget("", noise=-1.0), "noise_multiplier"),
        (with_budget("", noise=0.0), "noise_multiplier"),
        (with_budget("", noise=math.nan), "noise_multiplier"),
        (with_budget("", noise=math.inf), "noise_multiplier"),
        (with_budget("", noise=0.5), "noise_multiplier"),  # one round is over the budget
        (with_budget('unit = "trade"\n'), "budget.unit"),
        (with_budget('unit = "client-period"\n'), "budget.start"),
        (with_budget('unit = "client-period"\nstart = 2026-10-01\n'), "budget.end"),
        (with_budget("start = 2026-10-01\nend = 2026-10-01\n"), "budget.end"),
        (with_budget('start = "autumn"\n'), "budget.start"),
        (with_budget("end = 2027\n"), "budget.end"),
        (with_budget("end = 2027-01-01T00:00:00Z\n"), "budget.end"),
    ],
)
def test_what_is_wrong_is_named_and_what_would_do(text: str, setting: str) -> None:
    with pytest.raises(InvalidPlan, match="would do") as refused:
        plan_from_toml(text)
    named = refused.value.metadata.get("setting", refused.value.message)
    assert setting in named


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        (with_budget("end = 2026-11-24\n"), "budget.end"),
        (with_budget(PERIOD.replace("2026-10", "2025-10").replace("2027", "2026")), "budget.end"),
    ],
)
def test_a_budget_in_the_past(text: str, setting: str) -> None:
    with pytest.raises(InvalidPlan, match=r"is past.*2027-11-24 would do") as refused:
        check_not_past(plan_from_toml(text), date(2026, 11, 24))
    assert refused.value.metadata["setting"] == setting


@pytest.mark.parametrize("text", [small(), with_budget(""), with_budget("end = 2026-11-25\n")])
def test_a_budget_that_has_days_left(text: str) -> None:
    check_not_past(plan_from_toml(text), date(2026, 11, 24))


# --- the mesh's policy ---------------------------------------------------------------------------

SPANNING = PrivacyPolicy(client_budget=Budget(3.0, 1e-6))


def told(plan: Plan, policy: PrivacyPolicy) -> InvalidPlan:
    with pytest.raises(InvalidPlan, match="would do") as refused:
        check_policy(plan, policy)
    return refused.value


def test_noise_may_not_be_off_in_production() -> None:
    plan = plan_from_toml(small())
    check_policy(plan, PrivacyPolicy())
    error = told(plan, PrivacyPolicy(production=True))
    assert error.metadata["setting"] == "privacy"
    assert "privacy.production" in error.message
    assert '"client-dp"' in error.message
    check_policy(plan_from_toml(with_budget("")), PrivacyPolicy(production=True))


def test_noise_may_not_be_off_where_clients_have_a_budget() -> None:
    error = told(plan_from_toml(small()), SPANNING)
    assert error.metadata["setting"] == "privacy"
    assert "privacy.client_epsilon" in error.message


@pytest.mark.parametrize("sealed", [False, True])
def test_one_round_must_fit_a_clients_budget(sealed: bool) -> None:
    def plan(noise: float) -> Plan:
        return plan_from_toml(private_sealed(noise) if sealed else with_budget("", noise=noise))

    error = told(plan(1.2), SPANNING)
    assert error.metadata["setting"] == "noise_multiplier"
    found = re.search(r"([0-9.]+) would do", error.message)
    assert found is not None
    check_policy(plan(float(found[1])), SPANNING)


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ({"client_epsilon": 0.0}, "privacy.client_epsilon"),
        ({"client_epsilon": -1.0}, "privacy.client_epsilon"),
        ({"client_epsilon": math.nan}, "privacy.client_epsilon"),
        ({"client_epsilon": math.inf}, "privacy.client_epsilon"),
        ({"client_delta": 0.0}, "privacy.client_delta"),
        ({"client_delta": math.nan}, "privacy.client_delta"),
        ({"client_delta": 1e-3}, "privacy.client_delta"),
    ],
)
def test_a_policy_that_promises_nothing(change: dict[str, Any], setting: str) -> None:
    good: dict[str, Any] = {"production": False, "client_epsilon": 8.0, "client_delta": 1e-6}
    assert privacy_policy(**good) == PrivacyPolicy(False, Budget(8.0, 1e-6))
    with pytest.raises(ConfigurationError, match="would do") as refused:
        privacy_policy(**(good | change))
    assert refused.value.metadata["setting"] == setting


def test_no_budget_over_models_unless_one_is_set() -> None:
    policy = privacy_policy(production=True, client_epsilon=None, client_delta=1e-6)
    assert policy == PrivacyPolicy(production=True)
