"""The command line becomes a study, or a refusal that names the option and what would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boltz_mesh.app.demo.settings import PRESET_60, PRESET_300, QUARTERS_3, TWO_YEARS, Calendar
from boltz_mesh.app.simulate.attacks.library import ATTACKS
from boltz_mesh.app.simulate.options import SimulateOptions, Study, layout_of, rules_of, study_for
from boltz_mesh.privacy import accountant
from boltz_protocol.errors import ConfigurationError

STOCKS = tuple(f"S{i}" for i in range(20))
CALENDAR = Calendar((1991, 1998), tuple(range(1999, 2023)), tuple(range(1999, 2009)))


def study(**options: Any) -> Study:
    options.setdefault("attack", "sign-flip")
    return study_for(SimulateOptions(**options), STOCKS, CALENDAR)


def test_the_default_is_twenty_clients_of_which_four_attack() -> None:
    made = study()
    (scenario,) = made.scenarios
    assert (scenario.mode, scenario.rule, scenario.kind) == ("open", "mixed-trimmed-mean", "mlp")
    assert (scenario.clients, scenario.attackers, scenario.rounds) == (20, 4, 20)
    assert (scenario.groups, scenario.noised) == (0, False)
    assert scenario.layout == TWO_YEARS
    assert scenario.sample_bucket_cap == 8  # 490 rows
    assert made.origins == (2019, 2020, 2021, 2022)
    assert made.seeds == (1, 2, 3)
    assert [attack.name for attack in made.attacks] == ["sign-flip"]


def test_grouped_is_sixty_clients_in_twelve_groups() -> None:
    (scenario,) = study(mode="grouped").scenarios
    assert (scenario.clients, scenario.groups, scenario.rows) == (60, 12, 12)
    assert scenario.layout.kept_rows == 158
    assert scenario.fewest == 45
    assert scenario.groups_for(60) == 12
    assert scenario.groups_for(56) == 11


def test_linear_with_noise_is_the_demo_s_preset_at_its_epsilon() -> None:
    (scenario,) = study(model="linear", epsilon=2.0).scenarios
    assert (scenario.clients, scenario.rounds, scenario.rule) == (60, 4, "weighted-mean")
    assert scenario.layout == QUARTERS_3
    assert scenario.preset.clip_norm_l2 == PRESET_60.clip_norm_l2
    noise = scenario.preset.noise_multiplier
    assert noise == accountant.noise_multiplier_for(2.0, 4, 1e-5)
    (grouped,) = study(model="linear", mode="grouped", epsilon=1.0).scenarios
    assert (grouped.clients, grouped.groups, grouped.rule) == (300, 12, "mixed-trimmed-mean")
    assert grouped.preset.noise_multiplier == pytest.approx(PRESET_300.noise_multiplier, abs=0.01)
    (bare,) = study(model="linear").scenarios
    assert not bare.noised
    assert bare.rule == "mixed-trimmed-mean"


def test_more_rounds_take_more_noise() -> None:
    (scenario,) = study(model="linear", epsilon=2.0, rounds=16).scenarios
    assert scenario.rounds == 16
    assert accountant.epsilon(scenario.preset.noise_multiplier, 16, delta=1e-5) <= 2.0


def test_a_matrix_is_all_attacks_under_all_rules_of_the_mode() -> None:
    made = study_for(SimulateOptions(matrix=True, mode="grouped"), STOCKS, CALENDAR)
    assert made.attacks == ATTACKS
    rules = [scenario.rule for scenario in made.scenarios]
    assert rules[0] == "mixed-trimmed-mean"
    assert rules[-1] == "weighted-mean"
    assert len(rules) == 6


def test_a_matrix_leaves_out_a_rule_that_asks_for_more_groups() -> None:
    made = study_for(SimulateOptions(matrix=True, mode="grouped", groups=9), STOCKS, CALENDAR)
    rules = [scenario.rule for scenario in made.scenarios]
    assert len(rules) == 5
    assert "multi-krum" not in rules
    with pytest.raises(ConfigurationError, match="8 groups under mixed-trimmed-mean"):
        study_for(SimulateOptions(matrix=True, mode="grouped", groups=8), STOCKS, CALENDAR)


def test_the_rules_of_each_mode() -> None:
    assert rules_of("sealed", noised=False) == rules_of("sealed", noised=True) == ("weighted-mean",)
    assert rules_of("open", noised=True) == ("weighted-mean", "centered-clipping")
    assert len(rules_of("open", noised=False)) == 7
    assert "centered-clipping" not in rules_of("grouped", noised=False)


def test_a_broker_s_two_years_are_cut_without_a_shared_label() -> None:
    assert layout_of(1) == TWO_YEARS
    third = layout_of(3)
    assert (third.per_broker, third.block_rows, third.kept_rows) == (3, 163, 158)


def test_the_command_that_asks_for_the_same() -> None:
    options = SimulateOptions(
        mode="grouped", matrix=True, data=Path("my prices"), sample_bucket_cap=10
    )
    assert options.command() == (
        "boltz-mesh simulate --mode grouped --sample-bucket-cap 10 --data 'my prices' --matrix"
    )


@pytest.mark.parametrize(
    ("options", "setting", "words"),
    [
        ({"attack": None}, "--attack", "is missing: give one of sign-flip, "),
        ({"attack": "signflip"}, "--attack", "'signflip' is none: give one of sign-flip, "),
        ({"matrix": True}, "--attack", "does not go with --matrix"),
        (
            {"matrix": True, "attack": None, "rule": "trimmed-mean"},
            "--rule",
            "does not go with --matrix",
        ),
        ({"attackers": 0}, "--attackers", "withstand 1 to 9; 4 would do"),
        ({"attackers": 10}, "--attackers", "20 clients under mixed-trimmed-mean withstand 1 to 9"),
        ({"attackers": 9, "rule": "multi-krum"}, "--attackers", "withstand 1 to 8; 4 would do"),
        ({"attackers": 10, "mode": "sealed"}, "--attackers", "weighted-mean withstand 1 to 9"),
        ({"attackers": 6, "mode": "grouped"}, "--attackers", "12 groups under .* 1 to 5; 4 would"),
        ({"groups": 4}, "--groups", "in mode open there are none; leave it out"),
        ({"groups": 13, "mode": "grouped"}, "--groups", "and there are 60; 2 to 12 would do"),
        ({"groups": 1, "mode": "grouped"}, "--groups", "2 to 12 would do"),
        ({"mode": "grouped", "clients": 20, "groups": 5}, "--groups", "2 to 4 would do"),
        ({"clients": 30}, "--clients", "give a multiple of the 20 stocks.*20 or 60 would do"),
        ({"clients": 260}, "--clients", "at most 240"),
        ({"clients": 0}, "--clients", "give a multiple"),
        ({"clients": 50, "model": "linear"}, "--clients", "give a multiple of the 20 stocks"),
        ({"epsilon": 2.0}, "--epsilon", "--model linear would do"),
        ({"epsilon": 0.0, "model": "linear"}, "--epsilon", "give a number above 0"),
        ({"epsilon": float("nan"), "model": "linear"}, "--epsilon", "give a number above 0"),
        ({"epsilon": 99.0, "model": "linear"}, "--epsilon", "at most 20"),
        (
            {"epsilon": 2.0, "model": "linear", "rule": "trimmed-mean"},
            "--rule",
            "mode open with noise does not take it; weighted-mean or centered-clipping would do",
        ),
        ({"mode": "sealed", "rule": "trimmed-mean"}, "--rule", "mode sealed does not take it"),
        ({"mode": "grouped", "rule": "centered-clipping"}, "--rule", "mode grouped does not"),
        ({"rounds": 0}, "--rounds", "give 1 to 200"),
        ({"rounds": 201}, "--rounds", "give 1 to 200"),
        ({"seed": -1}, "--seed", "give 0 to"),
        ({"sample_bucket_cap": 32}, "--sample-bucket-cap", "give 0 to 31"),
        # A group in which as many may collude as there are has no noise that anybody hides in.
        (
            {"mode": "grouped", "model": "linear", "epsilon": 2.0, "clients": 1000, "groups": 200},
            "--groups",
            "no plan is like that",
        ),
        (
            {"model": "linear", "epsilon": 0.01, "rounds": 200},
            "--epsilon",
            "no plan is like that",
        ),
    ],
)
def test_refusals(options: dict[str, Any], setting: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as refused:
        study(**options)
    assert refused.value.metadata["setting"] == setting
    assert refused.value.message.startswith(setting)
