"""What an audit may be asked for, and the plans that follow."""

from __future__ import annotations

import math

import pytest

from boltz_mesh.app.cli.root import run
from boltz_mesh.app.privacy_audit.options import DELTA, AuditMode, AuditOptions
from boltz_mesh.app.privacy_audit.plans import Noise, trial_plan
from boltz_mesh.privacy import accountant
from boltz_mesh.rounds.plan import TensorSpec, plan_from_toml, validate_encoding
from boltz_mesh.rounds.plan_sealed import release_terms
from boltz_protocol.errors import ConfigurationError

TENSORS = (TensorSpec(name="weights", shape=(256,)),)


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"epsilon": 0.0}, "--epsilon"),
        ({"epsilon": -1.0}, "--epsilon"),
        ({"epsilon": math.nan}, "--epsilon"),
        ({"epsilon": math.inf}, "--epsilon"),
        ({"epsilon": 12.5}, "--epsilon"),
        ({"canaries": 2}, "--canaries"),
        ({"canaries": 33}, "--canaries"),
        ({"trials": 0}, "--trials"),
        ({"trials": 5001}, "--trials"),
        ({"trials": 2}, "--trials"),
    ],
)
def test_what_cannot_be_audited_is_refused(options: dict[str, float], setting: str) -> None:
    with pytest.raises(ConfigurationError, match="would do") as refused:
        AuditOptions(**options)  # type: ignore[arg-type]
    assert refused.value.metadata["setting"] == setting


def test_the_least_number_of_trials_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"200 would do, at least (\d+)") as refused:
        AuditOptions(canaries=4, trials=2)
    least = int(refused.value.message.rpartition(" ")[2])
    AuditOptions(canaries=4, trials=least)
    with pytest.raises(ConfigurationError):
        AuditOptions(canaries=4, trials=least - 1)


def test_a_refusal_is_a_usage_error_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["privacy", "audit", "--epsilon", "0"]) == 2
    assert "--epsilon 0" in capsys.readouterr().err


def test_a_mode_that_does_not_exist_is_a_usage_error() -> None:
    assert run(["privacy", "audit", "--mode", "grouped"]) == 2


def test_the_command_is_told() -> None:
    assert AuditOptions().command() == "boltz-mesh privacy audit"
    told = AuditOptions(mode="open", epsilon=4.5, trials=100).command()
    assert told == "boltz-mesh privacy audit --mode open --epsilon 4.5 --trials 100"


@pytest.mark.parametrize("mode", ["open", "sealed"])
def test_one_round_costs_the_epsilon_that_was_asked_for(mode: AuditMode) -> None:
    options = AuditOptions(mode=mode)
    text = trial_plan("audit-1", mode, TENSORS, 8, Noise(options.noise_multiplier, 5.0))
    plan = plan_from_toml(text)
    terms = release_terms(plan, validate_encoding(plan))
    spent = accountant.epsilon(terms.noise_multiplier, 1, delta=DELTA)
    # Not above, or the round would be refused; hardly below, or another figure is audited.
    assert 5.0 - 1e-6 < spent <= 5.0
    # All clients must be in the sum: the shares of all make up the noise.
    assert plan.cohort.min == plan.cohort.max == 8


@pytest.mark.parametrize("mode", ["open", "sealed"])
def test_a_plan_without_noise_promises_nothing(mode: AuditMode) -> None:
    plan = plan_from_toml(trial_plan("audit-1", mode, TENSORS, 3, None))
    assert (plan.privacy, plan.noise_multiplier, plan.budget) == ("none", 0.0, None)
