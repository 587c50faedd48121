"""The rule in a plan: what goes with it, and the one way from it to noise, holds and ledger."""

from __future__ import annotations

from fractions import Fraction

import pytest

from boltz_mesh.aggregation.centered_step import CenteredClipping
from boltz_mesh.aggregation.weighted_mean import WEIGHTED_MEAN
from boltz_mesh.rounds.plan import plan_from_json, plan_from_toml, plan_to_json, validate_encoding
from boltz_mesh.rounds.plan_rule import calibration_of, sum_rule_of
from boltz_mesh.rounds.plan_sealed import release_terms
from boltz_protocol import limits
from boltz_protocol.errors import InvalidPlan
from tests.unit.plan.documents import private_sealed, sealed, small

CENTERED = 'rule = "centered-clipping"'
BUDGET = "[budget]\nepsilon = 6.0\ndelta = 1e-6\n"


def private(top: str = "", noise: float = 4.0, least: int = 20, size: int = 6) -> str:
    """An open plan with noise and a cohort large enough to centre on."""
    text = small(top=f"noise_multiplier = {noise}\n{top}", tables=BUDGET)
    return (
        text.replace('"none"', '"client-dp"')
        .replace("min = 2", f"min = {least}")
        .replace("target = 4", f"target = {least}")
        .replace("max = 8", f"max = {least}")
        .replace("[3, 2]", f"[{size}]")
    )


def test_the_weighted_mean_is_calibrated_to_the_bound() -> None:
    plan = plan_from_toml(private())
    encoding = validate_encoding(plan)
    assert sum_rule_of(plan, encoding) is WEIGHTED_MEAN
    assert calibration_of(plan, encoding).sensitivity == encoding.bound_l2
    assert plan.centered_radius is None


def test_centered_clipping_is_calibrated_to_its_radius() -> None:
    plan = plan_from_toml(private(f"{CENTERED}\ncentered_radius = 0.25"))
    encoding = validate_encoding(plan)
    rule = sum_rule_of(plan, encoding)
    assert isinstance(rule, CenteredClipping)
    calibration = calibration_of(plan, encoding)
    assert calibration.sensitivity == rule.terms.bound_l2
    assert 0.25 <= calibration.sensitivity / encoding.bound_l2 < 0.251
    assert calibration.sigma_squared == (Fraction(4.0) * rule.terms.bound_l2) ** 2
    # The ledger says what the noise is for, and the same epsilon buys a quarter of the noise.
    event = release_terms(plan, encoding).event(model="m", round="r", attempt=1, client="c")
    assert event.sensitivity == calibration.sensitivity
    assert event.noise_multiplier == calibration.noise_multiplier == 4.0
    assert event.mechanism == "discrete-gaussian"


def test_the_radius_is_stored_so_that_no_default_changes_it() -> None:
    plan = plan_from_toml(private(CENTERED))
    assert plan.centered_radius == 0.5
    assert plan_from_json(plan_to_json(plan)) == plan


def test_without_noise_the_rule_costs_no_epsilon_and_takes_any_model() -> None:
    plan = plan_from_toml(small(top=CENTERED).replace("[3, 2]", "[1000, 1000]"))
    assert calibration_of(plan, validate_encoding(plan)).sigma_squared == 0


def test_clients_of_a_sealed_plan_calibrate_to_the_same_bound() -> None:
    plan = plan_from_toml(private_sealed())
    encoding = validate_encoding(plan)
    assert release_terms(plan, encoding).sensitivity == encoding.bound_l2


# (document, setting, a part of the message that says what would do)
REFUSED = [
    (small(top="centered_radius = 0.5"), "centered_radius", 'or set rule = "centered-clipping"'),
    (sealed(top=CENTERED), "rule", '"weighted-mean" would do, or mode = "open"'),
    (
        small(top=CENTERED, tables="[server_optimizer]\nname = 'fedadam'"),
        "server_optimizer.name",
        '"fedavg" would do',
    ),
    (small(top=f"{CENTERED}\ncentered_radius = 0"), "centered_radius", "0.5 would do"),
    (small(top=f"{CENTERED}\ncentered_radius = 1.5"), "centered_radius", "0.5 would do"),
    (small(top=f"{CENTERED}\ncentered_radius = nan"), "centered_radius", "would do"),
    (small(top=f"{CENTERED}\ncentered_radius = 'wide'"), "centered_radius", "0.5 would do"),
    (
        small(top=CENTERED).replace("clip_norm = 1.0", f"clip_norm = {limits.MIN_CLIP_NORM}"),
        "centered_radius",
        "1.0 would do",
    ),
    (small(top=CENTERED, tables="[adaptive_clipping]"), "rule", "or no [adaptive_clipping]"),
    # 4 * sqrt(100) = 40 clients would have to share the noise of a mean.
    (private(CENTERED, size=100), "rule", "cohort.min = 40 would do"),
]


@pytest.mark.parametrize(("text", "setting", "would_do"), REFUSED)
def test_what_does_not_go_with_the_rule(text: str, setting: str, would_do: str) -> None:
    with pytest.raises(InvalidPlan) as error:
        plan_from_toml(text)
    assert error.value.metadata["setting"] == setting
    assert error.value.message.startswith(f"{setting}: ")
    assert would_do in error.value.message


def test_what_would_do_does() -> None:
    plan_from_toml(private(CENTERED, size=100, least=40))
    tight = small(top=f"{CENTERED}\ncentered_radius = {{}}").replace("[3, 2]", "[10000000]")
    tight = tight.replace("max = 8", "max = 900")
    with pytest.raises(InvalidPlan, match="mostly rounding error") as error:
        validate_encoding(plan_from_toml(tight.format(0.1)))
    assert error.value.metadata["setting"] == "centered_radius"
    would_do = float(error.value.message.rsplit("; ", 1)[1].split()[0])
    assert 0.1 < would_do <= 1.0
    plan = plan_from_toml(tight.format(would_do))
    terms = CenteredClipping.of(validate_encoding(plan), would_do).terms
    assert terms.bound_l2 <= 1.25 * terms.clip_units
